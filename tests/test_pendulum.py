"""Treadle's Pendulum is Gymnasium's: same steps, costs and clipping, limit, starts and spaces."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest

import twins
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.environments.pendulum import Pendulum, PendulumState
from treadle.spaces import Box, from_gymnasium

play = functools.partial(twins.play, PendulumState)


@pytest.fixture
def theirs():
    """Gymnasium's physics without its wrappers."""
    yield from twins.physics("Pendulum-v1")


def from_states(world: Pendulum, states: np.ndarray, actions: np.ndarray) -> Any:
    """What one step from each answers."""
    return jax.tree.map(lambda x: np.asarray(x)[:, 0], play(world, states, actions[:, None])[1])


def step_all(theirs: Any, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observations and rewards of one step from each state."""
    answers = []
    for state, action in zip(states, actions, strict=True):
        theirs.state = state.astype(np.float64)
        answers.append(theirs.step(action)[:2])
    obs, reward = (np.array(column) for column in zip(*answers, strict=True))
    return obs, reward


def test_a_step_worked_by_hand():
    """At rest, level, full torque: 3/2 x 10 + 3 x 2 = 21 rad/s^2 for 0.05 s. The cost is that of the old state."""
    ours = from_states(Pendulum(), np.array([[math.pi / 2, 0.0]]), np.array([[2.0]]))
    angle = math.pi / 2 + 0.05 * 1.05
    np.testing.assert_allclose(ours.obs[0], [math.cos(angle), math.sin(angle), 1.05], rtol=1e-5)
    np.testing.assert_allclose(ours.reward, -(math.pi**2 / 4 + 0.001 * 4), rtol=1e-6)


def test_every_step_agrees_from_the_same_state(theirs):
    rng = np.random.default_rng(0)
    states = rng.uniform([-np.pi, -8], [np.pi, 8], (4000, 2)).astype(np.float32)
    actions = rng.uniform(-3, 3, (4000, 1)).astype(np.float32)  # also beyond the limits, which clip
    ours = from_states(Pendulum(), states, actions)
    obs, reward = step_all(theirs, states, actions)
    np.testing.assert_allclose(ours.obs, obs, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(ours.reward, reward, rtol=1e-5, atol=1e-6)
    assert not ours.terminated.any()
    assert (np.abs(obs[:, 2]) == 8).sum() > 50, "some should be clipped at full speed"


def test_torque_beyond_the_limits_is_clipped_in_motion_and_cost():
    ours = from_states(Pendulum(), np.zeros((2, 2)), np.array([[5.0], [2.0]]))
    np.testing.assert_array_equal(ours.obs[0], ours.obs[1])
    np.testing.assert_allclose(ours.reward, -0.004, rtol=1e-6)


def test_every_constant_is_where_gymnasium_has_it(theirs):
    """With all constants different, none can stand for another; and the spaces follow the limits."""
    theirs.g, theirs.m, theirs.l, theirs.dt = 7.0, 0.6, 1.7, 0.03
    theirs.max_torque, theirs.max_speed = 1.5, 5.0
    ours = Pendulum(gravity=7.0, mass=0.6, length=1.7, dt=0.03, torque_limits=(-1.5, 1.5), velocity_limits=(-5.0, 5.0))
    rng = np.random.default_rng(1)
    states = rng.uniform([-np.pi, -5], [np.pi, 5], (500, 2)).astype(np.float32)
    actions = rng.uniform(-2, 2, (500, 1)).astype(np.float32)
    answers = from_states(ours, states, actions)
    obs, reward = step_all(theirs, states, actions)
    np.testing.assert_allclose(answers.obs, obs, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(answers.reward, reward, rtol=1e-5, atol=1e-6)
    assert ours.action_space == Box(-1.5, 1.5, (1,))
    assert ours.observation_space == Box((-1.0, -1.0, -5.0), (1.0, 1.0, 5.0), (3,))


def test_whole_episodes_agree(theirs):
    """Free-running for 200 steps: half at random, half with a torque that turns the rod round and round.

    Near upright rounding grows, in float32 to a hundredth in the end. In float64 the whole of them agree: the equations
    are the same.
    """
    rng, steps = np.random.default_rng(2), 200
    sequences = rng.uniform(-2, 2, (20, steps, 1))
    starts, episodes = [], []
    turns = 0.0
    for seed, actions in enumerate(sequences):
        theirs.reset(seed=seed)
        starts.append(theirs.state)
        answers = []
        for action in actions:
            if seed % 2:
                action[:] = 2.0 if theirs.state[1] >= 0 else -2.0
            answers.append(theirs.step(action)[:2])
        turns = max(turns, abs(theirs.state[0]) / (2 * math.pi))
        episodes.append(answers)

    for precise, agree, tolerance in ((True, steps, 2e-6), (False, 60, 1e-4)):
        with jax.enable_x64(precise):
            states, ours = jax.tree.map(np.asarray, play(Pendulum(), np.array(starts), sequences))
        for i, answers in enumerate(episodes):
            obs, reward = (np.array(column) for column in zip(*answers[:agree], strict=True))
            np.testing.assert_allclose(ours.obs[i, :agree], obs, atol=tolerance)
            np.testing.assert_allclose(ours.reward[i, :agree], reward, atol=4 * tolerance)
        assert np.abs(states.theta).max() < 3.1416, "ours counts no turns"
    assert turns > 5, "some should go round and round"


def test_the_time_limit_is_that_of_gymnasium():
    """It never terminates: the limit stops it."""
    assert Pendulum().max_episode_steps == 200
    environments = GymnasiumEnvironments("Pendulum-v1")
    environments.reset(0)
    idle = np.zeros((1, 1), np.float32)
    ends = [(step.terminated[0], step.truncated[0]) for step in (environments.step(idle) for _ in range(200))]
    assert ends == [(False, False)] * 199 + [(False, True)]
    environments.close()


def test_episodes_start_anywhere_within_the_range_of_gymnasium(theirs):
    states, obs = jax.vmap(Pendulum().reset)(jax.random.split(jax.random.key(0), 4096))
    states, obs, bound = np.stack(states, axis=-1), np.asarray(obs), np.array([np.pi, 1.0])
    assert states.dtype == obs.dtype == np.float32
    assert (np.abs(states) <= bound.astype(np.float32)).all()
    assert len(np.unique(states[:, 0])) > 4000, "two resets differ"
    # The quantiles of a uniform distribution, known to within 0.016 of its half-width (two deviations).
    for quantile in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(np.quantile(states / bound, quantile, axis=0), 2 * quantile - 1, atol=0.04)
    assert abs(np.corrcoef(states.T)[0, 1]) < 0.08, "the two are drawn apart"
    np.testing.assert_allclose(
        obs, np.stack([*(f(states[:, 0]) for f in (np.cos, np.sin)), states[:, 1]], 1), atol=1e-6
    )

    starts = []
    for seed in range(100):
        theirs.reset(seed=seed)
        starts.append(np.abs(theirs.state))
    assert (np.max(starts, axis=0) > 0.95 * bound).all() and (np.max(starts, axis=0) <= bound).all()


def test_spaces_are_those_of_gymnasium(theirs):
    world = Pendulum()
    expected, space = from_gymnasium(theirs.observation_space), world.observation_space
    assert isinstance(expected, Box)
    assert (space.shape, space.dtype) == (expected.shape, expected.dtype)
    for ours, gymnasiums in ((space.low, expected.low), (space.high, expected.high)):
        np.testing.assert_array_equal(np.float32(ours), np.float32(gymnasiums))
    assert world.action_space == from_gymnasium(theirs.action_space)
