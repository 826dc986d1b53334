"""The host loop: any Gymnasium environment, the same data and the same learning as in the fused loop."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import ShortCorridor
from treadle import DQN, checkpoint, records, registry
from treadle.algorithms.base import Algorithm
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.errors import InvalidSetting, NonFinite
from treadle.loops.choose import make_trainer
from treadle.loops.dispatch import Plan, Programs, programs
from treadle.loops.host import HostSeeds
from treadle.loops.seeds import FusedSeeds
from treadle.records import check_finite
from treadle.registry import as_float32, as_tree
from treadle.spaces import Box, Discrete
from treadle.types import Step

MODES = ("same_step", "next_step", "disabled")
WALK = "treadle-tests/Walk-v0"
SMALL = DQN(
    num_envs=2,
    capacity=301,
    batch_size=8,
    learning_starts=10,
    target_update_period=15,
    hidden_sizes=(8,),
    initialisation="scaled",
    max_grad_norm=None,
)
FIXED = dataclasses.replace(SMALL, learning_rate=0.0, epsilon_start=0.0, epsilon_end=0.0)
"""Acts greedily by a network that never changes: what it sees depends on the environment alone."""
LINEAR = dataclasses.replace(SMALL, hidden_sizes=(), optimiser="sgd")


class Walk(gymnasium.Env):
    """Observations are (who walks, steps of this episode, its length); the reward of each step is its number.

    Terminates after 2 to 6 steps, of which a time limit may cut the last. Actions are 3 and 4.
    """

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2, start=3)

    def __init__(self, breaks_at: int | None = None, nan_at: int | None = None):
        self.breaks_at, self.nan_at = breaks_at, nan_at
        self.steps = 0
        self.closed = False
        self._obs = np.zeros(3, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self._obs[0] = self.np_random.uniform(-1, 1)
        self._obs[1:] = 0, self.np_random.integers(2, 7)
        return self._obs, {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action} is neither 3 nor 4"
        self.steps += 1
        if self.steps == self.breaks_at:
            raise RuntimeError("the wheel came off")
        self._obs[1] += 1
        reward = float("nan") if self.steps == self.nan_at else float(self._obs[1])
        return self._obs, reward, bool(self._obs[1] >= self._obs[2]), False, {}

    def close(self):
        self.closed = True


def walk(**options: Any) -> gymnasium.Env:
    return gymnasium.wrappers.TimeLimit(Walk(**options), 5)


@pytest.fixture(autouse=True)
def _registered():
    gymnasium.register(WALK, entry_point=lambda **options: Walk(**options), max_episode_steps=5)
    yield
    del gymnasium.registry[WALK]


def trainer_of(make: Any = walk, algorithm: Algorithm = SMALL, mode: Any = "same_step", **options: Any) -> HostSeeds:
    """Training in as many environments of `make` as the algorithm asks for."""

    def make_environments():
        return GymnasiumEnvironments(make, algorithm.num_envs, mode)

    return HostSeeds(as_float32(algorithm), make_environments, 1_000, **options)


def first_seed(trainer: Any) -> Any:
    """The algorithm's state of the first seed."""
    return jax.tree.map(lambda x: x[0], trainer.state.algorithm)


def remembered(trainer: Any) -> dict[str, np.ndarray]:
    """The transitions in a memory that is not full yet, in the order in which they were stored."""
    memory = first_seed(trainer).memory
    items = trainer.algorithm.memory.items(memory, jnp.arange(int(memory.size.value)))
    return {name: np.asarray(value) for name, value in items._asdict().items() if name not in ("valid", "extras")}


def finished(record: Any, env: int) -> list[tuple[float, int]]:
    """Returns and lengths of the episodes of one environment, in order."""
    lengths, returns = record.episodes.lengths[0, :, :, env].ravel(), record.episodes.returns[0, :, :, env].ravel()
    return [(float(r), int(n)) for r, n in zip(returns, lengths, strict=True) if n]


@pytest.mark.least_optimised
@pytest.mark.parametrize(
    ("environment", "algorithm"),
    [("CartPole-v1", LINEAR), ("FrozenLake-v1", LINEAR), ("Acrobot-v1", LINEAR), (WALK, SMALL), (walk, SMALL)],
    ids=["CartPole", "FrozenLake", "Acrobot", "an id of your own", "a function"],
)
def test_it_learns_in_any_environment(environment, algorithm):
    trainer = make_trainer(algorithm, environment, 80, loop="host")
    before = first_seed(trainer)
    record = trainer.advance(40)
    state = first_seed(trainer)
    assert not jnp.array_equal(state.network.vector, before.network.vector)
    assert np.isfinite(state.network.vector).all()
    assert int(state.memory.size.value) == int(state.step.value) == 80
    assert record.metrics["loss"].total.shape == (1, 1)
    assert record.metrics["loss"].weight[0, 0] == 40 - algorithm.learning_starts / 2
    check_finite(record.metrics, 0, 80)

    rows, actions = remembered(trainer), trainer.spec.action_space
    space: Any = trainer.spec.observation_space
    assert rows["obs"].dtype == space.dtype
    if isinstance(space, Discrete):
        assert set(np.unique(rows["obs"])) <= set(range(space.n))
    else:
        assert (rows["obs"] >= np.asarray(space.low)).all() and (rows["obs"] <= np.asarray(space.high)).all()
    assert isinstance(actions, Discrete)
    assert set(np.unique(rows["action"])) <= set(range(actions.n))
    trainer.close()


@pytest.mark.least_optimised
@pytest.mark.parametrize("mode", list(gymnasium.vector.AutoresetMode), ids=lambda mode: mode.value)
def test_it_learns_in_a_vector_environment_that_is_made_already(mode):
    trainer = make_trainer(SMALL, gymnasium.vector.SyncVectorEnv([walk, walk], autoreset_mode=mode), 80)
    before = first_seed(trainer)
    trainer.advance(40)
    state = first_seed(trainer)
    assert not jnp.array_equal(state.network.vector, before.network.vector)
    assert 40 < int(state.memory.size.value) == int(state.step.value) <= 80
    trainer.close()


def test_a_vector_of_another_size_is_refused():
    vector = gymnasium.vector.SyncVectorEnv([walk, walk])
    with pytest.raises(InvalidSetting, match=r"has 2 environments and num_envs is 3.*num_envs=2"):
        make_trainer(dataclasses.replace(SMALL, num_envs=3), vector, 100)


def test_seeds_do_not_share_an_environment_that_is_made_already():
    with pytest.raises(InvalidSetting, match=r"seeds was 2.*is made already.*a function that makes one"):
        make_trainer(SMALL, gymnasium.vector.SyncVectorEnv([walk, walk]), 100, num_seeds=2)


@pytest.mark.least_optimised
def test_all_three_modes_give_the_same_learning_data():
    """Memory, episodes and counts, end to end; a step in which an environment only resets leaves no trace."""
    data, episodes = {}, {}
    for mode in MODES:
        trainer = trainer_of(algorithm=FIXED, mode=mode)
        records = [trainer.advance(n) for n in (25, 35)]
        rows, state = remembered(trainer), first_seed(trainer)
        walkers = rows["obs"][:2, 0]
        data[mode] = [{k: v[rows["obs"][:, 0] == who] for k, v in rows.items()} for who in walkers]
        episodes[mode] = [[e for record in records for e in finished(record, env)] for env in range(2)]
        ends = sum(map(len, episodes[mode]))
        assert len(rows["obs"]) == int(state.step.value)
        if mode == "next_step":
            ended_just_now = int((records[-1].episodes.lengths[0, -1] > 0).sum())
            assert len(rows["obs"]) == 120 - (ends - ended_just_now)
        else:
            assert len(rows["obs"]) == 120

    for env in range(2):
        expected = data["same_step"][env]
        assert expected["terminated"].any() and expected["truncated"].any()
        assert not (expected["terminated"] & expected["truncated"]).any()
        np.testing.assert_array_equal(expected["next_obs"][:, 1], expected["obs"][:, 1] + 1)
        np.testing.assert_array_equal(expected["reward"], expected["next_obs"][:, 1])
        for mode in MODES[1:]:
            length = min(len(expected["obs"]), len(data[mode][env]["obs"]))
            assert length > 40
            for name, values in expected.items():
                np.testing.assert_array_equal(values[:length], data[mode][env][name][:length], f"{mode}: {name}")
            count = min(len(episodes["same_step"][env]), len(episodes[mode][env]))
            assert count >= 8
            assert episodes[mode][env][:count] == episodes["same_step"][env][:count]
    assert episodes["disabled"] == episodes["same_step"]
    assert all(r == n * (n + 1) / 2 for r, n in episodes["next_step"][0])


@as_tree
class FixedCorridor(ShortCorridor):
    """The corridor, always from its first cell."""

    max_episode_steps: int | None = 9

    def reset(self, key):
        return jnp.zeros((), jnp.int32), jax.nn.one_hot(0, 4)


class CorridorInGymnasium(gymnasium.Env):
    """The same corridor on the host."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self._cell = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._cell = 0
        return np.eye(4, dtype=np.float32)[0], {}

    def step(self, action):
        self._cell = int(np.clip(self._cell + 2 * action - 1, 0, 3))
        return np.eye(4, dtype=np.float32)[self._cell], float(self._cell == 3), self._cell == 3, False, {}


def test_it_learns_what_the_fused_loop_learns():
    """Acting and learning draw from the same keys in both loops: where the world's resets are alike, all is.

    Several environments, steps and gradient steps in a round, and a memory that rounds do not divide; more rounds than
    the host loop draws random numbers for at once.
    """
    several = {"num_envs": 3, "train_frequency": 4, "gradient_steps": 2, "capacity": 101}
    algorithm = as_float32(dataclasses.replace(SMALL, epsilon_fraction=0.2, **several))
    on_host = trainer_of(lambda: gymnasium.wrappers.TimeLimit(CorridorInGymnasium(), 9), algorithm)
    fused = FusedSeeds(algorithm, as_float32(FixedCorridor()), 1_000)
    told, expected = on_host.advance(300), fused.advance(300)

    np.testing.assert_array_equal(told.episodes.lengths, expected.episodes.lengths)
    np.testing.assert_array_equal(told.episodes.returns, expected.episodes.returns)
    assert (told.episodes.lengths == 9).any() and told.episodes.returns.any(), "both kinds of end"
    ours, theirs = first_seed(on_host), first_seed(fused)
    np.testing.assert_array_equal(ours.memory.words, theirs.memory.words)
    for (path, a), (_, b) in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree_util.tree_leaves_with_path(theirs), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5, err_msg=jax.tree_util.keystr(path))
    loss = expected.metrics["loss"]
    np.testing.assert_allclose(told.metrics["loss"].total[0], loss.total.sum(), rtol=1e-3)
    np.testing.assert_array_equal(told.metrics["loss"].weight[0], loss.weight.sum())
    np.testing.assert_allclose(told.metrics["epsilon"].total[0], expected.metrics["epsilon"].sum(), rtol=1e-4)
    assert int(on_host.state.updates.value[0]) == int(fused.state.updates.value[0]) == 300


def compilations(p: Programs) -> list[int]:
    return [f._cache_size() for f in (p.init, p.draw_acts, p.draw_updates, p.act, p.turn, p.take_metrics)]


def test_a_changed_float_option_compiles_nothing_anew():
    def programs_of(**changes):
        trainer = trainer_of(algorithm=dataclasses.replace(SMALL, **changes), seed=len(changes))
        for _ in range(2):
            trainer.advance(3)
        return programs(Plan.of(trainer.algorithm, trainer.spec, masked=False))

    first = programs_of()
    compiled = compilations(first)
    assert programs_of() is first and compilations(first) == compiled, "the same again compiles nothing"
    assert programs_of(learning_rate=0.5) is first
    assert programs_of(gamma=1, epsilon_end=0.2, tau=1) is first, "a whole number is a number too"
    assert compilations(first) == compiled

    double = as_float32(dataclasses.replace(SMALL, double=True))
    assert programs(Plan.of(double, trainer_of().spec, masked=False)) is not first


def test_seeds_are_single_seeds():
    trainer = trainer_of(num_seeds=2, seed=3)
    trainer.advance(20)
    other = trainer_of(num_seeds=1, seed=3)
    other.advance(20)
    vectors = trainer.state.algorithm.network.vector
    np.testing.assert_array_equal(vectors[0], other.state.algorithm.network.vector[0])
    assert not jnp.array_equal(vectors[0], vectors[1])
    assert trainer.policies().network.vector.shape == vectors.shape


@pytest.mark.least_optimised
def test_a_restored_run_goes_on_with_new_episodes(tmp_path):
    """Parameters, memory, schedules and counters continue through a checkpoint; only the episodes begin anew."""
    through = trainer_of(num_seeds=2)
    through.advance(28)
    checkpoint.save(tmp_path / "run.safetensors", through.state, {})
    resumed = trainer_of(num_seeds=2, seed=99)
    state, _ = checkpoint.load(tmp_path / "run.safetensors", resumed.state)
    resumed.restore(state)
    for (path, a), (_, b) in zip(
        jax.tree_util.tree_leaves_with_path(through.state),
        jax.tree_util.tree_leaves_with_path(resumed.state),
        strict=True,
    ):
        a, b = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))

    record, uninterrupted = resumed.advance(22), through.advance(22)
    np.testing.assert_array_equal(resumed.state.updates.value, [50, 50])
    np.testing.assert_array_equal(resumed.state.algorithm.step.value, [100, 100])
    np.testing.assert_array_equal(record.metrics["epsilon"].total, uninterrupted.metrics["epsilon"].total)
    old, new = remembered(through), remembered(resumed)
    np.testing.assert_array_equal(old["obs"][:56], new["obs"][:56])
    np.testing.assert_array_equal(new["obs"][56:58, 1], [0, 0], "new episodes begin")
    assert not (new["obs"][56:58, 0] == new["obs"][:2, 0]).any(), "and not the ones with which the run began"
    for env in range(2):
        episodes = finished(record, env)
        assert episodes and all(r == n * (n + 1) / 2 for r, n in episodes), "nothing of the old episodes counts"


@pytest.mark.least_optimised
def test_what_an_environment_raises_passes_through():
    opened = []

    def make():
        opened.append(walk(breaks_at=7))
        return opened[-1]

    trainer = trainer_of(make)
    with pytest.raises(RuntimeError, match="the wheel came off"):
        trainer.advance(20)
    assert int(first_seed(trainer).step.value) == 12, "what came before is there"
    trainer.close()
    assert len(opened) == 2 and all(env.unwrapped.closed for env in opened)


@pytest.mark.least_optimised
def test_a_reward_that_is_no_number_is_named():
    """The second seed meets a NaN in its 21st step, and a batch that holds it makes the loss NaN."""
    opened = []

    def make():
        opened.append(walk(nan_at=21 if len(opened) >= 2 else None))
        return opened[-1]

    trainer = trainer_of(make, num_seeds=2)
    check_finite(trainer.advance(20).metrics, 0, 40)
    record = trainer.advance(30)
    assert np.isfinite(record.metrics["loss"].total[0]).all()
    with pytest.raises(NonFinite, match=r"loss became nan at step 100 \(seed 1\)"):
        check_finite(record.metrics, 40, 100)
    with pytest.raises(InvalidSetting, match=r"environment returned .* stopped at step 100 \(seed 1\)"):
        records.check(record, 40, 2)


@as_tree
class StepCounter(Algorithm):
    """Counts, in what acting carries, the steps since the episode's start; learns how often that was wrong.

    The environment tells the truth in its second observed number. Fewer rows than it saw mean masked ones.
    """

    num_envs: int = 2

    @property
    def num_steps(self) -> int:
        return 3

    def init(self, key, spec):
        return jnp.zeros(2, jnp.int32)

    def init_carry(self, spec):
        return {"steps": jnp.zeros(spec.num_envs)}

    def act(self, state, carry, obs, key, *, explore=True):
        steps = carry["steps"]
        return jnp.zeros(len(obs), jnp.int32), {"steps": steps + 1}, steps

    def update(self, state, rollout, key):
        valid = jnp.ones_like(rollout.terminated) if rollout.valid is None else rollout.valid
        wrong = (rollout.extras != rollout.obs[..., 1]) & valid
        return state + jnp.stack([valid.sum(), wrong.sum()]), {"wrong": wrong.mean()}


@as_tree
class WalkInJAX:
    """As `Walk`, with a length that follows from the key."""

    max_episode_steps: int | None = 5

    observation_space = Box(-10.0, 10.0, (3,))
    action_space = Discrete(2)

    def reset(self, key):
        obs = jnp.array([0.0, 0.0, 0.0]).at[2].set(jax.random.randint(key, (), 2, 7).astype(jnp.float32))
        return obs, obs

    def step(self, state, action, key):
        obs = state.at[1].add(1)
        return obs, Step(obs, obs[1], obs[1] >= obs[2])


@pytest.mark.least_optimised
@pytest.mark.parametrize("mode", [*MODES, "fused"])
def test_what_acting_carries_is_cleared_where_an_episode_ends(mode):
    algorithm = StepCounter()
    trainer = (
        FusedSeeds(algorithm, WalkInJAX(), 1_000) if mode == "fused" else trainer_of(algorithm=algorithm, mode=mode)
    )
    record = trainer.advance(17)
    more = trainer.advance(3)
    lengths = np.concatenate([record.episodes.lengths, more.episodes.lengths], axis=1)
    assert set(lengths[lengths > 0]) >= {2, 3, 4, 5}
    seen, wrong = trainer.state.algorithm[0]
    assert wrong == 0
    assert seen == 120 if mode != "next_step" else 60 < seen < 120


@pytest.mark.least_optimised
@pytest.mark.parametrize("name", ["td-lambda", "lambda-return"])
def test_what_episodes_have_left_goes_when_a_resumed_run_begins_others(name):
    """A gymnasium environment cannot be put back into the middle of an episode; what waited for its end must go."""
    algorithm = as_float32(registry.algorithms.make(name))
    learner = HostSeeds(algorithm, lambda: GymnasiumEnvironments("FrozenLake-v1"), 1_000)
    learner.advance(3)
    saved = learner.state
    left = saved.algorithm.traces if name == "td-lambda" else saved.algorithm.episodes.lengths
    assert np.any(np.asarray(left) != 0), "an episode is under way"
    learner.restore(saved)
    state = learner.state.algorithm
    assert not np.any(np.asarray(state.traces if name == "td-lambda" else state.episodes.lengths))
    np.testing.assert_array_equal(state.v.weights, saved.algorithm.v.weights)
    learner.close()
