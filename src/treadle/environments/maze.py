"""A maze of 4x4 cells with two traps and a treasure, observed as a cell or as two numbers."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from treadle import exact
from treadle.environments import grid
from treadle.environments.base import register
from treadle.scene import Scene
from treadle.spaces import Box, Discrete
from treadle.types import Step

SIZE = 4
TREASURE, TRAPS = 10, (6, 9)
_DIRECTIONS = grid.UP, grid.DOWN, grid.RIGHT, grid.LEFT
_MOVES = grid.moves(SIZE, SIZE, _DIRECTIONS, ends=(TREASURE, *TRAPS))


@register("MazeOffset", observation="offset")
@register("Maze")
class Maze:
    """An episode starts in the top left corner and ends at the treasure in (x, y) = (2, 2), with reward 1, or in a trap
    in (2, 1) or (1, 2), with reward -1; all other rewards are 0. Actions: 0 up, 1 down, 2 right, 3 left; a move off the
    grid stays. Observation: the cell `4 y + x`, `y` downwards, or the agent's offset from the treasure `(dx, dy) / 4`.
    """

    action_names, keys = grid.names(_DIRECTIONS), grid.keys(_DIRECTIONS)

    observation: Literal["cell", "offset"] = "cell"
    """The cell's number, for tables, or the offset from the treasure, for networks."""
    max_episode_steps: int | None = None
    """Time limit in steps; none unless set."""

    @property
    def observation_space(self) -> Discrete | Box:
        if self.observation == "cell":
            return Discrete(SIZE * SIZE)
        return Box(-0.5, 0.25, (2,))

    @property
    def action_space(self) -> Discrete:
        return Discrete(4)

    def reset(self, key: Array) -> tuple[Int[Array, ""], Int[Array, ""] | Float[Array, "2"]]:
        """The top left corner."""
        cell = jnp.zeros((), jnp.int32)
        return cell, self._observe(cell)

    def step(self, state: Int[Array, ""], action: Int[Array, ""], key: Array) -> tuple[Int[Array, ""], Step]:
        """One cell in a direction. Deterministic."""
        cell = grid.move(_MOVES, state, action)
        found = cell == TREASURE
        caught = (cell == TRAPS[0]) | (cell == TRAPS[1])
        reward = jnp.where(cell == state, 0.0, found.astype(jnp.float32) - caught)
        return cell, Step(self._observe(cell), reward, found | caught)

    def _observe(self, cell: Int[Array, ""]) -> Int[Array, ""] | Float[Array, "2"]:
        if self.observation == "cell":
            return cell
        x, y = cell % SIZE - TREASURE % SIZE, cell // SIZE - TREASURE // SIZE
        return jnp.stack([x, y]).astype(jnp.float32) / SIZE

    def transitions(self) -> exact.Transitions:
        """Over the 16 cells, whichever way they are observed."""
        return exact.tabulate(self, SIZE * SIZE)

    def scene(self, state: Int[Array, ""]) -> Scene:
        looks = {TREASURE: grid.TREASURE} | dict.fromkeys(TRAPS, grid.TRAP)
        return grid.draw(SIZE, SIZE, state, looks)
