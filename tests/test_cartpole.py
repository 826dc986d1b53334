"""Treadle's CartPole is Gymnasium's: same physics, ends, rewards, limits, starts and spaces."""

from __future__ import annotations

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle import registry
from treadle.environments.cartpole import CartPole, CartPoleState
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.spaces import Box, from_gymnasium

THETA_LIMIT = 12 * 2 * np.pi / 360
X_LIMIT = 2.4


@pytest.fixture(scope="module")
def step():
    world = CartPole()

    @jax.jit
    def batch(states, actions):
        key = jax.random.key(0)
        return jax.vmap(lambda s, a: world.step(CartPoleState(*s), a, key)[1])(states, actions)

    return batch


@pytest.fixture
def theirs():
    """Gymnasium's physics without its wrappers."""
    env: Any = gymnasium.make("CartPole-v1").unwrapped
    yield env
    env.close()


def near_a_threshold(obs: np.ndarray, tolerance: float) -> np.ndarray:
    x, theta = np.abs(obs[..., 0]), np.abs(obs[..., 2])
    return (np.abs(x - X_LIMIT) < tolerance) | (np.abs(theta - THETA_LIMIT) < tolerance)


def test_every_step_of_random_episodes_agrees_from_the_same_state(step, theirs):
    rng = np.random.default_rng(0)
    states, actions, answers = [], [], []
    for episode in range(100):
        theirs.reset(seed=episode)
        # Fast starts all over the track: ends by position as well as by angle, in both directions.
        theirs.state = rng.uniform([-2.4, -4.0, -0.2, -2.0], [2.4, 4.0, 0.2, 2.0])
        terminated = False
        while not terminated:
            theirs.state = np.asarray(theirs.state, np.float32).astype(np.float64)
            states.append(theirs.state.astype(np.float32))
            actions.append(rng.integers(2))
            obs, reward, terminated, _, _ = theirs.step(actions[-1])
            answers.append((obs, reward, terminated))

    ours = step(np.array(states), np.array(actions))
    obs, reward, terminated = (np.array(column) for column in zip(*answers, strict=True))
    np.testing.assert_allclose(ours.obs, obs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours.reward, reward)
    sure = ~near_a_threshold(obs, 1e-5)
    np.testing.assert_array_equal(np.asarray(ours.terminated)[sure], terminated[sure])

    by_position = np.abs(obs[terminated, 0]) > X_LIMIT
    assert by_position.sum() > 5, "some episodes should end at the edge of the track"
    assert (~by_position).sum() > 5, "some episodes should end because the pole fell"


def test_whole_episodes_of_random_actions_agree(theirs):
    """Free-running, so rounding grows with the pole's own instability; a random episode is short enough."""
    world = CartPole()
    actions = np.random.default_rng(1).integers(2, size=(50, 60))
    starts, answers = [], []
    for seed, sequence in enumerate(actions):
        starts.append(theirs.reset(seed=seed)[0])
        episode = []
        for action in sequence:
            obs, _, terminated, _, _ = theirs.step(action)
            episode.append((obs, terminated))
            if terminated:
                break
        answers.append(episode)

    def run(start, sequence):
        def one(state, action):
            state, answer = world.step(state, action, jax.random.key(0))
            return state, answer

        return jax.lax.scan(one, CartPoleState(*start), sequence)[1]

    ours = jax.jit(jax.vmap(run))(jnp.asarray(np.array(starts)), actions)
    lengths = []
    for index, episode in enumerate(answers):
        obs, terminated = (np.array(column) for column in zip(*episode, strict=True))
        np.testing.assert_allclose(ours.obs[index, : len(obs)], obs, atol=1e-4)
        sure = ~near_a_threshold(obs, 1e-4)
        np.testing.assert_array_equal(np.asarray(ours.terminated)[index, : len(obs)][sure], terminated[sure])
        lengths.append(len(obs))
    assert np.mean(lengths) > 15


@pytest.mark.parametrize(("name", "limit"), [("CartPole-v0", 200), ("CartPole-v1", 500)])
def test_time_limits_are_those_of_gymnasium(name, limit):
    """A pole kept upright is stopped by the limit of its version, in Treadle's world and in Gymnasium's."""
    world = registry.environments.make(name)
    assert world.max_episode_steps == limit
    assert gymnasium.registry[name].max_episode_steps == limit

    def push(obs):
        """Towards the side to which the pole falls, leaning back to the middle of the track."""
        weights = np.array([0.1, 0.2, 1.0, 0.5], np.float32)
        return (obs @ weights > 0).astype(np.int32)

    def one(carry, _):
        state, obs = carry
        state, answer = world.step(state, push(obs), jax.random.key(0))
        return (state, answer.obs), answer.terminated

    fell = jax.jit(lambda key: jax.lax.scan(one, world.reset(key), length=limit)[1])(jax.random.key(0))
    assert not fell.any(), "Treadle's world: upright until the limit"

    environments = GymnasiumEnvironments(name)
    assert environments.max_episode_steps == limit
    obs = environments.reset(0)
    for _ in range(limit - 1):
        answer = environments.step(push(obs))
        assert not answer.terminated[0]
        assert not answer.truncated[0]
        obs = answer.obs
    answer = environments.step(push(obs))
    assert answer.truncated[0]
    assert not answer.terminated[0]
    environments.close()


def test_episodes_start_at_random_within_the_range_of_gymnasium(theirs):
    world = CartPole()
    states, obs = jax.vmap(world.reset)(jax.random.split(jax.random.key(0), 4096))
    np.testing.assert_array_equal(np.stack(states, axis=-1), obs)
    obs = np.asarray(obs)
    assert obs.dtype == np.float32
    assert np.abs(obs).max() < 0.05
    assert len(np.unique(obs[:, 0])) > 4000, "two resets differ"
    # The quantiles of a uniform distribution, which are known to within 0.0016 with so many starts (two deviations).
    for quantile in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(np.quantile(obs, quantile, axis=0), -0.05 + 0.1 * quantile, atol=0.004)
    their_starts = np.array([theirs.reset(seed=seed)[0] for seed in range(100)])
    assert 0.045 < np.abs(their_starts).max() <= 0.05


@pytest.mark.parametrize("name", ["CartPole-v0", "CartPole-v1"])
def test_spaces_are_those_of_gymnasium(name, theirs):
    world = registry.environments.make(name)
    expected = from_gymnasium(theirs.observation_space)
    assert isinstance(expected, Box)
    space = world.observation_space
    assert space.shape == expected.shape
    assert space.dtype == expected.dtype
    for ours, gymnasiums in ((space.low, expected.low), (space.high, expected.high)):
        np.testing.assert_array_equal(np.float32(ours), np.float32(gymnasiums))
    assert world.action_space == from_gymnasium(theirs.action_space)
