"""Two tutorials' DQN on CartPole, which they train until the pole stands for 500 steps, beside our own settings.

All are trained for 100,000 steps. Fractions in the presets are of these, so that the second tutorial's epsilon falls
over 1,800 steps instead of 900.
"""

from __future__ import annotations

import numpy as np

from treadle import figures, study
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common
from treadle.settings import preset

STEPS, BETWEEN, EPISODES = 100_000, 4_000, 20
SOLVED = 500
PRESETS = {
    "128-128, gamma 0.95 (tutorial)": preset("dqn", "CartPole-v1", "tutorial"),
    "10 units, shaped reward (another)": preset("dqn", "CartPoleShaped-v1", "tutorial"),
    "the preset `default`": preset("dqn", "CartPole-v1"),
}
FIRST, SECOND, OURS = PRESETS


def greedy(moment):
    """The mean length of greedy episodes, which is their return in CartPole-v1."""
    return common.greedy_lengths(moment, EPISODES).mean()


def trial(label):
    """The preset for 100,000 steps, with a look every 4,000."""
    steps = PRESETS[label].make().num_steps
    every = round(BETWEEN / steps)
    updates = round(STEPS / BETWEEN) * every
    return Trial.of_preset(label, PRESETS[label], updates=updates, every=every, observe=greedy)


TRIALS = tuple(trial(label) for label in PRESETS)


def reaches(label):
    def judge(outcomes):
        ends = outcomes[label].observed[:, -1]
        held = np.sum(ends >= SOLVED)
        told = f"{held} of {len(ends)} seeds; {study.summarise(ends).sentence()}"
        return Verdict(bool(held > len(ends) / 2), told.rstrip("."))

    return judge


def draw(figure, outcomes):
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for x, (colour, made) in enumerate(zip((figures.VERMILLION, figures.ORANGE, figures.BLUE), TRIALS, strict=True)):
        rows = outcomes[made.label].observed
        steps = np.arange(1, rows.shape[1] + 1) * made.every * PRESETS[made.label].make().num_steps
        common.mean_curve(left, steps, rows, colour, made.label)
        ends = np.sort(rows[:, -1])
        right.plot(x + np.linspace(-0.25, 0.25, len(ends)), ends, "o", color=colour, markersize=5)
    for axes in (left, right):
        axes.axhline(SOLVED, color=figures.GREY, linestyle="--", linewidth=1)
        axes.set_ylim(0, 520)
    figures.dress(left, "Greedy return while learning, mean over seeds", "environment steps", "return of 20 episodes")
    figures.dress(right, "Each seed in the end", "", "")
    right.set_xticks(range(3), ["tutorial", "another", "default"])


EXPERIMENT = Experiment(
    about="Two tutorials' agents on CartPole, beside the preset `default`",
    source="two tutorials' settings, with terminals and time limits handled correctly",
    trials=TRIALS,
    draw=draw,
    claims=(
        Claim(
            f"{FIRST}: most seeds hold the pole for 500 steps in every greedy episode", reaches(FIRST), expected=False
        ),
        Claim(f"{SECOND}: most seeds do", reaches(SECOND)),
        Claim(f"{OURS}: most seeds do", reaches(OURS)),
    ),
    seeds=10,
    size=(11.0, 4.4),
)
