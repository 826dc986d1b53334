"""Quadrotor room: fly to a target through a closed room with pillars, and touch nothing.

A world of Treadle's own after a project of the tutorials. The quadrotor is a ball that is pushed along the axes of the
room: its attitude control is taken as ideal, its hover as balanced, so that a command of thrust is a force on top of
what carries its weight. Without one it neither falls nor climbs, and linear drag brings it to rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from treadle.environments.base import register
from treadle.scene import Circle, Colour, Handle, Label, Line, Point, Polygon, Scene, Shape
from treadle.spaces import Box, Discrete
from treadle.types import Step

Obstacle = tuple[float, float, float, float]
"""A cylinder on the floor: x, y, radius and height in metres."""
WALL = tuple((x, 3.0, 0.35, 3.0) for x in (0.35, 0.95, 1.55, 2.15, 2.75, 3.35, 5.65))
ROOMS: dict[str, tuple[tuple[float, float, float], tuple[Obstacle, ...]]] = {
    "empty": ((5.0, 5.0, 1.5), ()),
    "pillars": (
        (5.0, 5.0, 1.5),
        ((1.6, 1.8, 0.3, 3.0), (3.0, 3.0, 0.4, 3.0), (4.4, 2.0, 0.3, 2.0), (4.0, 4.4, 0.3, 1.5)),
    ),
    "wall": ((1.2, 5.0, 1.5), WALL),
}
"""The target and the obstacles of each fixed room."""
PUSHES = (
    (0.0, 0.0, 0.0),
    (-1.0, 0.0, 0.0),
    (1.0, 0.0, 0.0),
    (0.0, 1.0, 0.0),
    (0.0, -1.0, 0.0),
    (0.0, 0.0, 1.0),
    (0.0, 0.0, -1.0),
)
NAMES = ("hover", "left", "right", "forward", "back", "up", "down")
"""The discrete actions: directions and names."""
KEYS = ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "PageUp", "PageDown")
"""Of all but the first."""
APART = 0.05
"""Metres that a person must leave between the quadrotor and what they move."""
SIDE = 6.6
"""How far to the right the view from the side begins, in metres of the drawing."""
LEAD = 0.3
"""Seconds ahead that the line of the velocity reaches."""
EDGE = 0.2
"""Metres around the drawing."""
CANDIDATES = 8
"""Places that are drawn for a start or a target, of which the first that is free is taken."""


class QuadrotorState(NamedTuple):
    """Metres and metres/s; x to the right, y forward, z up, from a corner of the floor."""

    position: Float[Array, "3"]
    velocity: Float[Array, "3"]
    target: Float[Array, "3"]
    obstacles: Float[Array, "K 4"]
    """Cylinders on the floor: x, y, radius, height."""


@register("QuadrotorRoomEmpty", room="empty")
@register("QuadrotorRoomWall", room="wall")
@register("QuadrotorRoomRandom", room="random")
@register("QuadrotorRoomContinuous", actions="continuous")
@register("QuadrotorRoom")
class QuadrotorRoom:
    """Observation, 9 + 3 K floats for K obstacles, all in [-1, 1]: the position from the room's centre, in halves of
    the room; the velocity, in terminal speeds; the target less the position, and for each obstacle its nearest point
    less the position, in whole rooms. Actions: 0 hover, 1 left, 2 right, 3 forward, 4 back, 5 up, 6 down; or three
    numbers, the shares of the thrust to the right, forward and up, clipped to [-1, 1].

    Reward: the metres by which the target came nearer, times `progress_reward`, less `step_cost`; 10 more at the target
    and 10 less on touching a wall, the floor, the ceiling or an obstacle, both of which end the episode where they
    happen. Of both the earlier decides, and in the same part of a step it is the collision.

    An episode starts at rest in a place that is uniform over the free ones. The rooms, in metres:

    - empty: no obstacle, target (5, 5, 1.5);
    - pillars: the same target, and 4 obstacles (x, y, radius, height): (1.6, 1.8, 0.3, 3), (3, 3, 0.4, 3),
      (4.4, 2, 0.3, 2), (4, 4.4, 0.3, 1.5); the last two can be flown over;
    - wall: target (1.2, 5, 1.5), behind a wall along y = 3 with a gap from x = 3.7 to x = 5.3: 7 obstacles of radius
      0.35 and the room's height at x = 0.35, 0.95, 1.55, 2.15, 2.75, 3.35 and 5.65;
    - random: another target and 4 other obstacles every episode, one in each quarter of the room, of radius 0.2 to 0.4
      and height 1 to 3. There is a way around each of them, so that every target can be reached.
    """

    actions: Literal["discrete", "continuous"] = "discrete"
    """Full thrust along one axis or none, or three shares of it."""
    room: Literal["empty", "pillars", "wall", "random"] = "pillars"
    """Where the obstacles and the target are."""
    room_size: tuple[float, float, float] = (6.0, 6.0, 3.0)
    """Width, depth and height in metres; the fixed rooms' obstacles are made for this one. Part of the program, because
    the observation is made of it."""
    mass: float = 1.0
    """Kilograms."""
    radius: float = 0.2
    """Of the quadrotor, which is a ball, in metres."""
    drag: float = 1.2
    """Force against the motion, in newtons for each metre/s."""
    thrust: float = 3.0
    """Greatest force along each axis, in newtons, on top of what carries the weight. With the drag it makes a terminal
    speed of 2.5 metres/s."""
    dt: float = 0.1
    """Seconds between two observations."""
    substeps: int = 4
    """Parts of a step, after each of which it is looked whether something is touched."""
    target_radius: float = 0.3
    """The target is reached when the quadrotor's centre is less far away than this, in metres."""
    start_distance: float = 1.5
    """The least distance from the start to the target, in metres."""
    margin: float = 0.15
    """The least clearance around the quadrotor at the start, and in the random room around any way, in metres."""
    progress_reward: float = 1.0
    """For each metre nearer to the target."""
    step_cost: float = 0.01
    """What each step costs."""
    target_reward: float = 10.0
    """For reaching the target."""
    collision_cost: float = 10.0
    """What it costs to touch something."""
    max_episode_steps: int | None = 200

    @property
    def action_names(self) -> tuple[str, ...]:
        return NAMES if self.actions == "discrete" else ("right", "forward", "up")

    @property
    def keys(self) -> Mapping[str, int | tuple[float, float, float]]:
        discrete = self.actions == "discrete"
        return {key: i if discrete else PUSHES[i] for i, key in enumerate(KEYS, 1)}

    @property
    def observation_space(self) -> Box:
        obstacles = 4 if self.room == "random" else len(ROOMS[self.room][1])
        return Box(-1.0, 1.0, (9 + 3 * obstacles,))

    @property
    def action_space(self) -> Discrete | Box:
        return Discrete(len(PUSHES)) if self.actions == "discrete" else Box(-1.0, 1.0, (3,))

    def reset(self, key: Array) -> tuple[QuadrotorState, Float[Array, " n"]]:
        """At rest, clear of everything by `margin` and `start_distance` away from the target."""
        if self.room == "random":
            key, obstacle_key, target_key = jax.random.split(key, 3)
            obstacles = self._random_obstacles(jax.random.uniform(obstacle_key, (4, 4)))
            target = self._random_target(jax.random.uniform(target_key, (CANDIDATES, 3)), obstacles)
        else:
            target, obstacles = (jnp.array(x) for x in ROOMS[self.room])
            obstacles = obstacles.reshape(-1, 4)
        start = self._random_start(jax.random.uniform(key, (CANDIDATES, 3)), target, obstacles)
        state = QuadrotorState(start, jnp.zeros(3), target, obstacles)
        return state, self.observe(state)

    def step(
        self, state: QuadrotorState, action: Int[Array, ""] | Float[Array, "3"], key: Array
    ) -> tuple[QuadrotorState, Step]:
        """The flight at constant thrust up to the end of the step, or to that part of it in which something is touched
        or the target reached. Deterministic: `key` is not used."""
        if self.actions == "discrete":
            push = jnp.array(PUSHES).at[action].get(mode="promise_in_bounds")
        else:
            push = jnp.clip(action, -1.0, 1.0)
        positions, velocities = self._flight(state, push)
        collided = self._touches(positions, state.obstacles)
        reached = self._is_at(positions, state.target) & ~collided
        is_last = jnp.arange(self.substeps) == self.substeps - 1
        end = jnp.argmax(collided | reached | is_last)
        position, velocity, collided, reached = (
            x.at[end].get(mode="promise_in_bounds") for x in (positions, velocities, collided, reached)
        )
        progress = _norm(state.target - state.position) - _norm(state.target - position)
        reward = self.progress_reward * progress - self.step_cost
        reward += self.target_reward * reached - self.collision_cost * collided
        state = state._replace(position=position, velocity=velocity)
        return state, Step(self.observe(state), reward, collided | reached)

    def _flight(
        self, state: QuadrotorState, push: Float[Array, "3"]
    ) -> tuple[Float[Array, "n 3"], Float[Array, "n 3"]]:
        """Positions and velocities after each of the parts of a step: the solution of `mass v' = thrust - drag v`, in
        which the velocity decays to the terminal one."""
        time = self.dt / self.substeps * jnp.arange(1, self.substeps + 1)[:, None]
        rate, terminal = self.drag / self.mass, push * self._terminal
        decay = jnp.exp(-rate * time)
        surplus = state.velocity - terminal
        return state.position + terminal * time + surplus * (1 - decay) / rate, terminal + surplus * decay

    def observe(self, state: QuadrotorState) -> Float[Array, " n"]:
        """What the agent sees in a state."""
        size = jnp.array(self.room_size)
        near = jnp.stack(to_obstacles(state.position, state.obstacles), -1) / size
        own = (2 * state.position - size) / size, state.velocity / self._terminal
        return jnp.concatenate([*own, (state.target - state.position) / size, near.ravel()])

    def is_success(self, state: QuadrotorState) -> Bool[Array, ""]:
        """Whether it is at the target, and touches nothing."""
        return self._is_at(state.position, state.target) & ~self._touches(state.position, state.obstacles)

    @property
    def _terminal(self) -> float:
        """Metres/s."""
        return self.thrust / self.drag

    def _is_at(self, position: Float[Array, "*n 3"], target: Float[Array, "3"]) -> Bool[Array, "*n"]:
        return jnp.sum((position - target) ** 2, axis=-1) < self.target_radius**2

    def _touches(
        self, position: Float[Array, "*n 3"], obstacles: Float[Array, "K 4"], margin: float = 0.0
    ) -> Bool[Array, "*n"]:
        """Whether anything is nearer to the quadrotor's surface than `margin`."""
        clear = self.radius + margin
        outside = (position < clear) | (position > jnp.array(self.room_size) - clear)
        x, y, z = to_obstacles(position, obstacles)
        return outside.any(-1) | (x**2 + y**2 + z**2 < clear**2).any(-1)

    def _random_obstacles(self, share: Float[Array, "4 4"]) -> Float[Array, "4 4"]:
        """One in each quarter. Each leaves a free way along the walls and along the lines between the quarters."""
        clear = self.radius + self.margin
        half = jnp.array(self.room_size[:2]) / 2
        radius, height = 0.2 + 0.2 * share[:, 2:3], 1.0 + 2.0 * share[:, 3:]
        low, high = radius + 2 * clear, half - clear - radius
        place = low + (high - low) * share[:, :2]
        mirrored = jnp.array([[False, False], [True, False], [False, True], [True, True]])
        return jnp.concatenate([jnp.where(mirrored, 2 * half - place, place), radius, height], 1)

    def _random_target(self, share: Float[Array, "n 3"], obstacles: Float[Array, "K 4"]) -> Float[Array, "3"]:
        """The first candidate that can be reached, or else the room's centre, where the random room has nothing."""
        size = jnp.array(self.room_size)
        points = 0.5 + (size - 1.0) * share
        return _first(points, ~self._touches(points, obstacles, self.margin), size / 2)

    def _random_start(
        self, share: Float[Array, "n 3"], target: Float[Array, "3"], obstacles: Float[Array, "K 4"]
    ) -> Float[Array, "3"]:
        """The first candidate that fits, or else the middle before that wall, front or back, from which the target is
        further: all rooms are free there."""
        size, clear = jnp.array(self.room_size), self.radius + self.margin
        points = clear + (size - 2 * clear) * share
        far = jnp.sum((points - target) ** 2, axis=-1) >= self.start_distance**2
        y = jnp.where(target[1] > size[1] / 2, 0.5, size[1] - 0.5)
        fits = far & ~self._touches(points, obstacles, self.margin)
        return _first(points, fits, jnp.stack([size[0] / 2, y, size[2] / 2]))

    def move(self, state: QuadrotorState, handle: str, to: Point) -> QuadrotorState:
        """With the target or an obstacle at `to`, or at the nearest point that is in the room and not where the
        quadrotor is. In the view from the side the target moves along x and z."""
        size, position = np.array(self.room_size), np.asarray(state.position)
        if handle.startswith("obstacle"):
            obstacles = np.array(state.obstacles)
            obstacle = obstacles[int(handle.split()[1]) - 1]
            radius, height = obstacle[2:]
            over, clear = max(position[2] - height, 0.0), self.radius + APART
            apart = radius + np.sqrt(clear**2 - over**2) if over < clear else 0.0
            obstacle[:2] = _beside(np.array(to), position[:2], apart, (radius, size[:2] - radius))
            return state._replace(obstacles=obstacles)
        target = np.array(state.target)
        axes, other, left = ([0, 2], 1, SIDE) if handle == "target (side)" else ([0, 1], 2, 0.0)
        aside, clear = position[other] - target[other], self.target_radius + APART
        apart = np.sqrt(max(clear**2 - aside**2, 0.0))
        bounds = self.radius, size[axes] - self.radius
        target[axes] = _beside(np.array(to) - [left, 0.0], position[axes], apart, bounds)
        return state._replace(target=target)

    def scene(self, state: QuadrotorState) -> Scene:
        """The room from above and, to the right of it, from the side."""
        return draw(self, state)


def to_obstacles(position: Float[Array, "*n 3"], obstacles: Float[Array, "K 4"]) -> tuple[Float[Array, "*n K"], ...]:
    """The vectors from a position to the nearest points of the obstacles, zero inside: x, y and z apart, since compiled
    code is twice as fast with them."""
    x, y, z = (position[..., i, None] for i in range(3))
    across, along, radius, height = obstacles.T
    across, along = across - x, along - y
    distance = jnp.sqrt(across**2 + along**2)
    outside = jnp.maximum(distance - radius, 0.0) / jnp.maximum(distance, 1e-6)
    return across * outside, along * outside, jnp.minimum(height - z, 0.0)


def _norm(vector: Float[Array, "3"]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.sum(vector**2))


def _first(points: Float[Array, "n 3"], fits: Bool[Array, " n"], otherwise: Float[Array, "3"]) -> Float[Array, "3"]:
    """The first point that fits."""
    return jnp.where(fits.any(), points[jnp.argmax(fits)], otherwise)


def _beside(to: np.ndarray, centre: np.ndarray, apart: float, bounds: tuple[Any, Any]) -> np.ndarray:
    """The point within the bounds and at least `apart` from a centre that is nearest to `to`, among 128 directions."""
    point = np.clip(to, *bounds)
    if np.hypot(*(point - centre)) >= apart:
        return point
    angles = np.arctan2(*(point - centre)[::-1]) + np.linspace(0, 2 * np.pi, 128, endpoint=False)
    around = centre + apart * np.stack([np.cos(angles), np.sin(angles)], 1)
    around = around[((around >= bounds[0]) & (around <= bounds[1])).all(1)]
    return around[np.argmin(np.hypot(*(around - point).T))]


def draw(world: QuadrotorRoom, state: QuadrotorState) -> Scene:
    """Both views, in metres: x and y, then x and z to the right of them."""
    x, y, z = (float(p) for p in state.position)
    vx, vy, vz = (LEAD * float(v) for v in state.velocity)
    tx, ty, tz = (float(p) for p in state.target)
    obstacles = [tuple(float(number) for number in obstacle) for obstacle in state.obstacles]
    width, depth, height = world.room_size
    target = float(world.target_radius)
    arm = 0.6 * float(world.radius)
    corners = [(x + dx, y + dy) for dx, dy in ((-arm, -arm), (arm, arm), (-arm, arm), (arm, -arm))]
    side = SIDE + x
    shapes: tuple[Shape, ...] = (
        *_frame(0.0, width, depth, "from above"),
        *_frame(SIDE, width, height, "from the side"),
        *(Circle((a, b), r, "wall") for a, b, r, _ in obstacles),
        *(_box(SIDE + a - r, 0.0, SIDE + a + r, h, "wall") for a, _, r, h in obstacles),
        Circle((tx, ty), target, "goal"),
        Circle((SIDE + tx, tz), target, "goal"),
        *(Line(tuple(pair), 0.05, "ink") for pair in (corners[:2], corners[2:])),
        *(Circle(corner, 0.45 * float(world.radius), "agent") for corner in corners),
        Line(((x, y), (x + vx, y + vy)), 0.05, "accent"),
        Line(((side - arm, z), (side + arm, z)), 0.09, "ink"),
        *(Line(((a - arm / 2, z + 0.08), (a + arm / 2, z + 0.08)), 0.06, "agent") for a in (side - arm, side + arm)),
        Line(((side, z), (side + vx, z + vz)), 0.05, "accent"),
    )
    handles = (
        *(Handle(f"obstacle {i}", (a, b), max(r, 0.25)) for i, (a, b, r, _) in enumerate(obstacles, 1)),
        Handle("target", (tx, ty), target),
        Handle("target (side)", (SIDE + tx, tz), target),
    )
    return Scene((-EDGE, -EDGE), (SIDE + width + EDGE, depth + 0.6), shapes, handles=handles)


def _frame(left: float, width: float, height: float, text: str) -> tuple[Shape, ...]:
    """A view's walls, and its name above them."""
    inner, outer = _box(left, 0.0, left + width, height, "ground"), ((left, 0.0), (left, height))
    corners = (*outer, (left + width, height), (left + width, 0.0), (left, 0.0))
    return inner, Line(corners, 0.06, "muted"), Label((left + width / 2, height + 0.3), text, 0.35)


def _box(left: float, low: float, right: float, high: float, colour: Colour) -> Polygon:
    return Polygon(((left, low), (left, high), (right, high), (right, low)), colour)
