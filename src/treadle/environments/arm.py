"""Arm: two links in a plane must bring the finger at their end to a goal, and hold it there.

A world of the tutorials' own. Every joint turns as fast as its action says, without inertia: what is learned is how
angles make a place. The tutorials keep the pose from episode to episode; here an episode starts at random angles, which
is the stationary form of that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from treadle.environments.base import register
from treadle.scene import Circle, Handle, Line, Polygon, Scene
from treadle.spaces import Box
from treadle.types import Step


class ArmState(NamedTuple):
    """Radians, anticlockwise, in [0, 2 pi]: the first angle is from the x axis, the second from the first link. Places
    are in the plane's units."""

    angles: Float[Array, "2"]
    goal: Float[Array, "2"]
    """The centre of the goal square."""
    hold: Int[Array, ""]
    """Steps in a row that the finger has been inside the goal square."""
    get_point: Bool[Array, ""]
    """Whether it has been held there for long enough."""


@register("ArmHard", goal="random")
@register("ArmEasy")
class Arm:
    """Observation, 7 floats, lengths in halves of the plane: 1 if the finger is inside the goal square, else 0; elbow
    less goal (2); finger less goal (2); the plane's centre, where the arm stands, less goal (2). Actions: the
    velocities of the two joints in radians/s, clipped to [-1, 1].

    Reward, of the finger's new place: minus its distance from the goal's centre, in halves of the plane; 1 more inside
    the square; and 10 more in the step with which it has been inside for more than `hold_steps` in a row. That step
    ends the episode, unless `ends_at_get_point` says otherwise; then the 10 come again only after it has left the
    square and held anew. Lengths that the spaces are made of are part of the program.
    """

    goal: Literal["fixed", "random"] = "fixed"
    """Always in one place, or in another one every episode."""
    link_lengths: tuple[float, float] = (100.0, 100.0)
    """From the base to the elbow, and from there to the finger, in the plane's units."""
    plane: tuple[float, float] = (400.0, 400.0)
    """Width and height; the base is in its middle."""
    fixed_goal: tuple[float, float] = (250.0, 303.0)
    """The goal's centre where it is fixed."""
    goal_range: tuple[float, float] = (100.0, 300.0)
    """Both coordinates of a random goal are uniform in this range."""
    goal_half_width: float = 15.0
    """Of the goal square, in the plane's units; its rim is not inside."""
    hold_steps: int = 50
    """The finger must be inside for more steps in a row than this."""
    point_reward: float = 10.0
    """Reward for having held it so long."""
    dt: float = 0.1
    """Seconds between two observations."""
    ends_at_get_point: bool = True
    """Whether the episode terminates when the finger has been held for long enough."""
    observe_hold: bool = False
    """Adds an 8th float to the observation: for how many steps it has been held, as a share of `hold_steps`. It counts
    no further than one step more."""
    max_episode_steps: int | None = 200

    action_names: ClassVar[tuple[str, ...]] = ("joint 1", "joint 2")
    keys: ClassVar[Mapping[str, tuple[float, float]]] = {
        "ArrowLeft": (1.0, 0.0),
        "ArrowRight": (-1.0, 0.0),
        "ArrowUp": (0.0, 1.0),
        "ArrowDown": (0.0, -1.0),
    }
    """Left and up turn a joint anticlockwise."""

    @property
    def observation_space(self) -> Box:
        """Bounds for a goal anywhere in the plane."""
        half, (first, second) = max(self.plane) / 2, self.link_lengths
        elbow, finger = 1 + first / half, 1 + (first + second) / half
        high = (elbow, elbow, finger, finger, 1.0, 1.0)
        held = (1 + 1 / self.hold_steps,) if self.observe_hold else ()
        return Box((0.0, *(-h for h in high), *(0.0 for _ in held)), (1.0, *high, *held), (7 + len(held),))

    @property
    def action_space(self) -> Box:
        return Box(-1.0, 1.0, (2,))

    def reset(self, key: Array) -> tuple[ArmState, Float[Array, " n"]]:
        """Both angles uniform in [0, 2 pi)."""
        if self.goal == "fixed":
            share, goal = jax.random.uniform(key, (2,)), jnp.array(self.fixed_goal)
        else:
            low, high = self.goal_range
            share, goal = jnp.split(jax.random.uniform(key, (4,)), 2)
            goal = low + (high - low) * goal
        state = ArmState(2 * math.pi * share, goal, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.bool_))
        return state, self.observe(state)

    def step(self, state: ArmState, action: Float[Array, "2"], key: Array) -> tuple[ArmState, Step]:
        """The joints turn, then the finger is looked at. Deterministic: `key` is not used."""
        angles = wrap(state.angles + self.dt * jnp.clip(action, -1.0, 1.0))
        state = state._replace(angles=angles)
        inside = self.is_success(state)
        hold = jnp.where(inside, state.hold + 1, 0)
        get_point = hold > self.hold_steps
        first = get_point & ~state.get_point
        distance = jnp.sqrt(jnp.sum((self.elbow_and_finger(angles)[1] - state.goal) ** 2)) / self._half
        reward = inside - distance + self.point_reward * first
        state = state._replace(hold=hold, get_point=get_point)
        return state, Step(self.observe(state), reward, get_point & self.ends_at_get_point)

    def observe(self, state: ArmState) -> Float[Array, " n"]:
        """What the agent sees in a state."""
        elbow, finger = self.elbow_and_finger(state.angles)
        places = jnp.concatenate([elbow - state.goal, finger - state.goal, self._base - state.goal]) / self._half
        held = jnp.minimum(state.hold, self.hold_steps + 1) / self.hold_steps
        others = [held[None].astype(jnp.float32)] if self.observe_hold else []
        return jnp.concatenate([self.is_success(state)[None].astype(jnp.float32), places, *others])

    def is_success(self, state: ArmState) -> Bool[Array, ""]:
        """Whether the finger is inside the goal square."""
        finger = self.elbow_and_finger(state.angles)[1]
        return jnp.all(jnp.abs(finger - state.goal) < self.goal_half_width)

    def elbow_and_finger(self, angles: Float[Array, "2"]) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
        """Where the ends of the two links are."""
        first, both = angles[0], angles[0] + angles[1]
        length1, length2 = self.link_lengths
        elbow = self._base + length1 * jnp.stack([jnp.cos(first), jnp.sin(first)])
        return elbow, elbow + length2 * jnp.stack([jnp.cos(both), jnp.sin(both)])

    @property
    def _half(self) -> float:
        return max(self.plane) / 2

    @property
    def _base(self) -> Float[Array, "2"]:
        return jnp.array(self.plane) / 2

    def move(self, state: ArmState, handle: str, to: tuple[float, float]) -> ArmState:
        """With the goal at `to`, or at the nearest point that the finger can reach. The count of steps begins anew if
        the finger is no longer inside."""
        base, _, finger = (np.array(place) for place in self._ends(state))
        offset = np.subtract(to, base)
        far = math.hypot(*offset)
        nearest, furthest = abs(self.link_lengths[0] - self.link_lengths[1]), sum(self.link_lengths)
        offset = offset * np.clip(far, nearest, furthest) / far if far > 0 else np.array([nearest, 0.0])
        goal = np.clip(base + offset, 0.0, self.plane).astype(np.float32)
        stays = bool(np.all(np.abs(finger - goal) < self.goal_half_width))
        return state._replace(
            goal=goal,
            hold=np.int32(state.hold if stays else 0),
            get_point=np.bool_(state.get_point and stays),
        )

    def scene(self, state: ArmState) -> Scene:
        """The two links and the goal square, whose rim is dark while the finger is inside."""
        base, elbow, finger = self._ends(state)
        (x, y), half = (float(place) for place in state.goal), float(self.goal_half_width)
        inside = abs(finger[0] - x) < half and abs(finger[1] - y) < half
        corners = ((x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half))
        size = max(self.plane) / 400
        shapes = (
            Polygon(corners, "goal"),
            Line((*corners, corners[0]), 4 * size, "ink" if inside else "muted"),
            Line((base, elbow), 14 * size, "agent"),
            Line((elbow, finger), 10 * size, "accent"),
            Circle(base, 9 * size, "ink"),
            Circle(elbow, 6 * size, "ink"),
            Circle(finger, 6 * size, "ink"),
        )
        return Scene((0.0, 0.0), self.plane, shapes, handles=(Handle("goal", (x, y), 1.5 * half),))

    def _ends(self, state: ArmState) -> tuple[tuple[float, float], ...]:
        """Base, elbow and finger in plain numbers."""
        first, second = (float(angle) for angle in state.angles)
        x, y = (side / 2 for side in self.plane)
        elbow = (x + self.link_lengths[0] * math.cos(first), y + self.link_lengths[0] * math.sin(first))
        both = first + second
        finger = (elbow[0] + self.link_lengths[1] * math.cos(both), elbow[1] + self.link_lengths[1] * math.sin(both))
        return (x, y), elbow, finger


def wrap(angle: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The same angle in [0, 2 pi]; one that lies there is not touched, not even by rounding."""
    return angle - 2 * math.pi * jnp.floor(angle / (2 * math.pi))
