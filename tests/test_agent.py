"""The agent: learn, predict, evaluate, save, load."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle
from treadle import DQN, Agent, CartPole, checkpoint, settings, training
from treadle.algorithms.base import Algorithm
from treadle.checkpoint import CheckpointError
from treadle.errors import InvalidSetting, NonFinite, TreadleError, UnknownName, UnsupportedSpace
from treadle.loops.seeding import seed_key
from treadle.registry import as_tree
from treadle.run import Run, RunConfig

pytestmark = pytest.mark.least_optimised

SMALL = treadle.preset("dqn", "CartPole-v1", "tutorial").make(
    capacity=200,
    batch_size=8,
    learning_starts=20,
    target_update_period=10,
    hidden_sizes=(8,),
    learning_rate=1e-3,
    learning_rate_end=0.0,
    epsilon_scale=50.0,
)
OBS = np.random.default_rng(0).uniform(-0.2, 0.2, (6, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def agent() -> Agent:
    """One that has learned a little, for all that only look at it."""
    return Agent(SMALL, "CartPole-v1", seed=3).learn(100)


def state_of(agent: Agent) -> Any:
    trainer: Any = agent._trainer
    return jax.tree.map(lambda x: x[0], trainer.state.algorithm)


# Learning


def test_learn_gives_back_the_agent_and_counts_steps(agent):
    assert isinstance(agent, Agent)
    assert agent.step == int(state_of(agent).step.value) == 100
    assert int(state_of(agent).memory.size.value) == 100


def test_a_second_learn_continues_schedules(agent):
    """Epsilon follows the steps of both; the learning rate, annealed over the first, stays where it arrived."""
    twice = Agent(SMALL, "CartPole-v1", seed=3).learn(100)
    middle = state_of(twice)
    np.testing.assert_array_equal(middle.network.vector, state_of(agent).network.vector)
    twice.learn(100)
    state = state_of(twice)
    assert twice.step == int(state.step.value) == 200
    assert int(state.total_timesteps) == 100
    assert float(SMALL.epsilon(state)) == pytest.approx(0.01 + 0.94 * np.exp(-200 / 50))
    assert float(SMALL.learning_rate_at(middle)) == float(SMALL.learning_rate_at(state)) == 0.0
    np.testing.assert_array_equal(state.network.vector, middle.network.vector)
    assert int(state.memory.size.value) == 200


def test_it_is_the_same_preset_run_through_the_tool(agent, tmp_path):
    """The same settings and seed give the same parameters, bit for bit, in Python and in a run's folder."""
    config = RunConfig(total_timesteps=100, seed=3, out=str(tmp_path / "run"))
    folder = Run.create("dqn", "CartPole-v1", SMALL, config)
    trainer = folder.trainer()
    training.train(folder, trainer)
    ours, theirs = state_of(agent), jax.tree.map(lambda x: x[0], trainer.state.algorithm)
    for (path, a), (_, b) in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree_util.tree_leaves_with_path(theirs), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))

    with pytest.raises(CheckpointError, match=r"holds a run, not an agent.*treadle evaluate"):
        Agent.load(folder.checkpoints()[-1])


def test_mistakes_are_told_before_anything_is_trained():
    with pytest.raises(InvalidSetting, match="gamma"):
        Agent(DQN(gamma=1.5), "CartPole-v1")
    with pytest.raises(UnknownName, match="Did you mean 'CartPole-v1'"):
        Agent(SMALL, "CartPol-v1").learn(10)
    with pytest.raises(UnsupportedSpace, match="discrete"):
        Agent(SMALL, "Pendulum-v1").learn(10)
    with pytest.raises(InvalidSetting, match=r"total_timesteps.*was 0"):
        Agent(SMALL, "CartPole-v1").learn(0)
    with pytest.raises(InvalidSetting, match=r"total_timesteps.*was 50000.0; it must be a whole number"):
        Agent(SMALL, "CartPole-v1").learn(5e4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidSetting, match=r"seed \(--seed\) was -1"):
        Agent(SMALL, "CartPole-v1", seed=-1).learn(10)
    with pytest.raises(InvalidSetting, match=r"loop \(--loop\) was 'hots'; it must be one of auto, fused, host"):
        Agent(SMALL, "CartPole-v1", loop="hots").learn(10)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TreadleError, match="--loop fused"):
        Agent(SMALL, "Taxi-v3", loop="fused").learn(10)
    with pytest.raises(TreadleError, match="--loop host"):
        Agent(SMALL, CartPole(), loop="host").learn(10)


def test_mistakes_in_going_on(agent):
    with pytest.raises(InvalidSetting, match=r"total_timesteps.*was -5"):
        agent.learn(-5)
    with pytest.raises(InvalidSetting, match="episodes was 0"):
        agent.evaluate(episodes=0)
    assert agent.step == 100


@as_tree
class Doomed(Algorithm):
    """Its loss is no number from the 41st step on."""

    def init(self, key, spec):
        return jnp.zeros((), jnp.int32)

    def act(self, state, carry, obs, key, *, explore=True):
        return jnp.zeros(len(obs), jnp.int32), carry, ()

    def update(self, state, rollout, key):
        return state + 1, {"loss": jnp.where(state >= 40, jnp.nan, 1.0)}


def test_a_loss_that_is_no_number_stops_it():
    doomed = Agent(Doomed(), "CartPole-v1")
    with pytest.raises(NonFinite, match=r"loss became nan at step 41 \(seed 0\)"):
        doomed.learn(100)
    assert doomed.step == 40


# Acting


def test_predict_takes_one_observation_or_a_batch(agent):
    actions = agent.predict(OBS)
    assert actions.shape == (6,) and set(actions.tolist()) <= {0, 1}
    singles = [agent.predict(obs) for obs in OBS]
    assert all(np.shape(action) == () for action in singles)
    np.testing.assert_array_equal(singles, actions)
    q = jax.vmap(state_of(agent).network)(jnp.asarray(OBS))
    np.testing.assert_array_equal(actions, np.argmax(q, axis=1))
    assert agent.predict(OBS[0].tolist()) == actions[0], "a list is an observation too"
    assert agent.predict(OBS[:0]).shape == (0,)


def test_predict_refuses_another_shape(agent):
    for wrong in (np.zeros(3), np.zeros((2, 3)), np.zeros((1, 2, 4)), 0.5, np.zeros((4, 2))):
        shape = str(np.shape(wrong)).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(TreadleError, match=rf"observation of shape {shape}; it must be \(4,\), or a batch"):
            agent.predict(wrong)


def test_nothing_learned_nothing_to_say(tmp_path):
    fresh = Agent(SMALL, "CartPole-v1")
    for ask in (lambda: fresh.predict(OBS), lambda: fresh.evaluate(), lambda: fresh.save(tmp_path / "x.safetensors")):
        with pytest.raises(TreadleError, match=r"learned nothing yet: call learn"):
            ask()
    assert not list(tmp_path.iterdir())


class Offset(gymnasium.Env):
    """Observations 1 to 3 and actions 5 and 6, one of which is worth more."""

    observation_space = gymnasium.spaces.Discrete(3, start=1)
    action_space = gymnasium.spaces.Discrete(2, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 1, {}

    def step(self, action):
        assert action in (5, 6)
        return int(self.np_random.integers(1, 4)), float(action == 6), False, False, {}


def test_actions_count_as_the_environment_counts_them(tmp_path):
    def make():
        return gymnasium.wrappers.TimeLimit(Offset(), 5)

    algorithm = dataclasses.replace(SMALL, learning_rate=0.05, gamma=0.0)
    learned = Agent(algorithm, make).learn(120)
    assert learned.predict(2) == 6 and learned.predict([1, 2, 3]).tolist() == [6, 6, 6]
    assert learned.evaluate(episodes=3).returns.tolist() == [5.0] * 3
    loaded = Agent.load(learned.save(tmp_path / "offset.safetensors"), environment=make)
    assert loaded.predict([1, 2, 3]).tolist() == [6, 6, 6]
    assert loaded.evaluate(episodes=3).returns.tolist() == [5.0] * 3
    with pytest.raises(TreadleError, match="environment"):
        Agent.load(tmp_path / "offset.safetensors").evaluate()


# Saving


def test_a_loaded_agent_acts_as_it_did_and_does_not_explore(agent, tmp_path):
    path = agent.save(tmp_path / "agent.safetensors")
    loaded = Agent.load(path)
    assert loaded.step == 100 and loaded.environment == "CartPole-v1"
    assert settings.describe(loaded.algorithm) == settings.describe(SMALL)
    many = np.random.default_rng(1).uniform(-0.2, 0.2, (500, 4)).astype(np.float32)
    np.testing.assert_array_equal(loaded.predict(many), agent.predict(many))
    np.testing.assert_array_equal(loaded.predict(many), loaded.predict(many))
    assert loaded.evaluate(3).returns.tolist() == agent.evaluate(3).returns.tolist()
    again = Agent.load(loaded.save(tmp_path / "again.safetensors"))
    np.testing.assert_array_equal(again.predict(many), agent.predict(many))
    with pytest.raises(TreadleError, match=r"was loaded from a file that keeps what acting needs.*treadle resume"):
        loaded.learn(10)


def test_what_is_saved_is_lean(agent, tmp_path):
    path = agent.save(tmp_path / "agent.safetensors")
    parameters = state_of(agent).network.vector
    assert parameters.nbytes < path.stat().st_size < parameters.nbytes + 4_000, "no memory, no target, no optimiser"


def test_a_file_that_is_no_agent_is_refused(agent, tmp_path):
    path = agent.save(tmp_path / "agent.safetensors")
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[: len(whole) // 3], b"", whole[:-1] + bytes([whole[-1] ^ 1]), b"\x80\x04pickle"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"damaged|not a Treadle checkpoint"):
            Agent.load(path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        Agent.load(tmp_path / "absent.safetensors")
    checkpoint.save(path, {"x": jnp.ones(2)}, {})
    with pytest.raises(CheckpointError, match="holds a tree, not an agent"):
        Agent.load(path)


def test_an_agent_of_an_unknown_algorithm_is_told_so(agent, tmp_path):
    path = agent.save(tmp_path / "agent.safetensors")
    policy, about = checkpoint.load(path, agent._policy)
    checkpoint.save(path, policy, {**about, "algorithm": "my-dqn"})
    with pytest.raises(UnknownName, match=r"no algorithm 'my-dqn'.*--import"):
        Agent.load(path)
    checkpoint.save(path, policy, {**about, "settings": {**about["settings"], "hidden_sizes": [9]}})
    with pytest.raises(CheckpointError, match="settings differ"):
        Agent.load(path)


def test_a_network_of_ones_own_must_be_given_again(tmp_path):
    own = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    learned = Agent(dataclasses.replace(SMALL, network=own), "CartPole-v1").learn(60)
    path = learned.save(tmp_path / "own.safetensors")
    with pytest.raises(TreadleError, match=r"network of its maker's own \(MLP\).*Give it again: network="):
        Agent.load(path)
    loaded = Agent.load(path, network=eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(9)))
    np.testing.assert_array_equal(loaded.predict(OBS), learned.predict(OBS))
    with pytest.raises(CheckpointError):
        Agent.load(path, network=eqx.nn.MLP(4, 2, 16, 1, key=jax.random.key(9)))
    with pytest.raises(TreadleError, match=r"dqn has no part 'netwrk' .*Did you mean 'network'"):
        Agent.load(path, netwrk=own)


# Below the agent


def test_train_can_be_compiled_and_mapped_over_keys(agent):
    """The public `train`, with settings as a user writes them: the seeds of agents, side by side."""
    keys = jnp.stack([seed_key(3), seed_key(4)])
    states, record = jax.jit(jax.vmap(lambda key: treadle.train(SMALL, CartPole(), key, 100)))(keys)
    assert states.algorithm.step.value.tolist() == [100, 100]
    assert record.episodes.lengths.shape == (2, 100, 1, 1)
    vectors = states.algorithm.network.vector
    assert not jnp.array_equal(vectors[0], vectors[1])
    np.testing.assert_allclose(vectors[0], state_of(agent).network.vector, atol=1e-4)
    np.testing.assert_array_equal(states.algorithm.memory.position.value, [100, 100])


def test_a_shaped_world_is_evaluated_in_the_task_behind_it():
    """Also where it is given as an instance: returns are steps survived, not shaped rewards."""
    agent = Agent(DQN(hidden_sizes=(4,), learning_starts=10_000), CartPole(reward="shaped")).learn(50)
    found = agent.evaluate(episodes=3)
    np.testing.assert_array_equal(found.returns, found.lengths)
