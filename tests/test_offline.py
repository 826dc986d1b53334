"""Learning from stored transitions: the rows and nothing else, in order of time, and no world is stepped."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from probes import PROBES, ShortCorridor
from treadle import DQN, Agent, Box, Dataset, Discrete, Maze, Pendulum, QLearning, metrics, registry, wrap
from treadle.algorithms.base import Algorithm, Survey
from treadle.cli import main
from treadle.dataset import DatasetError
from treadle.environments.wrappers import Wrappers
from treadle.errors import InvalidSetting, TreadleError
from treadle.loops.choose import make_offline_trainer
from treadle.loops.offline import OfflineSeeds, places
from treadle.loops.seeds import FusedSeeds
from treadle.registry import as_float32, as_tree
from treadle.run import Run
from treadle.types import space_spec
from treadle.watch import Watch

pytestmark = pytest.mark.least_optimised


def random_walk(world: Any, steps: int, seed: int = 0, limit: int = 30) -> Dataset:
    """What a random policy sees in a world of Treadle's."""
    rng, space = np.random.default_rng(seed), world.action_space
    step, rows, t = jax.jit(world.step), [], 0
    state, obs = world.reset(jax.random.key(seed))
    for number in range(steps):
        action = rng.integers(space.n) if isinstance(space, Discrete) else np.float32(rng.uniform(-1, 1, space.shape))
        state, answer = step(state, jnp.asarray(action), jax.random.key(number))
        t += 1
        rows.append((obs, action, answer.reward, answer.obs, answer.terminated, t == limit))
        obs = answer.obs
        if answer.terminated or t == limit:
            (state, obs), t = world.reset(jax.random.key(seed + number)), 0
    names = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
    columns: dict[str, Any] = {name: np.stack(x) for name, x in zip(names, zip(*rows, strict=True), strict=True)}
    return Dataset(**columns)


@pytest.fixture(scope="module")
def in_the_maze() -> Dataset:
    return random_walk(Maze(), 600)


@as_tree
class Untouchable(ShortCorridor):
    """A corridor in which nobody may walk."""

    def reset(self, key: Any) -> Any:
        raise AssertionError("the world was reset")

    def step(self, state: Any, action: Any, key: Any) -> Any:
        raise AssertionError("the world was stepped")


# Which rows

STARTS, LENGTHS = jnp.array([0, 3, 7, 12]), jnp.array([3, 4, 5, 1])
COMPILED = jax.jit(places, static_argnums=(2, 5, 6))


def rows_of(first: int, steps: int, batch: int, key: int = 0) -> tuple[np.ndarray, np.ndarray]:
    place, goes = COMPILED(STARTS, LENGTHS, 13, jax.random.key(key), jnp.asarray(first), steps, batch)
    return np.asarray(place), np.asarray(goes)


def test_each_pass_has_every_row_once_episodes_in_new_order_and_rows_in_order_of_time():
    place, goes = rows_of(0, 13 * 6, 1)
    passes = place.reshape(6, 13).tolist()
    assert all(sorted(rows) == list(range(13)) for rows in passes)
    assert len({tuple(rows) for rows in passes}) > 3
    assert goes.reshape(6, 13).sum(1).tolist() == [1] * 6 and goes[12::13].all()
    for rows in passes:
        for start, length in zip(STARTS.tolist(), LENGTHS.tolist(), strict=True):
            at = rows.index(start)
            assert rows[at : at + length] == list(range(start, start + length))
    assert not np.array_equal(place, rows_of(0, 13 * 6, 1, key=1)[0]), "each seed has its own order"


@pytest.mark.parametrize("batch", [1, 5, 20])
def test_columns_share_a_pass_and_chunks_change_nothing(batch):
    part = -(-13 // batch)
    place, goes = rows_of(0, 3 * part, batch)
    for rows in place.reshape(3, part, batch):
        assert set(rows.ravel().tolist()) == set(range(13)), "none is left out"
    for start, count in ((1, 2 * part - 1), (part, part)):
        some, some_go = rows_of(start, count, batch)
        np.testing.assert_array_equal(some, place[start : start + count])
        np.testing.assert_array_equal(some_go, goes[start : start + count])


class Seen(NamedTuple):
    rollout: Any


class Recorder(Algorithm):
    """Keeps its last rollout; its extras are the observation that `act` was given and the steps of its carry."""

    survey = Survey("model-free", "values", "step", "off-policy")

    @property
    def num_steps(self):
        return 4

    def init(self, key, spec):
        shape = (self.num_steps, spec.num_envs)
        rollout = jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape), x.dtype), spec.example)
        zeros = jnp.zeros(shape)
        return Seen(rollout._replace(extras=(jnp.zeros_like(rollout.obs), zeros)))

    def init_carry(self, spec):
        return jnp.zeros(spec.num_envs)

    def act(self, state, carry, obs, key, *, explore=True):
        return jnp.zeros(len(obs), jnp.int32), carry + 1, (obs, carry)

    def update(self, state, rollout, key):
        return Seen(rollout), {"reward": jnp.mean(rollout.reward)}


Recorder = as_tree(Recorder)
NUMBERED = Box(0.0, 1e6, (1,))


def numbered(lengths: list[int], ends: dict[int, str]) -> Dataset:
    """Rows that observe their number, of streams of such lengths, some of which terminate or are truncated."""
    n = sum(lengths)
    number = np.arange(n)
    rows: dict[str, Any] = {
        kind: np.isin(number, [row for row, k in ends.items() if k == kind]) for kind in ("terminated", "truncated")
    }
    rows |= {"obs": number[:, None], "next_obs": number[:, None] + 1, "reward": 1.0 + number % 7, "action": number % 2}
    return Dataset(**rows, lengths=lengths)


def offline(algorithm: Algorithm, data: Dataset, total: int = 1_000, **options: Any) -> OfflineSeeds:
    spec = dataclasses.replace(space_spec(NUMBERED, Discrete(2)), num_envs=algorithm.num_envs, total_timesteps=total)
    wrappers = options.pop("wrappers", Wrappers())
    return OfflineSeeds(as_float32(algorithm), spec, data.fitted(NUMBERED, Discrete(2)), wrappers, **options)


@pytest.mark.parametrize("layout", ["map", "vmap"])
def test_a_rollout_is_the_stored_rows_with_the_rewards_of_learning_and_what_act_remembers(layout):
    data = numbered([17, 6], {4: "terminated", 9: "truncated"})
    wrappers = Wrappers(reward_scale=2.0, reward_offset=1.0, terminal_reward=-5.0)
    trainer = offline(Recorder(num_envs=2), data, num_seeds=3, wrappers=wrappers, layout=layout)
    last = None
    for _ in range(30):
        record = trainer.advance(1)
        assert not record.episodes.lengths.any() and record.episodes.lengths.shape == (3, 1, 4, 2)
        seen = jax.device_get(trainer.state.algorithm.rollout)
        row = seen.obs[..., 0].astype(int)
        np.testing.assert_array_equal(seen.action, row % 2)
        np.testing.assert_array_equal(seen.next_obs[..., 0], row + 1)
        np.testing.assert_array_equal(seen.terminated, row == 4)
        np.testing.assert_allclose(seen.reward, 2 * (2.0 + row % 7) - 5.0 * (row == 4))
        ended = seen.terminated | seen.truncated
        assert ended[np.isin(row, [4, 9, 16, 22])].all(), "a stream's last row leads nowhere"
        observed, steps = seen.extras
        np.testing.assert_array_equal(observed, seen.obs)
        columns = row if last is None else np.concatenate([last[0][:, -1:], row], axis=1)
        ends = ended if last is None else np.concatenate([last[1][:, -1:], ended], axis=1)
        goes_on = columns[:, 1:] == columns[:, :-1] + 1
        assert (goes_on | ends[:, :-1]).all(), "no row is followed by a stranger unless it counts as an end"
        np.testing.assert_array_equal(steps[:, 1:] == 0, ended[:, :-1])
        last = row, ended


def test_returns_of_several_steps_stay_within_an_episode_of_a_stream():
    """What DQN remembers after several passes with three columns: each sum of rewards, its last observation and the
    discount of its bootstrap are those of rows that follow one another."""
    ends = {4: "terminated", 9: "truncated", 30: "terminated"}
    data = numbered([17, 6, 20], ends)
    algorithm = DQN(n_step=3, gamma=0.5, num_envs=3, train_frequency=2, capacity=500, learning_starts=10**6)
    trainer = offline(dataclasses.replace(algorithm, hidden_sizes=(4,)), data)
    trainer.advance(70)
    memory = jax.tree.map(lambda x: x[0], trainer.state.algorithm.memory)
    assert 400 < int(memory.size.value) <= 420
    items = algorithm.memory.items(memory, jnp.arange(int(memory.size.value)))
    last_rows = {4, 9, 16, 22, 30, 42}
    lengths = set()
    for obs, action, reward, next_obs, terminated, discount in zip(
        *map(np.asarray, (items.obs[:, 0], items.action, items.reward, items.next_obs[:, 0], items.terminated)),
        np.asarray(items.extras),
        strict=True,
    ):
        first, count = int(obs), int(next_obs - obs)
        rows = range(first, first + count)
        assert 1 <= count <= 3 and not last_rows & set(rows[:-1])
        assert action == first % 2 and terminated == (rows[-1] in (4, 30))
        assert reward == pytest.approx(sum(0.5**i * (1 + row % 7) for i, row in enumerate(rows)))
        assert discount == pytest.approx(0.0 if terminated else 0.5**count)
        lengths.add(count)
    assert lengths == {1, 2, 3}


# What is learned


def test_dqn_learns_the_way_from_random_steps_and_never_touches_the_world():
    """Untouchable's `step` and `reset` raise, also where they are only traced."""
    data = random_walk(ShortCorridor(), 500, limit=20)
    algorithm = DQN(
        gamma=0.9, learning_rate=3e-3, learning_starts=100, target_update_period=50, hidden_sizes=(32,), batch_size=32
    )
    agent = Agent(algorithm, Untouchable(), seed=1).learn_from(data, 2_500)
    (probe,) = [p for p in PROBES if p.name == "short-corridor"]
    obs, values = probe.values(0.9)
    np.testing.assert_allclose(jax.vmap(agent.policy.network)(obs), values, atol=0.1)
    assert agent.predict(obs).tolist() == [1, 1, 1] and agent.step == 2_500


def test_q_learning_finds_the_way_from_random_steps(in_the_maze):
    agent = Agent(QLearning(learning_rate=0.5, gamma=0.9), Maze()).learn_from(in_the_maze, 6_000)
    best, t = np.zeros((16, 4)), in_the_maze.transitions
    for _ in range(50):  # what the transitions say, without what was never tried
        best[t.obs, t.action] = t.reward + 0.9 * (1 - t.terminated) * best[t.next_obs].max(1)
    np.testing.assert_allclose(agent.policy.q.weights, best, atol=1e-2)
    assert agent.evaluate(episodes=2).returns.tolist() == [1.0, 1.0]


def test_an_agent_learns_from_data_and_then_from_its_world(in_the_maze, tmp_path):
    path = in_the_maze.save(tmp_path / "maze.safetensors")
    agent = Agent(QLearning(), "Maze", seed=2).learn_from(str(path), 200)
    before = np.asarray(agent.policy.q.weights)
    assert agent.learn(300) is agent and agent.step == 500
    state: Any = agent._trainer
    assert int(state.state.algorithm.schedule.step.value[0]) == 500 and int(state.state.updates.value[0]) == 500
    assert not np.array_equal(agent.policy.q.weights, before) and (np.asarray(agent.policy.q.weights) != 0).any()
    agent.learn_from(in_the_maze, 100).learn(100)
    assert agent.step == 700
    with pytest.raises(TreadleError, match="keeps what acting needs"):
        Agent.load(agent.save(tmp_path / "agent.safetensors")).learn_from(path, 10)


def test_seeds_learn_from_rows_in_orders_of_their_own(in_the_maze):
    algorithm = QLearning(num_envs=2)
    trainer = make_offline_trainer(algorithm, "Maze", in_the_maze, 400, seed=4, num_seeds=3)
    trainer.advance(200)
    q = np.asarray(trainer.policies().q.weights)
    assert not np.array_equal(q[0], q[1]) and not np.array_equal(q[1], q[2])


# Which methods, which data

OPTIONS: dict[str, Any] = {"td-0": {"behaviour": (0.25,) * 4}, "td-lambda": {"behaviour": (0.25,) * 4}}
OPTIONS["dqn"] = {"learning_starts": 5, "hidden_sizes": (4,), "capacity": 50, "batch_size": 8}
OPTIONS["ddpg"] = OPTIONS["dqn"]


@pytest.mark.parametrize("name", registry.algorithms.names())
def test_off_policy_methods_learn_from_data_and_on_policy_ones_say_why_not(name, in_the_maze):
    algorithm = registry.algorithms.make(name, **OPTIONS.get(name, {}))
    world, data = ("Pendulum-v1", random_walk(Pendulum(), 600)) if name == "ddpg" else ("Maze", in_the_maze)
    if algorithm.survey.policy == "on-policy":
        with pytest.raises(
            InvalidSetting, match=rf"{algorithm.name} is on-policy: .*Off-policy methods are .*dqn.*q-learning"
        ):
            make_offline_trainer(algorithm, world, data, 100)
        return
    trainer = make_offline_trainer(algorithm, world, data, 100)
    before = jax.device_get(trainer.policies())
    trainer.advance(60)
    changed = [
        not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, trainer.policies())), strict=True)
    ]
    assert any(changed)


def test_methods_that_cannot_know_are_refused_too(in_the_maze):
    with pytest.raises(InvalidSetting, match=r"td-0 weighs each step by .*--behaviour"):
        make_offline_trainer(registry.algorithms.make("td-0"), "Maze", in_the_maze, 100)

    @as_tree
    class Own(Algorithm):
        pass

    with pytest.raises(InvalidSetting, match=r"Own does not say whether it can learn .*survey = Survey\("):
        make_offline_trainer(Own(), "Maze", in_the_maze, 100)


def test_a_time_limit_has_no_say(in_the_maze):
    learned = [Agent(QLearning(), world).learn_from(in_the_maze, 100) for world in ("Maze", wrap("Maze", time_limit=9))]
    first, second = (agent.policy.q.weights for agent in learned)
    np.testing.assert_array_equal(first, second)


def test_data_that_does_not_fit_is_refused(in_the_maze):
    with pytest.raises(DatasetError, match=r"obs has the shape \(600,\)"):
        Agent(DQN(), "CartPole-v1").learn_from(in_the_maze, 100)
    with pytest.raises(InvalidSetting, match=r"total_timesteps .* was 0"):
        Agent(QLearning(), "Maze").learn_from(in_the_maze, 0)
    torque = {"obs": np.zeros((3, 3)), "next_obs": np.zeros((3, 3)), "reward": np.zeros(3), "terminated": np.zeros(3)}
    data = Dataset(**torque, action=[0, 4, 2])
    make_offline_trainer(DQN(hidden_sizes=(4,)), wrap("Pendulum-v1", discretise_actions=5), data, 10)
    with pytest.raises(DatasetError, match="action of row 1 is 4; it must be from 0 to 2"):
        Agent(DQN(), wrap("Pendulum-v1", discretise_actions=3)).learn_from(data, 10)


# The command line

LEARNING = "--preset none --num-envs 2 --seeds 2 --total-timesteps 400 --checkpoint-period 80"


@pytest.fixture(scope="module")
def data(in_the_maze, tmp_path_factory) -> Path:
    return in_the_maze.save(tmp_path_factory.mktemp("data") / "maze.safetensors")


def train(folder: Path, data: Path, *flags: str) -> int:
    command = ["train", "q-learning", "Maze", *LEARNING.split(), "--data", str(data), "--out", str(folder), *flags]
    return main(command)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """A run that learned from data, uninterrupted. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("offline") / "run"
    assert train(folder, data) == 0
    return folder


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def timeless(folder: Path) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "time"} for record in metrics.read(folder)]


def test_a_run_says_what_it_learns_from_and_has_no_episodes(whole, data, tmp_path, capsys):
    assert train(tmp_path / "run", data) == 0
    out, err = capsys.readouterr()
    assert f"Data: {data}: 600 transitions, " in out and "return" not in err
    about = json.loads((whole / "run.json").read_text())
    assert about["config"]["data"] == str(data) and len(about["data_checksum"]) == 64
    assert all("episode_return" not in record for record in metrics.read(whole))
    assert timeless(tmp_path / "run") == timeless(whole)


def test_stopped_and_resumed_it_is_the_same_run(whole, data, tmp_path, monkeypatch, capsys):
    advance, calls = OfflineSeeds.advance, []

    def hooked(self, num_updates):
        calls.append(num_updates)
        if len(calls) == 23:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, num_updates)

    with monkeypatch.context() as patch:
        patch.setattr(OfflineSeeds, "advance", hooked)
        assert train(tmp_path / "run", data) == 143
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert "new episodes begin" not in capsys.readouterr().out
    states = [load_file(Run.open(folder).checkpoints()[-1]) for folder in (whole, tmp_path / "run")]
    assert states[0].keys() == states[1].keys() and "carry" not in states[0]
    for name, leaf in states[0].items():
        np.testing.assert_array_equal(leaf, states[1][name], err_msg=name)
    assert timeless(tmp_path / "run") == timeless(whole)


def test_data_that_is_gone_or_has_changed_stops_resume_but_not_evaluation(whole, data, tmp_path, capsys):
    own = Path(shutil.copy(data, tmp_path / "own.safetensors"))
    assert train(tmp_path / "run", own) == 0
    raw = own.read_bytes()
    further = ["resume", str(tmp_path / "run"), "--total-timesteps", "480"]
    for spoil, said in (
        (own.unlink, "which is no longer there. Put it back"),
        (lambda: own.write_bytes(raw + b" "), "has changed since"),
    ):
        spoil()
        assert main(further) == 2
        assert said in capsys.readouterr().err
        assert main(["evaluate", str(tmp_path / "run"), "--episodes", "2"]) == 0
        assert "2 greedy episodes a seed in Maze" in " ".join(capsys.readouterr().out.split())
    own.write_bytes(raw)
    assert main(further) == 0
    assert metrics.read(tmp_path / "run")[-1]["step"] == 480


def test_plots_and_comparisons_of_a_run_without_episodes(copy, tmp_path, capsys):
    assert main(["plot", str(copy)]) == 0
    out = capsys.readouterr().out
    assert "learning_curve.png" in out and "q_table.png" in out
    online = tmp_path / "online"
    assert main(["train", "q-learning", "Maze", *LEARNING.split(), "--out", str(online)]) == 0
    assert main(["compare", str(copy), str(online)]) == 2
    assert f"{copy} learned from stored transitions, without episodes in training" in capsys.readouterr().err
    for folder in (copy, online):
        assert main(["evaluate", str(folder), "--episodes", "2"]) == 0
    assert main(["compare", str(copy), str(online)]) == 0
    out = capsys.readouterr().out
    assert "data=maze.safetensors" in out and "data=its own" in out and "Returns in training are not compared" in out
    (copy / "metrics.jsonl").unlink()
    assert main(["plot", str(copy)]) == 2
    assert "has no episodes of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("q-learning Maze --data absent", "there is no data file absent"),
        ("q-learning Maze --data DATA --save-data x", "Leave one of them out"),
        ("q-learning Maze --data DATA --watch", "--watch shows a learner that acts"),
        ("dqn CartPole-v1 --data DATA", "the data's obs has the shape (600,)"),
        ("sarsa Maze --data DATA", "sarsa is on-policy"),
        ("td-0 Maze --data DATA", "--behaviour"),
        ("q-learning Maze --data BROKEN", "is damaged or was cut short"),
        ("q-learning Nowhere-v0 --data DATA", "there is no environment 'Nowhere-v0'"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(data, tmp_path, monkeypatch, capsys, flags, said):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(data.read_bytes()[:-9])
    monkeypatch.chdir(tmp_path)
    assert main(["train", *flags.replace("DATA", str(data)).replace("BROKEN", str(broken)).split()]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.startswith("treadle: ") and err.count("\n") == 1
    assert out == "" and list(tmp_path.iterdir()) == [broken]


def test_nobody_can_be_watched_who_does_not_act(in_the_maze):
    trainer = make_offline_trainer(QLearning(), "Maze", in_the_maze, 100)
    with pytest.raises(InvalidSetting, match="--watch shows a learner that acts"):
        Watch(trainer)
    with pytest.raises(TreadleError, match="without the transitions"):
        make_offline_trainer(QLearning(), "Maze", None, 100).advance(1)
    assert not isinstance(trainer, FusedSeeds)
