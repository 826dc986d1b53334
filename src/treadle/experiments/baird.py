"""The deadly triad: function approximation, bootstrapping and off-policy data diverge on Baird's counterexample."""

from __future__ import annotations

import numpy as np

from treadle import figures
from treadle.environments.baird import FEATURES
from treadle.experiment import Claim, Experiment, Trial, Verdict

STEPS, ALPHA, GAMMA = 1_000, 0.01, 0.99
START = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 10.0, 1.0)
OFF, ON = "semi-gradient TD(0), off-policy", "semi-gradient TD(0), on-policy"
SETTINGS = {
    "learning_rate": ALPHA,
    "gamma": GAMMA,
    "features": "raw",
    "initial_weights": START,
    "target_policy": (0.0, 1.0),
}


def weights(moment):
    return moment.state.v.weights


def sweep_matrix():
    """What a sweep of semi-gradient dynamic programming does to the weights: `w` becomes `M w` (equation 11.9)."""
    bootstrap = GAMMA * FEATURES[6] - FEATURES
    return np.eye(8) + ALPHA / len(FEATURES) * FEATURES.T @ bootstrap


def sweeps():
    """The weights after each of 1,000 sweeps `[N, 8]`."""
    found, w = [], np.array(START)
    for _ in range(STEPS):
        w = sweep_matrix() @ w
        found.append(w)
    return np.array(found)


def size(w):
    return np.linalg.norm(w, axis=-1)


def diverges(outcomes):
    first, ends = size(np.array(START)), size(outcomes[OFF].observed[:, -1])
    told = f"|w| from {first:.1f} to {np.median(ends):,.0f} (median; {ends.min():,.0f} to {ends.max():,.0f})"
    return Verdict(ends.min() > 10 * first, told)


def as_theory_says(outcomes):
    radius = np.abs(np.linalg.eigvals(sweep_matrix())).max()
    ends = size(sweeps())
    return Verdict(
        radius > 1 and ends[-1] > ends[0], f"spectral radius {radius:.5f}; |w| after 1,000 sweeps {ends[-1]:.0f}"
    )


def stays(outcomes):
    values = np.abs(outcomes[ON].observed[:, -1] @ FEATURES[6])
    first = abs(np.array(START) @ FEATURES[6])
    return Verdict(
        bool(values.max() < 0.9 * first), f"|v| of the lower state from {first:.0f} to {values.max():.2f} at most"
    )


def draw(figure, outcomes):
    panels = figure.subplots(1, 3)
    shown = ((OFF, outcomes[OFF].observed[0]), ("semi-gradient DP", sweeps()), (ON, outcomes[ON].observed[0]))
    for axes, (title, rows) in zip(panels, shown, strict=True):
        for i in range(6):
            axes.plot(rows[:, i], color=figures.SKY, linewidth=1, label="w1 to w6" if i == 0 else None)
        axes.plot(rows[:, 6], color=figures.BLUE, label="w7")
        axes.plot(rows[:, 7], color=figures.VERMILLION, label="w8")
        figures.dress(axes, title, "sweep" if "DP" in title else "step", "weight")


EXPERIMENT = Experiment(
    about="On Baird's counterexample the weights of off-policy TD(0) grow without bound",
    source="Sutton and Barto (2018), figures 11.1 and 11.2",
    trials=(
        Trial(OFF, "td-0", "Baird", {**SETTINGS, "behaviour": (6 / 7, 1 / 7)}, updates=STEPS, observe=weights),
        Trial(ON, "td-0", "Baird", SETTINGS, updates=STEPS, observe=weights),
    ),
    draw=draw,
    claims=(
        Claim("off-policy TD(0) diverges on every seed", diverges),
        Claim(
            "a sweep of semi-gradient DP enlarges the weights: its matrix has a spectral radius above 1", as_theory_says
        ),
        Claim("the same method on-policy does not diverge", stays),
    ),
    size=(12.0, 4.2),
)
