"""A treasure at the end of a line: the smallest world in which a value has to travel."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int

from treadle import exact
from treadle.environments import grid
from treadle.environments.base import register
from treadle.scene import Scene
from treadle.spaces import Discrete
from treadle.types import Step

CELLS, TREASURE = 6, 5
_MOVES = grid.moves(1, CELLS, (grid.LEFT, grid.RIGHT), ends=(TREASURE,))


@register("TreasureLine")
class TreasureLine:
    """Observation: the cell, 0 to 5 from the left; an episode starts in 0. Actions: 0 left, 1 right. Reward: 1 for the
    step to the treasure in cell 5, which ends the episode."""

    max_episode_steps: int | None = None
    """Time limit in steps; none unless set."""

    @property
    def observation_space(self) -> Discrete:
        return Discrete(CELLS)

    @property
    def action_space(self) -> Discrete:
        return Discrete(2)

    def reset(self, key: Array) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """The left end."""
        cell = jnp.zeros((), jnp.int32)
        return cell, cell

    def step(self, state: Int[Array, ""], action: Int[Array, ""], key: Array) -> tuple[Int[Array, ""], Step]:
        """One cell to a side; left of the left end is the left end. Deterministic."""
        cell = grid.move(_MOVES, state, action)
        found = (cell == TREASURE) & (state != TREASURE)
        return cell, Step(cell, found.astype(jnp.float32), cell == TREASURE)

    def transitions(self) -> exact.Transitions:
        return exact.tabulate(self, CELLS)

    def scene(self, state: Int[Array, ""]) -> Scene:
        return grid.draw(1, CELLS, state, {TREASURE: grid.TREASURE})
