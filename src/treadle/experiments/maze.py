"""Q-learning, Sarsa and Sarsa(lambda) in the maze with the tutorials' settings, and how many episodes that takes.

Sarsa(lambda) credits the whole way, detours included, so that some seeds keep to one for thousands of episodes.
"""

from __future__ import annotations

from treadle import figures, registry, tables
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common

SETTINGS = {"learning_rate": 0.01, "gamma": 0.9, "epsilon": 0.1}
EPISODES = 10_000
METHODS = {
    "Q-learning": ("q-learning", {}),
    "Sarsa": ("sarsa", {}),
    "Sarsa(0.9), accumulating traces": ("sarsa-lambda", {"trace_decay": 0.9, "trace": "accumulating"}),
    "Sarsa(0.9), replacing traces": ("sarsa-lambda", {"trace_decay": 0.9, "trace": "replacing"}),
}
TRIALS = tuple(
    Trial(label, algorithm, "Maze", {**SETTINGS, **own}, episodes=EPISODES, observe=common.q_table)
    for label, (algorithm, own) in METHODS.items()
)


def after_a_hundred(outcomes):
    world = registry.environments.make("Maze")
    share = {label: common.paths_are_optimal(world, outcomes[label].observed[:, 99], 0.9).mean() for label in METHODS}
    return Verdict(share["Q-learning"] == 1, ", ".join(f"{label} {100 * s:.0f}%" for label, s in share.items()))


def draw(figure, outcomes):
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    common.draw_solved(left, outcomes, "Maze", dict.fromkeys(METHODS, 0.9))
    left.axvline(100, color=figures.EDGE, linestyle="--", linewidth=1)
    left.text(95, 2, "the tutorials' 100", color=figures.GREY, fontsize=8, rotation=90, ha="right", va="bottom")
    left.set_xscale("log")
    final = outcomes["Q-learning"].observed[0, -1]
    tables.draw_values(right, registry.environments.make("Maze"), final, "Q-learning, seed 0")


EXPERIMENT = Experiment(
    about="Four methods find the treasure in the maze",
    source="the tutorials' settings: alpha 0.01, gamma 0.9, epsilon 0.1, lambda 0.9; they train for 100 episodes",
    trials=TRIALS,
    draw=draw,
    claims=(
        *(common.all_paths_optimal(label, "Maze", 0.9) for label in METHODS),
        Claim(
            "the tutorials' 100 episodes are enough for Q-learning on every seed; shares of the others beside it",
            after_a_hundred,
        ),
    ),
    size=(10.0, 4.4),
)
