"""Gradient steps: what is clipped, and what the learning rate does."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from treadle import optimise

pytestmark = pytest.mark.least_optimised

# As one vector the gradient is (3, 0, 4), of norm 5.
GRADIENTS: dict[str, Any] = {"weight": jnp.array([[3.0, 0.0]]), "bias": jnp.array([4.0])}
PARAMETERS: dict[str, Any] = {"weight": jnp.array([[10.0, 20.0]]), "bias": jnp.array([30.0])}


@pytest.mark.parametrize(
    ("limits", "weight", "bias"),
    [
        ({}, 3.0, 4.0),
        ({"max_grad_norm": 1.0}, 0.6, 0.8),
        ({"max_grad_norm": 6.0}, 3.0, 4.0),  # shorter than the limit: left alone, not stretched
        ({"max_grad_value": 1.0}, 1.0, 1.0),
        ({"max_grad_value": 3.5}, 3.0, 3.5),
        ({"max_grad_norm": 2.5, "max_grad_value": 1.75}, 1.5, 1.75),  # first to (1.5, 2), then the 2
    ],
    ids=str,
)
def test_clipping_by_norm_keeps_the_direction_and_clipping_by_value_does_not(limits, weight, bias):
    optimiser = optimise.make("sgd", **limits)
    opt_state = optimise.start(optimiser, PARAMETERS)
    stepped, _ = optimise.descend(optimiser, PARAMETERS, opt_state, GRADIENTS, 0.5)
    np.testing.assert_allclose(stepped["weight"], [[10.0 - 0.5 * weight, 20.0]], rtol=1e-6)
    np.testing.assert_allclose(stepped["bias"], [30.0 - 0.5 * bias], rtol=1e-6)


def test_a_negative_gradient_is_clipped_from_below():
    optimiser = optimise.make("sgd", max_grad_value=1.0)
    stepped, _ = optimise.descend(optimiser, jnp.zeros(2), optimiser.init(jnp.zeros(2)), jnp.array([-7.0, 0.5]), 1.0)
    np.testing.assert_array_equal(stepped, [1.0, -0.5])


def test_limits_may_be_traced():
    """They are leaves of the algorithm, so a compiled program sees tracers."""

    @jax.jit
    def step(norm, value):
        optimiser = optimise.make("sgd", norm, value)
        opt_state = optimise.start(optimiser, PARAMETERS)
        return optimise.descend(optimiser, PARAMETERS, opt_state, GRADIENTS, 1.0)[0]["bias"][0]

    assert step(2.5, 9.0) == pytest.approx(28.0)
    assert step(9.0, 1.5) == pytest.approx(28.5)


RULES: dict[Any, Any] = {
    "adam": lambda rate: optax.adam(rate),
    "rmsprop": lambda rate: optax.rmsprop(rate, decay=0.99),
    "sgd": lambda rate: optax.sgd(rate),
}


@pytest.mark.parametrize("name", RULES)
def test_the_rate_behind_the_rule_is_the_rate_within_it(name):
    """Eight steps down a quadratic bowl whose sides differ, with a rate that changes on the way."""
    rates = [0.1, 0.1, 0.05, 0.05, 0.2, 0.2, 0.01, 0.01]
    expected_rule = RULES[name](lambda count: jnp.asarray(rates)[count])
    rule = optimise.make(name)
    stiffness = jnp.array([1.0, 4.0, 0.25])
    parameters: Any = jnp.array([1.0, -2.0, 3.0])
    expected: Any = parameters
    opt_state, expected_state = optimise.start(rule, parameters), expected_rule.init(expected)
    for rate in rates:
        before = parameters
        parameters, opt_state = optimise.descend(rule, parameters, opt_state, stiffness * parameters, rate)
        updates, expected_state = expected_rule.update(stiffness * expected, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
        np.testing.assert_allclose(parameters, expected, rtol=1e-5)
        assert not np.allclose(parameters, before, rtol=1e-3)


def test_the_first_adam_step_worked_by_hand():
    """Both moments are corrected for their start at zero, so the step is the rate times the gradient's sign."""
    rule = optimise.make("adam")
    parameters = jnp.array([1.0, 1.0, 1.0])
    stepped, _ = optimise.descend(rule, parameters, optimise.start(rule, parameters), jnp.array([5.0, -0.01, 0.0]), 0.1)
    np.testing.assert_allclose(stepped, [0.9, 1.1, 1.0], rtol=1e-5)


def test_another_rate_compiles_nothing_anew():
    traces = []

    @jax.jit
    def step(parameters, opt_state, rate):
        traces.append(rate)
        return optimise.descend(rule, parameters, opt_state, jnp.ones(2), rate)

    rule = optimise.make("adam", max_grad_norm=1.0)
    parameters, opt_state = jnp.zeros(2), optimise.start(rule, jnp.zeros(2))
    for rate in (0.1, 0.2, 0.3):
        parameters, opt_state = step(parameters, opt_state, rate)
    assert len(traces) == 1
    np.testing.assert_allclose(parameters, [-0.6, -0.6], rtol=1e-5)
