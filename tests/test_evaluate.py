"""Evaluation: which episodes are played is settled beforehand, and training never notices."""

from __future__ import annotations

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle import DQN, Agent, CartPole
from treadle.algorithms.base import Algorithm
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.loops import evaluate as evaluation
from treadle.loops.choose import evaluated_as, evaluation_environment
from treadle.loops.seeding import seed_key
from treadle.memory import UniformMemory
from treadle.registry import as_float32, as_tree
from treadle.spaces import Box, Discrete
from treadle.types import Step

pytestmark = pytest.mark.least_optimised

MODES: Any = ("same_step", "next_step", "disabled")
SMALL = DQN(
    num_envs=2,
    capacity=301,
    batch_size=8,
    learning_starts=10,
    target_update_period=15,
    hidden_sizes=(),
    initialisation="scaled",
    max_grad_norm=None,
    optimiser="sgd",
)


@as_tree
class Linear(Algorithm):
    """Action 1 where the observation, times the state, is positive; carries the number of steps, for the test."""

    def init_carry(self, spec):
        return jnp.zeros(spec.num_envs)

    def act(self, state, carry, obs, key, *, explore=True):
        assert not explore
        return (obs @ state > 0).astype(jnp.int32), carry + 1, carry


class Episodes(gymnasium.Env):
    """An episode of 1 or 20 steps, each as likely, with the rewards 1, 10, 100, 1, 10, 100 ...

    `length` fixes the length, 0 never ends. Observed are the steps so far; `began` counts the episodes.
    """

    observation_space = gymnasium.spaces.Box(0.0, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    max_episode_steps = None  # with which it has all the attributes of a world in JAX

    def __init__(self, length: int | None = None):
        self.length = length
        self.began = self.steps = self.until = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.began, self.steps = self.began + 1, 0
        drawn = (1, 20)[self.np_random.integers(2)]
        self.until = drawn if self.length is None else self.length
        return np.zeros(1, np.float32), {}

    def step(self, action):
        reward = float(10 ** (self.steps % 3))
        self.steps += 1
        return np.full(1, self.steps, np.float32), reward, self.steps == self.until, False, {}


@as_tree
class EpisodesInJAX:
    """The same in JAX: episodes of 1 or 20 steps; what is left after an end is NaN."""

    ends: bool = True
    max_episode_steps: int | None = None

    observation_space = Box(-1.0, 30.0, (1,))
    action_space = Discrete(2)

    def reset(self, key):
        return jnp.where(jax.random.bernoulli(key), 20.0, 1.0)[None], jnp.zeros(1)

    def step(self, state, action, key):
        left = state - 1
        reward = jnp.where(left[0] < 0, jnp.nan, 1.0) if self.ends else jnp.ones(())
        return left, Step(left, reward, (left[0] == 0) & self.ends)


def evaluate(world: Any, episodes: int, seed: int = 0, weights: Any = (1.0,)) -> evaluation.Evaluation:
    return evaluation.evaluate(Linear(), jnp.asarray(weights), world, episodes, seed_key(seed))


@pytest.mark.parametrize("mode", MODES)
def test_who_plays_how_many_episodes_is_settled_beforehand(mode):
    """Three environments share seven episodes as 3, 2 and 2, however much sooner the first is done with its own."""
    lengths = iter([1, 5, 9])
    world = GymnasiumEnvironments(lambda: Episodes(next(lengths)), 3, mode)
    found = evaluate(world, 7)
    assert found.lengths.tolist() == [1, 1, 1, 5, 5, 9, 9]
    assert found.returns.tolist() == [1.0] * 3 + [122.0] * 2 + [333.0] * 2, "neither discounted nor scaled"


@pytest.mark.parametrize("mode", ["same_step", "next_step", "jax"])
def test_short_episodes_are_not_favoured(mode):
    """Of 10 environments the first 10 finishers would almost all have played episodes of 1 step.

    The mean length is 10.5, that of one episode deviates by 9.5: over 300 episodes the mean deviates by 0.55.
    """
    world = EpisodesInJAX() if mode == "jax" else GymnasiumEnvironments(Episodes, 10, mode)
    found = [evaluate(world, 10, seed) for seed in range(30)]
    lengths = np.concatenate([f.lengths for f in found])
    assert set(lengths) == {1, 20}
    assert abs(lengths.mean() - 10.5) < 4 * 0.55
    if mode == "jax":
        np.testing.assert_array_equal(np.concatenate([f.returns for f in found]), lengths)
    assert len({tuple(f.lengths) for f in found}) > 20, "each evaluation has randomness of its own"


@as_tree
class Halves(EpisodesInJAX):
    """Without an end, but for the time limit, at which those that began at 20 are successes; rewards tell which."""

    ends: bool = False
    max_episode_steps: int | None = 3

    def step(self, state, action, key):
        left, step = super().step(state, action, key)
        return left, step._replace(reward=state[0])

    def is_success(self, state):
        return state[0] > 0


@as_tree
class Arrivals(EpisodesInJAX):
    """Every episode ends in success, and what is left after the end of a short one is none."""

    def is_success(self, state):
        return state[0] == 0


def test_a_success_is_how_an_episode_ends_and_nothing_after_it():
    found = evaluate(Halves(), 40)
    assert set(found.returns) == {20.0 + 19.0 + 18.0, 1.0 + 0.0 - 1.0}
    np.testing.assert_array_equal(found.successes, found.returns > 0)
    arrived = evaluate(Arrivals(), 10)
    assert set(arrived.lengths) == {1, 20} and arrived.successes is not None and arrived.successes.all()
    assert evaluate(EpisodesInJAX(), 2).successes is None, "a world that does not say what a success is"


@pytest.mark.parametrize("mode", [*MODES, "jax"])
def test_an_episode_without_end_is_cut(mode, monkeypatch):
    """After STEP_LIMIT steps, and the next one begins anew: not where the last was cut."""
    monkeypatch.setattr(evaluation, "STEP_LIMIT", 5)
    world = EpisodesInJAX(ends=False) if mode == "jax" else GymnasiumEnvironments(lambda: Episodes(0), 2, mode)
    found = evaluate(world, 5)
    assert found.lengths.tolist() == [5] * 5
    assert found.returns.tolist() == [5.0 if mode == "jax" else 122.0] * 5


def test_a_cut_episode_waits_for_the_others(monkeypatch):
    """One environment never ends; its neighbour's episodes are played to their ends all the same."""
    monkeypatch.setattr(evaluation, "STEP_LIMIT", 6)
    made = [Episodes(0), Episodes(4)]
    left = iter(made)
    found = evaluate(GymnasiumEnvironments(lambda: next(left), 2), 5)
    assert found.lengths.tolist() == [6, 6, 6, 4, 4]
    assert found.returns.tolist() == [222.0] * 3 + [112.0] * 2


def test_a_time_limit_is_that_of_the_environment():
    world = GymnasiumEnvironments(lambda: gymnasium.wrappers.TimeLimit(Episodes(0), 3), 2)
    assert evaluate(world, 4).lengths.tolist() == [3] * 4
    assert evaluate(EpisodesInJAX(ends=False, max_episode_steps=3), 4).lengths.tolist() == [3] * 4


def test_every_step_can_be_watched():
    seen = []
    world = GymnasiumEnvironments(lambda: Episodes(4), 2)
    evaluation.evaluate(Linear(), jnp.ones(1), world, 4, seed_key(0), each_step=seen.append)
    assert len(seen) == 8 and seen[0] is world


def test_an_episode_to_be_drawn_is_the_one_that_is_evaluated():
    """State for state, from the first to that in which it ends."""
    world, lengths = EpisodesInJAX(), set()
    for seed in range(4):
        states = evaluation.greedy_episode(Linear(), jnp.ones(1), world, seed_key(seed))
        found = evaluate(world, 1, seed)
        assert [float(state[0]) for state in states] == list(range(int(found.lengths[0]), -1, -1))
        assert all(isinstance(state, np.ndarray) for state in states)
        lengths.add(len(states))
    assert lengths == {2, 21}
    first = (0.03, -0.02, 0.04, 0.01)
    twin = as_float32(CartPoleFrom(first=first))
    weights = jnp.asarray((0.0, 0.0, 1.0, 0.0))
    states = evaluation.greedy_episode(Linear(), weights, twin, seed_key(0))
    np.testing.assert_array_equal(np.asarray(states[0]), np.asarray(first, np.float32))
    assert len(states) - 1 == evaluate(twin, 1, weights=weights).lengths[0]
    assert abs(states[-1].theta) > twin.theta_limit > abs(states[-2].theta)


def test_an_episode_to_be_drawn_is_cut_by_the_time_limit_and_for_being_long():
    endless, limited = EpisodesInJAX(ends=False), EpisodesInJAX(ends=False, max_episode_steps=3)
    for world, at_most, expected in ((limited, 100, 4), (limited, 2, 2), (endless, 7, 7)):
        assert len(evaluation.greedy_episode(Linear(), jnp.ones(1), world, seed_key(0), at_most)) == expected


@pytest.mark.parametrize("mode", MODES)
def test_what_acting_carries_is_cleared_between_episodes(mode):
    """The algorithm stops the episode, by action 1, when what it carries and what it sees differ."""

    @as_tree
    class Distrustful(Algorithm):
        def init_carry(self, spec):
            return jnp.zeros(spec.num_envs)

        def act(self, state, carry, obs, key, *, explore=True):
            return (carry != obs[:, 0]).astype(jnp.int32), carry + 1, ()

    class Stopped(Episodes):
        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, -1000.0 if action == 1 else reward, terminated, truncated, info

    world = GymnasiumEnvironments(lambda: Stopped(4), 2, mode)
    found = evaluation.evaluate(Distrustful(), (), world, 6, seed_key(0))
    assert found.returns.tolist() == [112.0] * 6


@as_tree
class CartPoleFrom(CartPole):
    """The twin, from a start of one's choice."""

    first: Any = ()

    def reset(self, key):
        state, _ = super().reset(key)
        return type(state)(*self.first), jnp.asarray(self.first)


class GymnasiumFrom(gymnasium.Wrapper):
    """Gymnasium's, from the same start."""

    def __init__(self, first):
        super().__init__(gymnasium.make("CartPole-v1"))
        self.first = first

    def reset(self, **options):
        super().reset(**options)
        self.unwrapped.state = tuple(self.first)  # pyright: ignore[reportAttributeAccessIssue]
        return np.asarray(self.first, np.float32), {}


@pytest.mark.parametrize("weights", [(0.0, 0.0, 1.0, 0.0), (0.1, 0.3, 1.0, 1.0)], ids=["falls", "stands"])
def test_a_policy_scores_the_same_in_the_twin_and_in_gymnasium(weights):
    """From equal starts the episodes are the same, whether the pole falls or time runs out."""
    lengths = []
    for first in ((0.03, -0.02, 0.04, 0.01), (-0.04, 0.01, 0.02, -0.03), (0.0, 0.05, -0.05, 0.02)):
        twin = as_float32(CartPoleFrom(first=tuple(map(float, first))))
        ours = evaluate(twin, 1, weights=weights)
        theirs = evaluate(GymnasiumEnvironments(lambda first=first: GymnasiumFrom(first)), 1, weights=weights)
        assert ours.lengths.tolist() == theirs.lengths.tolist()
        assert ours.returns.tolist() == theirs.returns.tolist() == ours.lengths.tolist()
        lengths.append(int(ours.lengths[0]))
    assert all(30 < n < 50 for n in lengths) if weights[0] == 0 else lengths == [500] * 3


def test_a_shaped_reward_is_evaluated_in_the_task_itself():
    assert evaluated_as("CartPoleShaped-v1") == "CartPole-v1"
    assert evaluated_as("CartPole-v0") == "CartPole-v0" and evaluated_as("Acrobot-v1") == "Acrobot-v1"
    world: Any = evaluation_environment("CartPoleShaped-v1", 2)
    assert isinstance(world, GymnasiumEnvironments) and world.name == "CartPole-v1"
    found = evaluate(world, 3, weights=(0.0, 0.0, 1.0, 0.0))
    np.testing.assert_array_equal(found.returns, found.lengths)
    world.close()


def test_the_world_is_gymnasiums_where_it_has_one_else_that_of_training():
    named: Any = evaluation_environment("CartPole-v0", 3)
    assert named.name == "CartPole-v0" and named.num_envs == 3 and named.max_episode_steps == 200
    named.close()
    own = EpisodesInJAX()
    assert isinstance(evaluation_environment(own, 3), EpisodesInJAX)
    made: Any = evaluation_environment(Episodes(), 3)
    assert made.num_envs == 1, "one that is made already cannot become three"


def _equal(a: Any, b: Any) -> None:
    for (path, x), (_, y) in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree_util.tree_leaves_with_path(b), strict=True
    ):
        x, y = (jax.random.key_data(z) if jnp.issubdtype(z.dtype, jax.dtypes.prng_key) else z for z in (x, y))
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("loop", ["fused", "host"])
def test_training_never_notices_that_it_was_evaluated(loop):
    """Trained with evaluations in between or without: the same state, to the last bit."""
    watched, alone = (Agent(SMALL, "CartPole-v1", seed=4, loop=loop) for _ in range(2))
    for _ in range(2):
        watched.learn(100)
        first, again, other = (watched.evaluate(4, seed) for seed in (0, 0, 1))
        alone.learn(100)
    _equal(watched._trainer.state, alone._trainer.state)  # pyright: ignore[reportOptionalMemberAccess]
    _equal(first, again)
    assert first.returns.tolist() != other.returns.tolist()


@as_tree
class Recorder(Algorithm):
    """Remembers everything, learns nothing, does nothing."""

    memory = UniformMemory(capacity=100, batch_size=1)

    def init(self, key, spec):
        return self.memory.init(spec.example)

    def act(self, state, carry, obs, key, *, explore=True):
        return jnp.zeros(len(obs), jnp.int32), carry, ()

    def update(self, state, rollout, key):
        return self.memory.add(state, rollout), {"remembered": state.size.value}


@pytest.mark.parametrize("vector", [False, True], ids=["one", "a vector"])
def test_an_environment_that_is_made_already_goes_on_with_new_episodes(vector):
    """Evaluation plays in the very environment of training, which must not take its last step for its own."""
    parts = [Episodes(20), Episodes(20)] if vector else [Episodes(20)]
    environment = gymnasium.vector.SyncVectorEnv([lambda e=e: e for e in parts]) if vector else parts[0]
    algorithm = Recorder(num_envs=len(parts))
    agent = Agent(algorithm, environment, loop="host").learn(8 * len(parts))
    found = agent.evaluate(episodes=3)
    assert found.lengths.tolist() == [20] * 3
    agent.learn(8 * len(parts))
    memory: Any = jax.tree.map(lambda x: x[0], agent._trainer.state.algorithm)  # pyright: ignore
    rows = algorithm.memory.items(memory, jnp.arange(16 * len(parts)))
    np.testing.assert_array_equal(rows.obs[:: len(parts), 0], [*range(8), *range(8)])
    np.testing.assert_array_equal(rows.next_obs[:, 0], rows.obs[:, 0] + 1)
