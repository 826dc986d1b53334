"""DQN: what it must be able to learn, and the parts that go wrong elsewhere."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import PROBES, PROBING, shared
from treadle import DQN, CartPole
from treadle.errors import InvalidSetting, UnsupportedSpace
from treadle.loops import fused
from treadle.loops.rollout import make_spec
from treadle.loops.seeding import seed_key
from treadle.networks import ravel
from treadle.registry import as_float32
from treadle.spaces import Box
from treadle.types import Transition

pytestmark = pytest.mark.least_optimised

_compiled = jax.jit(fused.train, static_argnums=3)


def _train(algorithm, world, updates, seed=0):
    return _compiled(as_float32(algorithm.prepared()), as_float32(world), seed_key(seed), updates)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_it_learns_the_known_values(probe):
    state, _ = _train(PROBING, shared(probe), 3_000)
    for obs, values in zip(*probe.values(PROBING.gamma), strict=True):
        np.testing.assert_allclose(state.algorithm.network(jnp.asarray(obs, jnp.float32)), values, atol=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {
            "loss": "squared",
            "optimiser": "rmsprop",
            "max_grad_norm": None,
            "max_grad_value": 1.0,
            "epsilon_schedule": "exponential",
            "epsilon_scale": 200.0,
            "learning_rate_end": 1e-4,
        },
        {"tau": 0.05, "target_update_period": 1, "initialisation": "scaled", "activation": "tanh", "double": True},
        {"train_frequency": 4, "gradient_steps": 4, "num_envs": 3, "capacity": 1_001, "target_update_period": 50},
        {"optimiser": "sgd", "learning_rate": 0.05, "loss": "squared"},
        {"dueling": True, "prioritized": True},
        pytest.param(
            {"prioritized": True, "priority_weights": "memory", "priority_clip": None, "num_envs": 3, "capacity": 501},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda options: "-".join(options),
)
def test_it_learns_with_other_options(options):
    probe = next(p for p in PROBES if "corridor" in p.name)
    algorithm = dataclasses.replace(PROBING, **options)
    state, _ = _train(algorithm, probe.environment, 4_000 // algorithm.train_frequency)
    for obs, values in zip(*probe.values(algorithm.gamma), strict=True):
        np.testing.assert_allclose(state.algorithm.network(jnp.asarray(obs, jnp.float32)), values, atol=0.12)


@pytest.mark.parametrize(
    "options",
    [
        {"n_step": 3},
        pytest.param(
            {"n_step": 4, "num_envs": 2, "train_frequency": 3, "gradient_steps": 6, "dueling": True, "double": True},
            marks=pytest.mark.slow,
        ),
        {"n_step": 2, "prioritized": True, "dueling": True, "double": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_with_n_step_returns_it_finds_the_way(options):
    """Their values are those of the policy that acts, which is random half of the time; what is best stays best."""
    probe = next(p for p in PROBES if "corridor" in p.name)
    algorithm = dataclasses.replace(PROBING, **options)
    state, _ = _train(algorithm, probe.environment, 4_000 // algorithm.train_frequency)
    for obs, values in zip(*probe.values(algorithm.gamma), strict=True):
        q = state.algorithm.network(jnp.asarray(obs, jnp.float32))
        assert np.argmax(q) == np.argmax(values)
        assert np.all(np.asarray(q) < values + 0.12), "no value is above that of the best policy"


def _spec(world=None, **changes):
    return dataclasses.replace(make_spec(PROBING, world or CartPole(), 1_000), **changes)


def _rollout(count: int, reward: float = 1.0) -> Transition:
    obs = jnp.linspace(-1.0, 1.0, count * 4).reshape(count, 1, 4)
    flags = jnp.zeros((count, 1), bool)
    action, max_q = jnp.zeros((count, 1), jnp.int32), jnp.zeros((count, 1))
    return Transition(obs, action, jnp.full((count, 1), reward), obs, flags, flags, extras=max_q)


@jax.jit
def _begin(algorithm):
    return algorithm.init(seed_key(0), _spec())


@jax.jit
def _update(algorithm, state, rollout, key):
    return algorithm.update(state, rollout, key)


def test_the_td_error_worked_by_hand():
    """Q(s) = (1, 2), Q'(s') = (3, 5), reward 1, gamma 0.5, action 0."""
    algorithm = as_float32(dataclasses.replace(PROBING, gamma=0.5))
    q = lambda obs: jnp.where(obs[0] > 0, jnp.array([1.0, 2.0]), jnp.array([7.0, 6.0]))  # noqa: E731
    target = lambda obs: jnp.where(obs[0] > 0, jnp.array([0.0, 0.0]), jnp.array([3.0, 5.0]))  # noqa: E731
    step = Transition(
        jnp.array([1.0]), jnp.array(0), jnp.array(1.0), jnp.array([-1.0]), jnp.array(False), jnp.array(False)
    )
    assert algorithm.td_error(q, target, step) == 1 + 0.5 * 5 - 1
    assert algorithm.td_error(q, target, step._replace(terminated=jnp.array(True))) == 1 - 1
    assert algorithm.td_error(q, target, step._replace(truncated=jnp.array(True))) == 1 + 0.5 * 5 - 1
    double = dataclasses.replace(algorithm, double=True)
    assert double.td_error(q, target, step) == 1 + 0.5 * 3 - 1, "the online network prefers action 0, worth 3"


def test_nothing_is_learned_before_learning_starts():
    algorithm = as_float32(dataclasses.replace(PROBING, learning_starts=10))
    state = _begin(algorithm)
    before = state.network.vector
    for step in range(1, 13):
        state, metrics = _update(algorithm, state, _rollout(1), jax.random.key(step))
        learned = not jnp.array_equal(state.network.vector, before)
        assert learned == (step > 10)
        assert float(metrics["loss"].weight) == float(learned)


@pytest.mark.parametrize(("period", "stride"), [(10, 3), (4, 6), (7, 7), (100, 1)])
def test_the_target_is_copied_on_time_whatever_the_stride(period, stride):
    """A period that is no multiple of the environments still fires, once for each multiple that is passed."""
    algorithm = as_float32(dataclasses.replace(PROBING, target_update_period=period, learning_starts=0))
    state = _begin(algorithm)
    for round_ in range(1, 40):
        old = state
        state, _ = _update(algorithm, state, _rollout(stride), jax.random.key(round_))
        due = round_ * stride // period > (round_ - 1) * stride // period
        copied = jnp.array_equal(state.target_network.vector, state.network.vector)
        assert copied == due
        if not due:
            np.testing.assert_array_equal(state.target_network.vector, old.target_network.vector)


def test_a_soft_target_is_the_average():
    algorithm = as_float32(dataclasses.replace(PROBING, tau=0.1, target_update_period=1, learning_starts=0))
    old = _begin(algorithm)
    new, _ = _update(algorithm, old, _rollout(2), jax.random.key(0))
    expected = 0.9 * old.target_network.vector + 0.1 * new.network.vector
    np.testing.assert_allclose(new.target_network.vector, expected, atol=1e-7)


def test_nothing_aliases_the_target_and_it_gets_no_gradient():
    algorithm = as_float32(PROBING)
    state = algorithm.init(seed_key(0), _spec())
    assert state.target_network.vector is not state.network.vector
    assert state.target_network.vector.unsafe_buffer_pointer() != state.network.vector.unsafe_buffer_pointer()
    memory = jax.jit(algorithm.memory.add)(state.memory, _rollout(40)._replace(extras=()))
    batch = jax.jit(algorithm.memory.sample)(memory, jax.random.key(0))
    loss = jax.jit(jax.grad(algorithm.batch_loss, argnums=1, has_aux=True))
    gradient, _ = loss(state.network, state.target_network, batch)
    assert not gradient.vector.any()
    sizes = [leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sizes == [state.network.vector.size] * 2, "Adam keeps two moments of the network and none of the target"


def test_schedules_follow_environment_steps():
    algorithm = as_float32(dataclasses.replace(PROBING, epsilon_fraction=0.5, epsilon_end=0.1, num_envs=2))
    _, record = _train(algorithm, CartPole(), 500)
    epsilon = np.asarray(record.metrics["epsilon"])
    steps = 2 * np.arange(500)
    np.testing.assert_allclose(epsilon, np.maximum(1 - 0.9 * steps / 500, 0.1), atol=1e-5)


def test_the_learning_rate_is_annealed_over_the_run():
    algorithm = as_float32(dataclasses.replace(PROBING, learning_rate=1.0, learning_rate_end=0.0))
    state = _begin(algorithm)
    for step, rate in ((0, 1.0), (250, 0.75), (1_000, 0.0), (1_500, 0.0)):
        at = state._replace(step=state.step._replace(value=jnp.asarray(step)))
        assert float(algorithm.learning_rate_at(at)) == pytest.approx(rate)


def test_a_network_of_the_users_own():
    own = eqx.nn.MLP(4, 2, 16, 1, key=jax.random.key(0))
    before = np.array(ravel(own).vector)
    algorithm = dataclasses.replace(PROBING, network=own)
    state, record = _train(algorithm, CartPole(), 200)
    assert record.metrics["loss"].weight.sum() == 100
    assert not np.array_equal(state.algorithm.network.vector, before)
    np.testing.assert_array_equal(ravel(own).vector, before)


def test_evaluation_is_greedy_unless_told_otherwise():
    algorithm = as_float32(dataclasses.replace(PROBING, epsilon_start=1.0))
    policy = algorithm.policy(_begin(algorithm))
    obs = jnp.tile(jnp.array([[0.1, 0.2, 0.0, 0.3]]), (500, 1))
    action, _, _ = algorithm.act(policy, (), obs, jax.random.key(0), explore=False)
    assert len(np.unique(action)) == 1
    always = as_float32(dataclasses.replace(PROBING, evaluation_epsilon=1.0))
    action, _, _ = always.act(policy, (), obs, jax.random.key(0), explore=False)
    assert 200 < int(action.sum()) < 300


@pytest.mark.parametrize(
    "settings",
    [
        {"gamma": 1.5},
        {"gamma": -0.1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"batch_size": 200, "capacity": 100},
        {"batch_size": 0},
        {"capacity": 10**11},
        {"num_envs": 0},
        {"tau": 0.0},
        {"epsilon_start": 1.1},
        {"hidden_sizes": (64, 0)},
        {"max_grad_norm": 0.0},
        {"train_frequency": 0},
        {"learning_starts": -1},
        {"epsilon_scale": 0.0},
        {"learning_rate_end": -1.0},
        {"n_step": 0},
        {"priority_alpha": -0.1},
        {"priority_beta": 1.1},
        {"priority_offset": 0.0},
        {"priority_clip": 0.0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_out_of_range_are_told_in_a_sentence(settings):
    name = next(iter(settings))
    with pytest.raises(InvalidSetting, match=rf"{name} \(--{name.replace('_', '-')}\) was .*; it must be"):
        DQN(**settings).check()


def test_continuous_actions_are_refused():
    with pytest.raises(UnsupportedSpace, match=r"among discrete actions.*ppo.*--discretise-actions"):
        DQN().check(_spec(action_space=Box(-1.0, 1.0, (1,))))


def test_a_network_that_does_not_fit_is_refused():
    wrong = eqx.nn.MLP(4, 5, 8, 1, key=jax.random.key(0))
    with pytest.raises(InvalidSetting, match=r"network.*\(5,\).*\(2,\)"):
        dataclasses.replace(DQN(), network=wrong).check(_spec())
    deaf = eqx.nn.MLP(7, 2, 8, 1, key=jax.random.key(0))
    with pytest.raises(InvalidSetting, match="network cannot take an observation"):
        dataclasses.replace(DQN(), network=deaf).check(_spec())
