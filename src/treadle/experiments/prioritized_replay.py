"""Natural DQN against prioritized replay on MountainCar without a time limit, where the flag is rarely found at first.

Where the tutorial is silent, settings are as on its other pages: one hidden layer of 20, gamma 0.9, RMSProp, epsilon
down to 0.1 over 18,000 updates once the memory of 10,000 is full. Beta, 0.4 and 0.001 more in each sample, is 1 after
600 of them: here it rises over the 10,600 steps up to there. The tutorial ends after 20 episodes. An episode without a
time limit may take any number of steps, so that here every seed has the same 120,000; one that has not ended 20 by then
counts as if it had just now.
"""

from __future__ import annotations

import numpy as np

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common

STEPS, MEMORY, EVERY, EPISODES = 120_000, 10_000, 50, 20
SETTINGS = {
    **common.after_a_full_memory(MEMORY, STEPS, falling=18_000, learning_rate=0.005, target_update_period=500),
    "priority_alpha": 0.6,
    "priority_beta": 0.4,
    "priority_beta_end": 1.0,
    "priority_beta_fraction": (MEMORY + 600) / STEPS,
    "priority_offset": 0.01,
    "priority_clip": 1.0,
}
METHODS = {"natural": False, "prioritized": True}


def episode_lengths(outcome):
    """The steps of each seed's first episodes `[S, EPISODES]`; those not ended take 0, and the first of them what was
    left of the steps. No episode is as short as `EVERY`, so that at most one ended between two looks."""
    found = np.zeros((len(outcome.lengths), EPISODES))
    for row, lengths in zip(found, outcome.lengths, strict=True):
        ended = lengths[lengths > 0][:EPISODES]
        row[: len(ended)] = ended
        if len(ended) < EPISODES:
            row[len(ended)] = STEPS - ended.sum()
    return found


def prioritized_is_quicker(outcomes):
    taken = {label: episode_lengths(outcomes[label]).sum(axis=1) for label in METHODS}
    cut = {label: int(np.sum(outcomes[label].ended.sum(axis=1) < EPISODES)) for label in METHODS}
    means = ", ".join(f"{label} {v.mean():,.0f} (median {np.median(v):,.0f})" for label, v in taken.items())
    natural, prioritized = (-taken[label] for label in METHODS)
    words = common.verdict(("prioritized", "natural"), prioritized, natural)
    told = f"mean steps of {EPISODES} episodes: {means}; {words}"
    if sum(cut.values()):
        told += "; seeds not through in time: " + ", ".join(f"{label} {n}" for label, n in cut.items())
    return Verdict(common.is_better(prioritized, natural), told)


def draw(figure, outcomes):
    left, right = figure.subplots(1, 2)
    episodes = np.arange(1, EPISODES + 1)
    for colour, label in zip((figures.VERMILLION, figures.BLUE), METHODS, strict=True):
        lengths = episode_lengths(outcomes[label])
        for row in lengths:
            right.plot(episodes, row.cumsum(), color=colour, linewidth=0.6, alpha=0.3)
        right.plot(episodes, np.median(lengths.cumsum(axis=1), axis=0), color=colour, linewidth=2.4, label=label)
        common.median_curve(left, episodes, lengths, colour, label)
    left.set_yscale("log")
    figures.dress(left, "Steps of an episode: median and middle half", "episode", "steps (log scale)")
    figures.dress(right, "Steps so far: each seed, and the median", "episode", "environment steps")
    for axes in (left, right):
        axes.set_xticks(range(2, EPISODES + 1, 2))


EXPERIMENT = Experiment(
    about="Prioritized replay finds the flag sooner than uniform replay",
    source="a tutorial's comparison on MountainCar, +10 at the flag; Schaul et al. (2016)",
    trials=tuple(
        Trial(
            label,
            "dqn",
            "MountainCarFlag-v0",
            {**SETTINGS, "prioritized": prioritized},
            wrappers={"time_limit": "none"},
            updates=STEPS,
            every=EVERY,
        )
        for label, prioritized in METHODS.items()
    ),
    draw=draw,
    claims=(Claim(f"prioritized replay needs fewer steps for the first {EPISODES} episodes", prioritized_is_quicker),),
    seeds=20,
    size=(10.0, 4.4),
)
