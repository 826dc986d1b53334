"""The tables that Q-learning ends with, drawn over three grids with arrows for the policy, beside the exact values."""

from __future__ import annotations

import numpy as np

from treadle import exact, registry, tables
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common

GAMMA = 0.9
EPISODES = {"TreasureLine": 200, "Maze": 2_000, "DynaMaze": 200}
TOLERANCE = 0.001
"""The largest error that is allowed; the largest value is 1."""


def exact_values(world):
    return np.asarray(exact.value_iteration(registry.environments.make(world).transitions(), GAMMA))


def is_exact(world):
    def judge(outcomes):
        errors = np.abs(outcomes[world].observed[:, -1] - exact_values(world)).max(axis=(1, 2))
        return Verdict(errors.max() < TOLERANCE, f"largest error over {len(errors)} seeds {errors.max():.1e}")

    return judge


def draw(figure, outcomes):
    rows = figure.subplots(len(EPISODES), 2, height_ratios=(0.4, 1, 1.3))
    for (left, right), world in zip(rows, EPISODES, strict=True):
        made = registry.environments.make(world)
        tables.draw_values(left, made, outcomes[world].observed[0, -1], f"{world}: learned")
        tables.draw_values(right, made, exact_values(world), "exact")


EXPERIMENT = Experiment(
    about="Q-learning's tables are the exact ones",
    source="value iteration: Sutton and Barto (2018), section 4.4; Q-learning with alpha 0.5 and every action explored",
    trials=tuple(
        Trial(
            world,
            "q-learning",
            world,
            {"learning_rate": 0.5, "gamma": GAMMA, "epsilon": 1.0},
            episodes=episodes,
            observe=common.q_table,
        )
        for world, episodes in EPISODES.items()
    ),
    draw=draw,
    claims=tuple(
        Claim(f"{world}: every value is within {TOLERANCE} of the exact one", is_exact(world)) for world in EPISODES
    ),
    seeds=10,
    size=(9.0, 9.6),
)
