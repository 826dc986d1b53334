"""What planning is worth: Dyna-Q in a maze with 0, 5 and 50 planning steps after each real one."""

from __future__ import annotations

import itertools

import numpy as np

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common

PLANNING = (0, 5, 50)
BEST = 14
"""Steps of the shortest path."""


def label(steps):
    return f"{steps} planning steps" if steps else "0 planning steps (Q-learning alone)"


def fewer_steps(outcomes):
    totals = [outcomes[label(n)].lengths[:, 1:].sum(axis=1) for n in PLANNING]
    holds = all(np.all(more > less) for more, less in itertools.pairwise(totals))
    told = ", ".join(f"{n}: {t.mean():.0f} ({t.min()} to {t.max()})" for n, t in zip(PLANNING, totals, strict=True))
    return Verdict(bool(holds), f"steps in episodes 2 to 50: {told}")


def third_episode(outcomes):
    lengths = outcomes[label(50)].lengths[:, 2]
    told = f"median {np.median(lengths):.0f} steps, shortest path {BEST}"
    return Verdict(bool(np.median(lengths) <= 1.5 * BEST), told)


def draw(figure, outcomes):
    axes = figure.subplots()
    episodes = np.arange(2, 51)
    for colour, n in zip(figures.COLOURS, PLANNING, strict=False):
        common.mean_curve(axes, episodes, outcomes[label(n)].lengths[:, 1:], colour, label(n))
    axes.axhline(BEST, color=figures.GREY, linestyle="--", linewidth=1, label="shortest path")
    axes.set_ylim(0, 800)
    figures.dress(axes, "Steps to the goal, mean over seeds", "episode", "steps")


EXPERIMENT = Experiment(
    about="Planning from a learned model: the more steps of it, the fewer in the world",
    source="Sutton and Barto (2018), example 8.1, figure 8.2",
    trials=tuple(
        Trial(
            label(n),
            "dyna-q",
            "DynaMaze",
            {"learning_rate": 0.1, "gamma": 0.95, "epsilon": 0.1, "planning_steps": n},
            episodes=50,
        )
        for n in PLANNING
    ),
    draw=draw,
    claims=(
        Claim("all seeds need fewer steps with 5 planning steps than with none, and fewer again with 50", fewer_steps),
        Claim("with 50 planning steps the third episode is near the shortest path", third_episode),
    ),
)
