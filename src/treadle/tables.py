"""A table of values drawn over the grid of its world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from treadle import figures
from treadle.scene import Polygon, Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def scene_of(world: Any) -> Scene:
    """The drawing of a world whose states are counted from 0, in the first of them."""
    return world.scene(np.asarray(0))


def grid_of(world: Any) -> tuple[int, int]:
    """Columns and rows of a grid world whose state `i` lies in column `i % columns` and row `i // columns`."""
    cells = scene_of(world).cells
    assert cells is not None
    return cells


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
        axes.figure.colorbar(image, ax=axes, label=label, shrink=0.6)
    for column, row, glyph in _marks(world):
        axes.text(column, row, glyph, ha="center", va="center", color=figures.GREY, fontsize=9)
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


def _marks(world: Any) -> list[tuple[int, int, str]]:
    """Column, row and glyph of cells that are not ground: walls, traps, goals."""
    _, rows = grid_of(world)
    found = []
    for shape in scene_of(world).shapes:
        if isinstance(shape, Polygon) and shape.glyph not in ("", "-", "S"):
            x, y = np.mean(shape.points, axis=0)
            found.append((int(x), rows - 1 - int(y), shape.glyph))
    return found
