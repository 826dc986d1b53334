"""Q-learning against Sarsa on the cliff: the better policy earns less while it is learned."""

from __future__ import annotations

import numpy as np

from treadle import figures, registry
from treadle.experiment import Claim, Experiment, Trial, Verdict
from treadle.experiments import common

SETTINGS = {"learning_rate": 0.5, "gamma": 1.0, "epsilon": 0.1}
METHODS = {"Q-learning": "q-learning", "Sarsa": "sarsa", "expected Sarsa": "expected-sarsa"}
START, COLUMNS = 36, 12


def greedy_path(q):
    """The cells that the greedy policy visits, up to the goal, a fall, or a circle."""
    table = registry.environments.make("CliffWalking-v1").transitions()
    path = [START]
    while len(path) <= len(q):
        action = int(q[path[-1]].argmax())
        if table.probability[path[-1], action].sum() == 0:
            return [*path, 47]
        path.append(int(table.probability[path[-1], action].argmax()))
    return path


def along_the_edge(outcomes, label):
    """For each seed, how many of the ten cells at the edge its greedy path visits."""
    return np.array([sum(25 <= cell <= 34 for cell in set(greedy_path(q))) for q in outcomes[label].observed[:, -1]])


def edges(outcomes):
    q, sarsa = along_the_edge(outcomes, "Q-learning"), along_the_edge(outcomes, "Sarsa")
    holds = np.mean(q == 10) >= 0.9 and np.median(sarsa) <= 2
    return Verdict(
        bool(holds),
        f"cells at the edge, of 10: Q-learning {q.mean():.1f} ({np.mean(q == 10):.0%} of the seeds all 10), "
        f"Sarsa {sarsa.mean():.1f} (median {np.median(sarsa):.0f})",
    )


def online(outcomes):
    late = {label: outcomes[label].returns[:, -100:].mean(axis=1) for label in ("Q-learning", "Sarsa")}
    difference = late["Sarsa"] - late["Q-learning"]
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    return Verdict(
        bool(difference.mean() - half > 0),
        f"Sarsa {late['Sarsa'].mean():.1f}, Q-learning {late['Q-learning'].mean():.1f}; difference "
        f"{difference.mean():.1f} +- {half:.1f} (95%)",
    )


def draw(figure, outcomes):
    curves, paths = figure.subplots(2, 1, height_ratios=(1.2, 1))
    for colour, label in zip(figures.COLOURS, METHODS, strict=False):
        rows = common.smoothed(outcomes[label].returns, 10)
        common.mean_curve(curves, np.arange(1, rows.shape[1] + 1), rows, colour, label)
    curves.set_ylim(-100, 0)
    figures.dress(curves, "Return of each episode while learning (mean of 10 episodes)", "episode", "return")
    for x in range(COLUMNS):
        for y in range(4):
            cliff = y == 3 and 0 < x < COLUMNS - 1
            paths.add_patch(_square(x, y, "#D9C2B5" if cliff else "#F4F6F7"))
    for shift, colour, label in zip((-0.15, 0.0, 0.15), figures.COLOURS, METHODS, strict=False):
        path = np.array(_typical(outcomes, label))
        paths.plot(path % COLUMNS + shift, path // COLUMNS + shift, color=colour, linewidth=3, label=label)
    for x, text in ((0, "start"), (5.5, "cliff"), (COLUMNS - 1, "goal")):
        paths.text(x, 3.28, text, ha="center", va="center", fontsize=9, color=figures.INK)
    paths.set_xlim(-0.5, COLUMNS - 0.5)
    paths.set_ylim(3.5, -0.5)
    paths.set_aspect("equal")
    figures.dress(paths, "The greedy path that most seeds end with", legend=False)
    paths.grid(visible=False)
    paths.set_xticks([])
    paths.set_yticks([])


def _square(x, y, colour):
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, facecolor=colour, edgecolor="none")


def _typical(outcomes, label):
    """The commonest among the greedy paths of the seeds."""
    paths = [tuple(greedy_path(q)) for q in outcomes[label].observed[:, -1]]
    return max(set(paths), key=paths.count)


EXPERIMENT = Experiment(
    about="Q-learning runs along the edge of the cliff, Sarsa keeps off it and earns more while it learns",
    source="Sutton and Barto (2018), example 6.6",
    trials=tuple(
        Trial(label, name, "CliffWalking-v1", SETTINGS, episodes=500, observe=common.q_table)
        for label, name in METHODS.items()
    ),
    draw=draw,
    claims=(
        Claim("Sarsa earns more than Q-learning in the last 100 episodes", online),
        Claim("Q-learning's greedy path runs along the edge, Sarsa's keeps off it", edges),
    ),
    seeds=50,
    size=(8.0, 6.4),
)
