"""Q-learning on the treasure line with a tutorial's settings: thirteen episodes are enough."""

from __future__ import annotations

import numpy as np

from treadle import figures
from treadle.experiment import Experiment, Trial
from treadle.experiments import common

LABEL, GAMMA = "Q-learning", 0.9


def draw(figure, outcomes):
    left, right = figure.subplots(1, 2)
    lengths = outcomes[LABEL].lengths
    episodes = np.arange(1, lengths.shape[1] + 1)
    left.plot(episodes, lengths.T, color=figures.GREY, linewidth=0.6, alpha=0.6)
    left.plot(episodes, lengths.mean(0), color=figures.BLUE, linewidth=2, label="mean over seeds")
    left.axhline(5, color=figures.VERMILLION, linestyle="--", linewidth=1.2, label="shortest path")
    figures.dress(left, "Steps to the treasure", "episode", "steps")
    common.draw_solved(right, outcomes, "TreasureLine", {LABEL: GAMMA})


EXPERIMENT = Experiment(
    about="Q-learning finds the treasure at the end of a line of six cells",
    source="a tutorial's settings: alpha 0.1, gamma 0.9, epsilon 0.1, 13 episodes",
    trials=(
        Trial(
            LABEL,
            "q-learning",
            "TreasureLine",
            {"learning_rate": 0.1, "gamma": GAMMA, "epsilon": 0.1},
            episodes=13,
            observe=common.q_table,
        ),
    ),
    draw=draw,
    claims=(common.all_paths_optimal(LABEL, "TreasureLine", GAMMA),),
)
