"""DDPG on Pendulum with a tutorial's settings: target networks that follow softly, and ones that are copied at times.

The first 50 episodes fill the memory with uniformly random actions. Returns are those of training, with the noise that
is left.
"""

from __future__ import annotations

import numpy as np

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common
from treadle.settings import preset

LIMIT, EPISODES, FILLING, WINDOW, LATE, WATCHED = 200, 200, 50, 10, 50, -300
"""Steps of an episode; episodes, how many fill the memory, of how many returns are the mean, and by how many last ones
they are compared; the return that the tutorial watches for."""
SOFT, HARD = "soft, tau 0.01", "hard, every 600 and 500"
PRESETS = {SOFT: "tutorial", HARD: "tutorial-hard"}
COLOURS = {SOFT: figures.BLUE, HARD: figures.VERMILLION}


def first_above(outcomes, label):
    """The episode by which the mean return of ten is above -300 for the first time, none of the ten being one that
    filled the memory `[S]`; infinite where it never is."""
    above = common.smoothed(outcomes[label].returns, WINDOW) > WATCHED
    above[:, : FILLING + WINDOW - 1] = False
    return common.first_time(above)


def reaches(label):
    def judge(outcomes):
        first = first_above(outcomes, label)
        return Verdict(bool(np.isfinite(first).all()), common.share_told(first))

    return judge


def soft_is_sooner(outcomes):
    soft, hard = (-np.minimum(first_above(outcomes, label), EPISODES + 1) for label in PRESETS)
    return Verdict(common.is_better(soft, hard), common.verdict(("soft", "hard"), soft, hard))


def soft_is_better(outcomes):
    soft, hard = (outcomes[label].returns[:, -LATE:].mean(axis=1) for label in PRESETS)
    told = f"mean return soft {soft.mean():.0f}, hard {hard.mean():.0f}"
    return Verdict(common.is_better(soft, hard), f"{told}; {common.verdict(('soft', 'hard'), soft, hard)}")


def draw(figure, outcomes):
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for x, (label, colour) in enumerate(COLOURS.items()):
        returns = outcomes[label].returns
        common.median_curve(left, np.arange(1, EPISODES + 1), common.smoothed(returns, WINDOW), colour, label)
        late = np.sort(returns[:, -LATE:].mean(axis=1))
        right.plot(x + np.linspace(-0.25, 0.25, len(late)), late, "o", color=colour, markersize=3)
    for axes in (left, right):
        axes.axhline(WATCHED, color=figures.GREY, linestyle="--", linewidth=1)
        axes.set_ylim(top=0)
    left.axvspan(0, FILLING, color=figures.GRID, alpha=0.6, linewidth=0)
    title = f"Mean return of {WINDOW} episodes: median of the seeds, and middle half"
    figures.dress(left, title, "episode", "return")
    left.text(FILLING / 2, left.get_ylim()[0], "memory fills", ha="center", va="bottom", fontsize=8, color=figures.GREY)
    figures.dress(right, f"Each seed, last {LATE} episodes", "", "")
    right.set_xticks(range(2), ["soft", "hard"])


EXPERIMENT = Experiment(
    about="DDPG swings the pendulum up with soft and with hard copies for targets",
    source="a tutorial's settings; Lillicrap et al. (2016)",
    trials=tuple(
        Trial.of_preset(label, preset("ddpg", "Pendulum-v1", name), every=LIMIT) for label, name in PRESETS.items()
    ),
    draw=draw,
    claims=(
        Claim(f"{SOFT}: the mean return of {WINDOW} episodes passes {WATCHED} on every seed", reaches(SOFT)),
        Claim(f"{HARD}: it does", reaches(HARD)),
        Claim("with soft copies it does so sooner", soft_is_sooner),
        Claim(f"soft copies are better over the last {LATE} episodes", soft_is_better, expected=False),
    ),
    seeds=100,
    size=(11.0, 4.4),
)
