"""Quadrotor room: how it flies, what it must not touch, and where it starts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle import drawing, registry
from treadle.environments.quadrotor import NAMES, PUSHES, ROOMS, SIDE, QuadrotorRoom, QuadrotorState
from treadle.scene import Circle, Label
from treadle.spaces import Box, Discrete

pytestmark = pytest.mark.least_optimised

HOVER, LEFT, RIGHT, FORWARD, BACK, UP, DOWN = range(7)
SIZE = np.array([6.0, 6.0, 3.0])
PILLARS = np.array(ROOMS["pillars"][1])
HALL = QuadrotorRoom(room="empty", room_size=(60.0, 60.0, 60.0))
"""Where there is room to fly."""


def at(
    position: Any, velocity: Any = (0, 0, 0), target: Any = (5.0, 5.0, 1.5), obstacles: Any = ((3.0, 0.6, 0.1, 0.2),)
) -> Any:
    """A state, with a low stub of an obstacle out of the way unless others are given."""
    numbers: Any = (np.asarray(x, np.float32) for x in (position, velocity, target, np.reshape(obstacles, (-1, 4))))
    return QuadrotorState(*numbers)


@jax.jit
def play(world: QuadrotorRoom, state: QuadrotorState, actions: jax.Array) -> Any:
    """The states and answers `[T]` of a sequence of actions, up to the end and resting there."""

    def one_step(carry, action):
        state, over = carry
        after, step = world.step(state, action, jax.random.key(0))
        after = jax.tree.map(lambda a, b: jnp.where(over, a, b), state, after)
        step = step._replace(reward=jnp.where(over, 0.0, step.reward))
        return (after, over | step.terminated), (after, step)

    return jax.lax.scan(one_step, (state, jnp.zeros((), jnp.bool_)), actions)[1]


@jax.jit
def steps(world: QuadrotorRoom, states: QuadrotorState, actions: jax.Array) -> Any:
    """One step from each of many states."""
    return jax.vmap(lambda s, a: world.step(s, a, jax.random.key(0)))(states, actions)


@jax.jit
def resets(world: QuadrotorRoom) -> Any:
    return jax.vmap(world.reset)(jax.random.split(jax.random.key(0), 2000))


def fly(world: QuadrotorRoom, state: QuadrotorState, action: int, count: int = 100) -> Any:
    return jax.tree.map(np.asarray, play(world, state, jnp.full(count, action)))


def after(state: QuadrotorState, action: int = HOVER, /, **fields: Any) -> Any:
    """One step, as a state and an answer."""
    states, answers = fly(QuadrotorRoom(**fields), state, action, 1)
    return jax.tree.map(lambda x: x[0], (states, answers))


def together(states: list[Any]) -> Any:
    return jax.tree.map(lambda *x: np.stack(x), *states)


# Flight


def test_a_step_worked_by_hand():
    """From rest with 3 N on 1 kg against 1.2 N s/m: after 0.1 s the velocity is `2.5 (1 - exp(-0.12))`, and the way
    `2.5 (0.1 - (1 - exp(-0.12)) / 1.2)`."""
    lag = 1 - math.exp(-0.12)
    for action, push in enumerate(PUSHES):
        state, answer = after(at((3.0, 3.0, 1.5)), action)
        way = 2.5 * (0.1 - lag / 1.2) * np.array(push)
        np.testing.assert_allclose(state.velocity, 2.5 * lag * np.array(push), rtol=1e-5)
        np.testing.assert_allclose(state.position, np.array([3.0, 3.0, 1.5]) + way, rtol=1e-6)
        nearer = math.dist((3, 3), (5, 5)) - math.dist((5.0, 5.0, 1.5), np.array([3.0, 3.0, 1.5]) + way)
        np.testing.assert_allclose(answer.reward, nearer - 0.01, atol=1e-6)
        assert not answer.terminated


def test_it_flies_at_2_and_a_half_metres_a_second():
    for action in range(1, 7):
        states, _ = fly(HALL, at((30.0, 30.0, 30.0), obstacles=()), action)
        np.testing.assert_allclose(states.velocity[-1], 2.5 * np.array(PUSHES[action]), rtol=1e-4)
        speed = np.linalg.norm(states.velocity, axis=1)
        assert (np.diff(speed) >= 0).all() and speed.max() <= 2.5
        assert speed[6] < 0.632 * 2.5 < speed[8], "the lag is 1 / 1.2 s"


def test_at_hover_it_neither_falls_nor_drifts():
    states, _ = fly(HALL, at((30.0, 30.0, 30.0), obstacles=()), HOVER)
    assert (states.position == 30).all() and not states.velocity.any()
    states, _ = fly(HALL, at((30.0, 30.0, 30.0), (2.5, 0, 0), obstacles=()), HOVER)
    np.testing.assert_allclose(states.position[-1], [30 + 2.5 / 1.2, 30, 30], rtol=1e-5)
    assert np.abs(states.velocity[-1]).max() < 1e-4, "the drag brings it to rest"


def test_every_constant_is_where_it_belongs():
    """Twice the mass halves the acceleration; twice the drag halves the terminal speed; steps may be coarser."""
    state, _ = after(at((3.0, 3.0, 1.5)), RIGHT, mass=2.0, drag=2.4, thrust=6.0, dt=0.2, substeps=2)
    lag = 1 - math.exp(-0.24)
    np.testing.assert_allclose(state.velocity[0], 2.5 * lag, rtol=1e-5)
    np.testing.assert_allclose(state.position[0], 3 + 2.5 * (0.2 - lag / 1.2), rtol=1e-6)


def test_three_numbers_push_at_once_and_are_clipped():
    world = QuadrotorRoom(actions="continuous")
    start = together([at((3.0, 3.0, 1.5))] * 3)
    states, _ = steps(world, start, jnp.array([[1.0, -1.0, 0.5], [7.0, -9.0, 0.5], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(states.velocity[0], 2.5 * (1 - math.exp(-0.12)) * np.array([1, -1, 0.5]), rtol=1e-5)
    np.testing.assert_array_equal(states.position[0], states.position[1])
    np.testing.assert_array_equal(states.position[2], start.position[2])


# What it must not touch


@pytest.mark.parametrize("action", range(1, 7))
def test_walls_floor_and_ceiling_end_the_flight(action):
    """It is stopped in the part of a step in which its surface passes the wall, at most 2.5/40 m further."""
    axis, sign = np.argmax(np.abs(PUSHES[action])), np.sum(PUSHES[action])
    states, answers = fly(QuadrotorRoom(), at((3.0, 3.0, 1.5)), action)
    last = np.argmax(answers.terminated)
    place = states.position[last, axis]
    beyond = 0.2 - place if sign < 0 else place - (SIZE[axis] - 0.2)
    assert 0 < beyond <= 2.5 / 40
    others = np.delete(states.position, axis, axis=1)
    assert (others == np.delete([3.0, 3.0, 1.5], axis)).all()
    progress = np.linalg.norm(states.position[last - 1] - (5, 5, 1.5)) - np.linalg.norm(
        states.position[last] - (5, 5, 1.5)
    )
    np.testing.assert_allclose(answers.reward[last], progress - 0.01 - 10, rtol=1e-5)
    assert not QuadrotorRoom().is_success(jax.tree.map(lambda x: x[last], states))


def test_it_may_fly_close_by():
    """1 cm from a wall, a pillar, the rim of a top, and 1 cm nearer than that."""
    slant = 0.2 / math.sqrt(2)  # its centre is beside and above the rim by this
    for obstacles, place, way in (
        ((), (0.2, 3.0, 1.5), (1, 0, 0)),
        ((), (5.8, 3.0, 1.5), (-1, 0, 0)),
        ((), (3.0, 3.0, 2.8), (0, 0, -1)),
        ((3.0, 3.0, 0.4, 3.0), (3.0, 3.6, 1.0), (0, 1, 0)),
        ((3.0, 3.0, 0.4, 1.0), (3.1, 3.0, 1.2), (0, 0, 1)),
        ((3.0, 3.0, 0.4, 1.0), (3.4 + slant, 3.0, 1.0 + slant), (1, 0, 1)),
        ((3.0, 3.0, 0.4, 1.0), (3.0, 3.0, 0.5), (0, 0, 0)),
    ):
        for shift in (0.01, -0.01):
            state = at(np.add(place, shift * np.array(way)), obstacles=obstacles or ((1, 1, 0.1, 0.1),))
            assert after(state)[1].terminated == (shift < 0 or not any(way)), (place, shift)


def test_the_pillars_stand_in_the_way():
    """Along x = 3 the middle one is met at y = 3 - 0.4 - 0.2. Over the low one at (4, 4.4) it can fly from 1.7 on."""
    state = at((3.0, 0.5, 1.5), obstacles=PILLARS)
    states, answers = fly(QuadrotorRoom(), state, FORWARD)
    assert 0 < states.position[np.argmax(answers.terminated), 1] - 2.4 <= 2.5 / 40
    for height, hits in ((1.65, True), (1.75, False)):
        states, answers = fly(QuadrotorRoom(), at((4.0, 3.5, height), target=(1, 1, 1), obstacles=PILLARS), FORWARD)
        y = states.position[np.argmax(answers.terminated), 1]
        assert (y < 4.4) == hits


def test_nothing_is_flown_through_at_top_speed():
    """A pole 2 cm thick is met from wherever the last step began, straight and at all three velocities at once."""
    phases = np.linspace(0, 0.25, 50)
    for velocity, action in (((2.5, 0, 0), (1, 0, 0)), ((2.5, 2.5, 0), (1, 1, 0)), ((2.5, 2.5, 2.5), (1, 1, 1))):
        world = QuadrotorRoom(actions="continuous")
        way = np.array(velocity) / 2.5
        starts = [at((3, 3, 1.4) - way * (0.3 + p), velocity, obstacles=(3, 3, 0.01, 3)) for p in phases]
        state, hit = together(starts), np.zeros(50, bool)
        for _ in range(4):
            state, answer = steps(world, state, jnp.tile(jnp.array(action, jnp.float32), (50, 1)))
            hit |= np.asarray(answer.terminated)
        assert hit.all()


# The target


def test_the_target_is_reached_within_its_radius():
    """From 1 m to its left: over once nearer than 0.3 m, with the progress, less 0.01, and 10."""
    states, answers = fly(QuadrotorRoom(), at((4.0, 5.0, 1.5)), RIGHT)
    last = np.argmax(answers.terminated)
    x = states.position[:, 0]
    assert x[last - 1] <= 4.7 < x[last] <= 4.7 + 2.5 / 40
    np.testing.assert_allclose(answers.reward[last], x[last] - x[last - 1] - 0.01 + 10, rtol=1e-5)
    assert QuadrotorRoom().is_success(jax.tree.map(lambda x: x[last], states))
    assert not QuadrotorRoom().is_success(jax.tree.map(lambda x: x[last - 1], states))


def test_of_target_and_collision_the_earlier_decides():
    """At 2.5 m/s to the right, 0.0625 m in each of the four parts of a step; the wall is touched at 5.8."""
    for place, target, success in (
        (5.65, 6.05, True),  # at the target, from 5.75 on, in the second part, and at the wall in the third
        (5.65, 6.16, False),  # at the target, from 5.86 on, in the fourth
        (5.74, 6.05, False),  # both in the first
    ):
        state, answer = after(at((place, 3.0, 1.5), (2.5, 0, 0), (target, 3.0, 1.5)), RIGHT)
        assert answer.terminated
        assert (answer.reward > 0) == success == bool(QuadrotorRoom().is_success(state)), place


def test_progress_adds_up_to_the_way_that_was_made():
    rng = np.random.default_rng(0)
    states, answers = play(HALL, at((30.0, 30.0, 30.0), obstacles=()), jnp.array(rng.integers(0, 7, 100)))
    assert not answers.terminated.any()
    nearer = np.linalg.norm([25, 25, 28.5]) - np.linalg.norm(states.position[-1] - np.array([5, 5, 1.5]))
    np.testing.assert_allclose(answers.reward.sum(), nearer - 100 * 0.01, atol=1e-3)


def test_rewards_are_settings():
    settings: Any = {"progress_reward": 2.0, "step_cost": 0.5, "target_reward": 3.0, "collision_cost": 7.0}
    still, hit, there = (
        after(at(place, target=(5, 5, 1.5)), **settings)[1].reward for place in ((3, 3, 1.5), (0.1, 3, 1), (5, 5, 1.5))
    )
    np.testing.assert_allclose([still, hit, there], [-0.5, -7.5, 2.5], rtol=1e-6)


# What is seen


def test_an_observation_worked_by_hand():
    """At (4.5, 3, 1) with 1.25 m/s to the left, the target 0.5 to the right, 2 forward and 0.5 up. One pillar is to its
    left, from 4 on; one lower by 0.3 below it and behind, whose nearest point is its rim at y = 2."""
    obstacles = ((3.6, 3.0, 0.4, 3.0), (4.5, 1.7, 0.3, 0.7))
    answer = QuadrotorRoom().observe(at((4.5, 3.0, 1.0), (-1.25, 0, 0), obstacles=obstacles))
    expected = [0.5, 0, -1 / 3, -0.5, 0, 0, 0.5 / 6, 2 / 6, 0.5 / 3, -0.5 / 6, 0, 0, 0, -1 / 6, -0.1]
    np.testing.assert_allclose(answer, expected, atol=1e-6)


def test_names_and_spaces():
    made = registry.environments.make
    pillars, continuous, other = (made(f"QuadrotorRoom{kind}") for kind in ("", "Continuous", "Random"))
    assert pillars.action_space == other.action_space == Discrete(7)
    assert continuous.action_space == Box(-1.0, 1.0, (3,))
    assert (pillars.room, continuous.room, other.room) == ("pillars", "pillars", "random")
    for world, obstacles in (
        (pillars, 4),
        (other, 4),
        (QuadrotorRoom(room="wall"), 7),
        (QuadrotorRoom(room="empty"), 0),
    ):
        assert world.observation_space == Box(-1.0, 1.0, (9 + 3 * obstacles,))
        assert world.max_episode_steps == 200
    assert pillars.action_names == NAMES == ("hover", "left", "right", "forward", "back", "up", "down")
    assert {key: NAMES[action] for key, action in pillars.keys.items()} == {
        "ArrowLeft": "left",
        "ArrowRight": "right",
        "ArrowUp": "forward",
        "ArrowDown": "back",
        "PageUp": "up",
        "PageDown": "down",
    }
    assert {key: PUSHES[action] for key, action in pillars.keys.items()} == continuous.keys


# Starts


def clearance(points: np.ndarray, obstacles: np.ndarray) -> np.ndarray:
    """From each point `[N, 3]` to the nearest wall or obstacle of `[N, K, 4]`."""
    walls = np.minimum(points, SIZE - points).min(1, keepdims=True)
    beside = np.hypot(*np.moveaxis(obstacles[..., :2] - points[:, None, :2], -1, 0)) - obstacles[..., 2]
    above = points[:, None, 2] - obstacles[..., 3]
    return np.hstack([walls, np.hypot(beside.clip(0), above.clip(0))]).min(1)


@pytest.mark.parametrize("room", ["empty", "pillars", "wall", "random"])
def test_episodes_start_at_rest_in_free_space_away_from_the_target(room):
    states, obs = jax.tree.map(np.asarray, resets(QuadrotorRoom(room=room)))
    assert not states.velocity.any() and np.abs(obs).max() <= 1
    assert clearance(states.position, states.obstacles).min() >= 0.35 - 1e-5
    assert clearance(states.target, states.obstacles).min() >= 0.35 - 1e-5
    assert np.linalg.norm(states.position - states.target, axis=1).min() >= 1.5 - 1e-5
    assert len(np.unique(states.position, axis=0)) > 1990
    assert (states.position.min(0) < 0.4).all() and (states.position.max(0) > SIZE - 0.4).all()
    if room == "random":
        assert len(np.unique(states.target, axis=0)) > 1990
    else:
        target, obstacles = ROOMS[room]
        np.testing.assert_array_equal(states.target, np.tile(np.asarray(target, np.float32), (2000, 1)))
        np.testing.assert_array_equal(states.obstacles[0], np.reshape(np.asarray(obstacles, np.float32), (-1, 4)))


def test_there_is_a_way_around_every_obstacle_of_a_random_room():
    """Seen from above, discs that are wider by 0.35 m touch neither each other nor walls that are as much thicker: what
    is left of the room is in one piece."""
    obstacles = np.asarray(resets(QuadrotorRoom(room="random"))[0].obstacles, np.float64)
    centres, radii, heights = obstacles[..., :2], obstacles[..., 2], obstacles[..., 3]
    for i, j in itertools.combinations(range(4), 2):
        gaps = np.linalg.norm(centres[:, i] - centres[:, j], axis=1) - radii[:, i] - radii[:, j]
        assert gaps.min() >= 0.7 - 1e-5
    to_walls = np.minimum(centres, 6 - centres).min(-1) - radii
    assert to_walls.min() >= 0.7 - 1e-5
    quarters = (centres > 3) @ [1, 2]
    assert (quarters == np.arange(4)).all()
    for numbers, low, high in ((radii, 0.2, 0.4), (heights, 1.0, 3.0)):
        assert low <= numbers.min() + 1e-6 and numbers.max() - 1e-6 <= high
        np.testing.assert_allclose(
            np.quantile(numbers, [0.25, 0.75]), [0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high], rtol=0.05
        )


@pytest.mark.parametrize("room", ["empty", "pillars", "wall", "random"])
def test_where_no_candidate_fits_the_start_is_free_as_well(room):
    """None is 100 m away. In the fixed rooms the target is in the back half, so that the start is at the front."""
    states, _ = jax.tree.map(np.asarray, resets(QuadrotorRoom(room=room, start_distance=100.0)))
    assert (states.position[:, [0, 2]] == [3, 1.5]).all()
    np.testing.assert_array_equal(states.position[:, 1], np.where(states.target[:, 1] > 3, 0.5, 5.5))
    assert clearance(states.position, states.obstacles).min() >= 0.35 - 1e-5
    assert np.linalg.norm(states.position - states.target, axis=1).min() >= 1.5
    centre = np.tile(SIZE / 2, (2000, 1))
    if room == "random":
        assert clearance(centre, states.obstacles).min() >= 0.35, "nor does a target want for a place"


def test_compiled_or_not_it_is_the_same():
    state = at((3.0, 1.0, 1.5), (1.0, -0.5, 0.3), obstacles=PILLARS)
    for eager, compiled in zip(
        jax.tree.leaves(QuadrotorRoom().step(state, jnp.int32(UP), jax.random.key(0))),
        jax.tree.leaves(after(state, UP)),
        strict=True,
    ):
        np.testing.assert_allclose(eager, compiled, atol=1e-6)


# What a person sees and moves


def test_a_person_moves_target_and_obstacles_within_the_room():
    world, state = QuadrotorRoom(), at((3.0, 1.0, 1.5), obstacles=PILLARS)
    for handle, to, target in (
        ("target", (1.5, 4.0), (1.5, 4.0, 1.5)),
        ("target", (-3.0, 9.0), (0.2, 5.8, 1.5)),
        ("target (side)", (SIDE + 2.0, 0.7), (2.0, 5.0, 0.7)),
        ("target (side)", (SIDE + 2.0, 5.0), (2.0, 5.0, 2.8)),
    ):
        np.testing.assert_allclose(world.move(state, handle, to).target, target, rtol=1e-6)
    for to, place in (((1.0, 4.5), (1.0, 4.5)), ((7.0, 0.0), (5.6, 0.4))):
        moved = world.move(state, "obstacle 2", to).obstacles
        np.testing.assert_allclose(moved, [PILLARS[0], (*place, 0.4, 3.0), *PILLARS[2:]], rtol=1e-6)
    np.testing.assert_array_equal(state.obstacles, np.float32(PILLARS))


def test_nothing_is_moved_onto_the_quadrotor():
    """It stays 5 cm away: an obstacle by its side, unless the quadrotor is above it, and the target by its radius."""
    world, state = QuadrotorRoom(), at((3.0, 1.0, 1.5), obstacles=PILLARS)
    moved = world.move(state, "obstacle 2", (3.1, 1.0))
    np.testing.assert_allclose(moved.obstacles[1, :2], [3.0 + 0.4 + 0.25, 1.0], rtol=1e-6)
    np.testing.assert_allclose(world.move(state, "target", (3.0, 1.2)).target, [3.0, 1.35, 1.5], rtol=1e-6)
    above = at((3.0, 1.0, 1.8), obstacles=PILLARS)
    np.testing.assert_allclose(world.move(above, "obstacle 4", (3.0, 1.0)).obstacles[3, :2], [3.0, 1.0])
    beside = world.move(at((3.0, 1.0, 1.5), target=(3.0, 1.2, 2.5)), "target (side)", (SIDE + 3.0, 1.5))
    assert abs(math.dist(beside.target, (3.0, 1.0, 1.5)) - 0.35) < 1e-5
    # In a corner there are few directions left.
    cornered = world.move(at((0.25, 0.25, 1.5), obstacles=PILLARS), "obstacle 1", (0.1, 0.1))
    assert not after(cornered)[1].terminated
    assert (cornered.obstacles[0, :2] >= 0.3 - 1e-6).all()


@pytest.mark.parametrize("room", ["empty", "pillars", "wall", "random"])
def test_the_drawing_has_both_views(room):
    world = QuadrotorRoom(room=room)
    state = jax.tree.map(lambda x: np.asarray(x)[0], resets(world)[0])
    scene = world.scene(state)
    assert [shape.text for shape in scene.shapes if isinstance(shape, Label)] == ["from above", "from the side"]
    x, y, z = state.target.tolist()
    goals = [shape.centre for shape in scene.shapes if isinstance(shape, Circle) and shape.colour == "goal"]
    assert goals == [(x, y), (SIDE + x, z)]
    rotors = [shape.centre for shape in scene.shapes if isinstance(shape, Circle) and shape.colour == "agent"]
    assert len(rotors) == 4
    np.testing.assert_allclose(np.mean(rotors, axis=0), state.position[:2], rtol=1e-6)
    names = [f"obstacle {i + 1}" for i in range(len(state.obstacles))]
    assert [handle.name for handle in scene.handles] == [*names, "target", "target (side)"]
    assert "from above" in drawing.as_text(scene)
