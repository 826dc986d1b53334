"""What a run reports is there once, whatever happened to the process that reported it."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX.record_writer import masked_crc32c

from treadle import metrics
from treadle.errors import TreadleError


def chunk(seed, step, **values):
    return {"seed": seed, "step": step, "time": step / 100, **values}


def episode(seed, step, episode_return):
    return chunk(seed, step, episode_return=episode_return, episode_length=int(abs(episode_return)))


def scalars(folder, seed, tag):
    """What TensorBoard itself makes of the event files: `[(step, value), ...]`."""
    found = EventAccumulator(str(folder / "tensorboard" / f"seed-{seed}"), size_guidance={"scalars": 0})
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)] if tag in found.Tags()["scalars"] else []


@pytest.fixture
def run(tmp_path):
    """Two seeds, 100 steps in four chunks, an episode and a loss of every seed in each."""
    with metrics.MetricsWriter(tmp_path, [0, 1]) as writer:
        for step in (25, 50, 75, 100):
            for seed in (0, 1):
                writer.write([episode(seed, step - 5, step + seed), chunk(seed, step, loss=1 / step)])
    return tmp_path


def test_what_was_written_is_read_back_in_order(run):
    records = metrics.read(run)

    assert len(records) == 16
    first = {"seed": 0, "step": 20, "time": 0.2, "episode_return": 25, "episode_length": 25}
    assert records[0] == first
    assert records[-1] == {"seed": 1, "step": 100, "time": 1.0, "loss": 0.01}


def test_tensorboard_shows_each_seed_on_its_own(run):
    assert scalars(run, 0, "episode_return") == [(20, 25), (45, 50), (70, 75), (95, 100)]
    assert scalars(run, 1, "episode_return") == [(20, 26), (45, 51), (70, 76), (95, 101)]
    assert scalars(run, 1, "loss") == [(s, pytest.approx(1 / s)) for s in (25, 50, 75, 100)]


def test_the_time_between_two_points_in_tensorboard_is_the_runs_own(run):
    metrics.drop_after(run, 100)
    found = EventAccumulator(str(run / "tensorboard" / "seed-0"))
    found.Reload()

    times = [event.wall_time for event in found.Scalars("loss")]

    np.testing.assert_allclose(np.diff(times), 0.25, atol=1e-4)


def test_numbers_of_numpy_and_jax_are_numbers_in_the_file(tmp_path):
    import jax.numpy as jnp

    with metrics.MetricsWriter(tmp_path, [0]) as writer:
        writer.write([chunk(np.int64(0), np.int32(7), a=np.float32(0.5), b=jnp.float32(0.25), c=np.int64(3))])

    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == chunk(0, 7, a=0.5, b=0.25, c=3)


def test_what_is_not_finite_is_null_in_the_file_and_a_mark_in_tensorboard(tmp_path):
    with metrics.MetricsWriter(tmp_path, [0]) as writer:
        writer.write([chunk(0, 1, loss=math.nan), chunk(0, 2, loss=-math.inf), chunk(0, 3, loss=np.float32("inf"))])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse)["loss"] for line in lines] == [None, None, None]
    for rebuilt in (False, True):
        if rebuilt:
            metrics.drop_after(tmp_path, 3)
        shown = scalars(tmp_path, 0, "loss")
        assert [step for step, _ in shown] == [1, 2, 3]
        assert all(math.isnan(value) for _, value in shown)


def test_a_second_writer_goes_on_where_the_first_stopped(run):
    with metrics.MetricsWriter(run, [0, 1]) as writer:
        writer.write([episode(0, 120, 9)])

    assert len(metrics.read(run)) == 17
    assert scalars(run, 0, "episode_return") == [(20, 25), (45, 50), (70, 75), (95, 100), (120, 9)]


def test_resuming_drops_what_came_after_the_checkpoint_and_nothing_is_there_twice(run):
    expected = metrics.read(run)

    metrics.drop_after(run, 50)
    assert metrics.read(run) == [r for r in expected if r["step"] <= 50]
    assert scalars(run, 0, "loss") == [(25, pytest.approx(1 / 25)), (50, pytest.approx(1 / 50))]
    with metrics.MetricsWriter(run, [0, 1]) as writer:
        writer.write([r for r in expected if r["step"] > 50])

    assert metrics.read(run) == expected
    for seed in (0, 1):
        assert scalars(run, seed, "episode_return") == [(s - 5, s + seed) for s in (25, 50, 75, 100)]
        assert [step for step, _ in scalars(run, seed, "loss")] == [25, 50, 75, 100]


def test_each_seed_can_have_a_checkpoint_of_its_own(run):
    metrics.drop_after(run, {0: 50, 1: 75})

    assert [r["step"] for r in metrics.read(run) if r["seed"] == 0] == [20, 25, 45, 50]
    assert [r["step"] for r in metrics.read(run) if r["seed"] == 1] == [20, 25, 45, 50, 70, 75]
    metrics.drop_after(run, {0: 25})
    assert [r["step"] for r in metrics.read(run)] == [20, 25, 20, 25, 45, 50, 70, 75]


def test_going_back_to_the_start_leaves_nothing(run):
    metrics.drop_after(run, 0)

    assert metrics.read(run) == []
    assert scalars(run, 0, "loss") == scalars(run, 1, "loss") == []


def test_event_files_come_from_the_lines_even_where_they_are_lost_or_damaged(run):
    shutil.rmtree(run / "tensorboard" / "seed-0")
    next((run / "tensorboard" / "seed-1").iterdir()).write_bytes(b"no events")

    metrics.drop_after(run, 75)

    for seed in (0, 1):
        assert scalars(run, seed, "episode_return") == [(s - 5, s + seed) for s in (25, 50, 75)]


def test_a_failed_rewrite_leaves_the_old_metrics(run, monkeypatch):
    before = (run / "metrics.jsonl").read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metrics.os, "replace", full_disk)
    with pytest.raises(TreadleError, match="No space left on device"):
        metrics.drop_after(run, 50)
    monkeypatch.undo()

    assert (run / "metrics.jsonl").read_bytes() == before
    metrics.drop_after(run, 50)
    assert max(r["step"] for r in metrics.read(run)) == 50


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_half_written_last_line_is_no_record_and_does_not_spoil_the_next(run, cut):
    file = run / "metrics.jsonl"
    whole = metrics.read(run)
    file.write_bytes(file.read_bytes()[:-cut])

    assert metrics.read(run) == whole[:-1]
    with metrics.MetricsWriter(run, [0, 1]) as writer:
        writer.write([whole[-1]])
    assert metrics.read(run) == whole


def test_a_file_of_half_a_line_is_empty(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"seed": 0, "st')
    metrics.MetricsWriter(tmp_path, [0]).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    "damage",
    [
        b"{",
        b"\x00" * 30,
        b"\xff\xfe",
        b"[1, 2]",
        b'{"seed": 0, "time": 1.0}',
        b'{"seed": 0, "step": "7"}',
        b'{"seed": 0, "step": 7, "loss": "high"}',
        b"[" * 100_000,
    ],
)
def test_damage_elsewhere_is_told_with_its_line(run, damage):
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[2] = damage + b"\n"
    file.write_bytes(b"".join(lines))

    with pytest.raises(TreadleError, match=r"line 3 of .*metrics.jsonl is damaged.*Delete that line"):
        metrics.read(run)
    with pytest.raises(TreadleError, match="line 3"):
        metrics.drop_after(run, 50)
    assert file.read_bytes() == b"".join(lines), "what could not be understood must not be thrown away"


def test_no_metrics_yet_is_no_error(tmp_path):
    assert metrics.read(tmp_path) == []
    metrics.drop_after(tmp_path, 10)
    assert list(tmp_path.iterdir()) == []


def test_a_seed_that_was_not_announced_is_refused_before_anything_is_written(tmp_path):
    with (
        metrics.MetricsWriter(tmp_path, [0, 1]) as writer,
        pytest.raises(TreadleError, match=r"seed 2.*the seeds 0, 1"),
    ):
        writer.write([chunk(0, 1, loss=1.0), chunk(2, 1, loss=1.0)])

    assert metrics.read(tmp_path) == []


def test_a_closed_writer_writes_no_more(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, [0])
    writer.close()
    writer.close()
    with pytest.raises(TreadleError, match="closed"):
        writer.write([chunk(0, 1, loss=1.0)])


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TreadleError, match="the metrics cannot be written to"):
        metrics.MetricsWriter(tmp_path / "file" / "run", [0])


def test_a_killed_process_has_written_what_its_writer_was_given(tmp_path):
    """kill -9 right after `write`: no thread, no exit handler and no buffer is needed for the metrics to be there."""
    story = f"""
import os, signal, pathlib
from treadle import metrics
writer = metrics.MetricsWriter(pathlib.Path({str(tmp_path)!r}), [0])
writer.write([{{"seed": 0, "step": i, "time": 0.0, "loss": 2.0}} for i in range(3000)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", story], capture_output=True, text=True, check=False)

    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [r["step"] for r in metrics.read(tmp_path)] == list(range(3000))
    assert len(scalars(tmp_path, 0, "loss")) == 3000


def test_writing_starts_no_thread(tmp_path):
    before = threading.active_count()
    with metrics.MetricsWriter(tmp_path, [0]) as writer:
        writer.write([chunk(0, 1, loss=1.0)])
        assert threading.active_count() == before


@given(st.lists(st.binary(min_size=4, max_size=80), min_size=1, max_size=8))
def test_checksums_side_by_side_are_those_of_tensorboardx(messages):
    found = metrics._EventEncoder()._checksums(messages)
    assert [int.from_bytes(c, "little") for c in found] == [masked_crc32c(message) for message in messages]
