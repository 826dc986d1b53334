"""What grid worlds have in common: moves as a table of cells, and drawing.

Cells are counted row by row from the top left: `cell = row * columns + column`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from treadle import exact
from treadle.scene import Circle, Colour, Polygon, Scene
from treadle.spaces import Discrete
from treadle.types import Step

UP, DOWN, RIGHT, LEFT = (-1, 0), (1, 0), (0, 1), (0, -1)
"""Directions as (rows, columns)."""
_ARROWS = {UP: "up", DOWN: "down", RIGHT: "right", LEFT: "left"}


class Look(NamedTuple):
    """How a kind of cell is drawn."""

    glyph: str
    colour: Colour


GROUND, WALL, START = Look("-", "ground"), Look("#", "wall"), Look("S", "muted")
TREASURE, TRAP = Look("T", "goal"), Look("X", "danger")


def moves(
    rows: int,
    columns: int,
    directions: tuple[tuple[int, int], ...],
    walls: tuple[int, ...] = (),
    ends: tuple[int, ...] = (),
) -> Int[np.ndarray, "S A"]:
    """Where each direction leads from each cell. Moves off the grid or into a wall stay, and so does all in `ends`."""
    row, column = np.divmod(np.arange(rows * columns)[:, None], columns)
    down, right = np.array(directions).T
    to = np.clip(row + down, 0, rows - 1) * columns + np.clip(column + right, 0, columns - 1)
    stays = np.isin(to, walls) | np.isin(np.arange(rows * columns), ends)[:, None]
    return np.where(stays, np.arange(rows * columns)[:, None], to).astype(np.int32)


def move(table: Int[np.ndarray, "S A"], cell: Int[Array, ""], action: Int[Array, ""]) -> Int[Array, ""]:
    """The cell that `action` leads to, by a table of `moves`."""
    return jnp.asarray(table).at[cell, action].get(mode="promise_in_bounds")


def names(directions: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    """What actions in these directions are called."""
    return tuple(_ARROWS[direction] for direction in directions)


def keys(directions: tuple[tuple[int, int], ...]) -> Mapping[str, int]:
    """The arrow keys, each with the action in its direction."""
    return {f"Arrow{_ARROWS[direction].title()}": action for action, direction in enumerate(directions)}


class Cells:
    """What worlds have in common whose observation is the agent's cell, and whose episodes all begin in one."""

    moves: ClassVar[Int[np.ndarray, "S A"]]
    """Where each action leads from each cell, as `moves` gives it."""
    start: ClassVar[int]
    max_episode_steps: int | None

    @property
    def observation_space(self) -> Discrete:
        return Discrete(self.moves.shape[0])

    @property
    def action_space(self) -> Discrete:
        return Discrete(self.moves.shape[1])

    def reset(self, key: Array) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """The cell in which every episode begins."""
        cell = jnp.full((), self.start, jnp.int32)
        return cell, cell

    def step(self, state: Int[Array, ""], action: Int[Array, ""], key: Array) -> tuple[Int[Array, ""], Step]:
        """One cell in a direction, and what this world gives for it."""
        raise NotImplementedError

    def transitions(self) -> exact.Transitions:
        return exact.tabulate(self, self.moves.shape[0])


def draw(rows: int, columns: int, agent: int | Array, looks: Mapping[int, Look]) -> Scene:
    """The grid, each cell 1 wide, with the agent `o` in its cell. Cells without a look of their own are ground."""

    def corner(cell: int) -> tuple[float, float]:
        return float(cell % columns), float(rows - 1 - cell // columns)

    def square(cell: int) -> Polygon:
        (x, y), look = corner(cell), looks.get(cell, GROUND)
        low, high = 0.04, 0.96
        points = ((x + low, y + low), (x + high, y + low), (x + high, y + high), (x + low, y + high))
        return Polygon(points, look.colour, look.glyph)

    x, y = corner(int(agent))
    figure = Circle((x + 0.5, y + 0.5), 0.3, "agent", "o")
    shapes = (*(square(cell) for cell in range(rows * columns)), figure)
    return Scene((0.0, 0.0), (float(columns), float(rows)), shapes, (columns, rows))
