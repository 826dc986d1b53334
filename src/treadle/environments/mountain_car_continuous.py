"""Mountain car with a throttle: the flag is worth 100, and driving costs.

The valley of `mountain_car.py`. Equal to Gymnasium's `MountainCarContinuous-v0` to float32 precision: a stronger
engine, a flag 5 cm nearer, 999 steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from treadle.environments.base import register
from treadle.environments.mountain_car import MountainCarState, Valley
from treadle.spaces import Box
from treadle.types import Step


@register("MountainCarContinuous-v0")
class MountainCarContinuous(Valley):
    """Observation: position and velocity. Action: the throttle, from -1 (left) to 1 (right).

    Reward: 100 at the flag, less `0.1 action^2` in every step. As in Gymnasium, the engine takes the action clipped to
    its range, but the cost is that of the action as it was given.
    """

    action_names: ClassVar[tuple[str, ...]] = ("throttle",)
    keys: ClassVar[Mapping[str, tuple[float]]] = {"ArrowLeft": (-1.0,), "ArrowRight": (1.0,)}

    goal_position: float = 0.45
    """Where the flag stands, in metres."""
    power: float = 0.0015
    """What full throttle adds to the velocity, in metres per step squared."""
    max_episode_steps: int | None = 999

    @property
    def action_space(self) -> Box:
        return Box(-1.0, 1.0, (1,))

    def step(self, state: MountainCarState, action: Float[Array, "1"], key: Array) -> tuple[MountainCarState, Step]:
        """Deterministic: `key` is not used."""
        throttle = action[0]
        state = self.roll(state, self.power * jnp.clip(throttle, -1.0, 1.0))
        terminated = self.at_flag(state)
        return state, Step(jnp.stack(state), 100.0 * terminated - 0.1 * throttle**2, terminated)
