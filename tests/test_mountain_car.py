"""Treadle's mountain cars are Gymnasium's, with a gear and with a throttle: same steps, ends, rewards and starts."""

from __future__ import annotations

from typing import Any

import gymnasium
import jax
import numpy as np
import pytest

from treadle import registry
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.environments.mountain_car import MountainCar, MountainCarState
from treadle.environments.mountain_car_continuous import MountainCarContinuous
from treadle.loops.choose import evaluated_as
from treadle.registry import as_float32
from treadle.spaces import Box, from_gymnasium

DISCRETE, CONTINUOUS = "MountainCar-v0", "MountainCarContinuous-v0"
FLAG = {DISCRETE: 0.5, CONTINUOUS: 0.45}
VARIANTS = [DISCRETE, "MountainCarShaped-v0", "MountainCarFlag-v0"]


@jax.jit
def batch(world, states, actions):
    """One step from each of the states `[N, 2]`."""
    return jax.vmap(lambda s, a: world.step(MountainCarState(*s), a, jax.random.key(0))[1])(states, actions)


@jax.jit
def play(world, starts, actions):
    """Each row of actions from its start, without resets."""

    def one(start, sequence):
        return jax.lax.scan(lambda s, a: world.step(s, a, jax.random.key(0)), MountainCarState(*start), sequence)[1]

    return jax.vmap(one)(starts, actions)


def made(name: str, **options: Any) -> Any:
    """Gymnasium's physics without its wrappers."""
    return gymnasium.make(name, **options).unwrapped


def random_actions(name: str, rng: np.random.Generator, count: int) -> np.ndarray:
    """Also more throttle than there is."""
    if name == DISCRETE:
        return rng.integers(3, size=count)
    return rng.uniform(-1.5, 1.5, (count, 1)).astype(np.float32)


def their_answers(theirs: Any, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations, rewards and ends of one step from each state."""
    theirs.reset(seed=0)
    answers = []
    for state, action in zip(states, actions, strict=True):
        theirs.state = state.copy() if isinstance(theirs.action_space, gymnasium.spaces.Box) else state.astype(float)
        obs, reward, terminated, _, _ = theirs.step(action)
        answers.append((obs, reward, terminated))
    obs, reward, terminated = (np.array(column) for column in zip(*answers, strict=True))
    return obs, reward, terminated


def test_a_step_worked_by_hand():
    """From rest at -0.5, driving right: 0.001 - 0.0025 cos(-1.5) = 0.00082316 is the new velocity."""
    ours = batch(MountainCar(), np.array([[-0.5, 0.0]]), np.array([2]))
    np.testing.assert_allclose(ours.obs[0], [-0.49917684, 0.00082316], rtol=1e-5)
    full = batch(MountainCarContinuous(), np.array([[-0.5, 0.0]]), np.array([[1.0]]))
    np.testing.assert_allclose(full.obs[0], [-0.49867684, 0.00132316], rtol=1e-5)
    np.testing.assert_allclose(full.reward, -0.1)


@pytest.mark.parametrize("goal_velocity", [0, 0.03])
@pytest.mark.parametrize("name", [DISCRETE, CONTINUOUS])
def test_every_step_agrees_from_the_same_state(name, goal_velocity):
    rng = np.random.default_rng(0)
    states = rng.uniform([-1.2, -0.07], [0.6, 0.07], (4000, 2)).astype(np.float32)
    # Half of them where something ends: at the left wall, at the flag and at the right edge.
    states[:1000, 0] = rng.uniform(-1.2, -1.15, 1000)
    states[1000:2000, 0] = rng.uniform(0.4, 0.6, 1000)
    actions = random_actions(name, rng, len(states))

    world = as_float32(registry.environments.make(name, goal_velocity=float(goal_velocity)))
    ours = batch(world, states, actions)
    obs, reward, terminated = their_answers(made(name, goal_velocity=goal_velocity), states, actions)

    np.testing.assert_allclose(ours.obs, obs, atol=3e-7)
    past, fast = (obs - [FLAG[name], goal_velocity]).T
    sure = (np.abs(past) > 1e-6) & ((past < 0) | (np.abs(fast) > 1e-6))
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(np.asarray(ours.terminated)[sure], terminated[sure])
    np.testing.assert_allclose(np.asarray(ours.reward)[sure], reward[sure], rtol=1e-6, atol=1e-6)

    stopped = (obs[:, 0] == np.float32(-1.2)) & (obs[:, 1] == 0)
    assert stopped.sum() > 50, "some should run into the left wall"
    assert (obs[:, 0] == np.float32(0.6)).sum() > 50, "some should reach the right edge"
    assert (np.abs(obs[:, 1]) == np.float32(0.07)).sum() > 10, "some should be at full speed"
    assert terminated.sum() > 200 and (~terminated & (obs[:, 0] > FLAG[name])).sum() > 200


def test_the_throttle_is_clipped_and_its_cost_is_not():
    """As in Gymnasium: a throttle of 3 drives like 1 and costs 0.1 x 9."""
    states, actions = np.array([[-0.5, 0.0], [-0.5, 0.0]], np.float32), np.array([[3.0], [1.0]], np.float32)
    ours = batch(MountainCarContinuous(), states, actions)
    np.testing.assert_array_equal(ours.obs[0], ours.obs[1])
    np.testing.assert_allclose(ours.reward, [-0.9, -0.1], rtol=1e-6)
    np.testing.assert_allclose(ours.reward, their_answers(made(CONTINUOUS), states, actions)[1], rtol=1e-6)


def test_the_variants_differ_in_the_reward_alone():
    rng = np.random.default_rng(1)
    states = rng.uniform([-1.2, -0.07], [0.6, 0.07], (500, 2)).astype(np.float32)
    actions = random_actions(DISCRETE, rng, len(states))
    time, shaped, flag = (batch(registry.environments.make(name), states, actions) for name in VARIANTS)

    for other in (shaped, flag):
        np.testing.assert_array_equal(other.obs, time.obs)
        np.testing.assert_array_equal(other.terminated, time.terminated)
    np.testing.assert_array_equal(time.reward, -1.0)
    np.testing.assert_allclose(shaped.reward, np.abs(np.asarray(time.obs)[:, 0] + 0.5), rtol=1e-6)
    np.testing.assert_array_equal(flag.reward, np.where(time.terminated, 10.0, -1.0))
    assert 0 < np.asarray(time.terminated).sum() < 250


def test_the_variants_are_evaluated_as_the_task():
    assert [evaluated_as(name) for name in VARIANTS] == [DISCRETE] * 3
    assert [registry.environments.make(name).max_episode_steps for name in VARIANTS] == [200] * 3


@pytest.mark.parametrize("name", [DISCRETE, CONTINUOUS])
def test_whole_episodes_agree(name):
    """Free-running, most of the time driving where the car rolls already, so that it meets the wall and the flag."""
    rng, theirs, steps = np.random.default_rng(2), made(name), 200
    starts, sequences, episodes = [], [], []
    for seed in range(40):
        obs, _ = theirs.reset(seed=seed)
        starts.append(obs)
        actions, answers = random_actions(name, rng, steps), []
        for t in range(steps):
            if rng.random() < 0.8:
                right = obs[1] >= 0
                actions[t] = (2 if right else 0) if name == DISCRETE else np.abs(actions[t]) * (1 if right else -1)
            obs, reward, terminated, _, _ = theirs.step(actions[t])
            answers.append((obs, reward, terminated))
            if terminated:
                break
        sequences.append(actions)
        episodes.append(answers)

    ours = play(as_float32(registry.environments.make(name)), np.array(starts), np.array(sequences))
    ours = jax.tree.map(np.asarray, ours)
    for i, answers in enumerate(episodes):
        obs, reward, terminated = (np.array(column) for column in zip(*answers, strict=True))
        np.testing.assert_allclose(ours.obs[i, : len(obs)], obs, atol=1e-4)
        np.testing.assert_array_equal(ours.terminated[i, : len(obs)], terminated)
        np.testing.assert_allclose(np.sum(ours.reward[i, : len(obs)]), reward.sum(), rtol=1e-4)
    reached = [answers[-1][2] for answers in episodes]
    assert sum(reached) > 20, "most should reach the flag"


@pytest.mark.parametrize(("name", "limit"), [(DISCRETE, 200), (CONTINUOUS, 999)])
def test_time_limits_are_those_of_gymnasium(name, limit):
    """A car that is left to roll is stopped by the limit, in Treadle's world and in Gymnasium's."""
    world = registry.environments.make(name)
    assert world.max_episode_steps == limit
    idle = np.ones(1, np.int32) if name == DISCRETE else np.zeros((1, 1), np.float32)
    assert not play(world, np.array([[-0.6, 0.0]]), np.stack([idle] * limit, axis=1)).terminated.any()

    environments = GymnasiumEnvironments(name)
    assert environments.max_episode_steps == limit
    environments.reset(0)
    ends = [(step.terminated[0], step.truncated[0]) for step in (environments.step(idle) for _ in range(limit))]
    assert ends == [(False, False)] * (limit - 1) + [(False, True)]
    environments.close()


@pytest.mark.parametrize("name", [DISCRETE, CONTINUOUS])
def test_episodes_start_at_rest_within_the_range_of_gymnasium(name):
    world = registry.environments.make(name)
    states, obs = jax.vmap(world.reset)(jax.random.split(jax.random.key(0), 4096))
    np.testing.assert_array_equal(np.stack(states, axis=-1), obs)
    position, velocity = np.asarray(obs).T
    assert obs.dtype == np.float32
    np.testing.assert_array_equal(velocity, 0.0)
    assert position.min() >= np.float32(-0.6) and position.max() <= np.float32(-0.4)
    assert len(np.unique(position)) > 4000, "two resets differ"
    # The quantiles of a uniform distribution, which are known to within 0.003 with so many starts (two deviations).
    for quantile in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(np.quantile(position, quantile), -0.6 + 0.2 * quantile, atol=0.008)
    env = made(name)
    theirs = np.array([env.reset(seed=seed)[0] for seed in range(100)])
    assert -0.6 <= theirs[:, 0].min() < -0.59 and -0.41 < theirs[:, 0].max() <= -0.4


@pytest.mark.parametrize("name", [DISCRETE, CONTINUOUS])
def test_spaces_are_those_of_gymnasium(name):
    world, theirs = registry.environments.make(name), made(name)
    expected, space = from_gymnasium(theirs.observation_space), world.observation_space
    assert isinstance(expected, Box)
    assert (space.shape, space.dtype) == (expected.shape, expected.dtype)
    for ours, gymnasiums in ((space.low, expected.low), (space.high, expected.high)):
        np.testing.assert_array_equal(np.float32(ours), np.float32(gymnasiums))
    assert world.action_space == from_gymnasium(theirs.action_space)


def test_the_spaces_follow_the_limits():
    world = MountainCar(position_limits=(-2.0, 1.0), velocity_limits=(-0.1, 0.1))
    assert world.observation_space == Box((-2.0, -0.1), (1.0, 0.1), (2,))
    fast = batch(world, np.array([[-1.15, -0.1], [0.95, 0.1]]), np.array([0, 2])).obs
    np.testing.assert_allclose(fast, [[-1.15 - 0.1 + 0.001382, -0.1 + 0.001382], [1.0, 0.1]], atol=2e-6)
