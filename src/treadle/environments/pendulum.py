"""Pendulum: a rod on a motor too weak to lift it at once must be swung up and balanced.

Equal to Gymnasium's `Pendulum-v1` to float32 precision: same semi-implicit Euler step, same clipping of torque and
velocity, same costs of angle, velocity and torque. It never terminates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from treadle.environments.base import register
from treadle.scene import Circle, Line, Scene
from treadle.spaces import Box
from treadle.types import Step


class PendulumState(NamedTuple):
    """Radians from upright, anticlockwise, in [-pi, pi], and radians/s."""

    theta: Float[Array, ""]
    theta_dot: Float[Array, ""]


@register("Pendulum-v1")
class Pendulum:
    """Observation: cosine and sine of the angle, and the velocity. Action: the torque, clipped to its limits.

    Reward: `-(theta^2 + 0.1 theta_dot^2 + 0.001 torque^2)`, of the state in which the torque is applied. The limits are
    part of the program, because the spaces are made of them.
    """

    action_names: ClassVar[tuple[str, ...]] = ("torque",)

    gravity: float = 10.0
    """Metres per second squared."""
    mass: float = 1.0
    """Kilograms, spread evenly over the rod."""
    length: float = 1.0
    """Metres."""
    dt: float = 0.05
    """Seconds between two observations."""
    torque_limits: tuple[float, float] = (-2.0, 2.0)
    """Newton metres."""
    velocity_limits: tuple[float, float] = (-8.0, 8.0)
    """Radians/s."""
    max_episode_steps: int | None = 200

    @property
    def keys(self) -> Mapping[str, tuple[float]]:
        """All the torque anticlockwise or clockwise."""
        clockwise, anticlockwise = self.torque_limits
        return {"ArrowLeft": (anticlockwise,), "ArrowRight": (clockwise,)}

    @property
    def observation_space(self) -> Box:
        slowest, fastest = self.velocity_limits
        return Box((-1.0, -1.0, slowest), (1.0, 1.0, fastest), (3,))

    @property
    def action_space(self) -> Box:
        return Box(*self.torque_limits, (1,))

    def reset(self, key: Array) -> tuple[PendulumState, Float[Array, "3"]]:
        """The angle uniform in [-pi, pi), the velocity in [-1, 1)."""
        angle, velocity = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        state = PendulumState(math.pi * angle, velocity)
        return state, _observe(state)

    def step(self, state: PendulumState, action: Float[Array, "1"], key: Array) -> tuple[PendulumState, Step]:
        """One Euler step, the angle with the new velocity. Deterministic: `key` is not used."""
        theta, theta_dot = state
        torque = jnp.clip(action[0], *self.torque_limits)
        cost = theta**2 + 0.1 * theta_dot**2 + 0.001 * torque**2

        moment = self.mass * self.length**2 / 3
        acceleration = (self.mass * self.gravity * self.length / 2 * jnp.sin(theta) + torque) / moment
        theta_dot = jnp.clip(theta_dot + self.dt * acceleration, *self.velocity_limits)
        state = PendulumState(wrap(theta + self.dt * theta_dot), theta_dot)
        return state, Step(_observe(state), -cost, jnp.zeros((), jnp.bool_))

    def scene(self, state: PendulumState) -> Scene:
        """The rod on its axle, and where its end belongs."""
        theta, length = float(state.theta), float(self.length)
        end = (-length * math.sin(theta), length * math.cos(theta))
        edge = length + 0.3
        shapes = (
            Circle((0.0, length), 0.18, "goal"),
            Line(((0.0, 0.0), end), 0.14, "agent"),
            Circle(end, 0.12, "agent"),
            Circle((0.0, 0.0), 0.07, "ink"),
        )
        return Scene((-edge, -edge), (edge, edge), shapes)


def _observe(state: PendulumState) -> Float[Array, "3"]:
    return jnp.stack([jnp.cos(state.theta), jnp.sin(state.theta), state.theta_dot])


def wrap(angle: Float[Array, ""]) -> Float[Array, ""]:
    """The same angle in [-pi, pi]; one that lies there is not touched, not even by rounding."""
    return angle - 2 * math.pi * jnp.round(angle / (2 * math.pi))
