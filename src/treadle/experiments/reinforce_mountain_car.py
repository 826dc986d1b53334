"""REINFORCE on MountainCar without a time limit, beside the running rewards that a tutorial prints.

Episodes last tens of thousands of steps at first, and a policy that has become certain of the wrong thing may never end
one. Every seed therefore has a number of steps, not of episodes.
"""

from __future__ import annotations

import numpy as np

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common
from treadle.settings import preset

EPISODES, EVERY, DECAY = 700, 50, 0.99
"""Episodes shown; steps between two looks, fewer than any episode has."""
TUTORIAL = {154: -10_667, 387: -2_009, 489: -1_006, 628: -502}
"""Its running reward by the episode."""
LABEL = "REINFORCE"


def running(outcomes):
    """`[S, EPISODES]`; NaN where a seed has not come so far."""
    return common.running(common.episode_returns(outcomes[LABEL], EPISODES), DECAY)


def at(outcomes, episode):
    """The running reward of each seed at an episode, counted from 1 as the tutorial's are taken to be; worse than any
    where a seed has not come so far."""
    return np.nan_to_num(running(outcomes)[:, episode - 1], nan=-np.inf)


def tutorial_is_among_the_seeds(outcomes):
    holds, told = True, []
    for episode, theirs in TUTORIAL.items():
        ours = at(outcomes, episode)
        holds &= bool(ours.min() <= theirs <= ours.max())
        told.append(f"episode {episode}: {theirs:,} among {ours.min():,.0f} to {ours.max():,.0f}")
    return Verdict(holds, "; ".join(told))


def median_is_as_good(outcomes):
    last, theirs = list(TUTORIAL.items())[-1]
    ours = at(outcomes, last)
    told = f"median {np.median(ours):,.0f}; {np.sum(ours >= theirs)} of {len(ours)} seeds at {theirs} or better"
    return Verdict(bool(np.median(ours) >= theirs), told)


def most_improve_tenfold(outcomes):
    first, last = at(outcomes, 1), at(outcomes, list(TUTORIAL)[-1])
    improved = first <= 10 * last
    told = f"{improved.sum()} of {len(improved)} seeds; from {np.median(first):,.0f} to {np.median(last):,.0f} (median)"
    return Verdict(bool(improved.mean() > 0.5), told)


def draw(figure, outcomes):
    axes, rows, episodes = figure.subplots(), -running(outcomes), np.arange(1, EPISODES + 1)
    for row in rows:
        axes.plot(episodes, row, color=figures.BLUE, linewidth=0.7, alpha=0.35)
    axes.plot(episodes, np.median(rows, axis=0), color=figures.BLUE, linewidth=2.4, label="median of the seeds")
    points = np.array(list(TUTORIAL.items()))
    axes.plot(points[:, 0], -points[:, 1], "o", color=figures.VERMILLION, markersize=7, label="the tutorial's")
    for episode, theirs in TUTORIAL.items():
        axes.annotate(f"{theirs:,}", (episode, -theirs), (6, 5), textcoords="offset points", fontsize=9)
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.yaxis.set_major_formatter(lambda value, _: f"-{value:,.0f}")
    figures.dress(axes, "Running reward, 0.99 / 0.01: each seed, and the median", "episode", "reward (log scale)")


EXPERIMENT = Experiment(
    about="REINFORCE finds the flag of MountainCar without a time limit, and finds it sooner and sooner",
    source="a tutorial's settings, and the running rewards that it prints; Williams (1992)",
    trials=(Trial.of_preset(LABEL, preset("reinforce", "MountainCar-v0", "tutorial"), every=EVERY),),
    draw=draw,
    claims=(
        Claim(
            "at each of the tutorial's four episodes its running reward is among those of the seeds",
            tutorial_is_among_the_seeds,
        ),
        Claim(
            "the median seed's running reward is as good as the tutorial's at the last of them",
            median_is_as_good,
            expected=False,
        ),
        Claim("by then that of most seeds is a tenth of what it began with, or less", most_improve_tenfold),
    ),
    seeds=10,
)
