"""Running statistics: those of all that was seen, however it was cut, and whatever did not count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle.normalise import Moments, RewardScale
from treadle.types import Transition

pytestmark = pytest.mark.least_optimised

RNG = np.random.default_rng(0)
EXAMPLES = (RNG.normal(size=(60, 3)) * [1.0, 5.0, 0.1] + [0.0, 100.0, -3.0]).astype(np.float32)


@pytest.mark.parametrize("cuts", [(), (1,), (7, 8, 40), tuple(range(1, 60))])
def test_however_examples_are_cut_the_moments_are_those_of_all(cuts):
    moments = Moments.start((3,))
    for part in np.split(EXAMPLES, cuts):
        moments = moments.after(jnp.asarray(part))
    np.testing.assert_allclose(moments.mean, EXAMPLES.mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.variance, EXAMPLES.var(0), rtol=1e-3)
    assert moments.count == 60


def test_what_does_not_count_changes_nothing_not_even_when_it_is_no_number():
    valid = RNG.random(60) < 0.5
    spoiled = np.where(valid[:, None], EXAMPLES, np.nan)
    moments = Moments.start((3,)).after(jnp.asarray(spoiled), jnp.asarray(valid))
    np.testing.assert_allclose(moments.mean, EXAMPLES[valid].mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.variance, EXAMPLES[valid].var(0), rtol=1e-3)
    same = moments.after(jnp.asarray(spoiled), jnp.zeros(60, jnp.bool_))
    jax.tree.map(np.testing.assert_array_equal, same, moments)


def test_before_the_first_example_nothing_is_changed():
    x = jnp.array([1.0, -2.0, 3.0])
    np.testing.assert_allclose(Moments.start((3,)).normalise(x), x, rtol=1e-6)


def test_normalised_numbers_have_mean_0_and_deviation_1_and_outliers_are_cut():
    moments = Moments.start((3,)).after(jnp.asarray(EXAMPLES))
    normal = moments.normalise(jnp.asarray(EXAMPLES))
    np.testing.assert_allclose(normal.mean(0), 0.0, atol=1e-3)
    np.testing.assert_allclose(normal.std(0), 1.0, rtol=1e-3)
    np.testing.assert_array_equal(moments.normalise(jnp.array([1e6, -1e6, 1e6])), [10.0, -10.0, 10.0])


def test_a_number_that_never_changes_becomes_0():
    moments = Moments.start((1,)).after(jnp.full((10, 1), 7.0))
    np.testing.assert_allclose(moments.normalise(jnp.array([7.0])), 0.0, atol=1e-6)


def steps(reward, terminated, truncated, valid=None) -> Transition:
    """A rollout [T, B] of which only rewards and ends matter."""
    reward = jnp.asarray(reward, jnp.float32)
    terminated, truncated = (jnp.asarray(x, jnp.bool_) for x in (terminated, truncated))
    return Transition((), (), reward, (), terminated, truncated, None if valid is None else jnp.asarray(valid, bool))


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return():
    """Two environments, gamma 0.5. Returns so far by hand: 1, 2.5, then a new episode 3 | 2, 3, 4.5."""
    rollout = steps([[1, 2], [2, 2], [3, 3]], [[0, 0], [1, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]])
    scale = RewardScale.start(2).after(rollout, 0.5)
    seen = np.array([1, 2.5, 3, 2, 3, 4.5])
    np.testing.assert_allclose(scale.returns, [3.0, 4.5])
    np.testing.assert_allclose(scale.moments.variance, seen.var(), rtol=1e-5)
    np.testing.assert_allclose(scale.scale(jnp.array([1.0, -2.0])), np.array([1, -2]) / seen.std(), rtol=1e-5)


def test_returns_go_on_across_rollouts_and_begin_anew_after_either_kind_of_end():
    first = RewardScale.start(1).after(steps([[1.0], [1.0]], [[0], [0]], [[0], [0]]), 0.5)
    second = first.after(steps([[1.0], [1.0]], [[0], [0]], [[1], [0]]), 0.5)
    np.testing.assert_allclose(first.returns, [1.5])
    np.testing.assert_allclose(second.returns, [1.0])
    np.testing.assert_allclose(second.moments.variance, np.var([1, 1.5, 1.75, 1.0]), rtol=1e-5)
    np.testing.assert_allclose(first.begin_episodes().returns, [0.0])


def test_a_row_that_does_not_count_leaves_the_return_where_it_is():
    scale = RewardScale.start(1).after(
        steps([[1.0], [np.nan], [1.0]], [[0], [1], [0]], [[0], [0], [0]], [[1], [0], [1]]), 0.5
    )
    np.testing.assert_allclose(scale.returns, [1.5])
    np.testing.assert_allclose(scale.moments.variance, np.var([1.0, 1.5]), rtol=1e-5)
