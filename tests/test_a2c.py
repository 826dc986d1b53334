"""A2C's gradient: of returns worked by hand, and only where it belongs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny import ROLLOUT, SPEC, LinearValue, TablePolicy, column
from treadle.algorithms.a2c import A2C

pytestmark = pytest.mark.least_optimised

SETTINGS = {
    "num_envs": 1,
    "rollout_length": 4,
    "gamma": 0.5,
    "optimiser": "sgd",
    "max_grad_norm": None,
    "learning_rate": 0.1,
    "value_coefficient": 0.5,
    "entropy_coefficient": 0.0,
}
LOGITS, SLOPE = jnp.array([0.3, -0.2]), jnp.array([2.0])


def make(**changes) -> A2C:
    own = {"policy_network": TablePolicy(LOGITS), "value_network": LinearValue(SLOPE)}
    return A2C(**{**SETTINGS, **own, **changes}).prepared()


TARGETS = np.array([1 + 0.5 * (2 + 0.5 * 18), 2 + 0.5 * 18, 3 + 0.5 * (4 + 0.5 * 10), 4 + 0.5 * 10])
VALUES = np.array([2.0, 4.0, 6.0, 8.0])


def vectors(networks) -> list[np.ndarray]:
    """The parameters of the policy, and those of the values."""
    return [np.asarray(network.vector) for network in networks]


def test_one_step_is_the_gradient_worked_by_hand():
    """Softmax: the gradient of log pi(a) by logits is onehot(a) - pi."""
    algorithm = make()
    state = algorithm.init(jax.random.key(0), SPEC)
    after, metrics = jax.jit(algorithm.update)(state, ROLLOUT, jax.random.key(1))
    pi = np.exp(LOGITS) / np.exp(LOGITS).sum()
    advantage = TARGETS - VALUES
    scores = np.eye(2)[[0, 1, 1, 0]] - pi
    policy_gradient = -(scores * advantage[:, None]).mean(0)
    value_gradient = 0.5 * (-2 * advantage * np.array([1.0, 2.0, 3.0, 4.0])).mean()
    np.testing.assert_allclose(after.networks.policy.vector, LOGITS - 0.1 * policy_gradient, rtol=1e-5)
    np.testing.assert_allclose(vectors(after.networks)[1], SLOPE - 0.1 * value_gradient, rtol=1e-5)
    np.testing.assert_allclose(metrics["value_loss"], (advantage**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["entropy"], -(pi * np.log(pi)).sum(), rtol=1e-5)


def test_a_terminal_state_has_no_value_and_a_time_limit_does():
    terminated = ROLLOUT._replace(terminated=ROLLOUT.truncated, truncated=ROLLOUT.terminated)
    algorithm = make()
    networks = algorithm.init(jax.random.key(0), SPEC).networks
    _, targets, _ = algorithm.advantages(networks, ROLLOUT)
    np.testing.assert_allclose(targets[:, 0], TARGETS)
    _, targets, _ = algorithm.advantages(networks, terminated)
    np.testing.assert_allclose(targets[:, 0], [1 + 0.5 * 2, 2.0, *TARGETS[2:]])


def test_the_entropys_gradient_is_added():
    """d H / d logit_i = -pi_i (log pi_i + H)."""
    pi = np.exp(LOGITS) / np.exp(LOGITS).sum()
    entropy = -(pi * np.log(pi)).sum()
    key = jax.random.key(1)
    ends = []
    for coefficient in (0.0, 0.5):
        algorithm = make(entropy_coefficient=coefficient)
        state, _ = algorithm.update(algorithm.init(jax.random.key(0), SPEC), ROLLOUT, key)
        ends.append(state.networks.policy.vector)
    np.testing.assert_allclose(ends[1] - ends[0], 0.1 * 0.5 * -pi * (np.log(pi) + entropy), rtol=1e-4, atol=1e-6)


def test_rows_that_do_not_count_teach_nothing():
    """After an end a row that is no step, as under next-step autoreset: whatever stands in it, the step is the same."""
    spare = jax.tree.map(lambda x: x[:1], ROLLOUT)._replace(obs=column([[50.0]]), reward=column([1e4]))
    parts = [jax.tree.map(lambda x: x[:2], ROLLOUT), spare, jax.tree.map(lambda x: x[2:], ROLLOUT)]
    padded = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    padded = padded._replace(valid=column([1, 1, 0, 1, 1], jnp.bool_))
    results = []
    for rollout in (ROLLOUT, padded):
        algorithm = make(rollout_length=len(rollout.reward), normalise_advantages=True, entropy_coefficient=0.1)
        results.append(algorithm.update(algorithm.init(jax.random.key(0), SPEC), rollout, jax.random.key(1)))
    (plain, told), (masked, also_told) = results
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(masked), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    for name in told:
        np.testing.assert_allclose(told[name], also_told[name].total / also_told[name].weight, rtol=1e-5)
    assert masked.schedule.step.value == 4


def test_the_gradient_is_clipped_by_the_norm_of_both_networks_together():
    ends = []
    for norm in (None, 0.01):
        algorithm = make(max_grad_norm=norm)
        state = algorithm.init(jax.random.key(0), SPEC)
        after, _ = algorithm.update(state, ROLLOUT, jax.random.key(1))
        ends.append(np.concatenate(vectors(after.networks)) - np.concatenate([LOGITS, SLOPE]))
    free, clipped = ends
    np.testing.assert_allclose(np.linalg.norm(clipped), 0.1 * 0.01, rtol=1e-4)
    np.testing.assert_allclose(clipped / np.linalg.norm(clipped), free / np.linalg.norm(free), rtol=1e-3)


def test_the_values_have_a_step_size_of_their_own_and_both_are_annealed_to_nothing():
    algorithm = make(learning_rate_end=0.0, critic_learning_rate=0.2)
    state = algorithm.init(jax.random.key(0), SPEC)
    gradients, _ = algorithm.gradients(state, ROLLOUT, jax.random.key(1))

    def moved(step):
        schedule = state.schedule._replace(step=state.schedule.step.add(step))
        after = algorithm.apply(state._replace(schedule=schedule), gradients).networks
        parts = zip(*map(vectors, (after, state.networks, gradients)), strict=True)
        return [float(((b - a) / g)[0]) for a, b, g in parts]

    np.testing.assert_allclose(moved(0), [0.1, 0.2], rtol=1e-4)
    np.testing.assert_allclose(moved(500), [0.05, 0.1], rtol=1e-4)
    np.testing.assert_allclose(moved(1_000), [0.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7])
def test_a_lambda_below_1_gives_generalised_advantages(gae_lambda):
    algorithm = make(gae_lambda=gae_lambda)
    advantage, _, _ = algorithm.advantages(algorithm.init(jax.random.key(0), SPEC).networks, ROLLOUT)
    delta = np.array([1 + 0.5 * 4 - 2, 2 + 0.5 * 18 - 4, 3 + 0.5 * 8 - 6, 4 + 0.5 * 10 - 8])
    decay = 0.5 * gae_lambda
    np.testing.assert_allclose(
        advantage[:, 0], [delta[0] + decay * delta[1], delta[1], delta[2] + decay * delta[3], delta[3]]
    )
