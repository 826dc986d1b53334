"""Mountain car: a car too weak for the hill must swing back first to get up to the flag.

Moore (1990), "Efficient Memory-based Learning for Robot Control", in the form of Sutton and Barto (2018), example 10.1.
Equal to Gymnasium's `MountainCar-v0` to float32 precision: same step, same walls, same flag, same reward of -1 a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from treadle.environments.base import register
from treadle.registry import as_tree
from treadle.scene import Circle, Line, Point, Polygon, Scene
from treadle.spaces import Box, Discrete
from treadle.types import Step


class MountainCarState(NamedTuple):
    """Metres from left to right, and metres a step."""

    position: Float[Array, ""]
    velocity: Float[Array, ""]


@as_tree
class Valley:
    """What the worlds with discrete and with continuous actions share: the valley, its flag and how a car rolls in it.

    Observation: the two numbers of the state. The limits are part of the program, because the space is made of them.
    """

    gravity: float = 0.0025
    """What a slope takes from the velocity where it is steepest, in metres per step squared."""
    goal_position: float = 0.5
    """Where the flag stands, in metres."""
    goal_velocity: float = 0.0
    """The least velocity at the flag with which the episode terminates, in metres a step."""
    position_limits: tuple[float, float] = (-1.2, 0.6)
    """The walls, in metres. The left one stops the car."""
    velocity_limits: tuple[float, float] = (-0.07, 0.07)
    """Metres a step."""

    @property
    def observation_space(self) -> Box:
        low, high = zip(self.position_limits, self.velocity_limits, strict=True)
        return Box(low, high, (2,))

    def reset(self, key: Array) -> tuple[MountainCarState, Float[Array, "2"]]:
        """At rest, the position uniform in [-0.6, -0.4)."""
        state = MountainCarState(jax.random.uniform(key, minval=-0.6, maxval=-0.4), jnp.zeros(()))
        return state, jnp.stack(state)

    def roll(self, state: MountainCarState, push: Float[Array, ""]) -> MountainCarState:
        """A step later, `push` being what the engine adds to the velocity."""
        velocity = state.velocity + push - self.gravity * jnp.cos(3 * state.position)
        velocity = jnp.clip(velocity, *self.velocity_limits)
        position = jnp.clip(state.position + velocity, *self.position_limits)
        at_wall = (position == self.position_limits[0]) & (velocity < 0)
        return MountainCarState(position, jnp.where(at_wall, 0.0, velocity))

    def at_flag(self, state: MountainCarState) -> Bool[Array, ""]:
        """Whether the episode terminates."""
        return (state.position >= self.goal_position) & (state.velocity >= self.goal_velocity)

    def scene(self, state: MountainCarState) -> Scene:
        """The hills, the flag, and the car on its wheels."""
        left, right = self.position_limits[0] - 0.2, self.position_limits[1] + 0.2
        curve = [left + (right - left) * i / 100 for i in range(101)]
        hills = Polygon(((left, 0.0), *((x, _height(x)) for x in curve), (right, 0.0)), "ground")

        foot = float(self.goal_position)
        base = _height(foot)
        pole = Line(((foot, base), (foot, base + 0.3)), 0.015, "ink")
        flag = Polygon(((foot, base + 0.3), (foot + 0.14, base + 0.25), (foot, base + 0.2)), "goal")
        return Scene((left, 0.0), (right, 1.4), (hills, pole, flag, *_car(float(state.position))))


@register("MountainCarFlag-v0", reward="flag")
@register("MountainCarShaped-v0", reward="shaped")
@register("MountainCar-v0")
class MountainCar(Valley):
    """Observation: position and velocity. Actions: 0 drives left, 1 lets it roll, 2 drives right. Reward: -1 a step.

    Two more rewards are tutorials' own. The shaped one is the distance from the bottom, `|position + 0.5|`; that of the
    flag is 10 in the step that reaches it and -1 in all others.
    """

    action_names: ClassVar[tuple[str, ...]] = ("left", "none", "right")
    keys: ClassVar[Mapping[str, int]] = {"ArrowLeft": 0, "ArrowDown": 1, "ArrowRight": 2}

    force: float = 0.001
    """What the engine adds to the velocity, in metres per step squared."""
    max_episode_steps: int | None = 200
    reward: Literal["time", "shaped", "flag"] = "time"
    """-1 for every step, or one of the tutorials'."""

    @property
    def evaluated_as(self) -> str | None:
        """The task behind a changed reward, in which agents are evaluated."""
        return None if self.reward == "time" else "MountainCar-v0"

    @property
    def action_space(self) -> Discrete:
        return Discrete(3)

    def step(self, state: MountainCarState, action: Int[Array, ""], key: Array) -> tuple[MountainCarState, Step]:
        """Deterministic: `key` is not used."""
        state = self.roll(state, (action - 1) * self.force)
        terminated = self.at_flag(state)
        return state, Step(jnp.stack(state), self._reward(state, terminated), terminated)

    def _reward(self, state: MountainCarState, terminated: Bool[Array, ""]) -> Float[Array, ""]:
        if self.reward == "shaped":
            return jnp.abs(state.position + 0.5)
        return jnp.where(terminated, 10.0, -1.0) if self.reward == "flag" else -jnp.ones(())


def _height(x: float) -> float:
    """Metres above the lower edge of the drawing; the slope is what gravity pulls along, up to a factor."""
    return 0.55 + 0.45 * math.sin(3 * x)


def _car(x: float) -> tuple[Polygon, Circle, Circle]:
    """Body and wheels, standing on the slope at `x`."""
    slope = math.atan(1.35 * math.cos(3 * x))
    sin, cos = math.sin(slope), math.cos(slope)

    def at(along: float, above: float) -> Point:
        return x + along * cos - above * sin, _height(x) + along * sin + above * cos

    outline = [
        (-0.1, 0.03),
        (-0.1, 0.08),
        (-0.06, 0.08),
        (-0.04, 0.13),
        (0.03, 0.13),
        (0.06, 0.08),
        (0.1, 0.07),
        (0.1, 0.03),
    ]
    body = Polygon(tuple(at(*point) for point in outline), "agent")
    return body, Circle(at(-0.06, 0.03), 0.03), Circle(at(0.06, 0.03), 0.03)
