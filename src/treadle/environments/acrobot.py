"""Acrobot: two links hanging from a pivot, with a motor at the joint between them; the free end must be swung up.

Sutton (1996), "Generalization in Reinforcement Learning: Successful Examples Using Sparse Coarse Coding"; Sutton and
Barto (1998), section 11.3, whose equations of motion these are. Equal to Gymnasium's `Acrobot-v1` to float32 precision:
one step of the classical Runge-Kutta method, then angles wrapped and velocities clipped; reward -1 for every step that
does not reach the line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from treadle.environments.base import register
from treadle.environments.pendulum import wrap
from treadle.scene import Circle, Line, Scene
from treadle.spaces import Box, Discrete
from treadle.types import Step


class AcrobotState(NamedTuple):
    """Radians in [-pi, pi], and radians/s. The first angle is from hanging down, the second from the first link; both
    count anticlockwise."""

    theta1: Float[Array, ""]
    theta2: Float[Array, ""]
    theta1_dot: Float[Array, ""]
    theta2_dot: Float[Array, ""]


@register("Acrobot-v1")
class Acrobot:
    """Observation: cosine and sine of the first angle, of the second angle, and both velocities. Actions: torque
    -1, 0 or 1 at the joint. Reward: -1 a step, 0 in the one that reaches the line."""

    action_names: ClassVar[tuple[str, ...]] = ("clockwise", "none", "anticlockwise")
    keys: ClassVar[Mapping[str, int]] = {"ArrowLeft": 2, "ArrowDown": 1, "ArrowRight": 0}

    gravity: float = 9.8
    """Metres per second squared."""
    length1: float = 1.0
    """Of the first link, in metres."""
    length2: float = 1.0
    """Of the second link, in metres."""
    mass1: float = 1.0
    """Of the first link, in kilograms."""
    mass2: float = 1.0
    """Of the second link, in kilograms."""
    centre1: float = 0.5
    """From the pivot to the first link's centre of mass, in metres."""
    centre2: float = 0.5
    """From the joint to the second link's centre of mass, in metres."""
    inertia1: float = 1.0
    """The first link's moment of inertia about its centre of mass, in kilogram square metres."""
    inertia2: float = 1.0
    """The second link's, likewise."""
    torque: float = 1.0
    """Newton metres, in either direction."""
    dt: float = 0.2
    """Seconds between two observations."""
    target_height: float = 1.0
    """The episode terminates when the free end is higher above the pivot than this, in metres."""
    velocity_limits: tuple[float, float] = (4 * math.pi, 9 * math.pi)
    """The greatest velocities of the two angles in either direction, in radians/s; part of the program, because the
    observation space is made of them."""
    max_episode_steps: int | None = 500

    @property
    def observation_space(self) -> Box:
        bound = (1.0, 1.0, 1.0, 1.0, *self.velocity_limits)
        return Box(tuple(-b for b in bound), bound, (6,))

    @property
    def action_space(self) -> Discrete:
        return Discrete(3)

    def reset(self, key: Array) -> tuple[AcrobotState, Float[Array, "6"]]:
        """All four numbers of the state uniform in [-0.1, 0.1)."""
        state = AcrobotState(*jax.random.uniform(key, (4,), minval=-0.1, maxval=0.1))
        return state, _observe(state)

    def step(self, state: AcrobotState, action: Int[Array, ""], key: Array) -> tuple[AcrobotState, Step]:
        """One Runge-Kutta step at constant torque. Deterministic: `key` is not used."""
        torque, h = (action - 1) * self.torque, self.dt

        def after(time: float | Array, slope: AcrobotState) -> AcrobotState:
            return jax.tree.map(lambda x, x_dot: x + time * x_dot, state, slope)

        k1 = self._derivative(state, torque)
        k2 = self._derivative(after(h / 2, k1), torque)
        k3 = self._derivative(after(h / 2, k2), torque)
        k4 = self._derivative(after(h, k3), torque)
        free = after(h / 6, jax.tree.map(lambda a, b, c, d: a + 2 * b + 2 * c + d, k1, k2, k3, k4))

        limit1, limit2 = self.velocity_limits
        state = AcrobotState(
            wrap(free.theta1),
            wrap(free.theta2),
            jnp.clip(free.theta1_dot, -limit1, limit1),
            jnp.clip(free.theta2_dot, -limit2, limit2),
        )
        height = -self.length1 * jnp.cos(state.theta1) - self.length2 * jnp.cos(state.theta1 + state.theta2)
        terminated = height > self.target_height
        return state, Step(_observe(state), jnp.where(terminated, 0.0, -1.0), terminated)

    def _derivative(self, state: AcrobotState, torque: Float[Array, ""]) -> AcrobotState:
        """The equations of motion, in the book's letters: each number's change in a second."""
        theta1, theta2, theta1_dot, theta2_dot = state
        sin2, cos2 = jnp.sin(theta2), jnp.cos(theta2)
        coupling = self.mass2 * self.length1 * self.centre2
        own2 = self.mass2 * self.centre2**2 + self.inertia2

        d1 = self.mass1 * self.centre1**2 + self.inertia1 + self.mass2 * self.length1**2 + own2 + 2 * coupling * cos2
        d2 = own2 + coupling * cos2
        phi2 = self.mass2 * self.centre2 * self.gravity * jnp.sin(theta1 + theta2)
        phi1 = (
            (self.mass1 * self.centre1 + self.mass2 * self.length1) * self.gravity * jnp.sin(theta1)
            - coupling * sin2 * theta2_dot * (theta2_dot + 2 * theta1_dot)
            + phi2
        )
        acceleration2 = (torque + d2 / d1 * phi1 - coupling * sin2 * theta1_dot**2 - phi2) / (own2 - d2**2 / d1)
        return AcrobotState(theta1_dot, theta2_dot, -(d2 * acceleration2 + phi1) / d1, acceleration2)

    def scene(self, state: AcrobotState) -> Scene:
        """The two links from the pivot, and the line that the free end must pass."""
        first, both = float(state.theta1), float(state.theta1) + float(state.theta2)
        length1, length2, height = float(self.length1), float(self.length2), float(self.target_height)
        joint = (length1 * math.sin(first), -length1 * math.cos(first))
        end = (joint[0] + length2 * math.sin(both), joint[1] - length2 * math.cos(both))
        reach = length1 + length2
        edge = reach + 0.2
        shapes = (
            Line(((-reach, height), (reach, height)), 0.03, "goal"),
            Line(((0.0, 0.0), joint), 0.16, "agent"),
            Line((joint, end), 0.16, "agent"),
            Circle((0.0, 0.0), 0.1, "ink"),
            Circle(joint, 0.1, "accent"),
            Circle(end, 0.08, "agent"),
        )
        return Scene((-edge, -edge), (edge, edge), shapes)


def _observe(state: AcrobotState) -> Float[Array, "6"]:
    theta1, theta2, theta1_dot, theta2_dot = state
    return jnp.stack([jnp.cos(theta1), jnp.sin(theta1), jnp.cos(theta2), jnp.sin(theta2), theta1_dot, theta2_dot])
