"""Natural against double DQN on Pendulum: what the networks believe, beside what their policies are really worth.

All rewards are 0 at most, so that every value above 0 is over-estimated. Where the tutorial is silent, settings are as
on its other pages: batches of 32, gamma 0.9, the target copied every 200 steps, epsilon down to 0.1 after 900 updates
(here linearly from the first step on), RMSProp. Like the tutorial's, the one episode never ends.
"""

from __future__ import annotations

import numpy as np

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common

GAMMA, MEMORY, UPDATES, EVERY = 0.9, 3_000, 20_000, 100
STEPS = MEMORY + UPDATES
LATE, SETTLED = 5_000 // EVERY, 10_000 // EVERY
"""Looks by which the claims are judged: the last 5,000 steps, or all from step 10,000 on."""
SETTINGS = common.after_a_full_memory(
    MEMORY, STEPS, falling=900, gamma=GAMMA, learning_rate=0.005, target_update_period=200
)
METHODS = {"natural": False, "double": True}


def values(moment):
    """The running mean of max Q over the states acted in, and the mean of what the greedy policy earns from them."""
    return {"believed": moment.state.running_max_q, "true": common.true_values(moment, GAMMA).mean()}


def gaps(outcomes, label):
    """By how much each seed believes too much in the end `[S]`."""
    seen = outcomes[label].observed
    return (seen["believed"] - seen["true"])[:, -LATE:].mean(axis=1)


def natural_is_above(outcomes):
    gap = gaps(outcomes, "natural")
    told = f"{common.with_interval(gap)}; above it on {np.sum(gap > 0)} of {len(gap)} seeds"
    return Verdict(common.is_above_zero(gap), f"running max Q less true return {told}")


def double_is_nearer(outcomes):
    natural, double = (np.abs(gaps(outcomes, label)) for label in METHODS)
    difference = natural - double
    return Verdict(
        common.is_above_zero(difference),
        f"distance from the true return: natural {natural.mean():.2f}, double {double.mean():.2f}; difference "
        f"{common.with_interval(difference)}, double nearer on {np.sum(difference > 0)} of {len(difference)} seeds",
    )


def natural_is_above_zero(outcomes):
    shares = {label: np.mean(outcomes[label].observed["believed"][:, SETTLED:] > 0, axis=1) for label in METHODS}
    difference = 100 * (shares["natural"] - shares["double"])
    highest = max(float(outcomes[label].observed["true"].max()) for label in METHODS)
    told = ", ".join(f"{label} {share.mean():.0%} of the time" for label, share in shares.items())
    return Verdict(
        common.is_above_zero(difference) and highest <= 0,
        f"from step 10,000 on, {told}; difference in points {common.with_interval(difference)}; highest true return "
        f"{highest:.2g}",
    )


def draw(figure, outcomes):
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
    steps = np.arange(1, STEPS // EVERY + 1) * EVERY
    for colour, label in zip((figures.VERMILLION, figures.BLUE), METHODS, strict=True):
        seen = outcomes[label].observed
        common.median_curve(left, steps, seen["believed"], colour, f"{label}: running max Q")
        left.plot(steps, np.median(seen["true"], axis=0), "--", color=colour, label=f"{label}: true return")
    left.axhline(0, color=figures.GREY, linewidth=0.9)
    left.axvspan(0, MEMORY, color=figures.GRID, alpha=0.6, linewidth=0)
    title = "Discounted return, believed and true: median of the seeds, and middle half"
    figures.dress(left, title, "environment steps", "value")
    left.text(MEMORY / 2, left.get_ylim()[0], "memory fills", ha="center", va="bottom", fontsize=8, color=figures.GREY)
    both = np.stack([gaps(outcomes, label) for label in METHODS])
    right.plot([0, 1], both, color=figures.EDGE, linewidth=0.8, zorder=1)
    for x, (colour, row) in enumerate(zip((figures.VERMILLION, figures.BLUE), both, strict=True)):
        right.plot(np.full(len(row), x), row, "o", color=colour, markersize=4)
        right.plot([x - 0.15, x + 0.15], [row.mean()] * 2, color=colour, linewidth=2.4)
    right.axhline(0, color=figures.GREY, linewidth=0.9)
    right.set_xlim(-0.4, 1.4)
    figures.dress(right, "Believed less true, last 5,000 steps", "", "")
    right.set_xticks([0, 1], list(METHODS))


EXPERIMENT = Experiment(
    about="Natural DQN believes in higher returns than it gets; double DQN is nearer to the truth",
    source="a tutorial's comparison on Pendulum with 11 torques; van Hasselt, Guez and Silver (2016), figure 3",
    trials=tuple(
        Trial(
            label,
            "dqn",
            "Pendulum-v1",
            {**SETTINGS, "double": double},
            wrappers={"discretise_actions": 11, "reward_scale": 0.1, "time_limit": "none"},
            updates=STEPS,
            every=EVERY,
            observe=values,
        )
        for label, double in METHODS.items()
    ),
    draw=draw,
    claims=(
        Claim("natural DQN's running max Q lies above the true return of its greedy policy", natural_is_above),
        Claim("double DQN's running max Q is nearer to the true return", double_is_nearer),
        Claim(
            "natural DQN's running max Q rises above 0, where no true return is, more often than double DQN's",
            natural_is_above_zero,
        ),
    ),
    seeds=20,
    size=(11.0, 4.6),
)
