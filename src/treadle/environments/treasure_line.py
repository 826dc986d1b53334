"""A treasure at the end of a line: the smallest world in which a value has to travel."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int

from treadle.environments import grid
from treadle.environments.base import register
from treadle.scene import Scene
from treadle.types import Step

CELLS, TREASURE = 6, 5
_DIRECTIONS = grid.LEFT, grid.RIGHT
_MOVES = grid.moves(1, CELLS, _DIRECTIONS, ends=(TREASURE,))


@register("TreasureLine")
class TreasureLine(grid.Cells):
    """Observation: the cell, 0 to 5 from the left; an episode starts in 0. Actions: 0 left, 1 right. Reward: 1 for the
    step to the treasure in cell 5, which ends the episode."""

    moves, start = _MOVES, 0
    action_names, keys = grid.names(_DIRECTIONS), grid.keys(_DIRECTIONS)

    max_episode_steps: int | None = None
    """Time limit in steps; none unless set."""

    def step(self, state: Int[Array, ""], action: Int[Array, ""], key: Array) -> tuple[Int[Array, ""], Step]:
        """One cell to a side; left of the left end is the left end. Deterministic."""
        cell = grid.move(_MOVES, state, action)
        found = (cell == TREASURE) & (state != TREASURE)
        return cell, Step(cell, found.astype(jnp.float32), cell == TREASURE)

    def scene(self, state: Int[Array, ""]) -> Scene:
        return grid.draw(1, CELLS, state, {TREASURE: grid.TREASURE})
