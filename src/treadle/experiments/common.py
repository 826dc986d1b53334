"""What several experiments look at, judge and draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from treadle import exact, figures, registry
from treadle.experiment import Claim, Outcomes, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def q_table(state: Any) -> Any:
    """A look at the values of a table `[S, A]`."""
    return state.q.weights


def paths_are_optimal(world: Any, q: np.ndarray, gamma: float) -> np.ndarray:
    """Whether the greedy path from the start is optimal, for tables `[..., S, A]` of a deterministic world.

    Ties between best actions count as taken the worst way: an action that is as good as another in a table that knows
    nothing yet is no achievement.
    """
    table = world.transitions()
    best = np.asarray(exact.optimal_actions(exact.value_iteration(table, gamma)))
    successor = np.where(table.probability.sum(-1) > 0, table.probability.argmax(-1), -1)
    flat = q.reshape(-1, *q.shape[-2:])
    at = np.full(len(flat), int(table.start.argmax()))
    optimal, going = np.ones(len(flat), bool), np.ones(len(flat), bool)
    for _ in range(q.shape[-2]):
        values = flat[np.arange(len(flat)), at]
        greedy = values >= values.max(axis=1, keepdims=True)
        optimal &= ~going | np.all(best[at] | ~greedy, axis=1)
        following = successor[at, values.argmax(axis=1)]
        going &= following >= 0
        at = np.where(going, following, at)
    return (optimal & ~going).reshape(q.shape[:-2])


def first_optimal(optimal: np.ndarray) -> np.ndarray:
    """The look, counted from 1, at which the path of each seed `[S, N]` is optimal for the first time; `N + 1` where it
    never is."""
    return np.where(optimal.any(axis=1), optimal.argmax(axis=1), optimal.shape[1]) + 1


def all_paths_optimal(label: str, world: str, gamma: float) -> Claim:
    """The claim that the greedy path of every seed is optimal when a trial ends."""

    def judge(outcomes: Outcomes) -> Verdict:
        optimal = paths_are_optimal(registry.environments.make(world), outcomes[label].observed, gamma)
        first = first_optimal(optimal)
        solved = int(optimal[:, -1].sum())
        told = f"{solved} of {len(optimal)} seeds; for the first time after {int(np.median(first)):,} episodes (median)"
        return Verdict(solved == len(optimal), f"{told}, the slowest seed after {int(first.max()):,}")

    return Claim(f"{label}: the greedy path from the start is optimal for every seed", judge)


def draw_solved(axes: Axes, outcomes: Outcomes, world: str, gammas: dict[str, float]) -> None:
    """The share of seeds whose greedy path is optimal, against episodes."""
    made = registry.environments.make(world)
    curves = {label: paths_are_optimal(made, outcomes[label].observed, g).mean(0) for label, g in gammas.items()}
    episodes = np.arange(1, 1 + max(map(len, curves.values())))
    for colour, (label, curve) in zip(figures.COLOURS, curves.items(), strict=False):
        axes.plot(episodes[: len(curve)], 100 * curve, color=colour, linewidth=1.8, label=label)
    axes.set_ylim(0, 103)
    figures.dress(axes, "Seeds whose greedy path is optimal", "episode", "% of seeds")


def mean_curve(axes: Axes, x: np.ndarray, rows: np.ndarray, colour: str, label: str) -> None:
    """The mean over seeds of curves `[S, N]`, with its 95% interval (normal approximation)."""
    mean, half = rows.mean(0), 1.96 * rows.std(0, ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else 0 * rows[0]
    axes.plot(x, mean, color=colour, linewidth=1.8, label=label)
    axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)


def smoothed(rows: np.ndarray, window: int) -> np.ndarray:
    """Moving mean over the last `window` looks `[S, N]`."""
    total = np.cumsum(np.pad(rows.astype(float), ((0, 0), (window, 0)), mode="edge"), axis=1)
    return (total[:, window:] - total[:, :-window]) / window


def chain_values(state: Any) -> Any:
    """A look at the values that a prediction method has learned of a random walk, without the two ends: `[S]`."""
    return state.v.weights[1:-1]
