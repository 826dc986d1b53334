"""Cliff walking: the shortest path runs along a cliff.

Sutton and Barto (2018), example 6.6. Equal to Gymnasium's `CliffWalking-v1` (not slippery) in every state, the
unreachable ones too. Methods that learn the values of the greedy policy find the path along the edge, from which they
fall while they explore; those that learn the values of what they do keep their distance.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int

from treadle.environments import grid
from treadle.environments.base import register
from treadle.scene import Scene
from treadle.types import Step

ROWS, COLUMNS = 4, 12
START, GOAL = 36, 47
"""The corners at the bottom; between them lies the cliff."""
_DIRECTIONS = grid.UP, grid.RIGHT, grid.DOWN, grid.LEFT
_MOVES = grid.moves(ROWS, COLUMNS, _DIRECTIONS)


@register("CliffWalking-v1")
class CliffWalking(grid.Cells):
    """Observation: the cell `12 row + column`, rows counted from the top. Actions: 0 up, 1 right, 2 down, 3 left; a
    move off the grid stays. Reward: -1 a step, -100 for one over the cliff, which leads back to the start. The episode
    ends at the goal."""

    moves, start = _MOVES, START
    action_names, keys = grid.names(_DIRECTIONS), grid.keys(_DIRECTIONS)

    max_episode_steps: int | None = None
    """Time limit in steps; none unless set."""

    def step(self, state: Int[Array, ""], action: Int[Array, ""], key: Array) -> tuple[Int[Array, ""], Step]:
        """One cell in a direction. Deterministic."""
        cell = grid.move(_MOVES, state, action)
        fell = (cell > START) & (cell < GOAL)
        cell = jnp.where(fell, START, cell)
        return cell, Step(cell, jnp.where(fell, -100.0, -1.0), cell == GOAL)

    def scene(self, state: Int[Array, ""]) -> Scene:
        looks = {START: grid.START, GOAL: grid.TREASURE} | dict.fromkeys(range(START + 1, GOAL), grid.TRAP)
        return grid.draw(ROWS, COLUMNS, state, looks)
