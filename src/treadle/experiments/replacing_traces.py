"""Accumulating against replacing traces: Sarsa(lambda) in a maze."""

from __future__ import annotations

import numpy as np

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common

KINDS = ("accumulating", "replacing")
RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
EPISODES = 30


def label(kind, rate):
    return f"{kind}, alpha {rate:g}"


def steps(outcomes, kind, rate):
    """Steps of each seed in all episodes but the first, which finds the goal by chance `[S]`."""
    return outcomes[label(kind, rate)].lengths[:, 1:].sum(axis=1).astype(float)


def replacing_is_better(outcomes):
    best = {kind: min((steps(outcomes, kind, rate) for rate in RATES), key=np.mean) for kind in KINDS}
    means = {kind: values.mean() for kind, values in best.items()}
    spread = np.sqrt(sum(values.var(ddof=1) / len(values) for values in best.values()))
    difference = means["accumulating"] - means["replacing"]
    told = ", ".join(f"{kind} {value:,.0f}" for kind, value in means.items())
    return Verdict(
        bool(difference > 1.96 * spread),
        f"steps in episodes 2 to {EPISODES}, best alpha of each: {told}; difference {difference:,.0f} +- "
        f"{1.96 * spread:,.0f} (95%)",
    )


def draw(figure, outcomes):
    left, right = figure.subplots(1, 2)
    for colour, kind in zip(figures.COLOURS, KINDS, strict=False):
        best = min(RATES, key=lambda rate: steps(outcomes, kind, rate).mean())
        episodes = np.arange(2, EPISODES + 1)
        common.mean_curve(left, episodes, outcomes[label(kind, best)].lengths[:, 1:], colour, label(kind, best))
        means = [steps(outcomes, kind, rate).mean() for rate in RATES]
        right.plot(RATES, means, marker="o", color=colour, label=kind)
    left.set_ylim(0)
    right.set_ylim(0)
    right.set_xscale("log")
    right.minorticks_off()
    right.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    figures.dress(left, "Steps of an episode, best alpha of each", "episode", "steps")
    figures.dress(right, f"Steps in episodes 2 to {EPISODES}", "alpha (log scale)", "steps")


EXPERIMENT = Experiment(
    about="Replacing traces learn better than accumulating ones",
    source="a tutorial's comparison, in the maze of Sutton and Barto (2018), example 8.1; Singh and Sutton (1996)",
    trials=tuple(
        Trial(
            label(kind, rate),
            "sarsa-lambda",
            "DynaMaze",
            {"trace_decay": 0.9, "gamma": 0.95, "epsilon": 0.1, "learning_rate": rate, "trace": kind},
            {"max_episode_steps": 5_000},
            episodes=EPISODES,
        )
        for kind in KINDS
        for rate in RATES
    ),
    draw=draw,
    claims=(Claim("replacing traces need fewer steps, each kind at its best step size", replacing_is_better),),
    size=(10.0, 4.4),
)
