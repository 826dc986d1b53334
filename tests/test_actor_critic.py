"""The one-step actor-critic: its gradient worked by hand, and that it learns."""

from __future__ import annotations

import dataclasses
import warnings
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import CONTINUOUS_PROBES, PROBES, shared
from tiny import ROLLOUT, SPEC, LinearValue, TablePolicy, column
from treadle import CartPole
from treadle.algorithms.actor_critic import ActorCritic
from treadle.errors import InvalidSetting
from treadle.loops import fused
from treadle.loops.seeding import seed_key
from treadle.loops.seeds import FusedSeeds
from treadle.registry import as_float32

pytestmark = pytest.mark.least_optimised

LOGITS, SLOPE = jnp.array([0.3, -0.2]), jnp.array([2.0])
PI = np.exp(LOGITS) / np.exp(LOGITS).sum()

STEP = jax.tree.map(lambda x: x[1:2], ROLLOUT)
"""Action 1 at observation 2, reward 2; a time limit cuts the episode at observation 9."""
END = STEP._replace(terminated=STEP.truncated, truncated=STEP.terminated)


def make(**changes) -> ActorCritic:
    settings = {
        "gamma": 0.5,
        "optimiser": "sgd",
        "max_grad_norm": None,
        "learning_rate": 0.1,
        "policy_network": TablePolicy(LOGITS),
        "value_network": LinearValue(SLOPE),
    }
    return as_float32(ActorCritic(**{**settings, **changes}).prepared())


@jax.jit
def learn(algorithm, rollout) -> Any:
    state = algorithm.init(jax.random.key(0), SPEC)
    return algorithm.update(state, rollout, jax.random.key(1))


@pytest.mark.parametrize(
    ("rollout", "error"), [(STEP, 2 + 0.5 * 18 - 4), (END, 2.0 - 4)], ids=["time limit", "terminal"]
)
def test_one_step_is_the_gradient_worked_by_hand(rollout, error):
    """The TD error weighs the score of the action, and moves the value of the observation alone, not its target."""
    algorithm = make(critic_learning_rate=0.2, value_coefficient=0.25, entropy_coefficient=0.1)
    state, metrics = learn(algorithm, rollout)
    entropy = -(PI * np.log(PI)).sum()
    by_logits = -(np.eye(2)[1] - PI) * error + 0.1 * PI * (np.log(PI) + entropy)
    np.testing.assert_allclose(state.networks.policy.vector, LOGITS - 0.1 * by_logits, rtol=1e-5)
    np.testing.assert_allclose(state.networks.value.vector, SLOPE - 0.2 * 0.25 * -2 * error * 2.0, rtol=1e-5)
    np.testing.assert_allclose(metrics["value_loss"], error**2, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy_loss"], -np.log(PI[1]) * error, rtol=1e-5)


@pytest.fixture(scope="module")
def rlax() -> ModuleType:
    with warnings.catch_warnings():
        # TensorFlow Probability, which rlax imports, reads names that JAX is about to remove.
        warnings.filterwarnings("ignore", r"jax\.\S+ is deprecated", DeprecationWarning)
        import rlax
    return rlax


@pytest.mark.filterwarnings("ignore:Rlax softmax")
def test_the_gradient_is_that_of_rlax(rlax):
    """Of four environments side by side, one of which does not count."""
    algorithm = as_float32(ActorCritic(hidden_sizes=(5,), num_envs=4, gamma=0.9, entropy_coefficient=0.1))
    spec = dataclasses.replace(SPEC, num_envs=4)
    state = jax.jit(lambda key: algorithm.init(key, spec))(jax.random.key(0))
    side_by_side = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), ROLLOUT)
    valid = jnp.array([[True, True, False, True]])
    gradients, metrics = jax.jit(algorithm.gradients)(state, side_by_side._replace(valid=valid), jax.random.key(1))
    t = jax.tree.map(lambda x: x[valid[0], 0], ROLLOUT)

    def loss(networks):
        values = jax.vmap(networks.value)
        discount = 0.9 * (1.0 - t.terminated)
        errors = jax.vmap(rlax.td_learning)(values(t.obs), t.reward, discount, values(t.next_obs))
        logits, weights = jax.vmap(networks.policy)(t.obs).logits, jnp.ones(3)
        policy_loss = rlax.policy_gradient_loss(logits, t.action, errors, weights)
        return policy_loss + 0.1 * rlax.entropy_loss(logits, weights) + 0.5 * jnp.mean(errors**2)

    expected, by = jax.jit(jax.value_and_grad(loss))(state.networks)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(by), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_a_step_that_does_not_count_teaches_nothing():
    state, _ = learn(make(), END._replace(reward=column([1e4]), valid=column([0], jnp.bool_)))
    np.testing.assert_array_equal(state.networks.policy.vector, LOGITS)
    np.testing.assert_array_equal(state.networks.value.vector, SLOPE)
    assert state.schedule.step.value == 0


def test_both_step_sizes_are_annealed_over_all_steps():
    algorithm: Any = make(learning_rate_end=0.0, critic_learning_rate=0.2)
    state = algorithm.init(jax.random.key(0), SPEC)
    gradients, _ = algorithm.gradients(state, STEP, jax.random.key(1))
    for step, share in ((0, 1.0), (500, 0.5), (1_000, 0.0)):
        schedule = state.schedule._replace(step=state.schedule.step.add(step))
        after = algorithm.apply(state._replace(schedule=schedule), gradients).networks
        for rate, a, b, g in zip((0.1, 0.2), state.networks, after, gradients, strict=True):
            np.testing.assert_allclose(b.vector - a.vector, -share * rate * g.vector, rtol=1e-4, atol=1e-6)


def test_a_setting_beyond_its_range_is_refused():
    with pytest.raises(InvalidSetting, match="value_coefficient"):
        ActorCritic(value_coefficient=-1.0).check()


# Learning

LEARNER = ActorCritic(hidden_sizes=(16,), gamma=0.8, num_envs=8, learning_rate=1e-2, learning_rate_end=0.0)

_compiled = jax.jit(fused.train, static_argnums=3)


def train(algorithm, world, updates):
    return _compiled(as_float32(algorithm), as_float32(world), seed_key(0), updates)[0].algorithm


@jax.jit
def _greedy(algorithm, state, obs):
    return algorithm.act(state, (), obs, jax.random.key(0), explore=False)[0]


def greedy(algorithm, state, obs):
    return np.asarray(_greedy(as_float32(algorithm), state, np.float32(obs)))


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_it_learns_the_best_actions_and_their_values(probe):
    state = train(LEARNER, shared(probe), 3_000)
    obs, values = probe.values(LEARNER.gamma)
    found = jax.vmap(state.networks.value)(jnp.asarray(obs, jnp.float32))
    np.testing.assert_allclose(found, values.max(-1), atol=0.15)
    matters = np.ptp(values, axis=-1) > 1e-6
    np.testing.assert_array_equal(greedy(LEARNER, state, obs)[matters], values.argmax(-1)[matters])


@pytest.mark.parametrize("probe", CONTINUOUS_PROBES[1:], ids=lambda probe: probe.name)
def test_it_learns_the_best_of_continuous_actions(probe):
    """The policy slower than the values: one that runs ahead of them passes the bounds, where no action differs."""
    algorithm = dataclasses.replace(LEARNER, initial_log_std=-1.0, learning_rate=1e-3, critic_learning_rate=1e-2)
    state = train(algorithm, probe.environment, 6_000)
    np.testing.assert_allclose(greedy(algorithm, state, probe.obs[:2]), probe.best[:2], atol=0.3)


@pytest.mark.slow
def test_seeds_side_by_side_are_seeds_in_turn():
    algorithm, world = as_float32(dataclasses.replace(LEARNER, learning_rate=1e-3)), as_float32(CartPole())
    trainers = [FusedSeeds(algorithm, world, 1_000, num_seeds=3, layout=layout) for layout in ("map", "vmap")]
    for trainer in trainers:
        trainer.advance(20)
    a, b = (jax.tree.leaves(t.state.algorithm) for t in trainers)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4)
