"""The one-step actor-critic on CartPole with a tutorial's settings: with its penalty for a fall, and without.

An episode is cut off after 500 steps, which is no fall. The penalty changes what is learned from; returns are the
environment's own.
"""

from __future__ import annotations

import numpy as np

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common
from treadle.settings import preset

EPISODES, DECAY, SOLVED = 1_000, 0.95, 195
"""The last is what CartPole-v0 was taken to be solved at."""
PRESET = preset("actor-critic", "CartPole-v1", "tutorial")
WITH, WITHOUT = "a fall costs 20", "no penalty"
COLOURS = {WITH: figures.BLUE, WITHOUT: figures.VERMILLION}


def running(outcomes, label):
    return common.running(outcomes[label].returns, DECAY)


def most_reach(label):
    def judge(outcomes):
        first = common.first_time(running(outcomes, label) >= SOLVED)
        return Verdict(bool(np.isfinite(first).mean() > 0.5), common.share_told(first))

    return judge


def most_stay(outcomes):
    holds, told = True, []
    for label in COLOURS:
        ends = running(outcomes, label)[:, -1]
        stay = np.sum(ends >= SOLVED)
        holds &= bool(stay > len(ends) / 2)
        told.append(f"{label}: {stay} of {len(ends)} seeds, {np.median(ends):.0f} (median)")
    return Verdict(holds, "; ".join(told))


def penalty_helps(outcomes):
    with_it, without = (outcomes[label].returns.mean(axis=1) for label in COLOURS)
    told = f"mean return of {EPISODES:,} episodes: {with_it.mean():.0f} with it, {without.mean():.0f} without"
    words = common.verdict(("with it", "without"), with_it, without)
    return Verdict(common.is_better(with_it, without), f"{told}; {words}")


def draw(figure, outcomes):
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for x, (label, colour) in enumerate(COLOURS.items()):
        rows = running(outcomes, label)
        common.median_curve(left, np.arange(1, EPISODES + 1), rows, colour, label)
        ends = np.sort(rows[:, -1])
        right.plot(x + np.linspace(-0.25, 0.25, len(ends)), ends, "o", color=colour, markersize=4)
    for axes in (left, right):
        axes.axhline(SOLVED, color=figures.GREY, linestyle="--", linewidth=1)
        axes.set_ylim(bottom=0)
    figures.dress(left, "Running return, 0.95 / 0.05: median of the seeds, and middle half", "episode", "return")
    figures.dress(right, f"Each seed after {EPISODES:,} episodes", "", "")
    right.set_xticks(range(2), list(COLOURS))


EXPERIMENT = Experiment(
    about="One-step actor-critic on CartPole learns and forgets again, with a penalty for a fall or without",
    source="a tutorial's settings; Sutton and Barto (2018), section 13.5",
    trials=(
        Trial.of_preset(WITH, PRESET, updates=None, episodes=EPISODES),
        Trial.of_preset(WITHOUT, PRESET, updates=None, episodes=EPISODES, wrappers={}),
    ),
    draw=draw,
    claims=(
        Claim(f"{WITH}: the running return of most seeds reaches {SOLVED}", most_reach(WITH)),
        Claim(f"{WITHOUT}: that of most seeds does", most_reach(WITHOUT)),
        Claim(f"that of most is at {SOLVED} or more after {EPISODES:,} episodes", most_stay, expected=False),
        Claim("the penalty helps", penalty_helps),
    ),
    seeds=60,
    size=(11.0, 4.4),
)
