"""TD(0) against constant-alpha Monte Carlo on a random walk of five states."""

from __future__ import annotations

import numpy as np

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common

TRUE = np.arange(1, 6) / 6
RATES = {"TD(0)": ("td-0", (0.15, 0.1, 0.05)), "Monte Carlo": ("mc-prediction", (0.01, 0.02, 0.03, 0.04))}


def label(method, rate):
    return f"{method}, alpha {rate:g}"


def errors(outcomes, method, rate):
    """The root mean squared error over states `[S, N]`, with that of the first guess in front."""
    values = outcomes[label(method, rate)].observed
    guess = np.full((len(values), 1, 5), 0.5)
    return np.sqrt(np.mean((np.concatenate([guess, values], axis=1) - TRUE) ** 2, axis=-1))


def td_is_better(outcomes):
    best = {m: min(errors(outcomes, m, r).mean(0)[1:].mean() for r in rates) for m, (_, rates) in RATES.items()}
    return Verdict(
        best["TD(0)"] < best["Monte Carlo"],
        f"mean error over 100 episodes, best alpha of each: TD(0) {best['TD(0)']:.3f}, Monte Carlo "
        f"{best['Monte Carlo']:.3f}",
    )


def first_episode(outcomes):
    """Only the last state's value can change, by alpha times a TD error of one half."""
    values = outcomes[label("TD(0)", 0.1)].observed[:, 0]
    left, right = np.r_[0.45, 0.5, 0.5, 0.5, 0.5], np.r_[0.5, 0.5, 0.5, 0.5, 0.55]
    exact = np.isclose(values, left, atol=1e-6).all(1) | np.isclose(values, right, atol=1e-6).all(1)
    return Verdict(bool(exact.all()), f"{exact.sum()} of {len(exact)} seeds: A is 0.45 or E is 0.55, all others 0.5")


def first_guess(outcomes):
    error = errors(outcomes, "TD(0)", 0.1)[0, 0]
    expected = np.sqrt(np.mean((TRUE - 0.5) ** 2))
    return Verdict(bool(np.isclose(error, expected)), f"{error:.4f}, exactly {expected:.4f}")


def draw(figure, outcomes):
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    values = outcomes[label("TD(0)", 0.1)].observed[0]
    seen = {"0 episodes": np.full(5, 0.5), "1": values[0], "10": values[9], "100": values[99]}
    for colour, (name, row) in zip((figures.GREY, *figures.COLOURS), seen.items(), strict=False):
        left.plot(list("ABCDE"), row, marker="o", markersize=4, color=colour, label=name)
    left.plot(list("ABCDE"), TRUE, color=figures.INK, linestyle="--", label="true values")
    figures.dress(left, "TD(0), alpha 0.1: one run", "state", "value")
    for method, colour, styles in (
        ("TD(0)", figures.BLUE, ("-", "--", ":")),
        ("Monte Carlo", figures.VERMILLION, ("-", "--", "-.", ":")),
    ):
        for rate, style in zip(RATES[method][1], styles, strict=True):
            right.plot(errors(outcomes, method, rate).mean(0), color=colour, linestyle=style, label=label(method, rate))
    figures.dress(right, "Root mean squared error over states", "episode", "mean over seeds")
    right.legend(frameon=False, fontsize=8, ncols=2)


EXPERIMENT = Experiment(
    about="On a random walk TD(0) finds the values sooner than Monte Carlo",
    source="Sutton and Barto (2018), example 6.2 with its two figures",
    trials=tuple(
        Trial(
            label(method, rate),
            name,
            "RandomWalk",
            {"learning_rate": rate, "gamma": 1.0, "initial_value": 0.5},
            episodes=100,
            observe=common.chain_values,
        )
        for method, (name, rates) in RATES.items()
        for rate in rates
    ),
    draw=draw,
    claims=(
        Claim("the first guess, 0.5 in every state, has the error that theory gives", first_guess),
        Claim("after one episode TD(0) has changed one value only, by exactly alpha / 2", first_episode),
        Claim("TD(0) is better than Monte Carlo, each at its best step size", td_is_better),
    ),
    seeds=100,
    size=(10.0, 4.4),
)
