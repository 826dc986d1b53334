"""A run survives what interrupts it: it goes on bit for bit, and nothing that was good is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from treadle import checkpoint, metrics
from treadle.algorithms.q_learning import QLearning
from treadle.cli import main
from treadle.errors import NonFinite, TreadleError
from treadle.loops.host import HostSeeds
from treadle.loops.seeds import FusedSeeds
from treadle.records import check_policy
from treadle.run import Run, RunConfig

STEPS, PERIOD = 400, 80
SETTINGS = "--preset none --learning-starts 50 --batch-size 8 --capacity 150 --hidden-sizes 8 --target-update-period 30"
SMALL = [*SETTINGS.split(), "--total-timesteps", str(STEPS), "--checkpoint-period", str(PERIOD), "--seeds", "2"]
SLOW = """
import time
from treadle.loops.seeds import FusedSeeds

advance = FusedSeeds.advance


def slowly(self, num_updates):
    time.sleep(0.1)
    return advance(self, num_updates)


FusedSeeds.advance = slowly
"""


def train(folder: Path, *flags: str) -> int:
    return main(["train", "dqn", "CartPole-v1", *SMALL, "--out", str(folder), *flags])


def resume(folder: Path, *flags: str) -> int:
    return main(["resume", str(folder), *flags])


def info(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def last_checkpoint(folder: Path) -> Path:
    return Run.open(folder).checkpoints()[-1]


def step_of(path: Path) -> int:
    return checkpoint.read_metadata(path)["step"]


def timeless(folder: Path) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "time"} for record in metrics.read(folder)]


def events(folder: Path, seed: int) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(folder / "tensorboard" / f"seed-{seed}"), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def assert_same_state(one: Path, other: Path):
    """Every leaf of the last checkpoints, byte for byte, read by safetensors itself."""
    first, second = load_file(last_checkpoint(one)), load_file(last_checkpoint(other))
    assert first.keys() == second.keys()
    assert {"algorithm.step.value", "key", "actor.env_state.theta"} <= first.keys()
    for name, leaf in first.items():
        assert leaf.tobytes() == second[name].tobytes(), name


def assert_same_run(one: Path, other: Path):
    assert_same_state(one, other)
    assert timeless(one) == timeless(other)
    for seed in range(2):
        assert events(one, seed) == events(other, seed)


def once(folder: Path, name: str) -> list[int]:
    """The steps at which seed 0 reported a metric; each must be there once."""
    steps = [r["step"] for r in metrics.read(folder) if r["seed"] == 0 and name in r]
    assert steps == sorted(set(steps))
    return steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupted: two seeds on two devices. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(folder) == 0
    return folder


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def in_another_process(folder: Path) -> subprocess.Popen:
    """Training at ten chunks a second, once it is past its second checkpoint and has metrics beyond it."""
    slow = folder.parent / "slow.py"
    slow.write_text(SLOW)
    command = [sys.executable, "-m", "treadle", "train", "dqn", "CartPole-v1", *SMALL]
    command += ["--out", str(folder), "--import", str(slow)]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    give_up = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < give_up:
        saved = sorted((folder / "checkpoints").glob("step-*")) if folder.exists() else []
        if len(saved) > 1:
            records = metrics.read(folder)
            if records and records[-1]["step"] > int(saved[-1].stem.removeprefix("step-")):
                return process
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"the run did not come so far: {process.communicate()}")


def test_killed_in_the_middle_and_resumed_it_is_the_same_run(whole, tmp_path, capsys):
    folder = tmp_path / "killed"
    process = in_another_process(folder)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    saved = step_of(last_checkpoint(folder))
    assert 0 < saved < STEPS
    assert any(record["step"] > saved for record in metrics.read(folder)), "there is something to drop"

    assert resume(folder) == 0
    assert f"Going on from step {saved:,} of {STEPS:,}" in capsys.readouterr().out
    assert_same_run(folder, whole)
    assert info(folder)["status"] == "finished"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal_it_saves_and_says_how_to_go_on(whole, tmp_path, number, status):
    folder = tmp_path / "stopped"
    process = in_another_process(folder)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in said
    saved = step_of(last_checkpoint(folder))
    assert f"stopped at step {saved:,} of {STEPS:,} and saved. Go on with: treadle resume {folder}" in said
    assert max(record["step"] for record in metrics.read(folder)) == saved, "saved where it stood"
    assert info(folder)["status"] == "interrupted"

    assert resume(folder) == 0
    assert_same_run(folder, whole)


def advance_then(monkeypatch, trainer, after: int, action):
    """Call `action` behind the chunk of that number, counted from 1."""
    advance, calls = trainer.advance, []

    def hooked(self, num_updates):
        record = advance(self, num_updates)
        calls.append(num_updates)
        if len(calls) == after:
            action()
        return record

    monkeypatch.setattr(trainer, "advance", hooked)


def test_a_second_ctrl_c_stops_at_once_and_spoils_nothing(whole, tmp_path, monkeypatch, capsys):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    folder, handler = tmp_path / "run", signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        advance_then(patch, FusedSeeds, 15, twice)
        assert train(folder) == 130
    said = capsys.readouterr().err
    assert f"stopped at once, without saving. The last good checkpoint is at step {PERIOD}" in said
    assert f"treadle resume {folder}" in said
    assert signal.getsignal(signal.SIGINT) is handler
    assert step_of(last_checkpoint(folder)) == PERIOD
    assert resume(folder) == 0
    assert_same_run(folder, whole)


def test_from_a_checkpoint_between_two_chunk_boundaries_the_end_is_the_same(whole, tmp_path):
    folder = tmp_path / "run"
    assert train(folder) == 0
    run = Run.open(folder)
    trainer = run.trainer()
    for count in (8, 8, 4):
        trainer.advance(count)
    for path in run.checkpoints():
        path.unlink()
    run.save_checkpoint(trainer, 20)
    assert resume(folder) == 0
    assert_same_state(folder, whole)


def test_resume_from_an_earlier_checkpoint_drops_what_came_after(whole, copy, capsys):
    earlier, last = Run.open(copy).checkpoints()
    assert step_of(earlier) < step_of(last) == STEPS
    assert resume(copy, "--checkpoint", str(earlier)) == 0
    assert "What came after it is dropped" in capsys.readouterr().out
    assert_same_run(copy, whole)


@pytest.mark.slow
def test_seeds_trained_together_are_kept_as_such_and_go_on_bit_for_bit(tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert train(whole, "--layout", "together", "--seeds", "4") == 0
    assert info(whole)["config"]["layout"] == "together"
    shutil.copytree(whole, again)
    assert resume(again, "--checkpoint", str(Run.open(again).checkpoints()[0])) == 0
    assert_same_state(again, whole)


def test_a_finished_run_says_so_and_can_be_extended(whole, copy, capsys):
    assert resume(copy) == 2
    said = capsys.readouterr().err
    assert "nothing is left to do" in said and f"treadle resume {copy} --total-timesteps 800" in said
    assert resume(copy, "--total-timesteps", str(STEPS - 1)) == 2
    assert resume(copy, "--total-timesteps", "0") == 2
    assert info(copy) == info(whole), "a mistake changes nothing"

    assert resume(copy, "--total-timesteps", "480", "--keep-checkpoints", "3") == 0
    assert len(Run.open(copy).checkpoints()) == info(copy)["config"]["keep_checkpoints"] == 3
    assert once(copy, "epsilon")[-1] == 480
    assert timeless(copy)[: len(timeless(whole))] == timeless(whole)
    assert [r["epsilon"] for r in metrics.read(copy) if r["step"] > STEPS and "epsilon" in r] == pytest.approx(
        [0.05] * 20
    )
    assert info(copy)["config"]["total_timesteps"] == 480
    assert info(copy)["command"] == info(whole)["command"]
    assert [r["command"] for r in info(copy)["resumed"]] == [
        f"treadle resume {copy} --total-timesteps 480 --keep-checkpoints 3"
    ]


@pytest.mark.least_optimised
def test_a_host_run_goes_on_with_new_episodes_and_says_so(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "host"
    with monkeypatch.context() as patch:
        advance_then(patch, HostSeeds, 15, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(folder, "--loop", "host", "--seeds", "1") == 143
    saved = load_file(last_checkpoint(folder))
    stopped_at = step_of(last_checkpoint(folder))
    capsys.readouterr()

    restored = []
    restore = HostSeeds.restore
    monkeypatch.setattr(HostSeeds, "restore", lambda self, state: (restored.append(state), restore(self, state)))
    assert resume(folder) == 0
    assert "inner state cannot be saved: new episodes begin" in capsys.readouterr().out
    network = np.asarray(restored[0].algorithm.network.vector)
    assert network.tobytes() == saved["algorithm.network.vector"].tobytes()
    steps = once(folder, "epsilon")
    assert stopped_at in steps and steps[-1] == STEPS
    final = load_file(last_checkpoint(folder))
    assert final["algorithm.step.value"] == STEPS


def test_the_folder_says_what_was_run(whole):
    about = info(whole)
    assert about["command"].startswith("treadle train dqn CartPole-v1 --preset none") and str(whole) in about["command"]
    assert (about["algorithm"], about["environment"], about["preset"]) == ("dqn", "CartPole-v1", None)
    assert about["settings"]["hidden_sizes"] == [8] and about["settings"]["gamma"] == 0.99
    assert about["config"]["seeds"] == 2 and about["config"]["total_timesteps"] == STEPS
    assert {"treadle", "python", "jax", "numpy", "gymnasium", "optax"} <= about["versions"].keys()
    assert about["status"] == "finished" and about["step"] == STEPS and about["wall_seconds"] > 0
    assert {path.name for path in whole.iterdir()} == {"run.json", "metrics.jsonl", "checkpoints", "tensorboard"}
    assert once(whole, "loss")[-1] == STEPS
    assert [step_of(path) for path in Run.open(whole).checkpoints()] == [STEPS - PERIOD, STEPS]
    assert dict(events(whole, 1)["epsilon"]).keys() == set(once(whole, "epsilon"))


@pytest.mark.least_optimised
def test_a_run_of_a_preset_keeps_its_name_and_what_was_changed(tmp_path, capsys):
    folder = tmp_path / "run"
    flags = "--preset tutorial --hidden-sizes 8 --capacity 64 --total-timesteps 20"
    assert main(["train", "dqn", "CartPole-v1", *flags.split(), "--out", str(folder)]) == 0
    assert "preset 'tutorial'" in capsys.readouterr().out
    about = info(folder)
    assert about["preset"] == "tutorial"
    assert about["settings"]["gamma"] == 0.95 and about["settings"]["hidden_sizes"] == [8]


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def nth(number: int, real, then):
    """`real` until the call of that number, from there on `then`."""
    calls = []

    def call(*args, **kwargs):
        calls.append(args)
        return real(*args, **kwargs) if len(calls) < number else then(*args, **kwargs)

    return call


@pytest.mark.parametrize("what", ["checkpoint", "metrics", "run.json"])
def test_a_full_disk_stops_the_run_and_the_last_good_checkpoint_survives(whole, tmp_path, monkeypatch, capsys, what):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        if what == "checkpoint":
            patch.setattr(checkpoint.os, "fsync", nth(5, os.fsync, full_disk))
        elif what == "metrics":
            patch.setattr(metrics, "_append", nth(40, metrics._append, full_disk))
        else:
            patch.setattr(Path, "write_text", nth(4, Path.write_text, full_disk))
        assert train(folder) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said and "Traceback" not in said
    saved = last_checkpoint(folder)
    assert f"The last good checkpoint is at step {step_of(saved)}. To go on afterwards: treadle resume {folder}" in said
    assert not list(folder.glob("**/*.partial")) and not list(folder.glob("*.tmp"))
    assert step_of(saved) < STEPS

    assert resume(folder) == 0
    assert_same_run(folder, whole)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(tmp_path, capsys):
    folder = tmp_path / "run"
    assert train(folder, "--learning-rate", "1e30") == 1
    said = capsys.readouterr().err
    assert "loss became inf at step 5" in said and "(seed 0)" in said
    assert "The last good checkpoint is at step 0" in said and "smaller learning rate" in said
    assert info(folder)["status"] == "failed"
    assert all(np.isfinite(leaf).all() for leaf in load_file(last_checkpoint(folder)).values())
    assert all(value is not None for record in metrics.read(folder) for value in record.values())


def test_a_policy_with_nan_is_not_saved_as_good():
    check_policy({"weight": np.array([1.0, np.inf])}, 10)
    with pytest.raises(NonFinite, match=r"layer\.weight became nan by step 1,000"):
        check_policy({"layer": {"weight": np.array([1.0, np.nan], np.float32), "count": np.array(3)}}, 1_000)


def test_a_folder_that_holds_something_is_not_touched(copy, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert train(copy) == 2
    said = capsys.readouterr().err
    assert "holds a run already" in said and "--overwrite" in said and "treadle resume" in said
    for wrong in (["--gamma", "1.5"], ["--seeds", "0"], ["--seed", "-1"], ["--checkpoint-period", "0"]):
        assert train(copy, "--overwrite", *wrong) == 2
        assert wrong[0] in capsys.readouterr().err
    assert main(["train", "dqn", "Pendulum-v1", "--out", str(copy), "--overwrite"]) == 2
    assert main(["train", "dqn", "Nowhere-v1", "--out", str(copy), "--overwrite"]) == 2
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before

    diary = tmp_path / "diary"
    diary.mkdir()
    (diary / "monday.txt").write_text("rain")
    assert train(diary, "--overwrite") == 2
    assert "is not a run's folder" in capsys.readouterr().err
    (copy / "run.json").write_text("{}")
    assert train(copy, "--overwrite") == 2
    assert "is damaged" in capsys.readouterr().err
    assert (diary / "monday.txt").read_text() == "rain" and (copy / "metrics.jsonl").exists()


def test_overwrite_replaces_the_run_and_nothing_else(whole, copy):
    (copy / "notes.txt").write_text("mine")
    (copy / "figures").mkdir()
    (copy / "metrics.jsonl").write_text("old")
    assert train(copy, "--overwrite") == 0
    assert_same_run(copy, whole)
    assert (copy / "notes.txt").read_text() == "mine" and not (copy / "figures").exists()


def test_what_cannot_be_trained_leaves_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (
        "dqn Pendulum-v1",
        "dqn Nowhere-v1",
        "dqn CartPole-v1 --total-timesteps 0",
        "dqn CartPole-v1 --gamma 2",
    ):
        assert main(["train", *command.split()]) == 2
    file = tmp_path / "file"
    file.touch()
    assert train(file) == 2
    assert "is not a run's folder" in capsys.readouterr().err
    assert train(file / "below") == 2
    assert "cannot be made: Not a directory" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full_disk)
        assert train(tmp_path / "new") == 2
    assert "cannot be made" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


def edit_info(folder: Path, **changes):
    (folder / "run.json").write_text(json.dumps({**info(folder), **changes}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: (run / "run.json").unlink(), "is not a run's folder"),
        (lambda run: (run / "run.json").write_text('{"format": 1'), "is damaged"),
        (lambda run: (run / "run.json").write_text("[]"), "is damaged: it is not what Treadle writes"),
        (lambda run: (run / "run.json").write_bytes(b"\xff\xfe"), "is damaged"),
        (lambda run: edit_info(run, format=99), "has format 99"),
        (lambda run: edit_info(run, settings=None), "'settings' is None"),
        (lambda run: edit_info(run, config={"seeds": "two"}), "in its config is"),
        (lambda run: edit_info(run, config={**info(run)["config"], "sedes": 2}), "'sedes' in its config is 2"),
        (lambda run: edit_info(run, config={**info(run)["config"], "seeds": 0}), "seeds (--seeds) was 0"),
        (lambda run: edit_info(run, wall_seconds=float("nan")), "'wall_seconds' is nan"),
        (lambda run: edit_info(run, settings={**info(run)["settings"], "gamma": "high"}), "settings make no sense"),
        (lambda run: edit_info(run, settings={**info(run)["settings"], "gamma": 1.5}), "gamma (--gamma) was 1.5"),
        (lambda run: edit_info(run, settings={"gama": 0.9}), "Did you mean 'gamma'?"),
        (lambda run: edit_info(run, environment="Nowhere-v1"), "there is no environment 'Nowhere-v1'"),
    ],
)
def test_a_run_whose_description_is_damaged_says_so(copy, capsys, spoil, said):
    spoil(copy)
    for command in ("resume", "evaluate"):
        assert main([command, str(copy)]) == 2
        told = capsys.readouterr().err
        assert said in told and told.startswith("treadle: ") and told.count("\n") == 1
    assert last_files(copy), "nothing is lost"


def last_files(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("*.safetensors"))


def other_algorithm(path: Path):
    checkpoint.save(path, {"q": np.zeros(3)}, {**checkpoint.read_metadata(path), "algorithm": "sarsa"})


def other_settings(path: Path):
    about = checkpoint.read_metadata(path)
    checkpoint.save(path, {"q": np.zeros(3)}, {**about, "settings": {**about["settings"], "gamma": 0.5}})


def of_an_agent(path: Path):
    checkpoint.save(path, {"q": np.zeros(3)}, {"kind": "agent", "algorithm": "dqn"})


def other_shape(path: Path):
    checkpoint.save(path, {"q": np.zeros(3)}, checkpoint.read_metadata(path))


def damage(path: Path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (damage, "is damaged or was cut short"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged or was cut short"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "is damaged or was cut short"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_bytes(b"\x80\x04pickled"), "looks like a pickle"),
        (other_algorithm, "its algorithm is sarsa, and this run's is dqn"),
        (other_settings, "its gamma is 0.5, and this run's is 0.99"),
        (of_an_agent, "is not a run's checkpoint"),
        (other_shape, "was expected"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_says_why_and_names_an_earlier_one(copy, capsys, spoil, said):
    earlier, last = last_files(copy)
    spoil(last)
    for command in (["resume", str(copy), "--total-timesteps", "800"], ["evaluate", str(copy)]):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert said in told and f"--checkpoint {earlier}" in told and told.count("\n") == 1
    assert info(copy)["config"]["total_timesteps"] == STEPS
    assert len(metrics.read(copy)) and last_files(copy) == [earlier, last]


def test_an_earlier_checkpoint_mends_a_run_whose_last_is_damaged(whole, copy):
    earlier, last = last_files(copy)
    damage(last)
    assert resume(copy, "--checkpoint", str(earlier)) == 0
    assert_same_run(copy, whole)


def test_a_run_without_a_checkpoint_says_how_to_begin_again(copy, capsys):
    shutil.rmtree(copy / "checkpoints")
    for command in ("resume", "evaluate"):
        assert main([command, str(copy)]) == 2
        told = capsys.readouterr().err
        assert "has no checkpoint" in told and "treadle train dqn CartPole-v1" in told
    assert resume(copy, "--checkpoint", str(copy / "nothing.safetensors")) == 2
    assert "there is no checkpoint" in capsys.readouterr().err


def test_to_start_anew_is_to_do_so_in_the_folder_at_hand(tmp_path):
    """A run that was moved must not replace another that stands where it was."""
    config = RunConfig(out=str(tmp_path / "there"))
    command = ["treadle", "train", "q-learning", "Maze", "--out", str(tmp_path / "there"), "--overwrite"]
    Run.create("q-learning", "Maze", QLearning(), config, command)
    (tmp_path / "there").rename(tmp_path / "here")
    moved = Run.open(tmp_path / "here")
    assert moved.anew_command == f"treadle train q-learning Maze --out {tmp_path / 'here'} --overwrite"
    with pytest.raises(TreadleError, match=r"Start it anew: treadle train q-learning Maze --out .*here"):
        moved.restore(moved.trainer())
