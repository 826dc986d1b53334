"""DDPG: what it must be able to learn, and the parts that go wrong elsewhere."""

from __future__ import annotations

import dataclasses
import warnings
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Int

from probes import CONTINUOUS_PROBES, AimConstant, TruncationAgainstTermination
from treadle import Agent, Dataset, Pendulum
from treadle.algorithms.ddpg import DDPG, DDPGState, Networks
from treadle.errors import InvalidSetting, UnsupportedSpace
from treadle.loops import fused
from treadle.loops.rollout import collect, make_spec, start
from treadle.loops.seeding import seed_key
from treadle.networks import Raveled
from treadle.registry import as_float32, as_tree
from treadle.spaces import Box, Discrete
from treadle.types import Step, Transition

pytestmark = pytest.mark.least_optimised

PROBING = DDPG(
    learning_rate=1e-3,
    critic_learning_rate=3e-3,
    gamma=0.8,
    batch_size=32,
    capacity=1_000,
    learning_starts=100,
    tau=0.05,
    noise_std=0.5,
    hidden_sizes=(32,),
    critic_hidden_sizes=(32, 32),
)
"""Learns the probes in some thousand steps."""

TINY = as_float32(DDPG(hidden_sizes=(3,), batch_size=4, capacity=16, learning_starts=0, gamma=0.9))

_compiled = jax.jit(fused.train, static_argnums=3)


def _train(algorithm, world, updates, seed=0):
    return _compiled(as_float32(algorithm.prepared()), as_float32(world), seed_key(seed), updates)


@jax.jit
def _act_greedily(algorithm: DDPG, state: Any, obs: Any) -> Array:
    return algorithm.act(algorithm.policy(state), (), obs, jax.random.key(0), explore=False)[0]


def _greedy(algorithm: DDPG, state: Any, obs: Any) -> np.ndarray:
    return np.asarray(_act_greedily(as_float32(algorithm), state, np.float32(obs)))


# What it learns


@pytest.mark.parametrize("probe", CONTINUOUS_PROBES, ids=lambda probe: probe.name)
def test_the_known_values_are_those_of_the_world(probe):
    """Each action's value is its reward and what the best action after it is worth; no other action is better than the
    best."""
    world = probe.environment
    step = jax.vmap(world.step, in_axes=(0, 0, None))
    for action in np.linspace(-1.0, 3.0, 9, dtype=np.float32):
        chosen = np.full_like(probe.best, action)
        _, t = step(jnp.asarray(probe.obs), jnp.asarray(chosen), jax.random.key(0))
        u = np.asarray(t.obs)[:, -1:]
        after = np.asarray(probe.values(0.7, np.asarray(t.obs), 1 - 2 * u))
        worth = np.asarray(t.reward) + 0.7 * np.where(t.terminated, 0.0, after)
        np.testing.assert_allclose(probe.values(0.7, probe.obs, chosen), worth, atol=1e-6)
        best = probe.values(0.7, probe.obs, probe.best)
        assert np.all(best >= worth - 1e-6)


@as_tree
class AnyNarrow(AimConstant):
    """The worlds that observe one number in one, so that one compiled program serves them all. The time limit is that
    of the truncated one; the others' episodes are no longer."""

    which: Int[Array, ""]
    max_episode_steps: int | None = 3

    def reset(self, key: Array) -> tuple[Any, Any]:
        return jax.lax.switch(self.which, [world.reset for world in NARROW], key)

    def step(self, state: Any, action: Any, key: Array) -> tuple[Any, Step]:
        return jax.lax.switch(self.which, [world.step for world in NARROW], state, action, key)


NARROW = [
    *(probe.environment for probe in CONTINUOUS_PROBES if probe.obs.shape[1] == 1),
    TruncationAgainstTermination(),
    TruncationAgainstTermination(terminates=True),
]


def _shared(world: Any) -> Any:
    return AnyNarrow(which=jnp.array(NARROW.index(world))) if world in NARROW else world


@pytest.mark.parametrize("probe", CONTINUOUS_PROBES, ids=lambda probe: probe.name)
def test_it_learns_the_best_actions_and_their_values(probe):
    state, _ = _train(PROBING, _shared(probe.environment), 4_000)
    learned = state.algorithm
    np.testing.assert_allclose(_greedy(PROBING, learned, probe.obs), probe.best, atol=0.2)
    unit = jnp.asarray((probe.best - 1) / 2)
    value = jax.vmap(learned.learned.networks.value)(jnp.asarray(probe.obs), unit)
    np.testing.assert_allclose(value, probe.values(PROBING.gamma, probe.obs, probe.best), atol=0.1)


OPTIONS = [
    {"tau": 1.0, "target_update_period": 20, "actor_target_update_period": 30, "optimiser": "rmsprop"},
    {"num_envs": 3, "train_frequency": 2, "gradient_steps": 3, "capacity": 1_001, "normalise_observations": True},
    {
        "noise": "ornstein-uhlenbeck",
        "ou_dt": 1.0,
        "noise_decay": 0.999,
        "noise_std_end": 0.2,
        "max_grad_norm": 1.0,
        "learning_rate_end": 1e-4,
        "initialisation": "scaled",
        "activation": "tanh",
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_it_learns_with_other_options(options):
    probe = CONTINUOUS_PROBES[-1]
    algorithm = dataclasses.replace(PROBING, **options)
    state, _ = _train(algorithm, probe.environment, 4_000 // algorithm.train_frequency)
    np.testing.assert_allclose(_greedy(algorithm, state.algorithm, probe.obs), probe.best, atol=0.4)


@pytest.mark.parametrize("terminates", [False, True])
def test_a_time_limit_bootstraps_and_an_end_does_not(terminates):
    """The discrete probe, which does not look at the action."""
    algorithm, g = dataclasses.replace(PROBING, gamma=0.7), 0.7
    state, _ = _train(algorithm, AnyNarrow(which=jnp.array(2 + terminates)), 4_000)
    obs = jnp.array([[-1.0], [0.0], [1.0]])
    values = np.array([1 + g + g**2, 1 + g, 1.0] if terminates else [1 / (1 - g)] * 3)
    found = jax.vmap(state.algorithm.learned.networks.value)(obs, jnp.zeros((3, 1)))
    np.testing.assert_allclose(found, values, atol=0.1)


# Targets and gradients


@pytest.fixture(scope="module")
def rlax() -> ModuleType:
    with warnings.catch_warnings():
        # TensorFlow Probability, which rlax imports, reads names that JAX is about to remove.
        warnings.filterwarnings("ignore", r"jax\.\S+ is deprecated", DeprecationWarning)
        import rlax
    return rlax


def test_the_td_error_worked_by_hand():
    """Q(s, a) = 2, mu'(s') = 0.5, Q'(s', 0.5) = 4 + 0.5, reward 1, gamma 0.9."""
    step = Transition(
        jnp.array([1.0]),
        jnp.array([0.25]),
        jnp.array(1.0),
        jnp.array([-1.0]),
        jnp.array(False),
        jnp.array(False),
    )
    targets: Any = Networks(lambda obs: jnp.array([0.5]), lambda obs, action: 4.0 + action[0] - 1.0 - obs[0])  # pyright: ignore[reportArgumentType]
    value = lambda obs, action: obs[0] + 4 * action[0]  # noqa: E731
    np.testing.assert_allclose(TINY.td_error(value, targets, step), 1 + 0.9 * 4.5 - 2, rtol=1e-6)
    truncated = step._replace(truncated=jnp.array(True))
    np.testing.assert_allclose(TINY.td_error(value, targets, truncated), 1 + 0.9 * 4.5 - 2, rtol=1e-6)
    terminated = step._replace(terminated=jnp.array(True))
    np.testing.assert_allclose(TINY.td_error(value, targets, terminated), 1 - 2, rtol=1e-6)


def _spec(world: Any = None, algorithm: Any = TINY, **changes: Any):
    return dataclasses.replace(make_spec(algorithm, world or Pendulum(), 1_000), **changes)


def _batch(count: int = 4) -> Transition:
    rng = np.random.default_rng(0)
    obs, action, next_obs, reward = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in [(count, 3), (count, 1), (count, 3), (count,)]
    )
    terminated = np.arange(count) % 2 == 0
    return Transition(obs, np.tanh(action), reward, next_obs, terminated, ~terminated)


def _forward(network: Any, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden units and outputs of a network of one hidden layer, by NumPy in float64."""
    first, last = network.module.mlp.layers
    w, b, w2, b2 = (np.asarray(x, np.float64) for x in (first.weight, first.bias, last.weight, last.bias))
    hidden = np.maximum(inputs @ w + b, 0.0)
    return hidden, hidden @ w2 + b2


@pytest.fixture(scope="module")
def begun() -> DDPGState:
    """A state whose targets are other networks than those that learn."""
    init = jax.jit(lambda key: TINY.init(key, _spec()))
    state, other = (init(seed_key(i)) for i in range(2))
    return state._replace(learned=state.learned._replace(targets=other.learned.networks))


def _unlike_zero(network: Raveled, key: int) -> Raveled:
    """The same network with biases that are not 0."""
    noise = 0.1 * jax.random.normal(jax.random.key(key), network.vector.shape)
    return dataclasses.replace(network, vector=network.vector + noise)


def test_the_gradient_of_the_values_worked_in_numpy(begun, rlax):
    (policy, value), batch = begun.learned.targets, _batch()
    targets = Networks(_unlike_zero(policy, 0), _unlike_zero(value, 1))
    online = _unlike_zero(begun.learned.networks.value, 2)
    gradient, of_targets = jax.jit(jax.grad(TINY.value_loss, argnums=(0, 1)))(online, targets, batch)

    next_obs, inputs = np.asarray(batch.next_obs), np.concatenate([batch.obs, batch.action], axis=1)
    next_action = np.tanh(_forward(targets.policy, next_obs)[1])
    q_next = _forward(targets.value, np.concatenate([next_obs, next_action], axis=1))[1][:, 0]
    hidden, q = _forward(online, inputs)
    discount = np.where(batch.terminated, 0.0, 0.9)
    errors = np.asarray(batch.reward) + discount * q_next - q[:, 0]
    with_rlax = jax.jit(jax.vmap(rlax.td_learning))(q[:, 0], batch.reward, jnp.asarray(discount), q_next)
    np.testing.assert_allclose(errors, with_rlax, rtol=1e-4)

    of_q = (-2 * errors / len(errors))[:, None]
    last = np.asarray(online.module.mlp.layers[1].weight)
    of_hidden = of_q @ last.T * (hidden > 0)
    parts = inputs.T @ of_hidden, of_hidden.sum(0), hidden.T @ of_q, of_q.sum(0)
    np.testing.assert_allclose(gradient.vector, np.concatenate([p.ravel() for p in parts]), rtol=1e-4, atol=1e-6)
    assert all(not x.any() for x in jax.tree.leaves(of_targets)), "targets stand still"


def test_the_policy_gradient_worked_in_numpy_and_by_rlax(begun, rlax):
    policy, value = (_unlike_zero(network, i) for i, network in enumerate(begun.learned.networks))
    obs = _batch().obs
    loss, gradient = jax.jit(jax.value_and_grad(TINY.policy_loss))(policy, value, obs)

    hidden, out = _forward(policy, np.asarray(obs))
    action = np.tanh(out)
    inputs = np.concatenate([obs, action], axis=1)
    value_hidden, q = _forward(value, inputs)
    np.testing.assert_allclose(loss, -q.mean(), rtol=1e-5)
    first, last = (np.asarray(layer.weight) for layer in value.module.mlp.layers)
    of_action = np.where(value_hidden > 0, last[:, 0], 0.0) @ first[3:].T
    of_out = -of_action * (1 - action**2) / len(obs)
    of_hidden = of_out @ np.asarray(policy.module.mlp.layers[1].weight).T * (hidden > 0)
    parts = np.asarray(obs).T @ of_hidden, of_hidden.sum(0), hidden.T @ of_out, of_out.sum(0)
    np.testing.assert_allclose(gradient.vector, np.concatenate([p.ravel() for p in parts]), rtol=1e-4, atol=1e-6)

    def loss_of_rlax(policy):
        return jnp.mean(jax.vmap(rlax.dpg_loss)(jax.vmap(policy)(obs), jnp.asarray(of_action, jnp.float32)))

    np.testing.assert_allclose(gradient.vector, jax.jit(jax.grad(loss_of_rlax))(policy).vector, rtol=1e-3, atol=1e-6)


def test_a_gradient_step_is_of_the_values_then_of_the_policy_then_of_the_targets(begun):
    """With plain descent, and the policy's gradient by the values as they are by then."""
    algorithm = as_float32(
        dataclasses.replace(TINY, optimiser="sgd", tau=0.25, learning_rate=0.1, critic_learning_rate=0.5)
    )
    batch, before = _batch(), begun.learned
    before = before._replace(
        opt_states=jax.jit(lambda key: algorithm.init(key, _spec()))(seed_key(0)).learned.opt_states
    )
    after, _ = jax.jit(algorithm.gradient_step)(before, batch, 0.1)
    of_value = jax.jit(jax.grad(algorithm.value_loss))(before.networks.value, before.targets, batch)
    value = before.networks.value.vector - 0.5 * of_value.vector
    np.testing.assert_allclose(after.networks.value.vector, value, rtol=1e-5)
    of_policy = jax.jit(jax.grad(algorithm.policy_loss))(before.networks.policy, after.networks.value, batch.obs)
    policy = before.networks.policy.vector - 0.1 * of_policy.vector
    np.testing.assert_allclose(after.networks.policy.vector, policy, rtol=1e-5)
    for target, old, network in zip(after.targets, before.targets, after.networks, strict=True):
        np.testing.assert_allclose(target.vector, 0.25 * network.vector + 0.75 * old.vector, rtol=1e-4, atol=1e-7)


def _rollout(algorithm: DDPG, steps: int = 1, key: int = 0) -> Transition:
    """Random rows `[T, B]` of the pendulum."""
    shape, space = (steps, algorithm.num_envs), Pendulum().action_space
    rng = np.random.default_rng(key)
    obs: Any = np.float32(rng.normal(size=(*shape, 3)))
    flags: Any = np.zeros(shape, np.bool_)
    action: Any = np.float32(rng.uniform(space.low, space.high, (*shape, 1)))
    reward: Any = np.ones(shape, np.float32)
    return Transition(obs, action, reward, obs, flags, flags)


@jax.jit
def _begin(algorithm):
    return algorithm.init(seed_key(0), _spec(algorithm=algorithm))


@jax.jit
def _update(algorithm, state, rollout, key):
    return algorithm.update(state, rollout, key)


def test_nothing_is_learned_before_learning_starts_and_memory_holds_the_worlds_actions():
    algorithm = dataclasses.replace(TINY, learning_starts=6, num_envs=2)
    state = _begin(algorithm)
    vectors = lambda state: [network.vector for network in state.learned.networks]  # noqa: E731
    for round_ in range(1, 6):
        before, rollout = vectors(state), _rollout(algorithm, key=round_)
        state, metrics = _update(algorithm, state, rollout, jax.random.key(round_))
        learned = [not np.array_equal(a, b) for a, b in zip(before, vectors(state), strict=True)]
        assert learned == [round_ * 2 > 6] * 2
        assert float(metrics["value_loss"].weight) == float(round_ * 2 > 6)
        rows = algorithm.memory.items(state.memory, jnp.array([2 * round_ - 2, 2 * round_ - 1]))
        np.testing.assert_array_equal(rows.action, rollout.action[0])


@pytest.mark.parametrize(("num_envs", "steps"), [(1, 1), (3, 1), (1, 2)])
def test_hard_copies_come_on_time_each_at_its_own_period(num_envs, steps):
    """The periods count gradient steps, so that neither environments nor rounds of several need divide them."""
    algorithm = as_float32(
        dataclasses.replace(
            TINY,
            tau=1.0,
            target_update_period=3,
            actor_target_update_period=5,
            num_envs=num_envs,
            gradient_steps=steps,
        )
    )
    state = _begin(algorithm)
    for round_ in range(1, 16):
        before = state
        state, _ = _update(algorithm, state, _rollout(algorithm, key=round_), jax.random.key(round_))
        for name, period in (("policy", 5), ("value", 3)):
            target, old, network = (
                getattr(networks, name).vector
                for networks in (state.learned.targets, before.learned.targets, state.learned.networks)
            )
            due = round_ * steps // period > (round_ - 1) * steps // period
            assert np.array_equal(target, old) != due
            if round_ * steps % period == 0:
                np.testing.assert_array_equal(target, network)


# Noise


@jax.jit
def _act(algorithm, state, carry, obs, key):
    return algorithm.act(state, carry, obs, key)


def _explored(algorithm: DDPG, state: DDPGState, count: int = 4_000) -> tuple[np.ndarray, np.ndarray]:
    """Actions at one observation with exploration and without, in units of half the width, which is 2."""
    obs = jnp.tile(jnp.array([0.3, 0.4, -0.5]), (count, 1))
    carry = algorithm.init_carry(_spec(num_envs=count))
    noisy, _, _ = _act(algorithm, state, carry, obs, jax.random.key(0))
    assert np.all(np.abs(noisy) <= 2.0)
    return np.asarray(noisy)[:, 0] / 2, _greedy(algorithm, state, obs)[:, 0] / 2


def _at(state: DDPGState, step: int) -> DDPGState:
    schedule = state.schedule
    return state._replace(schedule=schedule._replace(step=schedule.step.add(step)))


def test_gaussian_noise_decays_from_the_start_of_learning_to_its_floor():
    algorithm = as_float32(
        dataclasses.replace(TINY, noise_std=0.2, noise_decay=0.99, noise_std_end=0.05, learning_starts=100)
    )
    state = _begin(algorithm)
    uniform, _ = _explored(algorithm, _at(state, 99))
    np.testing.assert_allclose([uniform.mean(), uniform.std()], [0.0, 3**-0.5], atol=0.03)
    for step, std in ((100, 0.2), (150, 0.2 * 0.99**50), (1_000, 0.05)):
        np.testing.assert_allclose(algorithm.noise_std_at(_at(state, step)), std, rtol=1e-4)
        noisy, greedy = _explored(algorithm, _at(state, step))
        assert len(np.unique(greedy)) == 1
        np.testing.assert_allclose((noisy - greedy).std(), std, rtol=0.05)
        np.testing.assert_allclose((noisy - greedy).mean(), 0.0, atol=0.05 * 0.2)


def test_actions_stay_within_the_bounds():
    algorithm = as_float32(dataclasses.replace(TINY, noise_std=20.0))
    noisy, _ = _explored(algorithm, _begin(algorithm))
    assert np.mean(np.abs(noisy) == 1.0) > 0.9


def test_ornstein_uhlenbeck_noise_goes_on_from_step_to_step():
    """x' = (1 - theta dt) x + sigma sqrt(dt) N(0, 1), whose variance comes to sigma^2 dt / (1 - (1 - theta dt)^2)."""
    algorithm = as_float32(
        dataclasses.replace(TINY, noise="ornstein-uhlenbeck", noise_std=0.1, ou_theta=0.5, ou_dt=0.2)
    )
    state, obs = _begin(algorithm), jnp.tile(jnp.array([0.3, 0.4, -0.5]), (200, 1))
    carry = algorithm.init_carry(_spec(num_envs=200))
    assert carry.shape == (200, 1) and not carry.any()

    @jax.jit
    def walk(state, carry):
        def step(carry, key):
            action, carry, _ = algorithm.act(state, carry, obs, key)
            return carry, action[:, 0] / 2

        return jax.lax.scan(step, carry, jax.random.split(jax.random.key(0), 300))[1]

    noise = np.asarray(walk(state, carry)) - _greedy(algorithm, state, obs)[:, 0] / 2
    np.testing.assert_allclose(noise[0].std(), 0.1 * 0.2**0.5, rtol=0.2)
    settled, decay = noise[100:], 1 - 0.5 * 0.2
    np.testing.assert_allclose(settled.var(), 0.1**2 * 0.2 / (1 - decay**2), rtol=0.05)
    for lag in (1, 5):
        correlation = np.mean(settled[lag:] * settled[:-lag]) / settled.var()
        np.testing.assert_allclose(correlation, decay**lag, atol=0.03)
    _, after, _ = algorithm.act(state, carry + 1.0, obs, jax.random.key(0), explore=False)
    np.testing.assert_array_equal(after, carry + 1.0)


def test_ornstein_uhlenbeck_noise_starts_anew_in_each_episode():
    algorithm = as_float32(dataclasses.replace(TINY, noise="ornstein-uhlenbeck", train_frequency=3, num_envs=2))
    world = as_float32(Pendulum(max_episode_steps=5))
    spec, state = make_spec(algorithm, world, 1_000), _begin(algorithm)
    actor = start(world, algorithm.init_carry(spec), 2, seed_key(0))
    one_round = jax.jit(lambda actor, key: collect(algorithm, world, spec, state, actor, key)[0])
    carries = []
    for i in range(5):
        actor = one_round(actor, jax.random.key(i))
        carries.append(np.asarray(actor.carry))
    assert [bool(carry.any()) for carry in carries] == [True, True, True, True, False], "15 steps are three episodes"


# Round about


def test_observations_are_normalised_and_a_reloaded_agent_does_the_same_without_exploring(tmp_path):
    algorithm = dataclasses.replace(PROBING, normalise_observations=True, learning_starts=20, noise_std=1.0)
    agent = Agent(algorithm, Pendulum(), seed=3).learn(300)
    assert float(agent.policy.observations.count) == 300
    loaded = Agent.load(agent.save(tmp_path / "agent.safetensors"), Pendulum())
    obs = np.array([[1.0, 0.0, 0.0], [-0.6, 0.8, -7.0]], np.float32)
    action = agent.predict(obs)
    network, seen = agent.policy.policy, agent.policy.observations.normalise(obs)
    np.testing.assert_allclose(action, 2 * jax.vmap(network)(seen), rtol=1e-5)
    for _ in range(2):
        np.testing.assert_array_equal(loaded.predict(obs), action)


def test_it_learns_from_the_actions_of_another():
    """Random ones, in the world's own units; the world is never stepped."""
    probe = CONTINUOUS_PROBES[1]
    random = np.random.default_rng(0)
    obs = random.choice(np.array([-1.0, 1.0], np.float32), (500, 1))
    action = random.uniform(-1.0, 3.0, (500, 1)).astype(np.float32)
    data = Dataset(
        obs=obs,
        action=action,
        reward=probe.values(0.8, obs, action).astype(np.float32),
        next_obs=obs,
        terminated=np.ones(500, np.bool_),
    )
    agent = Agent(PROBING, probe.environment).learn_from(data, 4_000)
    np.testing.assert_allclose(agent.predict(probe.obs), probe.best, atol=0.2)


def test_networks_of_the_users_own():
    class Own(eqx.Module):
        mlp: eqx.nn.MLP

        def __call__(self, obs, *action):
            out = self.mlp(jnp.concatenate([obs, *action]))
            return jnp.tanh(out) if not action else out[0]

    keys = jax.random.split(jax.random.key(0), 2)
    own = {
        "policy_network": Own(eqx.nn.MLP(3, 1, 8, 1, key=keys[0])),
        "value_network": Own(eqx.nn.MLP(4, 1, 8, 1, key=keys[1])),
    }
    algorithm = dataclasses.replace(TINY, **own)
    algorithm.check(_spec())
    prepared: Any = algorithm.prepared()
    state, _ = _train(prepared, Pendulum(), 20)
    for mine, learned in zip(
        (prepared.policy_network, prepared.value_network), state.algorithm.learned.networks, strict=True
    ):
        assert not np.array_equal(mine.vector, learned.vector)

    for name, wrong, said in (
        ("policy_network", own["value_network"], r"cannot take an observation of shape \(3,\)"),
        ("value_network", eqx.nn.MLP(4, 1, 8, 1, key=keys[1]), r"cannot take .* and an action of shape \(1,\)"),
        (
            "policy_network",
            eqx.nn.MLP(3, 2, 8, 1, key=keys[0]),
            r"output of shape \(2,\) .*; it must be \(1,\), a number",
        ),
    ):
        with pytest.raises(InvalidSetting, match=f"{name} .*{said}"):
            dataclasses.replace(TINY, **{name: wrong}).check(_spec())


# Bad input


@pytest.mark.parametrize(
    "settings",
    [
        {"gamma": 1.5},
        {"learning_rate": 0.0},
        {"critic_learning_rate": -1.0},
        {"learning_rate_end": -1.0},
        {"batch_size": 200, "capacity": 100},
        {"train_frequency": 0},
        {"gradient_steps": 0},
        {"learning_starts": -1},
        {"tau": 0.0},
        {"target_update_period": 0},
        {"actor_target_update_period": 0},
        {"noise": "pink"},
        {"noise_std": -0.1},
        {"noise_decay": 1.1},
        {"noise_std_end": 0.5},
        {"ou_theta": -1.0},
        {"ou_dt": 0.0},
        {"hidden_sizes": (64, 0)},
        {"critic_hidden_sizes": (0,)},
        {"max_grad_norm": 0.0},
        {"num_envs": 0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_out_of_range_are_told_in_a_sentence(settings):
    name = next(iter(settings))
    with pytest.raises(InvalidSetting, match=rf"{name} \(--{name.replace('_', '-')}\) was .*; it must be"):
        DDPG(**settings).check()


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (Discrete(3), r"ddpg .* continuous actions.*Discrete\(3\).* there are .*dqn.*ppo"),
        (Box(-1.0, float("inf"), (1,)), r"ddpg scales .* to the bounds .*TransformAction"),
        (Box(0, 5, (1,), jnp.int32), r"ddpg .* real numbers.*whole numbers"),
    ],
)
def test_actions_that_it_cannot_serve_are_refused(space, said):
    with pytest.raises(UnsupportedSpace, match=said):
        DDPG().check(_spec(action_space=space))


def test_observations_that_it_cannot_serve_are_refused():
    with pytest.raises(UnsupportedSpace, match=r"ddpg gives each discrete observation.*wrapper"):
        DDPG().check(_spec(observation_space=Discrete(2_000_000)))
    with pytest.raises(UnsupportedSpace, match=r"--normalise-observations.*Leave it out"):
        DDPG(normalise_observations=True).check(_spec(observation_space=Discrete(5)))
