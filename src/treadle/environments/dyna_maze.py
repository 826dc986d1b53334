"""The maze in which Dyna-Q shows what planning is worth: Sutton and Barto (2018), example 8.1, figure 8.2."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int

from treadle.environments import grid
from treadle.environments.base import register
from treadle.scene import Scene
from treadle.types import Step

ROWS, COLUMNS = 6, 9
START, GOAL = 2 * COLUMNS, 8
WALLS = (*(row * COLUMNS + 2 for row in (1, 2, 3)), 4 * COLUMNS + 5, *(row * COLUMNS + 7 for row in (0, 1, 2)))
"""Column 2 in rows 1 to 3, column 5 in row 4, column 7 in rows 0 to 2."""
_DIRECTIONS = grid.UP, grid.DOWN, grid.RIGHT, grid.LEFT
_MOVES = grid.moves(ROWS, COLUMNS, _DIRECTIONS, WALLS, ends=(GOAL,))


@register("DynaMaze")
class DynaMaze(grid.Cells):
    """Observation: the cell `9 row + column`, rows counted from the top; an episode starts at the left, in row 2.
    Actions: 0 up, 1 down, 2 right, 3 left; a move into a wall or off the grid stays. Reward: 1 for the step to the goal
    in the top right corner, which ends the episode: 14 steps at best."""

    moves, start = _MOVES, START
    action_names, keys = grid.names(_DIRECTIONS), grid.keys(_DIRECTIONS)

    max_episode_steps: int | None = None
    """Time limit in steps; none unless set."""

    def step(self, state: Int[Array, ""], action: Int[Array, ""], key: Array) -> tuple[Int[Array, ""], Step]:
        """One cell in a direction. Deterministic."""
        cell = grid.move(_MOVES, state, action)
        arrived = (cell == GOAL) & (state != GOAL)
        return cell, Step(cell, arrived.astype(jnp.float32), cell == GOAL)

    def scene(self, state: Int[Array, ""]) -> Scene:
        looks = {START: grid.START, GOAL: grid.TREASURE} | dict.fromkeys(WALLS, grid.WALL)
        return grid.draw(ROWS, COLUMNS, state, looks)
