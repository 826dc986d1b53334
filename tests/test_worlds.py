"""The small worlds: geometry, rewards and ends, worked by hand or against Gymnasium's."""

from __future__ import annotations

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle import registry
from treadle.environments.baird import FEATURES
from treadle.environments.random_walk import RandomWalk
from treadle.scene import Circle, Polygon, Scene
from treadle.spaces import Box, from_gymnasium

MAZE = {"up": 0, "down": 1, "right": 2, "left": 3}
"""Actions of Maze and DynaMaze."""
CLIFF = {"up": 0, "right": 1, "down": 2, "left": 3}
LINE = {"left": 0, "right": 1}


@jax.jit
def walk(world: Any, actions: jax.Array) -> Any:
    """What each step of one episode gave, also beyond its end."""

    def one_step(state, action):
        return world.step(state, action, jax.random.key(0))

    return jax.lax.scan(one_step, world.reset(jax.random.key(0))[0], actions)[1]


def go(name: str, actions: dict[str, int], path: str) -> Any:
    return walk(registry.environments.make(name), jnp.array([actions[word] for word in path.split()]))


@jax.jit
def every_step(world: Any, states: jax.Array, actions: jax.Array) -> Any:
    """The state and the answer `[S, A]` after each action in each state."""
    by_action = jax.vmap(lambda s, a: world.step(s, a, jax.random.key(0)), (None, 0))
    return jax.vmap(by_action, (0, None))(states, actions)


def drawing(scene: Scene) -> list[str]:
    """The last glyph in each cell, row by row from the top."""
    assert scene.cells is not None
    columns, rows = scene.cells
    assert scene.low == (0, 0) and scene.high == (columns, rows), "a cell is 1 wide"
    text = [[" "] * columns for _ in range(rows)]
    for shape in scene.shapes:
        assert isinstance(shape, Circle | Polygon), "a grid is drawn by shapes that have a glyph"
        centre = shape.centre if isinstance(shape, Circle) else np.mean(shape.points, axis=0)
        text[rows - 1 - int(centre[1])][int(centre[0])] = shape.glyph
    return ["".join(row) for row in text]


# Treasure line


def test_the_treasure_is_five_steps_to_the_right():
    steps = go("TreasureLine", LINE, "left right right left right right right right")
    np.testing.assert_array_equal(steps.obs, [0, 1, 2, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(steps.reward, [0, 0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(steps.terminated, [False] * 7 + [True])


# Maze


@pytest.mark.parametrize(
    ("path", "cells", "last_reward"),
    [
        ("up left right right right right down down left", [0, 0, 1, 2, 3, 3, 7, 11, 10], 1),
        ("down down down down right right up", [4, 8, 12, 12, 13, 14, 10], 1),
        ("right right down", [1, 2, 6], -1),
        ("down down right", [4, 8, 9], -1),
    ],
)
def test_the_maze_has_a_treasure_between_two_traps(path, cells, last_reward):
    steps = go("Maze", MAZE, path)
    np.testing.assert_array_equal(steps.obs, cells)
    np.testing.assert_array_equal(steps.reward, [0] * (len(cells) - 1) + [last_reward])
    np.testing.assert_array_equal(steps.terminated, [False] * (len(cells) - 1) + [True])


def test_the_maze_seen_as_an_offset_is_the_same_maze():
    cells, actions = jnp.arange(16), jnp.arange(4)
    after, by_cell = every_step(registry.environments.make("Maze"), cells, actions)
    same, by_offset = every_step(registry.environments.make("MazeOffset"), cells, actions)
    np.testing.assert_array_equal(after, same)
    np.testing.assert_array_equal(by_cell.obs, after)
    np.testing.assert_array_equal(by_cell.reward, by_offset.reward)
    np.testing.assert_array_equal(by_cell.terminated, by_offset.terminated)
    np.testing.assert_array_equal(by_offset.obs, (np.stack([after % 4, after // 4], -1) - 2) / 4)

    world = registry.environments.make("MazeOffset")
    np.testing.assert_array_equal(world.reset(jax.random.key(0))[1], [-0.5, -0.5])
    space = world.observation_space
    assert isinstance(space, Box) and space.shape == (2,)
    assert (space.low, space.high) == (by_offset.obs.min(), by_offset.obs.max()) == (-0.5, 0.25)


# Cliff walking


def test_cliff_walking_is_gymnasiums_in_every_state():
    world = registry.environments.make("CliffWalking-v1")
    theirs: Any = gymnasium.make("CliffWalking-v1").unwrapped
    after, ours = every_step(world, jnp.arange(48), jnp.arange(4))
    for state in range(48):
        for action in range(4):
            theirs.reset()
            theirs.s = state
            obs, reward, terminated, truncated, _ = theirs.step(action)
            got = [x[state, action].item() for x in (ours.obs, ours.reward, ours.terminated)]
            assert got == [obs, reward, terminated], (state, action)
            assert after[state, action] == obs and not truncated
    assert world.reset(jax.random.key(0))[1] == theirs.reset()[0] == 36
    assert world.observation_space == from_gymnasium(theirs.observation_space)
    assert world.action_space == from_gymnasium(theirs.action_space)
    assert world.max_episode_steps is gymnasium.registry["CliffWalking-v1"].max_episode_steps is None
    theirs.close()


def test_the_way_along_the_cliff_costs_13_and_a_fall_100_and_the_way_back():
    steps = go("CliffWalking-v1", CLIFF, "right up right down left up " + "right " * 11 + "down")
    np.testing.assert_array_equal(steps.obs, [36, 24, 25, 36, 36, 24, *range(25, 36), 47])
    np.testing.assert_array_equal(steps.reward, [-100, -1, -1, -100] + 14 * [-1])
    np.testing.assert_array_equal(np.flatnonzero(steps.terminated), [17])


# Dyna maze


def test_the_dyna_maze_takes_fourteen_steps():
    steps = go("DynaMaze", MAZE, "down down right right right up right right right right right up up up")
    np.testing.assert_array_equal(steps.obs, [27, 36, 37, 38, 39, 30, 31, 32, 33, 34, 35, 26, 17, 8])
    np.testing.assert_array_equal(steps.reward, [0] * 13 + [1])
    np.testing.assert_array_equal(steps.terminated, [False] * 13 + [True])


def test_walls_and_edges_of_the_dyna_maze_stop_the_agent():
    around_a_wall = go("DynaMaze", MAZE, "left right right up right up right down")
    np.testing.assert_array_equal(around_a_wall.obs, [18, 19, 19, 10, 10, 1, 2, 2])
    walls = [11, 20, 29, 41, 7, 16, 25]
    free = np.setdiff1d(np.arange(54), walls)
    after, _ = every_step(registry.environments.make("DynaMaze"), jnp.asarray(free), jnp.arange(4))
    assert not np.isin(after, walls).any()
    stays = np.asarray(after) == free[:, None]
    assert stays.sum() == 29 + 19 + 1, "moves off the grid, moves into a wall, and the move down from the goal"


# Random walks


@pytest.mark.parametrize(("name", "states", "left_reward"), [("RandomWalk", 5, 0), ("RandomWalk19", 19, -1)])
def test_a_random_walk_starts_in_the_middle_and_is_paid_at_its_ends(name, states, left_reward):
    middle = (states + 1) // 2
    world = registry.environments.make(name)
    assert world.observation_space.n == states + 2
    assert world.reset(jax.random.key(0))[1] == middle
    for word, places, reward in (
        ("left", range(middle - 1, -1, -1), left_reward),
        ("right", range(middle + 1, states + 2), 1),
    ):
        steps = go(name, LINE, f"{word} " * middle)
        np.testing.assert_array_equal(steps.obs, places)
        np.testing.assert_array_equal(steps.reward, [0] * (middle - 1) + [reward])
        np.testing.assert_array_equal(steps.terminated, [False] * (middle - 1) + [True])


# Baird's counterexample


def test_bairds_features_are_those_of_the_figure():
    """With the weights at which the book starts, the upper states are worth 2 + 1 and the lower one 10 + 2."""
    assert FEATURES.shape == (7, 8)
    np.testing.assert_array_equal(FEATURES @ [1, 1, 1, 1, 1, 1, 10, 1], [3, 3, 3, 3, 3, 3, 12])
    np.testing.assert_array_equal(FEATURES @ np.arange(1, 9), [10, 12, 14, 16, 18, 20, 23])


def test_bairds_dashed_action_leads_up_at_random_and_the_solid_one_down():
    world = registry.environments.make("Baird")
    keys = jax.random.split(jax.random.key(0), 7000)
    states, obs = jax.vmap(world.reset)(keys)
    np.testing.assert_array_equal(obs, FEATURES[states])
    # Expected 1000 each, and 1000 of 6 for the dashed action; 5 standard deviations are 147.
    np.testing.assert_allclose(np.bincount(states, minlength=7), 1000, atol=147)

    upper, dashed = jax.vmap(world.step, (0, None, 0))(states, 0, keys)
    np.testing.assert_allclose(np.bincount(upper, minlength=7), [7000 / 6] * 6 + [0], atol=156)
    lower, solid = jax.vmap(world.step, (0, None, 0))(states, 1, keys)
    np.testing.assert_array_equal(lower, 6)
    for after, steps in ((upper, dashed), (lower, solid)):
        np.testing.assert_array_equal(steps.obs, FEATURES[after])
        assert not steps.reward.any() and not steps.terminated.any()


# All of them


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("TreasureLine", [5]),
        ("Maze", [6, 9, 10]),
        ("MazeOffset", [6, 9, 10]),
        ("DynaMaze", [8]),
        ("RandomWalk", [0, 6]),
        ("RandomWalk19", [0, 20]),
    ],
)
def test_nothing_is_to_be_had_after_the_end(name, ends):
    """Loops that step environments side by side go on with those whose episode is over."""
    world = registry.environments.make(name)
    after, steps = every_step(world, jnp.array(ends), jnp.arange(world.action_space.n))
    np.testing.assert_array_equal(after, np.broadcast_to(np.array(ends)[:, None], after.shape))
    assert not steps.reward.any() and steps.terminated.all()


@pytest.mark.parametrize(
    ("name", "state", "expected"),
    [
        ("TreasureLine", 1, ["-o---T"]),
        ("TreasureLine", 5, ["-----o"]),
        ("Maze", 0, ["o---", "--X-", "-XT-", "----"]),
        ("MazeOffset", 7, ["----", "--Xo", "-XT-", "----"]),
        ("CliffWalking-v1", 36, ["-" * 12, "-" * 12, "-" * 12, "oXXXXXXXXXXT"]),
        ("CliffWalking-v1", 12, ["-" * 12, "o" + "-" * 11, "-" * 12, "SXXXXXXXXXXT"]),
        (
            "DynaMaze",
            6,
            ["------o#T", "--#----#-", "S-#----#-", "--#------", "-----#---", "---------"],
        ),
        ("RandomWalk", 3, ["[--o--]"]),
        ("RandomWalk19", 20, ["[-------------------o"]),
    ],
)
def test_a_grid_is_drawn_cell_by_cell(name, state, expected):
    assert drawing(registry.environments.make(name).scene(jnp.int32(state))) == expected


@pytest.mark.parametrize("state", range(7))
def test_bairds_drawing_fills_the_state_that_the_agent_is_in(state):
    scene = registry.environments.make("Baird").scene(jnp.int32(state))
    circles = [shape for shape in scene.shapes if isinstance(shape, Circle)]
    assert [circle.colour == "agent" for circle in circles] == [i == state for i in range(7)]
    assert scene.cells is None


def test_a_random_walk_may_be_of_any_length():
    world = RandomWalk(num_states=1, left_reward=-2.0)
    left, right = walk(world, jnp.array([0])), walk(world, jnp.array([1]))
    assert (left.reward[0], right.reward[0]) == (-2, 1) and left.terminated[0] and right.terminated[0]
