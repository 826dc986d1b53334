"""Treadle's Acrobot is Gymnasium's: same integrator, wrapping, clipping, ends, rewards, limits, starts and spaces."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.envs.classic_control.acrobot import wrap as gymnasiums_wrap

import twins
from treadle.environments.acrobot import Acrobot, AcrobotState
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.environments.pendulum import wrap
from treadle.spaces import Box, from_gymnasium

LIMITS = np.array([4 * np.pi, 9 * np.pi])


play = functools.partial(twins.play, AcrobotState)


@pytest.fixture
def theirs():
    """Gymnasium's physics without its wrappers."""
    yield from twins.physics("Acrobot-v1")


def step_all(theirs: Any, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, ...]:
    """States, observations, rewards and ends of one step from each state."""
    answers = []
    for state, action in zip(states, actions, strict=True):
        theirs.state = state.astype(np.float64)
        obs, reward, terminated, _, _ = theirs.step(int(action))
        answers.append((theirs.state, obs, reward, terminated))
    return tuple(np.array(column) for column in zip(*answers, strict=True))


def from_states(world: Acrobot, states: np.ndarray, actions: np.ndarray, precise: bool = False) -> Any:
    """One step from each, in float32 or in float64: the states as an array, and the answers."""
    with jax.enable_x64(precise):
        played = play(world, states.astype(np.float64 if precise else np.float32), actions[:, None])
        after, answers = jax.tree.map(lambda x: np.asarray(x)[:, 0], played)
        return np.stack(after, axis=-1), answers


def height(obs: np.ndarray) -> np.ndarray:
    """Of the free end above the pivot, by the sum of the angles."""
    cos1, sin1, cos2, sin2 = obs[..., :4].T
    return -cos1 - (cos1 * cos2 - sin1 * sin2)


@pytest.mark.parametrize(("calm", "precise", "tolerance"), [(0.25, False, 2e-5), (1.0, True, 2e-6)])
def test_every_step_agrees_from_the_same_state(theirs, calm, precise, tolerance):
    """Up to a quarter of full speed; then up to full speed, where a step of 0.2 s is most of a turn and float32 would
    be right to two decimals only."""
    rng = np.random.default_rng(0)
    bound = np.array([np.pi, np.pi, *(calm * LIMITS)])
    states = rng.uniform(-bound, bound, (3000, 4)).astype(np.float32)
    actions = rng.integers(3, size=len(states))

    our_states, ours = from_states(Acrobot(), states, actions, precise)
    after, obs, reward, terminated = step_all(theirs, states, actions)
    np.testing.assert_allclose(ours.obs, obs, atol=tolerance)
    sure = np.abs(height(obs) - 1) > tolerance
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(ours.terminated[sure], terminated[sure])
    np.testing.assert_array_equal(ours.reward[sure], reward[sure])

    assert 300 < terminated.sum() < 2000, "some should pass the line"
    assert set(reward[terminated]) == {0.0} and set(reward[~terminated]) == {-1.0}
    turned = np.abs(states[:, :2] + 0.2 * after[:, 2:]) > np.pi
    assert turned.any(axis=0).all(), "both angles should go round"
    assert np.abs(our_states[:, :2]).max() < 3.1416, "and are wrapped"
    if calm == 1:
        assert (np.abs(after[:, 2:]) == LIMITS).sum(axis=0).min() > 20, "both velocities should be clipped"


def test_every_constant_is_where_gymnasium_has_it(theirs):
    """With all constants different, none can stand for another."""
    theirs.LINK_LENGTH_1, theirs.LINK_MASS_1, theirs.LINK_MASS_2 = 1.3, 0.7, 1.6
    theirs.LINK_COM_POS_1, theirs.LINK_COM_POS_2, theirs.LINK_MOI, theirs.dt = 0.4, 0.9, 1.2, 0.1
    theirs.AVAIL_TORQUE = [-2.0, 0.0, 2.0]
    ours = Acrobot(
        length1=1.3, mass1=0.7, mass2=1.6, centre1=0.4, centre2=0.9, inertia1=1.2, inertia2=1.2, dt=0.1, torque=2.0
    )
    rng = np.random.default_rng(1)
    bound = np.array([np.pi, np.pi, 2.0, 4.0])
    states = rng.uniform(-bound, bound, (500, 4)).astype(np.float32)
    actions = rng.integers(3, size=len(states))
    np.testing.assert_allclose(
        from_states(ours, states, actions)[1].obs, step_all(theirs, states, actions)[1], atol=1e-5
    )


def test_the_line_is_as_high_as_it_says():
    """Without gravity or torque the links rest where they are: here upright, 1 + 0.5 above the pivot."""
    upright = np.array([[math.pi, 0.0, 0.0, 0.0]], np.float32)
    for target, passed in ((1.49, True), (1.51, False)):
        world = Acrobot(gravity=0.0, length2=0.5, target_height=target)
        assert from_states(world, upright, np.array([1]))[1].terminated == passed


def test_angles_are_wrapped_as_in_gymnasium():
    angles = np.random.default_rng(0).uniform(-15, 15, 500).astype(np.float32)
    expected = [gymnasiums_wrap(float(angle), -math.pi, math.pi) for angle in angles]
    np.testing.assert_allclose(wrap(jnp.asarray(angles)), expected, atol=2e-6)
    inside = angles[np.abs(angles) < 3.14159]
    np.testing.assert_array_equal(wrap(jnp.asarray(inside)), inside)
    np.testing.assert_allclose(np.abs(wrap(jnp.array([-math.pi, math.pi]))), math.pi)


def test_whole_episodes_agree(theirs):
    """Free-running: half at random, half pumping at the joint until the line is passed.

    The links are chaotic and rounding grows, in float32 to a hundredth after 100 steps. In float64 the whole of them
    agree: the equations are the same.
    """
    rng, steps = np.random.default_rng(2), 150
    starts, sequences, episodes = [], [], []
    for seed in range(40):
        theirs.reset(seed=seed)
        starts.append(theirs.state)
        actions, answers = rng.integers(3, size=steps), []
        for t in range(steps):
            if seed % 2 and rng.random() < 0.9:
                actions[t] = 2 if theirs.state[2] < 0 else 0
            obs, reward, terminated, _, _ = theirs.step(actions[t])
            answers.append((obs, reward, terminated))
            if terminated:
                break
        sequences.append(actions)
        episodes.append(answers)

    for precise, agree, tolerance in ((True, steps, 2e-6), (False, 60, 1e-4)):
        with jax.enable_x64(precise):
            _, ours = jax.tree.map(np.asarray, play(Acrobot(), np.array(starts, np.float64), np.array(sequences)))
        for i, answers in enumerate(episodes):
            obs, reward, terminated = (np.array(column) for column in zip(*answers[:agree], strict=True))
            np.testing.assert_allclose(ours.obs[i, : len(obs)], obs, atol=tolerance)
            np.testing.assert_array_equal(ours.terminated[i, : len(obs)], terminated)
            np.testing.assert_array_equal(ours.reward[i, : len(obs)], reward)
    assert sum(answers[-1][2] for answers in episodes) > 10, "those that pump should reach the line"


def test_the_time_limit_is_that_of_gymnasium():
    """Without torque the links never reach the line: the limit stops them, in both worlds."""
    world = Acrobot()
    assert world.max_episode_steps == 500
    _, ours = play(world, np.full((1, 4), 0.1), np.ones((1, 500), np.int32))
    assert not ours.terminated.any() and (ours.reward == -1).all()

    environments = GymnasiumEnvironments("Acrobot-v1")
    environments.reset(0)
    idle = np.ones(1, np.int32)
    ends = [(step.terminated[0], step.truncated[0]) for step in (environments.step(idle) for _ in range(500))]
    assert ends == [(False, False)] * 499 + [(False, True)]
    environments.close()


def test_episodes_start_hanging_within_the_range_of_gymnasium(theirs):
    states, obs = jax.vmap(Acrobot().reset)(jax.random.split(jax.random.key(0), 4096))
    states, obs = np.stack(states, axis=-1), np.asarray(obs)
    assert states.dtype == obs.dtype == np.float32
    assert np.abs(states).max() <= np.float32(0.1)
    assert len(np.unique(states[:, 0])) > 4000, "two resets differ"
    # The quantiles of a uniform distribution, which are known to within 0.003 with so many starts (two deviations).
    for quantile in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(np.quantile(states, quantile, axis=0), -0.1 + 0.2 * quantile, atol=0.008)
    assert np.abs(np.corrcoef(states.T) - np.eye(4)).max() < 0.08, "the four are drawn apart"

    theirs.state = states[0]
    np.testing.assert_allclose(obs[0], theirs._get_ob(), atol=1e-6)
    starts = []
    for seed in range(100):
        theirs.reset(seed=seed)
        starts.append(theirs.state)
    assert 0.09 < np.abs(starts).max() <= 0.1


def test_spaces_are_those_of_gymnasium(theirs):
    expected, space = from_gymnasium(theirs.observation_space), Acrobot().observation_space
    assert isinstance(expected, Box)
    assert (space.shape, space.dtype) == (expected.shape, expected.dtype)
    for ours, gymnasiums in ((space.low, expected.low), (space.high, expected.high)):
        np.testing.assert_array_equal(np.float32(ours), np.float32(gymnasiums))
    assert Acrobot().action_space == from_gymnasium(theirs.action_space)
