"""Exploration: as often as it says, and fading as it says."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle.exploration import epsilon_greedy
from treadle.schedules import exponential, linear

pytestmark = pytest.mark.least_optimised

ROWS, ACTIONS = 20_000, 4


@pytest.fixture(scope="module")
def greedy_and_q() -> tuple[np.ndarray, jax.Array]:
    """A best action for each row, and values that make it so."""
    best = np.random.default_rng(0).integers(0, ACTIONS, ROWS)
    return best, jnp.asarray(np.eye(ACTIONS, dtype=np.float32)[best])


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_every_action_comes_as_often_as_it_should(greedy_and_q, epsilon):
    """The best with 1 - epsilon + epsilon / 4, each other with epsilon / 4, whichever the best is; within five
    standard deviations."""
    best, q = greedy_and_q
    actions = epsilon_greedy(jax.random.key(1), q, epsilon)
    assert actions.dtype == jnp.int32 and actions.shape == (ROWS,)
    for which in range(ACTIONS):
        taken = np.asarray(actions)[best == which]
        frequencies = np.bincount(taken, minlength=ACTIONS) / len(taken)
        expected = epsilon / ACTIONS + np.eye(ACTIONS)[which] * (1 - epsilon)
        margin = 5 * np.sqrt(expected * (1 - expected) / len(taken))
        assert (np.abs(frequencies - expected) <= margin).all(), frequencies


def test_what_is_explored_does_not_depend_on_what_is_best(greedy_and_q):
    """The same key with other values gives the same explored rows: the draws are the key's alone."""
    best, q = greedy_and_q
    first = np.asarray(epsilon_greedy(jax.random.key(2), q, 0.5))
    second = np.asarray(epsilon_greedy(jax.random.key(2), jnp.roll(q, 1, axis=1), 0.5))
    followed = (first == best) & (second == (best + 1) % ACTIONS)
    assert (first[~followed] == second[~followed]).all()


def test_a_traced_epsilon_is_as_good(greedy_and_q):
    _, q = greedy_and_q
    traced = jax.jit(epsilon_greedy)(jax.random.key(3), q, jnp.float32(0.3))
    np.testing.assert_array_equal(traced, epsilon_greedy(jax.random.key(3), q, 0.3))
    assert (traced != epsilon_greedy(jax.random.key(4), q, 0.3)).any()


@pytest.mark.parametrize(
    ("step", "value"), [(0, 1.0), (1, 0.92), (5, 0.6), (9, 0.28), (10, 0.2), (11, 0.2), (10**9, 0.2)]
)
def test_linear_falls_and_stays(step, value):
    """From 1 to 0.2 in ten steps: 0.08 a step."""
    assert linear(1.0, 0.2, 10, jnp.array(step)) == pytest.approx(value, abs=1e-6)
    assert jax.jit(linear)(1.0, 0.2, jnp.array(10), jnp.array(step)) == pytest.approx(value, abs=1e-6)


def test_linear_rises_too_and_ends_at_zero_exactly():
    assert linear(-1.0, 3.0, 8, jnp.array(2)) == 0.0
    assert linear(1e-3, 0.0, 7, jnp.array(7)) == 0.0


@pytest.mark.parametrize("steps", [0, 0.0, np.float32(0.0)])
def test_a_linear_schedule_of_no_steps_has_ended(steps):
    for step in (0, 1, 1_000):
        assert linear(1.0, 0.25, steps, jnp.array(step)) == 0.25
        assert jax.jit(linear)(1.0, 0.25, steps, jnp.array(step)) == 0.25


@pytest.mark.parametrize(
    ("step", "value"),
    [(0, 1.0), (100, 0.05 + 0.95 * math.exp(-1)), (250, 0.05 + 0.95 * math.exp(-2.5)), (100_000, 0.05)],
)
def test_exponential(step, value):
    assert exponential(1.0, 0.05, 100.0, jnp.array(step)) == pytest.approx(value, abs=1e-6)
