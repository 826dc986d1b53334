"""DQN in the maze from two numbers, the offset from the treasure, with a tutorial's settings and with others.

The tutorial has 10 units on one page and 20 on another. Its target is copied every 200 updates, which are 1,000 steps,
because it learns every fifth. An episode may take any number of steps, so that here every seed has the same 50,000.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from treadle import figures, registry, tables
from treadle.environments.maze import SIZE, TRAPS, TREASURE
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common

UPDATES, STEPS_A_ROUND, EVERY, EPISODES, GAMMA = 10_000, 5, 5, 300, 0.9
SETTINGS = {
    **common.TUTORIAL,
    "gamma": GAMMA,
    "learning_rate": 0.01,
    "epsilon_start": 0.1,
    "capacity": 2_000,
    "learning_starts": 200,
    "train_frequency": STEPS_A_ROUND,
    "target_update_period": 200 * STEPS_A_ROUND,
}
OWN = {
    **SETTINGS,
    "hidden_sizes": [64],
    "optimiser": "adam",
    "learning_rate": 0.003,
    "learning_rate_end": 0.0,
    "epsilon_start": 1.0,
    "epsilon_fraction": 0.25,
    "target_update_period": 200,
}
OURS = "64 units (Adam, more exploration)"
METHODS = {
    "tutorial (10 units)": {**SETTINGS, "hidden_sizes": [10]},
    "tutorial (20 units)": {**SETTINGS, "hidden_sizes": [20]},
    OURS: OWN,
}
CELLS = np.arange(SIZE * SIZE)
OFFSETS = np.stack([CELLS % SIZE - TREASURE % SIZE, CELLS // SIZE - TREASURE // SIZE], axis=1) / np.float32(SIZE)


def q_of_cells(moment):
    """The network's values in every cell `[16, 4]`."""
    return jax.vmap(moment.state.network)(jnp.asarray(OFFSETS, jnp.float32))


def is_optimal(outcome):
    """Whether the greedy path is a shortest one to the treasure `[S, N]`."""
    return common.paths_are_optimal(registry.environments.make("Maze"), outcome.observed, GAMMA)


def after_300_episodes(outcome):
    """Whether it is so when the 300th episode has ended, and the steps up to there, each `[S]`; seeds that never come
    so far are judged at the end, and their steps are NaN."""
    through = outcome.ended.cumsum(axis=1) >= EPISODES
    first = np.where(through.any(axis=1), through.argmax(axis=1), through.shape[1] - 1)
    steps = np.where(through.any(axis=1), (first + 1.0) * EVERY * STEPS_A_ROUND, np.nan)
    return is_optimal(outcome)[np.arange(len(first)), first], steps


def tutorial_finds_it(outcomes):
    told, shares = [], []
    for label in METHODS:
        if label != OURS:
            optimal, steps = after_300_episodes(outcomes[label])
            shares.append(optimal.mean())
            late = np.isnan(steps).sum()
            told.append(
                f"{label}: {optimal.sum()} of {len(optimal)} seeds"
                + (f", {late} of which had no {EPISODES} episodes in {UPDATES * STEPS_A_ROUND:,} steps" if late else "")
            )
    return Verdict(min(shares) == 1, "; ".join(told))


def finds_the_treasure(outcome):
    """Whether most episodes of each seed's last 10,000 steps end at the treasure `[S]`. Returns are 1 or -1, so that it
    is their sum that tells, also where no episode ended."""
    return outcome.returns[:, -(10_000 // (EVERY * STEPS_A_ROUND)) :].sum(axis=1) > 0


def ours_finds_it(outcomes):
    optimal = {label: is_optimal(outcomes[label])[:, -1] for label in METHODS}
    shortest = ", ".join(f"{label}: {found.sum()}" for label, found in optimal.items())
    anyhow = ", ".join(f"{label}: {finds_the_treasure(outcomes[label]).sum()}" for label in METHODS)
    told = (
        f"of {len(optimal[OURS])} seeds {shortest}; the treasure by whatever way in most of the last episodes {anyhow}"
    )
    return Verdict(bool(optimal[OURS].all()), told)


def draw(figure, outcomes):
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    steps = np.arange(1, UPDATES // EVERY + 1) * EVERY * STEPS_A_ROUND
    for colour, label in zip((figures.ORANGE, figures.VERMILLION, figures.BLUE), METHODS, strict=True):
        share = common.smoothed(is_optimal(outcomes[label]), 2_000 // (EVERY * STEPS_A_ROUND)).mean(axis=0)
        left.plot(steps, 100 * share, color=colour, linewidth=1.6, label=label)
    left.set_ylim(0, 103)
    figures.dress(left, "Seeds whose greedy path is optimal (mean of 2,000 steps)", "environment steps", "% of seeds")
    shown = outcomes[OURS].observed[0, -1].copy()
    shown[[TREASURE, *TRAPS]] = 0
    tables.draw_values(right, registry.environments.make("Maze"), shown, "64 units: seed 0")


EXPERIMENT = Experiment(
    about="DQN finds the treasure from two numbers; the way is a shortest one on every seed with other settings only",
    source="a tutorial's settings: learning rate 0.01, gamma 0.9, epsilon 0.1, 300 episodes",
    trials=tuple(
        Trial(label, "dqn", "MazeOffset", own, updates=UPDATES, every=EVERY, observe=q_of_cells)
        for label, own in METHODS.items()
    ),
    draw=draw,
    claims=(
        Claim(
            "with the tutorial's settings the greedy path of every seed is optimal after 300 episodes",
            tutorial_finds_it,
            expected=False,
        ),
        Claim(f"with {OURS} the greedy path of every seed is optimal in the end", ours_finds_it),
    ),
    seeds=20,
    size=(11.0, 4.4),
)
