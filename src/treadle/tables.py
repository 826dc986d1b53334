"""A table of values drawn over the grid of its world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from treadle import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def grid_of(world: Any) -> tuple[int, int]:
    """Columns and rows of a grid world whose state `i` lies in column `i % columns` and row `i // columns`."""
    scene = world.scene(np.asarray(0))
    assert scene.cells is not None
    return scene.cells


def directions_of(world: Any) -> np.ndarray:
    """Where each action leads to in a grid world, `(dx, dy)` with y downwards: `[A, 2]`."""
    columns, _ = grid_of(world)
    probability = world.transitions().probability
    state, action = np.nonzero(probability.sum(-1))
    to = probability[state, action].argmax(-1)
    steps = np.stack([to % columns - state % columns, to // columns - state // columns], axis=-1)
    moved = np.abs(steps).sum(-1) == 1
    return np.stack([steps[moved & (action == a)][0] for a in range(probability.shape[1])])


def draw_values(axes: Axes, world: Any, q: np.ndarray, title: str, arrows: bool = True, label: str = "max Q") -> None:
    """A table `[S, A]` as a heat map over the grid, with arrows for the greedy policy; blank where all is 0."""
    columns, rows = grid_of(world)
    directions = directions_of(world)
    value = q.max(axis=1).reshape(rows, columns)
    unknown = (q == 0).all(axis=1).reshape(rows, columns)
    image = axes.imshow(np.where(unknown, np.nan, value), cmap="viridis", origin="upper")
    if axes.figure is not None:
        axes.figure.colorbar(image, ax=axes, label=label, shrink=0.8)
    for state in np.flatnonzero(~unknown.ravel()) if arrows else ():
        greedy = np.flatnonzero(q[state] == q[state].max())
        for action in greedy:
            dx, dy = directions[action]
            axes.annotate(
                "",
                xy=(state % columns + 0.32 * dx, state // columns + 0.32 * dy),
                xytext=(state % columns - 0.1 * dx, state // columns - 0.1 * dy),
                arrowprops={"arrowstyle": "-|>", "color": "white", "lw": 1.4},
            )
    figures.dress(axes, title)
    axes.grid(visible=False)
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows))
