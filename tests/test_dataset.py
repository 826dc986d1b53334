"""Stored transitions: files that others can make and read, and runs that keep every step once."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from treadle import Box, Dataset, Discrete, QLearning, checkpoint, dataset, metrics, recording
from treadle.cli import main
from treadle.dataset import DatasetError
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.environments.maze import Maze
from treadle.environments.wrappers import grid
from treadle.loops.host import HostSeeds
from treadle.loops.seeds import FusedSeeds
from treadle.registry import as_float32
from treadle.run import Run
from treadle.training import train as train_run
from treadle.types import Transition

pytestmark = pytest.mark.least_optimised

N = 10
OBS, ACTIONS = Box(-1e9, 1e9, (2,)), Discrete(3)


def arrays(**changes: Any) -> dict[str, Any]:
    """Ten rows of two streams: an episode of 4 that ends, 2 of one cut off; one truncated after 3, and 1 of another."""
    obs = np.arange(2 * N, dtype=np.float64).reshape(N, 2)
    ends = np.arange(N)
    rows = {
        "obs": obs,
        "action": np.arange(N) % 3,
        "reward": np.arange(N) / 4,
        "next_obs": obs + 2,
        "terminated": ends == 3,
        "truncated": ends == 8,
    }
    return rows | changes


# The file


def test_what_is_saved_comes_back_and_any_reader_of_safetensors_opens_it(tmp_path):
    path = tmp_path / "mine.safetensors"
    given = Dataset(
        **arrays(), lengths=[6, 4], environment="Here-v0", observation_space=OBS, action_space=ACTIONS, made_by={"a": 1}
    )
    given.save(path)
    found = Dataset.load(path)
    for name, x in arrays().items():
        np.testing.assert_array_equal(getattr(found, name), x)
        np.testing.assert_array_equal(load_file(path)[name], x)
    assert found.obs.dtype == found.reward.dtype == np.float32 and found.action.dtype == np.int32
    assert found.lengths is not None and found.lengths.tolist() == [6, 4]
    assert (found.environment, found.observation_space, found.action_space) == ("Here-v0", OBS, ACTIONS)
    assert found.made_by == {"a": 1} and len(found) == N
    assert repr(found) == "10 transitions in Here-v0, 2 episodes of mean return 3.375"


def test_plain_arrays_of_another_program_are_enough(tmp_path):
    path = tmp_path / "theirs.safetensors"
    rows = {k: x for k, x in arrays(terminated=(np.arange(N) == 3).astype(np.float32)).items() if k != "truncated"}
    save_file(rows, path)
    found = Dataset.load(path)
    assert found.observation_space is None and not found.truncated.any() and found.terminated.sum() == 1
    assert found.fitted(OBS, ACTIONS).action_space == ACTIONS
    save_file({"observations": rows["obs"], "action": rows["action"]}, path)
    with pytest.raises(DatasetError, match="has no array obs, reward, next_obs, terminated; it has action, obs"):
        Dataset.load(path)


def test_a_row_leads_to_the_next_within_its_stream_and_its_episode_alone():
    assert Dataset(**arrays(), lengths=[6, 4]).episode_lengths.tolist() == [4, 2, 3, 1]
    assert Dataset(**arrays()).episode_lengths.tolist() == [4, 5, 1], "by the observations: the streams are alike"
    elsewhere = arrays()["next_obs"].copy()
    elsewhere[[1, 5]] += 1
    assert Dataset(**arrays(next_obs=elsewhere)).episode_lengths.tolist() == [2, 2, 2, 3, 1]
    assert Dataset(**arrays(), lengths=[0, 6, 0, 4]).episode_lengths.tolist() == [4, 2, 3, 1]
    np.testing.assert_allclose(Dataset(**arrays(), lengths=[6, 4]).episode_returns, [1.5, (6 + 7 + 8) / 4])


def test_an_end_is_of_one_kind():
    both = Dataset(**arrays(truncated=np.ones(N)))
    np.testing.assert_array_equal(both.truncated, ~both.terminated)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"action": np.zeros(9)}, r"action has the shape \(9,\) and obs \(10, 2\)"),
        ({"reward": np.zeros((N, 1))}, r"reward has the shape \(10, 1\); it must be \(10,\)"),
        ({"next_obs": np.zeros((N, 3))}, r"next_obs has the shape \(10, 3\); it must be that of obs"),
        ({"terminated": np.full(N, 2)}, "terminated holds other values than true and false"),
        ({"obs": np.full((N, 2), "x")}, "obs is an array of <U1; it must hold numbers"),
        ({"action": np.full(N, 2**40)}, "action holds numbers beyond 32 bits"),
        ({"lengths": [4, 4]}, "lengths, the rows of each stream, add up to 8; there are 10 rows"),
        ({name: np.zeros((0, 2)) for name in ("obs", "next_obs")}, "action has the shape"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(changes, said):
    with pytest.raises(DatasetError, match=said):
        Dataset(**arrays(**changes))


TORQUE = Box(-2.0, 2.0, (1,))


@pytest.mark.parametrize(
    ("spaces", "wanted", "said"),
    [
        ((OBS, ACTIONS), (OBS, Discrete(4)), r"actions are Discrete\(3\), and this environment's Discrete\(4\)"),
        ((Discrete(5), None), (OBS, ACTIONS), r"observations are Discrete\(5\), and this environment's Box"),
        ((None, grid(TORQUE, 3)), (OBS, grid(TORQUE, 5)), "--discretise-actions 3"),
        ((None, grid(TORQUE, 3)), (OBS, TORQUE), "Its maker discretised them: --discretise-actions 3"),
        ((None, ACTIONS), (OBS, grid(TORQUE, 3)), "Leave --discretise-actions out"),
        ((None, None), (OBS, Discrete(2)), "action of row 2 is 2; it must be from 0 to 1"),
        ((None, None), (OBS, Discrete(2, start=1)), "from 0 to 1, counted from 0"),
        ((None, None), (Box(0.0, 1.0, (3,)), ACTIONS), r"obs has the shape \(10, 2\); .* it must be \('N', 3\)"),
        ((None, None), (Discrete(4), ACTIONS), r"obs has the shape \(10, 2\)"),
    ],
)
def test_data_of_other_spaces_is_refused(spaces, wanted, said):
    data = Dataset(**arrays(), observation_space=spaces[0], action_space=spaces[1])
    with pytest.raises(DatasetError, match=said):
        data.fitted(*wanted)


def test_bounds_may_differ_in_their_last_bits_and_in_how_infinity_is_written():
    one = Box((-4.8, -np.inf), (4.8, np.inf), (2,))
    other = Box((-4.8000002, -3.4028235e38), (4.8000002, 3.4028235e38), (2,))
    assert Dataset(**arrays(), observation_space=one).fitted(other, ACTIONS).observation_space == other
    with pytest.raises(DatasetError, match="observations are Box"):
        Dataset(**arrays(), observation_space=one).fitted(Box((-4.9, -np.inf), (4.9, np.inf), (2,)), ACTIONS)


@pytest.mark.parametrize("name", ["obs", "reward"])
def test_numbers_that_are_none_are_named(name):
    spoilt = arrays()
    spoilt[name] = spoilt[name].copy()
    spoilt[name][7] = np.nan
    with pytest.raises(DatasetError, match=rf"{name} of row 7 is .*nan.*; it must be finite"):
        Dataset(**spoilt).fitted(OBS, ACTIONS)


def test_files_that_are_none_of_transitions_say_what_to_do(tmp_path):
    path = tmp_path / "data.safetensors"
    Dataset(**arrays(), lengths=[6, 4]).save(path)
    whole = path.read_bytes()
    for spoilt in (whole[:-5], whole[:100], whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], b""):
        path.write_bytes(spoilt)
        with pytest.raises(DatasetError, match=r"is damaged or was cut short: .*\. Use a copy of it, or make it anew"):
            Dataset.load(path)
    path.write_bytes(whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    with pytest.raises(DatasetError, match="checksum"):
        Dataset.load(path)

    path.write_bytes(pickle.dumps(arrays()))
    with pytest.raises(
        DatasetError, match=r"is a pickle, which is not opened because loading one can run code\. Read it"
    ):
        Dataset.load(path)
    with path.open("wb") as file:
        np.savez(file, **arrays())
    with pytest.raises(DatasetError, match=r"is a zip archive, as NumPy's \.npz is\. Read it yourself.*Dataset\(obs="):
        Dataset.load(path)
    checkpoint.save(path, {"x": np.zeros(3)}, {"kind": "agent"})
    with pytest.raises(DatasetError, match="holds a agent, not transitions"):
        Dataset.load(path)
    checkpoint.save(path, arrays(), {"kind": "dataset", "format": 99})
    with pytest.raises(DatasetError, match="has data format 99, and this Treadle reads 1"):
        Dataset.load(path)
    checkpoint.save(path, arrays(), {"kind": "dataset", "format": 1, "observation_space": {"type": "Discrete"}})
    with pytest.raises(DatasetError, match="says of itself what makes no sense"):
        Dataset.load(path)
    with pytest.raises(DatasetError, match=r"there is no data file .*absent: .*--save-data"):
        Dataset.load(tmp_path / "absent")
    with pytest.raises(DatasetError, match="is a folder"):
        Dataset.load(tmp_path)
    with pytest.raises(DatasetError, match=r"the data file .* could not be written"):
        Dataset(**arrays()).save(tmp_path / "nowhere" / "data.safetensors")


# What a run keeps

STEPS, PERIOD, SEEDS, ENVS = 400, 80, 2, 2
SMALL = f"--preset none --num-envs {ENVS} --seeds {SEEDS} --total-timesteps {STEPS} --checkpoint-period {PERIOD}"
ALPHA, GAMMA, SCALE = 0.25, 0.5, 3.0
LEARNING = f"--learning-rate {ALPHA} --gamma {GAMMA} --reward-scale {SCALE} --terminal-reward -1"


def train(folder: Path, *flags: str, world: str = "Maze") -> int:
    return main(["train", "q-learning", world, *SMALL.split(), *LEARNING.split(), "--out", str(folder), *flags])


def same_rows(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that kept its transitions in data.safetensors beside it. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(folder, "--save-data", str(folder.parent / "data.safetensors")) == 0
    return folder


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """The same, to be changed."""
    shutil.copy(whole.parent / "data.safetensors", tmp_path)
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    about = json.loads((folder / "run.json").read_text())
    about["config"]["save_data"] = str(tmp_path / "data.safetensors")
    (folder / "run.json").write_text(json.dumps(about))
    return folder


def tables(folder: Path) -> np.ndarray:
    run = Run.open(folder)
    trainer = run.trainer()
    run.restore(trainer)
    return np.asarray(trainer.policies().q.weights)


def learned_by_hand(data: Dataset, states: int, actions: int) -> np.ndarray:
    """Q-learning from the streams of each seed, row by row, by equation 6.8, in NumPy."""
    streams = [x.reshape(SEEDS, ENVS, -1, *x.shape[1:]) for x in data.transitions[:5]]
    q = np.zeros((SEEDS, states, actions))
    for seed in range(SEEDS):
        for t in range(streams[0].shape[2]):
            for b in range(ENVS):
                s, a, r, s_next, terminated = (x[seed, b, t] for x in streams)
                learned_from = SCALE * r - terminated
                target = learned_from + GAMMA * (1 - terminated) * q[seed, s_next].max()
                q[seed, s, a] += ALPHA * (target - q[seed, s, a])
    return q


def assert_streams_are_chained(data: Dataset):
    """A row leads to the next within its stream, but where an episode ended; so it does in no other order."""
    assert data.lengths is not None
    ended = data.terminated | data.truncated
    for end, length in zip(np.cumsum(data.lengths), data.lengths, strict=True):
        rows = slice(end - length, end - 1)
        leads = data.next_obs[rows] == data.obs[rows.start + 1 : end]
        assert leads[~ended[rows]].all() and 0 < ended[rows].sum() < length


def test_the_fused_loop_keeps_what_it_saw_and_learned_from(whole):
    data = Dataset.load(whole.parent / "data.safetensors")
    assert data.lengths is not None and data.lengths.tolist() == [STEPS // ENVS] * (SEEDS * ENVS)
    assert data.environment == "Maze" and data.made_by["algorithm"] == "q-learning"
    assert data.made_by["command"].startswith("treadle train q-learning Maze") and "jax" in data.made_by["versions"]
    assert_streams_are_chained(data)
    step: Any = jax.vmap(Maze().step, (0, 0, None))
    _, answer = step(data.obs, data.action, jax.random.key(0))
    np.testing.assert_array_equal(data.next_obs, answer.obs)
    np.testing.assert_array_equal(data.reward, answer.reward, err_msg="the world's own")
    np.testing.assert_array_equal(data.terminated, answer.terminated)
    np.testing.assert_allclose(tables(whole), learned_by_hand(data, 16, 4), atol=1e-5)
    assert not (whole / recording.FOLDER).exists(), "the parts are in the file"


def test_the_host_loop_keeps_what_it_saw_and_learned_from(tmp_path):
    path = tmp_path / "data.safetensors"
    flags = ["--loop", "host", "--save-data", str(path), "--time-limit", "23"]
    assert train(tmp_path / "run", *flags, world="CliffWalking-v1") == 0
    data = Dataset.load(path)
    assert_streams_are_chained(data)
    assert data.truncated.sum() >= 4 * (STEPS // ENVS // 23) - 4 and set(data.reward.tolist()) == {-1.0, -100.0}
    np.testing.assert_allclose(tables(tmp_path / "run"), learned_by_hand(data, 48, 4), atol=1e-4)


def test_rows_that_do_not_count_are_left_out():
    algorithm = as_float32(QLearning(num_envs=2))
    trainer = HostSeeds(
        algorithm, lambda: GymnasiumEnvironments("FrozenLake-v1", 2, "next_step"), 400, num_seeds=2, keep_data=True
    )
    columns: list[Any] = [trainer.advance(count).data for count in (30, 30)]
    masks = np.concatenate([c.valid for c in columns], axis=1)[:, :, 0]
    rows, lengths = recording.by_stream(columns)
    assert lengths == masks.sum(1).ravel().tolist() and 200 < sum(lengths) < 240
    names: dict[str, Any] = {name: getattr(rows, name) for name in dataset.FIELDS}
    assert_streams_are_chained(Dataset(**names, lengths=lengths))
    trainer.close()


def test_rows_lie_one_stream_after_the_other():
    """Two seeds, two environments, two chunks of 2 and 1 rounds of two steps: the row of seed s, environment b and
    step t is 100 s + 10 b + t."""
    place = 100 * np.arange(2)[:, None, None, None] + 10 * np.arange(2)
    steps = np.arange(6).reshape(1, 3, 2, 1)
    number: Any = place + steps
    chunks = [number[:, :2], number[:, 2:]]
    rows, lengths = recording.by_stream([Transition(*(c,) * 6) for c in chunks])
    assert lengths == [6, 6, 6, 6]
    assert np.asarray(rows.obs).tolist() == [start + t for start in (0, 10, 100, 110) for t in range(6)]


def test_keeping_them_changes_nothing_else(whole, tmp_path):
    assert train(tmp_path / "run") == 0
    assert timeless(tmp_path / "run") == timeless(whole)
    np.testing.assert_array_equal(tables(tmp_path / "run"), tables(whole))
    assert not (tmp_path / "run" / recording.FOLDER).exists()


def timeless(folder: Path) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "time"} for record in metrics.read(folder)]


def stopped_after(monkeypatch, count: int, *signals: int):
    """Send signals behind the chunk of that number."""
    advance, calls = FusedSeeds.advance, []

    def hooked(self, num_updates):
        calls.append(num_updates)
        record = advance(self, num_updates)
        if len(calls) == count:
            for number in signals:
                os.kill(os.getpid(), number)
        return record

    monkeypatch.setattr(FusedSeeds, "advance", hooked)


@pytest.mark.parametrize(
    ("signals", "status"), [((signal.SIGTERM,), 143), ((signal.SIGINT,), 130), ((signal.SIGINT,) * 2, 130)]
)
def test_stopped_and_resumed_no_row_is_missing_and_none_is_there_twice(
    whole, tmp_path, monkeypatch, capsys, signals, status
):
    """Also where it is stopped at once, with rows beyond the last checkpoint, of which some are written already."""
    folder, path = tmp_path / "run", tmp_path / "new" / "data.safetensors"
    monkeypatch.setattr(recording, "BUFFER_BYTES", 500)
    with monkeypatch.context() as patch:
        stopped_after(patch, 23, *signals)
        assert train(folder, "--save-data", str(path)) == status
    assert not path.exists()
    if len(signals) == 1:
        assert f"{path} is written at the run's end" in capsys.readouterr().err
    run = Run.open(folder)
    beyond = recording.parts(run)[-1].end - int(run.checkpoints()[-1].stem[5:])
    assert beyond == 0 if len(signals) == 1 else beyond > 0
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "run"]) == 0
    assert f"Transitions: {path}" in capsys.readouterr().out
    assert same_rows(path, whole.parent / "data.safetensors")


def test_a_finished_run_goes_on_from_an_earlier_checkpoint_and_further(whole, copy):
    path = copy.parent / "data.safetensors"
    assert main(["resume", str(copy), "--checkpoint", str(Run.open(copy).checkpoints()[0])]) == 0
    assert same_rows(path, whole.parent / "data.safetensors")
    assert main(["resume", str(copy), "--total-timesteps", "480"]) == 0
    data, before = Dataset.load(path), Dataset.load(whole.parent / "data.safetensors")
    assert data.lengths is not None and data.lengths.tolist() == [240] * 4
    np.testing.assert_array_equal(data.obs.reshape(4, 240)[:, :200], before.obs.reshape(4, 200))
    assert_streams_are_chained(data)


def test_a_checkpoint_between_two_parts_cuts_the_first(whole, tmp_path, monkeypatch):
    path = tmp_path / "data.safetensors"
    with monkeypatch.context() as patch:
        stopped_after(patch, 23, signal.SIGTERM)
        assert train(tmp_path / "run", "--save-data", str(path)) == 143
    run = Run.open(tmp_path / "run")
    trainer = run.trainer()
    trainer.advance(51)
    for later in run.checkpoints():
        later.unlink()
    run.save_checkpoint(trainer, 102)
    assert all(part.end != 102 for part in recording.parts(run))
    assert main(["resume", str(run.folder)]) == 0
    assert same_rows(path, whole.parent / "data.safetensors")


def test_a_file_that_could_not_be_made_at_the_end_is_made_by_resume(whole, tmp_path, monkeypatch, capsys):
    path = tmp_path / "data.safetensors"

    def full(*_: Any) -> None:
        raise DatasetError("the data file could not be written: No space left on device.")

    with monkeypatch.context() as patch:
        patch.setattr(recording, "put_together", full)
        assert train(tmp_path / "run", "--save-data", str(path)) == 1
    assert "No space left" in capsys.readouterr().err and not path.exists()
    path.write_text("a stranger")
    assert main(["resume", str(tmp_path / "run")]) == 2
    assert "was made by something else in the meantime" in capsys.readouterr().err
    path.unlink()
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert f"The run had finished. Transitions: {path}" in capsys.readouterr().out
    assert same_rows(path, whole.parent / "data.safetensors")


def test_rows_that_are_gone_are_missed_before_anything_is_changed(copy, capsys):
    (copy.parent / "data.safetensors").unlink()
    before = sorted(copy.rglob("*"))
    assert main(["resume", str(copy), "--total-timesteps", "480"]) == 2
    said = capsys.readouterr().err
    assert "are kept up to step 0 only, and it would go on from step 400" in said and "treadle train" in said
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize("what", ["transitions", "stranger", "weights", "folder", "nowhere"])
def test_a_place_that_is_taken_is_refused_before_training(whole, tmp_path, capsys, what):
    path = tmp_path / "data.safetensors"
    said = "exists already. Give another, or replace it (--overwrite)"
    if what == "transitions":
        shutil.copy(whole.parent / "data.safetensors", path)
    elif what == "stranger":
        path.write_text("dear diary")
    elif what == "weights":
        save_file({"w": np.zeros(3)}, path)
    elif what == "folder":
        path.mkdir()
        said = "is a folder; give a file in it"
    else:
        path, said = Path("/dev/null/data.safetensors"), "nothing can be written to /dev/null"
    assert train(tmp_path / "run", "--save-data", str(path)) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
    if what in ("stranger", "weights"):
        assert train(tmp_path / "run", "--overwrite", "--save-data", str(path)) == 2
        assert "is no file of transitions that Treadle wrote" in capsys.readouterr().err
    elif what == "transitions":
        assert train(tmp_path / "run", "--overwrite", "--seed", "5", "--save-data", str(path)) == 0
        assert not same_rows(path, whole.parent / "data.safetensors")


@pytest.mark.parametrize("place", ["", "run.json", recording.FOLDER, "checkpoints/mine.safetensors"])
def test_what_a_run_keeps_itself_is_no_place_for_the_file(tmp_path, capsys, place):
    assert train(tmp_path / "run", "--save-data", str(tmp_path / "run" / place)) == 2
    assert "keeps its own files" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_data_that_would_be_replaced_with_the_run_is_refused(whole, tmp_path, capsys):
    assert train(tmp_path / "run") == 0
    data = tmp_path / "run" / "figures" / "data.safetensors"
    data.parent.mkdir()
    data.write_bytes((whole.parent / "data.safetensors").read_bytes())
    assert train(tmp_path / "run", "--data", str(data), "--overwrite") == 2
    assert "keeps its own files" in capsys.readouterr().err and data.exists()


def test_a_row_leads_to_the_next_only_where_that_one_begins_with_its_successor():
    """As where a run in Gymnasium was resumed: the episode at hand is cut off there, without an end."""
    obs, next_obs = [0, 1, 0, 1, 5, 6], [1, 2, 1, 2, 6, 7]
    flags = [False] * 6
    given: Any = {"obs": obs, "action": flags, "reward": [1.0] * 6, "next_obs": next_obs, "terminated": flags}
    assert Dataset(**given, lengths=[4, 2]).episode_lengths.tolist() == [2, 2, 2]
    assert Dataset(**given, lengths=[3, 3]).episode_lengths.tolist() == [2, 1, 1, 2]
    assert Dataset(**given).episode_lengths.tolist() == [2, 2, 2]


@pytest.mark.parametrize("value", [0.5, 300, -1])
def test_numbers_that_an_image_cannot_hold_are_refused(value):
    one: Any = {"action": [0], "reward": [0.0], "next_obs": [[1, 2]], "terminated": [True]}
    image = Box(0, 255, (2,), np.uint8)
    assert Dataset(obs=[[3.0, 255.0]], **one).fitted(image, Discrete(2)).obs.tolist() == [[3, 255]]
    with pytest.raises(DatasetError, match=r"obs of row 0 .*whole numbers from 0 to 255"):
        Dataset(obs=[[value, 2]], **one).fitted(image, Discrete(2))


def test_ragged_arrays_are_refused():
    one: Any = {"action": [0, 0], "reward": [0.0, 0.0], "next_obs": [[1], [2]], "terminated": [True, True]}
    with pytest.raises(DatasetError, match="obs is no array"):
        Dataset(obs=[[1, 2], [3]], **one)
    with pytest.raises(DatasetError, match=r"lengths.*whole numbers"):
        Dataset(obs=[[1], [3]], lengths=[1.5, 0.5], **one)  # pyright: ignore[reportArgumentType]


def test_a_run_in_python_keeps_them_too(whole, tmp_path):
    run = Run.open(whole)
    config: Any = run.config
    config = type(config)(**{**vars(config), "save_data": str(tmp_path / "x"), "out": str(tmp_path / "run")})
    again = Run.create("q-learning", "Maze", run.algorithm(), config, wrappers=run.task.wrappers)
    train_run(again, again.trainer())
    assert same_rows(tmp_path / "x", whole.parent / "data.safetensors")
