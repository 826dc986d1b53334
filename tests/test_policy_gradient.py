"""What policy gradient methods share: they learn the probes, normalise what they see, and act as they were saved."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import CONTINUOUS_PROBES, PROBES, shared
from treadle import DQN, Agent, Box, CartPole, Maze, Pendulum, TreadleError
from treadle.algorithms.a2c import A2C
from treadle.algorithms.actor_critic import ActorCritic
from treadle.algorithms.ddpg import DDPG
from treadle.algorithms.policy_gradient import normalised, standardised
from treadle.algorithms.ppo import PPO
from treadle.algorithms.reinforce import Reinforce
from treadle.errors import NonFinite, UnsupportedSpace
from treadle.loops import fused
from treadle.loops.rollout import collect, make_spec, start
from treadle.loops.seeding import seed_key
from treadle.loops.seeds import FusedSeeds
from treadle.normalise import Moments
from treadle.registry import as_float32, as_tree
from treadle.types import Transition, space_spec

pytestmark = pytest.mark.least_optimised

SMALL = {"hidden_sizes": (16,), "gamma": 0.8, "num_envs": 8}
LEARNERS = {
    "a2c": (A2C(**SMALL, learning_rate=1e-2, learning_rate_end=0.0, optimiser="adam"), 1_000),
    "ppo": (PPO(**SMALL, learning_rate=1e-2, learning_rate_end=0.0, rollout_length=16), 300),
}
"""With how many updates each learns a probe."""
ALGORITHMS = {
    **{name: algorithm for name, (algorithm, _) in LEARNERS.items()},
    "reinforce": Reinforce(**SMALL, baseline=True, max_episode_length=200),
    "actor-critic": ActorCritic(**SMALL),
}
"""The last two have tests of what they learn of their own."""

_compiled = jax.jit(fused.train, static_argnums=3)


def train(algorithm, world, updates, seed=0):
    return _compiled(as_float32(algorithm.prepared()), as_float32(world), seed_key(seed), updates)


def moments(learner) -> Moments:
    assert learner.observations is not None
    return learner.observations


def learned(algorithm, state, obs):
    """Greedy actions and values of observations `[N, ...]`."""
    learner = getattr(state, "learner", state)
    seen = normalised(learner.observations, jnp.asarray(obs, jnp.float32))
    action, _, _ = algorithm.act(state, (), jnp.asarray(obs, jnp.float32), jax.random.key(0), explore=False)
    return np.asarray(action), np.asarray(jax.vmap(learner.networks.value)(seen))


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_it_learns_the_best_actions_and_their_values(probe, name):
    algorithm, updates = LEARNERS[name]
    state, _ = train(algorithm, shared(probe), updates)
    obs, values = probe.values(algorithm.gamma)
    actions, found = learned(algorithm, state.algorithm, obs)
    np.testing.assert_allclose(found, values.max(-1), atol=0.15)
    matters = np.ptp(values, axis=-1) > 1e-6
    np.testing.assert_array_equal(actions[matters], values.argmax(-1)[matters])


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("probe", CONTINUOUS_PROBES[1:], ids=lambda probe: probe.name)
def test_it_learns_the_best_of_continuous_actions(probe, name):
    algorithm, updates = LEARNERS[name]
    state, _ = train(dataclasses.replace(algorithm, initial_log_std=-0.5), probe.environment, 2 * updates)
    actions, _ = learned(algorithm, state.algorithm, probe.obs[:2])
    np.testing.assert_allclose(actions, probe.best[:2], atol=0.3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"std": "network", "activation": "relu", "critic_hidden_sizes": (8, 8), "critic_learning_rate": 2e-2},
        {"normalise_observations": True, "normalise_rewards": True, "entropy_coefficient": 1e-3},
        {"penalty": "kl", "value_clip": 0.5, "initialisation": "scaled", "stop_at_kl": 4.0, "max_grad_norm": None},
    ],
    ids=lambda options: "-".join(options),
)
def test_it_learns_with_other_options(options):
    algorithm, updates = LEARNERS["ppo"]
    algorithm = dataclasses.replace(algorithm, **options)
    probe = CONTINUOUS_PROBES[2]
    state, _ = train(algorithm, probe.environment, 2 * updates)
    actions, _ = learned(algorithm, state.algorithm, probe.obs[:2])
    np.testing.assert_allclose(actions, probe.best[:2], atol=0.35)


# What was seen


@pytest.mark.parametrize("name", ["ppo", "actor-critic"])
def test_observations_and_rewards_are_normalised_by_all_that_was_seen(name):
    """The state's moments are those of every observation that was acted on, in every rollout so far."""
    algorithm = dataclasses.replace(ALGORITHMS[name], normalise_observations=True, normalise_rewards=True)
    algorithm, world = as_float32(algorithm), as_float32(Pendulum())
    spec = make_spec(algorithm, world, 10_000)
    state = algorithm.init(jax.random.key(0), spec)
    actor = start(world, algorithm.init_carry(spec), spec.num_envs, jax.random.key(1))
    step, learn = jax.jit(lambda s, a, k: collect(algorithm, world, spec, s, a, k)), jax.jit(algorithm.update)
    seen, returns, so_far = [], [], np.zeros(spec.num_envs)
    for key in jax.random.split(jax.random.key(2), 3):
        actor, rollout, _ = step(state, actor, key)
        state, _ = learn(state, rollout, key)
        seen.append(np.asarray(rollout.obs).reshape(-1, 3))
        for reward in np.asarray(rollout.reward):
            so_far = 0.8 * so_far + reward
            returns.append(so_far)
    learner = getattr(state, "learner", state)
    np.testing.assert_allclose(learner.observations.mean, np.concatenate(seen).mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(learner.observations.variance, np.concatenate(seen).var(0), rtol=1e-3)
    np.testing.assert_allclose(learner.rewards.moments.variance, np.var(returns), rtol=1e-3)


def test_a_rollout_is_learned_from_as_it_was_seen_when_it_was_acted_in():
    """What is new about observations counts from the next rollout on: at a rollout's first gradient step the policy
    says of every action what it said when it was chosen, so that the divergence is 0."""
    algorithm = as_float32(PPO(**SMALL, rollout_length=4, num_minibatches=1, epochs=1, normalise_observations=True))
    world = as_float32(Pendulum())
    spec = make_spec(algorithm, world, 10_000)
    state = algorithm.init(jax.random.key(0), spec)
    actor = start(world, (), spec.num_envs, jax.random.key(1))
    for key in jax.random.split(jax.random.key(2), 3):
        before = state.learner
        actor, rollout, _ = collect(algorithm, world, spec, state, actor, key)
        state, metrics = algorithm.update(state, rollout, key)
        assert abs(float(metrics["kl"].total)) < 1e-6
        assert not np.array_equal(moments(before).mean, moments(state.learner).mean)
        pi = jax.vmap(jax.vmap(before.networks.policy))(normalised(before.observations, rollout.obs))
        old = algorithm.batch(before.networks, algorithm.observe(before, rollout)[1]).old_log_prob
        np.testing.assert_allclose(old.reshape(4, 8), pi.log_prob(rollout.extras), rtol=1e-5)


def test_probabilities_are_those_of_what_was_drawn_not_of_what_was_cut():
    algorithm = as_float32(PPO(**SMALL, initial_log_std=2.0))
    spec = make_spec(algorithm, Pendulum(), 1_000)
    state = algorithm.init(jax.random.key(0), spec)
    action, _, drawn = algorithm.act(state, (), jnp.zeros((200, 3)), jax.random.key(1))
    assert action.shape == drawn.shape == (200, 1)
    np.testing.assert_allclose(action, 2.0 * np.clip(drawn, -1, 1), rtol=1e-6)
    assert np.abs(drawn).max() > 5 and np.abs(action).max() == 2.0
    flags = jnp.zeros((1, 200), jnp.bool_)
    rollout = Transition(
        jnp.zeros((1, 200, 3)), action[None], jnp.zeros((1, 200)), jnp.zeros((1, 200, 3)), flags, flags
    )
    _, seen = algorithm.observe(state.learner, rollout._replace(extras=drawn[None]))
    np.testing.assert_array_equal(seen.action, drawn[None])


def test_one_advantage_alone_is_left_as_it_is():
    np.testing.assert_array_equal(standardised(jnp.array([3.0])), [3.0])
    alone = standardised(jnp.array([3.0, 100.0]), jnp.array([True, False]))
    np.testing.assert_array_equal(alone[:1], [3.0])
    np.testing.assert_allclose(standardised(jnp.array([1.0, 3.0])), [-1.0, 1.0], rtol=1e-5)
    np.testing.assert_array_equal(standardised(jnp.array([2.0, 2.0])), [0.0, 0.0])


@pytest.mark.parametrize("name", ["a2c", "ppo", "actor-critic"])
def test_where_no_row_counts_the_optimiser_takes_no_step(name):
    """Adam that is fed zeros would move all the same, and forget. Nothing is reported either."""
    algorithm = as_float32(dataclasses.replace(ALGORITHMS[name], num_envs=4))
    spec = make_spec(algorithm, CartPole(), 1_000)
    obs, flags = jnp.ones((algorithm.num_steps, 4, 4)), jnp.zeros((algorithm.num_steps, 4), jnp.bool_)
    action, reward = flags.astype(jnp.int32), jnp.ones(flags.shape)
    rollout = Transition(obs, action, reward, obs, flags, flags, ~flags)
    learn = jax.jit(algorithm.update)
    state, metrics = learn(algorithm.init(jax.random.key(0), spec), rollout, jax.random.key(1))
    after, nothing = learn(state, rollout._replace(valid=flags), jax.random.key(2))
    before, after = (getattr(s, "learner", s) for s in (state, after))
    for a, b in zip(*(jax.tree.leaves((x.networks, x.opt_state)) for x in (before, after)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert metrics["loss"].weight > 0 and nothing["loss"].weight == 0


# Executions


OFF_POLICY = DDPG(
    hidden_sizes=(8,), learning_starts=4, capacity=50, noise="ornstein-uhlenbeck", noise_decay=0.9, batch_size=8
)


@pytest.mark.parametrize(
    "name", ["ppo", "ddpg", *(pytest.param(n, marks=pytest.mark.slow) for n in ALGORITHMS if n != "ppo")]
)
def test_a_stopped_run_that_goes_on_is_the_run(name):
    """Normalisers, schedules, the penalty's coefficient and noise are part of the state, to the last bit."""
    normalising = {"normalise_observations": True, "learning_rate_end": 0.0}
    if name != "ddpg":
        normalising |= {"normalise_rewards": True, "entropy_coefficient": 0.01}
    algorithm = dataclasses.replace({**ALGORITHMS, "ddpg": OFF_POLICY}[name], **normalising)
    whole, first, second = (
        FusedSeeds(as_float32(algorithm), as_float32(Pendulum()), 10_000, seed=3, num_seeds=2) for _ in range(3)
    )
    for _ in range(2):
        whole.advance(3)
    first.advance(3)
    second.restore(jax.device_get(first.state))
    second.advance(3)
    a, b = (jax.tree_util.tree_leaves_with_path(x.state) for x in (whole, second))
    for (path, x), (_, y) in zip(a, b, strict=True):
        x, y = (jax.random.key_data(z) if jnp.issubdtype(z.dtype, jax.dtypes.prng_key) else z for z in (x, y))
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def test_seeds_side_by_side_are_single_seeds():
    algorithm = as_float32(ALGORITHMS["ppo"])
    keys = jnp.stack([seed_key(i) for i in range(3)])
    world = as_float32(CartPole())
    together, _ = jax.jit(jax.vmap(lambda key: fused.train(algorithm, world, key, 4)))(keys)
    for i, key in enumerate(keys):
        alone, _ = _compiled(algorithm, world, key, 4)
        for a, b in zip(jax.tree.leaves(alone.algorithm), jax.tree.leaves(together.algorithm), strict=True):
            np.testing.assert_allclose(a, b[i], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["a2c", pytest.param("ddpg", marks=pytest.mark.slow)])
def test_they_learn_in_gymnasiums_environments_and_go_on_after_a_second_learn(name):
    """Rollouts of several steps, what was drawn, noise and normalisers through the host loop; schedules go on."""
    algorithm = {**ALGORITHMS, "ddpg": OFF_POLICY}[name]
    algorithm = dataclasses.replace(algorithm, num_envs=2, normalise_observations=True, learning_rate_end=0.0)
    agent = Agent(algorithm, "Pendulum-v1", loop="host").learn(450)
    first = agent.policy
    returns = agent.evaluate(2).returns
    np.testing.assert_array_equal(agent.policy.observations.mean, first.observations.mean)
    np.testing.assert_array_equal(agent.evaluate(2).returns, returns)
    agent.learn(450)
    state: Any = agent._trainer.state.algorithm  # pyright: ignore[reportOptionalMemberAccess]
    schedule = getattr(state, "learner", state).schedule
    assert agent.step == 900 and schedule.step.value[0] == 900 and schedule.total_timesteps[0] == 450
    assert agent.policy.observations.count == 900


# What does not fit


class Pair(eqx.Module):
    """Two numbers from one observation of four."""

    weight: jax.Array

    def __call__(self, obs):
        return obs @ self.weight


@pytest.mark.parametrize(
    ("algorithm", "world", "says"),
    [
        (
            DDPG(),
            CartPole(),
            "ddpg learns to choose among continuous actions.*Discrete.*there are a2c, .*actor-critic.*dqn",
        ),
        (DQN(), Pendulum(), "dqn learns to choose among discrete actions.*Box.*a2c.*ddpg.*ppo.*--discretise-actions"),
        (PPO(normalise_observations=True), Maze(), "--normalise-observations.*real numbers.*Discrete"),
        (PPO(policy_network=Pair(jnp.ones((4, 2)))), CartPole(), "treadle.distributions.Categorical whose logits"),
        (A2C(value_network=Pair(jnp.ones((4, 2)))), CartPole(), "value_network gives .* it must be one number"),
        (A2C(value_network=Pair(jnp.ones((3, 2)))), CartPole(), "value_network cannot take an observation of shape"),
        (Reinforce(learning_rate=-1.0), CartPole(), "learning_rate .* greater than 0"),
        (Reinforce(value_network=Pair(jnp.ones((4, 2)))), CartPole(), "value_network is a baseline"),
        (PPO(initial_log_std=math.nan), Pendulum(), "initial_log_std .* a finite number"),
        (ActorCritic(gamma=2.0), CartPole(), "gamma .* between 0 and 1"),
    ],
)
def test_mistakes_are_told_in_sentences(algorithm, world, says):
    with pytest.raises(TreadleError, match=says):
        Agent(algorithm, world).learn(1_000)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "says"),
    [(-math.inf, 1.0, np.float32, "has none on some side.*bounds"), (0, 5, np.int32, "of whole numbers.*Discrete")],
)
@pytest.mark.parametrize("algorithm", [PPO(), DDPG()], ids=lambda algorithm: algorithm.name)
def test_actions_without_bounds_or_of_whole_numbers_are_refused(algorithm, low, high, dtype, says):
    with pytest.raises(UnsupportedSpace, match=says):
        algorithm.check(space_spec(Box(-1.0, 1.0, (2,)), Box(low, high, (1,), dtype)))


@as_tree
class Breaking(Pendulum):
    """A pendulum whose velocity is no number once it hangs."""

    def step(self, state, action, key):
        state, step = super().step(state, action, key)
        return state, step._replace(obs=jnp.where(step.obs[0] < 0, jnp.nan, step.obs))


def test_a_learner_that_goes_astray_is_not_blamed_on_the_environment():
    """Its actions are no numbers, and so are then the pendulum's angles."""
    with pytest.raises(NonFinite, match=r"became (nan|inf)"):
        Agent(ActorCritic(learning_rate=1e37, optimiser="sgd", max_grad_norm=None), Pendulum()).learn(1_000)


@pytest.mark.parametrize("name", ["a2c"])
def test_an_environment_that_gives_no_numbers_is_named(name):
    algorithm = {**ALGORITHMS, "ddpg": OFF_POLICY}[name]
    with pytest.raises(TreadleError, match=r"the environment returned an observation that is NaN.*stopped at step"):
        Agent(algorithm, Breaking()).learn(1_000)


# Saved agents


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_a_loaded_agent_acts_with_its_normaliser_and_its_scaling_and_does_not_explore(name, tmp_path):
    algorithm = dataclasses.replace(ALGORITHMS[name], normalise_observations=True)
    agent = Agent(algorithm, Pendulum()).learn(2_000)
    agent.save(tmp_path / "agent.safetensors")
    loaded = Agent.load(tmp_path / "agent.safetensors", Pendulum())
    obs = np.array([[1.0, 0.0, 0.0], [-1.0, 0.1, 8.0], [0.0, 1.0, -8.0]], np.float32)
    actions = agent.predict(obs)
    np.testing.assert_array_equal(loaded.predict(obs), actions)
    np.testing.assert_array_equal(loaded.predict(obs), actions)
    acting = loaded.policy
    np.testing.assert_array_equal(acting.observations.mean, agent.policy.observations.mean)
    assert acting.observations.count > 1_000
    # By hand: normalised, through the policy, its mean between -1 and 1, in torque.
    normal = (obs - acting.observations.mean) / np.sqrt(acting.observations.variance + 1e-8)
    mean = jax.vmap(acting.policy)(jnp.clip(normal, -10, 10)).mean
    np.testing.assert_allclose(actions, 2.0 * np.clip(mean, -1, 1), rtol=1e-4)


def test_an_agent_whose_normaliser_saw_other_observations_is_refused(tmp_path):
    algorithm = dataclasses.replace(ALGORITHMS["a2c"], normalise_observations=True)
    Agent(algorithm, "Pendulum-v1").learn(100).save(tmp_path / "agent.safetensors")
    with pytest.raises(UnsupportedSpace, match=r"learned from observations of .*\(3,\).* are .*\(2,\)"):
        Agent.load(tmp_path / "agent.safetensors", "MountainCarContinuous-v0").evaluate(1)
    with pytest.raises(UnsupportedSpace, match=r"learned from observations"):
        Agent.load(tmp_path / "agent.safetensors", CartPole()).evaluate(1)
    with pytest.raises(TreadleError, match=r"observation of shape \(4,\); it must be \(3,\)"):
        Agent.load(tmp_path / "agent.safetensors").predict(np.zeros(4))


def test_values_are_no_part_of_what_is_saved(tmp_path):
    agent = Agent(PPO(hidden_sizes=(4,), critic_hidden_sizes=(512, 512)), "CartPole-v1").learn(1_000)
    assert agent.save(tmp_path / "agent.safetensors").stat().st_size < 10_000
