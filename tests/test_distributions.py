"""Distributions over actions, against SciPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from treadle.distributions import Categorical, Gaussian

pytestmark = pytest.mark.least_optimised

RNG = np.random.default_rng(0)
LOGITS, OTHER_LOGITS = RNG.normal(size=(2, 5, 4)).astype(np.float32) * 2
MEANS, OTHER_MEANS = RNG.normal(size=(2, 5, 3)).astype(np.float32)
STDS, OTHER_STDS = np.exp(RNG.normal(size=(2, 5, 3))).astype(np.float32)


def probabilities(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64))
    return weights / weights.sum(-1, keepdims=True)


def test_categorical_log_probabilities_entropy_and_divergence_are_scipys():
    pi, other = Categorical(jnp.asarray(LOGITS)), Categorical(jnp.asarray(OTHER_LOGITS))
    p, q = probabilities(LOGITS), probabilities(OTHER_LOGITS)
    actions = np.array([0, 3, 1, 2, 2])
    expected = [float(scipy.stats.multinomial(1, row).logpmf(np.eye(4)[a])) for row, a in zip(p, actions, strict=True)]
    np.testing.assert_allclose(pi.log_prob(jnp.asarray(actions)), expected, rtol=1e-5)
    np.testing.assert_allclose(pi.entropy(), scipy.stats.entropy(p, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(pi.kl(other), scipy.stats.entropy(p, q, axis=-1), rtol=1e-4)
    np.testing.assert_array_equal(pi.mode(), LOGITS.argmax(-1))


def test_gaussian_log_probabilities_entropy_and_divergence_are_scipys():
    pi, other = Gaussian(jnp.asarray(MEANS), jnp.asarray(STDS)), Gaussian(jnp.asarray(OTHER_MEANS), OTHER_STDS)
    drawn = RNG.normal(size=(5, 3)).astype(np.float32)
    theirs: Any = scipy.stats.norm(MEANS, STDS)
    np.testing.assert_allclose(pi.log_prob(jnp.asarray(drawn)), theirs.logpdf(drawn).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(pi.entropy(), theirs.entropy().sum(-1), rtol=1e-5)
    # SciPy has no divergence of continuous distributions: the mean of the difference of log-densities, by quadrature.
    x = MEANS[..., None] + STDS[..., None] * np.linspace(-10, 10, 4001)
    p: Any = scipy.stats.norm(MEANS[..., None], STDS[..., None])
    q: Any = scipy.stats.norm(OTHER_MEANS[..., None], OTHER_STDS[..., None])
    integral = np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x, axis=-1).sum(-1)
    np.testing.assert_allclose(pi.kl(other), integral, rtol=1e-4)
    np.testing.assert_array_equal(pi.mode(), MEANS)


@pytest.mark.parametrize("pi", [Categorical(jnp.asarray(LOGITS)), Gaussian(jnp.asarray(MEANS), jnp.asarray(STDS))])
def test_nothing_diverges_from_itself_and_its_gradient_there_is_zero(pi):
    np.testing.assert_allclose(pi.kl(pi), 0.0, atol=1e-6)
    gradient = jax.grad(lambda other: jnp.sum(pi.kl(other)))(pi)
    assert all(np.abs(leaf).max() < 1e-5 for leaf in jax.tree.leaves(gradient))


def test_samples_come_as_often_as_the_probabilities_say():
    """A chi-square test: its p-value is above 0.001."""
    logits = jnp.asarray(LOGITS[0])
    drawn = Categorical(jnp.broadcast_to(logits, (20_000, 4))).sample(jax.random.key(0))
    assert drawn.dtype == jnp.int32
    counts = np.bincount(np.asarray(drawn), minlength=4)
    assert scipy.stats.chisquare(counts, 20_000 * probabilities(LOGITS[0])).pvalue > 1e-3


def test_samples_of_a_gaussian_are_normal():
    """A Kolmogorov-Smirnov test for each number: p-values above 0.001; and the numbers are independent."""
    shape = (20_000, 3)
    drawn = Gaussian(jnp.broadcast_to(MEANS[0], shape), jnp.broadcast_to(STDS[0], shape)).sample(jax.random.key(0))
    z = (np.asarray(drawn) - MEANS[0]) / STDS[0]
    assert all(scipy.stats.kstest(column, "norm").pvalue > 1e-3 for column in z.T)
    assert np.abs(np.corrcoef(z.T) - np.eye(3)).max() < 0.03


def test_an_action_that_is_never_taken_spoils_no_sum_and_no_gradient():
    certain = Categorical(jnp.array([0.0, -jnp.inf, 0.0]))
    spread = Categorical(jnp.zeros(3))
    np.testing.assert_allclose(certain.entropy(), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(certain.kl(spread), np.log(1.5), rtol=1e-6)
    gradient = jax.grad(lambda logits: Categorical(jnp.array([0.0, -1e9, 0.0])).kl(Categorical(logits)))(jnp.zeros(3))
    assert np.isfinite(gradient).all()
    gradient = jax.grad(lambda logits: Categorical(logits).entropy())(jnp.array([0.0, -1e9, 0.0]))
    assert np.isfinite(gradient).all()
