"""CartPole: a pole on a cart, kept upright by pushing the cart left or right.

Barto, Sutton and Anderson (1983), "Neuronlike adaptive elements that can solve difficult learning control
problems". Equal to Gymnasium's `CartPole-v0` and `CartPole-v1` to float32 precision: same equations, same explicit
Euler step, same thresholds and reward (1 for every step, the last one included).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from treadle.environments.base import register
from treadle.scene import Circle, Line, Polygon, Scene
from treadle.spaces import Box, Discrete
from treadle.types import Step


class CartPoleState(NamedTuple):
    """Positions and velocities: metres, metres/s, radians, radians/s."""

    x: Float[Array, ""]
    x_dot: Float[Array, ""]
    theta: Float[Array, ""]
    theta_dot: Float[Array, ""]


@register("CartPoleShaped-v1", reward="shaped")
@register("CartPole-v0", max_episode_steps=200)
@register("CartPole-v1")
class CartPole:
    """Observation: the four numbers of the state. Actions: 0 pushes left, 1 pushes right. Reward: 1 a step.

    The shaped reward is a tutorials' own: the nearer to the middle and to upright, the more,
    `(x_limit - |x|) / x_limit - 0.8 + (theta_limit - |theta|) / theta_limit - 0.5`.
    """

    action_names: ClassVar[tuple[str, ...]] = ("left", "right")
    keys: ClassVar[Mapping[str, int]] = {"ArrowLeft": 0, "ArrowRight": 1}

    gravity: float = 9.8
    """Metres per second squared."""
    cart_mass: float = 1.0
    """Kilograms."""
    pole_mass: float = 0.1
    """Kilograms."""
    half_length: float = 0.5
    """Half the pole's length, in metres."""
    force: float = 10.0
    """Newtons, in either direction."""
    dt: float = 0.02
    """Seconds between two observations."""
    theta_limit: float = 12 * 2 * math.pi / 360
    """The episode terminates beyond this angle, in radians."""
    x_limit: float = 2.4
    """The episode terminates beyond this distance from the middle, in metres."""
    max_episode_steps: int | None = 500
    reward: Literal["survival", "shaped"] = "survival"
    """1 for every step, or the shaped one."""

    @property
    def evaluated_as(self) -> str | None:
        """The task behind a shaped reward, in which agents are evaluated."""
        return "CartPole-v1" if self.reward == "shaped" else None

    @property
    def observation_space(self) -> Box:
        bound = (4.8, math.inf, 24 * 2 * math.pi / 360, math.inf)
        return Box(tuple(-b for b in bound), bound, (4,))

    @property
    def action_space(self) -> Discrete:
        return Discrete(2)

    def reset(self, key: Array) -> tuple[CartPoleState, Float[Array, "4"]]:
        """All four numbers uniform in [-0.05, 0.05)."""
        obs = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        return CartPoleState(*obs), obs

    def step(self, state: CartPoleState, action: Int[Array, ""], key: Array) -> tuple[CartPoleState, Step]:
        """One Euler step. Deterministic: `key` is not used."""
        x, x_dot, theta, theta_dot = state
        force = jnp.where(action == 1, self.force, -self.force)
        sin, cos = jnp.sin(theta), jnp.cos(theta)
        total_mass = self.cart_mass + self.pole_mass
        pole_moment = self.pole_mass * self.half_length

        push = (force + pole_moment * theta_dot**2 * sin) / total_mass
        theta_acc = (self.gravity * sin - cos * push) / (
            self.half_length * (4.0 / 3.0 - self.pole_mass * cos**2 / total_mass)
        )
        x_acc = push - pole_moment * theta_acc * cos / total_mass

        state = CartPoleState(
            x=x + self.dt * x_dot,
            x_dot=x_dot + self.dt * x_acc,
            theta=theta + self.dt * theta_dot,
            theta_dot=theta_dot + self.dt * theta_acc,
        )
        terminated = (jnp.abs(state.x) > self.x_limit) | (jnp.abs(state.theta) > self.theta_limit)
        return state, Step(jnp.stack(state), self._reward(state), terminated)

    def _reward(self, state: CartPoleState) -> Float[Array, ""]:
        if self.reward == "survival":
            return jnp.ones(())
        middle = (self.x_limit - jnp.abs(state.x)) / self.x_limit - 0.8
        upright = (self.theta_limit - jnp.abs(state.theta)) / self.theta_limit - 0.5
        return middle + upright

    def scene(self, state: CartPoleState) -> Scene:
        """The cart on its track between the limits, and the pole on it."""
        x, theta, limit = float(state.x), float(state.theta), float(self.x_limit)
        length, axle, edge = 2 * float(self.half_length), 0.3, limit + 0.6
        end = (x + length * math.sin(theta), axle + length * math.cos(theta))
        shapes = (
            Polygon(((-edge, -0.2), (-edge, 0.0), (edge, 0.0), (edge, -0.2)), "ground"),
            *(Line(((side, 0.0), (side, 0.12)), 0.05, "danger") for side in (-limit, limit)),
            Polygon(((x - 0.3, 0.1), (x - 0.3, axle), (x + 0.3, axle), (x + 0.3, 0.1)), "agent"),
            *(Circle((wheel, 0.09), 0.09, "ink") for wheel in (x - 0.17, x + 0.17)),
            Line(((x, axle), end), 0.09, "accent"),
            Circle((x, axle), 0.06, "ink"),
        )
        return Scene((-edge, -0.2), (edge, axle + length + 0.2), shapes)
