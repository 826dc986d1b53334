"""The off-line lambda-return algorithm and TD(lambda) on a random walk of 19 states, over lambda and step size."""

from __future__ import annotations

import numpy as np

from treadle import figures
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common

TRUE = np.arange(-9, 10) / 10
METHODS = {"off-line lambda-return": "lambda-return", "TD(lambda)": "td-lambda"}
LAMBDAS = (0.0, 0.4, 0.8, 0.9, 0.95, 0.975, 0.99, 1.0)
RATES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


def label(method, decay, rate):
    return f"{method}, lambda {decay:g}, alpha {rate:g}"


def error(outcomes, method, decay, rate):
    """The root mean squared error over states, mean over the first ten episodes and over seeds."""
    values = outcomes[label(method, decay, rate)].observed
    return float(np.sqrt(np.mean((np.clip(values, -1e3, 1e3) - TRUE) ** 2, axis=-1)).mean())


def best(outcomes, method):
    """For each lambda the least error over step sizes."""
    return {decay: min(error(outcomes, method, decay, rate) for rate in RATES) for decay in LAMBDAS}


def between(method):
    def judge(outcomes):
        found = best(outcomes, method)
        least = min(found, key=lambda decay: found[decay])
        told = f"least error {found[least]:.3f} at lambda {least:g}; {found[0.0]:.3f} at 0, {found[1.0]:.3f} at 1"
        return Verdict(0 < least < 1 and found[least] < 0.95 * min(found[0.0], found[1.0]), told)

    return judge


def similar(outcomes):
    found = {method: min(best(outcomes, method).values()) for method in METHODS}
    told = ", ".join(f"{method} {value:.3f}" for method, value in found.items())
    return Verdict(abs(np.diff(list(found.values()))[0]) < 0.03, f"least errors: {told}")


def worse_when_large(outcomes):
    online, offline = (error(outcomes, m, 0.99, 0.3) for m in ("TD(lambda)", "off-line lambda-return"))
    return Verdict(online > offline, f"at lambda 0.99 and alpha 0.3: TD(lambda) {online:.3g}, off-line {offline:.3g}")


def draw(figure, outcomes):
    from matplotlib import colormaps

    for axes, method in zip(figure.subplots(1, 2, sharey=True), METHODS, strict=True):
        for place, decay in zip(np.linspace(0, 0.92, len(LAMBDAS)), LAMBDAS, strict=True):
            curve = [error(outcomes, method, decay, rate) for rate in RATES]
            axes.plot(RATES, curve, color=colormaps["viridis"](place), label=f"lambda {decay:g}", linewidth=1.6)
        axes.set_ylim(0.2, 0.56)
        figures.dress(axes, method, "alpha", "error over 10 episodes", legend=False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)


EXPERIMENT = Experiment(
    about="Neither one-step nor Monte Carlo: the best lambda lies between",
    source="Sutton and Barto (2018), figures 12.3 and 12.6",
    trials=tuple(
        Trial(
            label(method, decay, rate),
            name,
            "RandomWalk19",
            {"learning_rate": rate, "gamma": 1.0, "trace_decay": decay},
            episodes=10,
            observe=common.chain_values,
        )
        for method, name in METHODS.items()
        for decay in LAMBDAS
        for rate in RATES
    ),
    draw=draw,
    claims=(
        *(Claim(f"{method}: the best lambda lies strictly between 0 and 1", between(method)) for method in METHODS),
        Claim("at their best both are alike", similar),
        Claim("with a large step and a long trace TD(lambda) is worse than the off-line algorithm", worse_when_large),
    ),
    seeds=50,
    size=(10.0, 4.6),
)
