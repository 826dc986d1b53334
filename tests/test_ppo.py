"""PPO: its loss against rlax and by hand, what its epochs go over, and how the penalty adapts."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tiny import ROLLOUT, SPEC, LinearValue, TablePolicy, column
from treadle.algorithms.ppo import PPO, Batch, permutation
from treadle.distributions import Categorical
from treadle.errors import InvalidSetting
from treadle.registry import as_float32

pytestmark = pytest.mark.least_optimised

LOGITS, SLOPE = jnp.array([0.3, -0.2]), jnp.array([2.0])
SETTINGS = {
    "num_envs": 1,
    "rollout_length": 4,
    "epochs": 1,
    "num_minibatches": 1,
    "gamma": 0.5,
    "gae_lambda": 0.5,
    "optimiser": "sgd",
    "max_grad_norm": None,
    "learning_rate": 0.1,
    "normalise_advantages": False,
}
KEY = jax.random.key(1)


def make(**changes) -> PPO:
    own = {"policy_network": TablePolicy(LOGITS), "value_network": LinearValue(SLOPE)}
    return PPO(**{**SETTINGS, **own, **changes}).prepared()


@jax.jit
def _updated(algorithm, rollout):
    return algorithm.update(algorithm.init(jax.random.key(0), SPEC), rollout, KEY)


def updated(algorithm: PPO, rollout=ROLLOUT):
    return _updated(as_float32(algorithm), rollout)


def test_advantages_stop_at_the_time_limit_inside_the_rollout_and_bootstrap_there():
    """By hand: v = 2 obs, gamma and lambda 0.5. The last step bootstraps from its own successor."""
    algorithm = make()
    batch = algorithm.batch(algorithm.init(jax.random.key(0), SPEC).learner.networks, ROLLOUT)
    delta = np.array([1 + 0.5 * 4 - 2, 2 + 0.5 * 18 - 4, 3 + 0.5 * 8 - 6, 4 + 0.5 * 10 - 8])
    advantage = np.array([delta[0] + 0.25 * delta[1], delta[1], delta[2] + 0.25 * delta[3], delta[3]])
    np.testing.assert_allclose(batch.advantage, advantage)
    np.testing.assert_allclose(batch.target, advantage + np.array([2, 4, 6, 8]))
    np.testing.assert_allclose(batch.old_log_prob, jax.nn.log_softmax(LOGITS)[np.array([0, 1, 1, 0])])


@pytest.fixture
def batch() -> Batch:
    """200 rows: advantages, and what a policy near this one said of its actions."""
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(200, 1)), rng.integers(0, 2, 200)
    old = Categorical(jnp.asarray(rng.normal(size=(200, 2)), jnp.float32))
    v, advantage, error = rng.normal(size=(3, 200)).astype(np.float32)
    obs, action = jnp.asarray(obs, jnp.float32), jnp.asarray(action, jnp.int32)
    old_log_prob = old.log_prob(action)
    return Batch(obs, action, old, old_log_prob, jnp.asarray(v), jnp.asarray(advantage), jnp.asarray(v + error), None)


@jax.jit
def _gradient(algorithm, batch, clip, kl):
    networks = algorithm.init(jax.random.key(0), SPEC).learner.networks
    return algorithm.minibatch_gradients(networks, batch, clip, kl)


def gradient(algorithm: PPO, batch: Batch, **weights):
    return _gradient(as_float32(algorithm), batch, weights.get("clip", 0.2), weights.get("kl", 0.0))


def test_the_clipped_objective_and_its_gradient_are_rlaxs(batch):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"jax\.\S+ is deprecated", DeprecationWarning)
        import rlax

    def theirs(logits):
        log_prob = jnp.where(batch.action == 0, *jax.nn.log_softmax(logits))
        return rlax.clipped_surrogate_pg_loss(jnp.exp(log_prob - batch.old_log_prob), batch.advantage, 0.2)

    ours, told = gradient(make(value_coefficient=0.0), batch)
    loss, expected = jax.jit(jax.value_and_grad(theirs))(LOGITS)
    np.testing.assert_allclose(told["policy_loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(ours.policy.vector, expected, rtol=1e-4, atol=1e-6)
    assert 0.2 < told["clipped"] < 0.9, "the clip must matter in this test"


def test_the_penalised_objective_by_hand(batch):
    """-r A + beta KL(old || pi), the divergence summed over both actions."""
    log_pi = np.asarray(jax.nn.log_softmax(LOGITS))
    old = np.asarray(batch.old.log_probs)
    ratio = np.exp(log_pi[np.asarray(batch.action)] - np.asarray(batch.old_log_prob))
    kl = (np.exp(old) * (old - log_pi)).sum(-1).mean()
    _, told = gradient(make(penalty="kl", value_coefficient=0.0), batch, kl=3.0)
    np.testing.assert_allclose(told["kl"], kl, rtol=1e-4)
    np.testing.assert_allclose(told["loss"], -(ratio * np.asarray(batch.advantage)).mean() + 3.0 * kl, rtol=1e-4)


def test_a_values_error_is_the_larger_of_it_and_of_the_clipped_values(batch):
    v = 2.0 * np.asarray(batch.obs)[:, 0]
    old, target = np.asarray(batch.old_value), np.asarray(batch.target)
    near = np.clip(v, old - 0.1, old + 0.1)
    expected = np.maximum((v - target) ** 2, (near - target) ** 2)
    ours, told = gradient(make(value_clip=0.1), batch)
    np.testing.assert_allclose(told["value_loss"], expected.mean(), rtol=1e-5)
    # The gradient is the value's own where its error is the larger, and 0 where the clipped value's is.
    own = (v - target) ** 2 >= (near - target) ** 2
    slope = np.where(own | (near == v), 2 * (v - target) * np.asarray(batch.obs)[:, 0], 0.0).mean()
    assert ours.value is not None
    np.testing.assert_allclose(ours.value.vector, [0.5 * slope], rtol=1e-4)
    assert 20 < own.sum() < 180


def test_advantages_of_a_minibatch_are_given_mean_0_and_deviation_1(batch):
    advantage = np.asarray(batch.advantage)
    standard = batch._replace(advantage=jnp.asarray((advantage - advantage.mean()) / advantage.std()))
    ours, _ = gradient(make(normalise_advantages=True), batch)
    expected, _ = gradient(make(), standard)
    np.testing.assert_allclose(ours.policy.vector, expected.policy.vector, rtol=1e-4)


def test_at_the_first_gradient_step_the_ratio_is_1_and_the_divergence_0():
    algorithm = make(num_minibatches=2)
    _, told = updated(make(normalise_advantages=True))
    assert abs(float(told["kl"].total)) < 1e-7 and float(told["clipped"].total) == 0
    # With a ratio of 1 the loss is minus the mean advantage, which is 0 once normalised.
    assert abs(float(told["policy_loss"].total)) < 1e-6
    networks = algorithm.init(jax.random.key(0), SPEC).learner.networks
    batch = algorithm.batch(networks, ROLLOUT)
    first = jax.tree.map(lambda x: x[algorithm.minibatches(batch, KEY)[0]], batch)
    _, told = algorithm.minibatch_gradients(networks, first, 0.2, 0.0)
    assert abs(float(told["kl"])) < 1e-7 and float(told["clipped"]) == 0


def test_a_minibatch_of_one_divides_by_no_deviation():
    state, told = updated(make(num_minibatches=4, normalise_advantages=True))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.learner.networks, told)))
    moved = state.learner.networks.policy.vector - LOGITS
    assert np.abs(moved).max() > 1e-3, "its advantage stays, and teaches"


def test_each_epoch_goes_over_every_row_once_in_an_order_of_its_own():
    algorithm = make(epochs=5, num_minibatches=2)
    batch = algorithm.batch(algorithm.init(jax.random.key(0), SPEC).learner.networks, ROLLOUT)
    orders = np.asarray(algorithm.minibatches(batch, KEY))
    assert orders.shape == (10, 2)
    epochs = orders.reshape(5, 4)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(4), (5, 1)))
    assert len({tuple(order) for order in epochs}) > 1


def test_a_permutation_is_one_and_every_number_comes_as_often_everywhere():
    """A chi-square test of where each of five numbers stands in 20,000 of them: p-value above 0.001."""
    orders = np.asarray(jax.vmap(lambda key: permutation(key, 5))(jax.random.split(KEY, 20_000)))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(5), (20_000, 1)))
    counts = np.stack([np.bincount(column, minlength=5) for column in orders.T])
    assert (counts - 4_000).std() > 10, "it is random"
    assert scipy.stats.chi2.sf(((counts - 4_000) ** 2 / 4_000).sum(), 16) > 1e-3


@pytest.mark.parametrize("n", [1, 2, 512, 70_000])
def test_a_permutation_of_any_size_has_every_number_once(n):
    np.testing.assert_array_equal(np.sort(permutation(KEY, n)), np.arange(n))


@pytest.mark.parametrize(
    ("kl", "start", "expected"),
    [
        (0.0151, 0.5, 1.0),
        (0.0149, 0.5, 0.5),
        (0.0067, 0.5, 0.5),
        (0.0066, 0.5, 0.25),
        (1.0, 8.0, 10.0),
        (0, 1.5e-4, 1e-4),
    ],
)
def test_the_penalty_doubles_above_and_halves_below_its_target_within_bounds(kl, start, expected):
    adapted = make(penalty="kl", kl_target=0.01).adapted(jnp.asarray(start), jnp.asarray(kl))
    np.testing.assert_allclose(adapted, expected, rtol=1e-6)


def test_the_penalty_follows_the_divergence_after_the_rollout():
    """A large step leaves the target behind, a tiny one falls short of it."""
    for learning_rate, factor in ((1.0, 2.0), (1e-5, 0.5)):
        algorithm = make(penalty="kl", epochs=3, learning_rate=learning_rate, initial_kl_coefficient=0.5)
        state, told = updated(algorithm)
        batch = algorithm.batch(algorithm.init(jax.random.key(0), SPEC).learner.networks, ROLLOUT)
        kl = algorithm.divergence(state.learner.networks, batch)
        assert (kl > 0.015) == (factor == 2.0)
        np.testing.assert_allclose(state.kl_coefficient, 0.5 * factor)
        np.testing.assert_allclose(told["kl_coefficient"], 0.5 * factor)


def test_gradient_steps_stop_once_the_divergence_is_too_large():
    """The first step goes far beyond four times the target, so that no other is taken, nor reported."""
    once, _ = updated(make(learning_rate=1.0, epochs=1))
    far = make(learning_rate=1.0, epochs=10, stop_at_kl=4.0)
    state, told = updated(far)
    np.testing.assert_allclose(state.learner.networks.policy.vector, once.learner.networks.policy.vector, rtol=1e-5)
    np.testing.assert_allclose(state.learner.networks.value.vector, once.learner.networks.value.vector, rtol=1e-5)
    assert told["loss"].weight == 1
    _, told = updated(make(learning_rate=1e-3, epochs=10, stop_at_kl=4.0))
    assert told["loss"].weight == 10


def test_the_clip_and_the_learning_rate_are_annealed_by_environment_steps():
    algorithm = make(learning_rate_end=0.0, clip_end=0.0, epochs=2)
    state = algorithm.init(jax.random.key(0), SPEC)
    at_the_end = state.learner._replace(
        schedule=state.learner.schedule._replace(step=state.learner.schedule.step.add(1_000))
    )
    after, _ = algorithm.update(state._replace(learner=at_the_end), ROLLOUT, KEY)
    for a, b in zip(jax.tree.leaves(after.learner.networks), jax.tree.leaves(state.learner.networks), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # With a clip of 0 nothing is gained once the ratio has left 1 in the advantage's direction.
    half = make(clip_end=0.0, epochs=2, learning_rate=0.5)
    moved = {}
    for step in (0, 1_000):
        start = half.init(jax.random.key(0), SPEC)
        schedule = start.learner.schedule._replace(step=start.learner.schedule.step.add(step))
        after, _ = half.update(start._replace(learner=start.learner._replace(schedule=schedule)), ROLLOUT, KEY)
        moved[step] = float(np.abs(after.learner.networks.policy.vector - LOGITS).max())
    assert moved[1_000] < 0.8 * moved[0]


def test_rows_that_do_not_count_teach_nothing():
    spare = jax.tree.map(lambda x: x[:1], ROLLOUT)._replace(obs=column([[50.0]]), reward=column([1e4]))
    parts = [jax.tree.map(lambda x: x[:2], ROLLOUT), spare, jax.tree.map(lambda x: x[2:], ROLLOUT)]
    padded = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    padded = padded._replace(valid=column([1, 1, 0, 1, 1], jnp.bool_))
    (plain, told), (masked, also_told) = (
        updated(make(rollout_length=len(rollout.reward), epochs=3, normalise_advantages=True), rollout)
        for rollout in (ROLLOUT, padded)
    )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(masked), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(told), jax.tree.leaves(also_told), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_minibatches": 3}, "divisor of 4"),
        ({"epochs": 0}, "epochs (--epochs) was 0"),
        ({"clip": 0.0}, "clip (--clip) was 0.0"),
        ({"penalty": "both"}, "one of clip, kl"),
        ({"gae_lambda": 1.5}, "between 0 and 1"),
        ({"stop_at_kl": -1.0}, "greater than 0, or None"),
    ],
)
def test_settings_that_make_no_sense_are_told_in_a_sentence(settings, says):
    with pytest.raises(InvalidSetting) as told:
        PPO(**{**SETTINGS, **settings}).check()
    assert says in str(told.value)
