"""The browser window's server: what it shows of a run as that grows, how it is steered, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from treadle import metrics, training
from treadle.algorithms.q_learning import QLearning
from treadle.cli import main
from treadle.errors import InvalidSetting, TreadleError
from treadle.run import Run, RunConfig
from treadle.window import curves, messages, stage
from treadle.window.curves import Curves
from treadle.window.messages import Command, Malformed
from treadle.window.runs import Runs
from treadle.window.server import DEFAULT_PORT, GONE, is_local, listen, make_server, own_hosts
from treadle.window.session import Client, News, Options, Session
from treadle.window.stage import Stage

STEPS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run, of two seeds, that kept all its checkpoints."""
    parent = tmp_path_factory.mktemp("runs")
    config = RunConfig(
        total_timesteps=STEPS, seeds=2, out=str(parent / "maze"), checkpoint_period=100, keep_checkpoints=0
    )
    run = Run.create("q-learning", "Maze", QLearning(), config)
    trainer = run.trainer()
    training.train(run, trainer)
    trainer.close()
    return parent


@pytest.fixture
def run_folder(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(folder / "maze", tmp_path / "runs" / "maze"))


def steps_of(folder: Path) -> list[int]:
    return [int(path.stem[5:]) for path in Run.open(folder).checkpoints()]


# Curves


def write_lines(folder: Path, records: Sequence[dict[str, Any]], mode: str = "a") -> None:
    with (folder / metrics.FILE).open(mode) as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def episode(seed: int, step: int, value: float, **more: Any) -> dict[str, Any]:
    return {"seed": seed, "step": step, "time": 0.0, "episode_return": value, "episode_length": 1.0, **more}


def test_curves_are_means_of_bins(tmp_path: Path):
    """Of 400 steps a bin is 2: two episodes in the first, one that stands for three in the second. After the last step
    reported nothing is known."""
    read = Curves(tmp_path, 400, 2)
    assert (len(read.steps), read.steps[0], read.steps[-1]) == (200, 2, 400)
    write_lines(tmp_path, [episode(0, 1, 2.0), episode(0, 2, 4.0), episode(0, 3, 1.0), episode(0, 4, 5.0, episodes=3)])
    write_lines(tmp_path, [episode(1, 5, 8.0), {"seed": 1, "step": 9, "loss": 0.5}, {"seed": 0, "step": 9, "loss": 1}])
    assert read.read()
    seeds = read.returns()
    assert seeds[0][:6] == [3.0, 4.0, 4.0, 4.0, 4.0, None]
    assert seeds[1][:6] == [None, None, 8.0, 8.0, 8.0, None]
    assert read.mean_return()[:6] == [3.0, 4.0, 6.0, 6.0, 6.0, None]
    assert read.others() == {"loss": [*[None] * 4, 0.75, *[None] * 195]}
    assert not read.read()
    assert len(messages.encode(curves.message(read))) < 10_000


def test_a_growing_file_is_read_on_from_where_it_was(tmp_path: Path):
    """A line that is being written counts once it is whole."""
    read, whole = Curves(tmp_path, 10, 1), Curves(tmp_path, 10, 1)
    assert not read.read()
    lines = [json.dumps(episode(0, step, float(step))) for step in range(1, 11)]
    text = "".join(f"{line}\n" for line in lines)
    changes = 0
    for end in range(0, len(text) + 1, 37):
        (tmp_path / metrics.FILE).write_text(text[:end])
        changes += read.read()
        known = [value for value in read.returns()[0] if value is not None]
        assert known == [float(step) for step in range(1, text[:end].count("\n") + 1)]
    (tmp_path / metrics.FILE).write_text(text)
    read.read()
    whole.read()
    assert changes >= 9
    assert read.returns() == whole.returns() == [[float(step) for step in range(1, 11)]]
    assert read.problem is None


def test_a_file_that_was_cut_or_replaced_is_read_anew(tmp_path: Path):
    read = Curves(tmp_path, 10, 1)
    write_lines(tmp_path, [episode(0, step, 1.0) for step in range(1, 9)])
    read.read()
    metrics.drop_after(tmp_path, 4)
    write_lines(tmp_path, [episode(0, step, 2.0) for step in range(5, 11)])
    assert read.read()
    assert read.returns() == [[1.0] * 4 + [2.0] * 6]
    (tmp_path / metrics.FILE).write_text("damaged\n")
    assert read.read() and read.problem is not None
    write_lines(tmp_path, [episode(0, 1, 7.0)], mode="w")
    assert read.read() and read.problem is None
    assert read.returns() == [[7.0, *[None] * 9]]
    (tmp_path / metrics.FILE).unlink()
    assert read.read()
    assert read.returns() == [[None] * 10]


@pytest.mark.parametrize(
    "damage",
    [
        *(
            '{"seed": 0',
            "[1]",
            '{"seed": 9, "step": 1}',
            '{"seed": 0, "step": 1, "loss": "x"}',
            "[" * 5000,
            "x" * 200_000,
        ),
        '{"seed": 0, "step": 1, "episode_return": 1e308}',
        '{"seed": 0, "step": 1, "episode_return": 1, "episodes": -2}',
    ],
)
def test_a_damaged_line_is_named_once_and_left_out(tmp_path: Path, damage: str):
    read = Curves(tmp_path, 10, 1)
    write_lines(tmp_path, [episode(0, 1, 1.0)])
    with (tmp_path / metrics.FILE).open("a") as file:
        file.write(damage + "\n" + damage + "\n")
    write_lines(tmp_path, [episode(0, 2, 3.0)])
    read.read()
    assert read.returns()[0][:2] == [1.0, 3.0]
    assert read.problem is not None and read.problem.startswith("Line 2 of metrics.jsonl is damaged")


def test_of_absurdly_many_seeds_the_first_are_shown(tmp_path: Path):
    read = Curves(tmp_path, 10, 10**8)
    write_lines(tmp_path, [episode(3, 1, 7.0), episode(10**7, 1, 5.0)])
    assert read.read() and read.problem is None
    assert len(read.returns()) == curves.MOST_SEEDS
    assert read.mean_return()[0] == 7.0


def test_much_is_read_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(curves, "LINES_AT_ONCE", 3)
    read = Curves(tmp_path, 10, 1)
    write_lines(tmp_path, [episode(0, step, 1.0) for step in range(1, 11)])
    parts = 1
    while read.read() and read.has_more():
        parts += 1
    assert parts == 4
    assert read.returns() == [[1.0] * 10]


# The runs of a folder


def edit_info(folder: Path, **changes: Any) -> None:
    """Settings of the configuration go there."""
    info = json.loads((folder / "run.json").read_text())
    for name, value in changes.items():
        (info["config"] if name in info["config"] else info)[name] = value
    (folder / "run.json").write_text(json.dumps(info))


BAD = [
    *({"total_timesteps": 0}, {"total_timesteps": -5}, {"seeds": 0}, {"seeds": -1}, {"keep_checkpoints": -1}),
    *({"wall_seconds": float("nan")}, {"step": float("inf")}, {"step": -1}, {"status": float("nan")}),
    {"preset": float("nan")},
]


def test_a_bad_run_is_no_trouble_of_the_others(run_folder: Path):
    """What makes no sense, what is large beyond sense, and what no address can name."""
    parent = run_folder.parent
    for number, changes in enumerate(BAD):
        shutil.copytree(run_folder, parent / f"bad {number}", ignore=shutil.ignore_patterns("checkpoints"))
        edit_info(parent / f"bad {number}", **changes)
    shutil.copytree(run_folder, parent / "large")
    edit_info(parent / "large", seeds=10**8, status="\ud800")
    (parent / "large" / metrics.FILE).write_text('{"seed":0,"step":1,"episode_return":1e308}\n' * 3)
    with contextlib.suppress(OSError):  # not everywhere there are such names
        shutil.copytree(run_folder, os.fsdecode(os.fsencode(parent) + b"/l\xe4uft"))
    listed = Runs(parent).listed()
    messages.encode(listed).encode("ascii")
    runs = {run["name"]: run for run in listed["runs"]}
    assert [name for name, run in runs.items() if run["problem"] is None and run["seeds"] == 2] == ["maze"]
    assert runs["maze"]["score"] is not None
    for number, changes in enumerate(BAD):
        assert next(iter(changes)) in runs[f"bad {number}"]["problem"]
    assert runs["large"]["problem"] is None and runs["large"]["curve"] is None
    assert not News(parent / "large").look().has_more
    assert all(run["name"].isascii() or "rename the folder" in run["problem"] for run in runs.values())


def test_an_error_of_one_run_is_told_there(run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(run: Run) -> Any:
        raise ZeroDivisionError("of its own")

    monkeypatch.setattr(Run, "algorithm", broken)
    (run,) = Runs(run_folder.parent).listed()["runs"]
    assert run["problem"] == "maze cannot be shown: ZeroDivisionError: of its own" and run["seeds"] == 2


def test_a_long_run_is_listed_before_all_of_it_is_read(run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    write_lines(run_folder, [episode(0, step, 1.0) for step in range(1, 8)], mode="w")
    monkeypatch.setattr(curves, "LINES_AT_ONCE", 3)
    runs = Runs(run_folder.parent)
    found = [runs.listed()["runs"][0] for _ in range(3)]
    assert [run["is_whole"] for run in found] == [False, False, True]
    assert [run["score"] for run in found] == [None, None, 1.0]
    about = runs.about("maze")
    assert about is not None and about["run"] | {"curve": None, "score": None} == about["run"]
    assert Runs(run_folder).about() == about | {"folder": None}
    assert runs.about("nothing") is None and runs.about() == {**about, "run": None}


def test_a_module_is_imported_only_by_who_names_it(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Gymnasium imports what stands before a colon."""
    module = tmp_path / "worlds_of_somebody.py"
    module.write_text("raise SystemExit('it has run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    edit_info(run_folder, environment="worlds_of_somebody:World-v0")
    (run,) = Runs(run_folder.parent).listed()["runs"]
    assert "with --import" in run["problem"]
    played = Played(run_folder)
    for _ in range(2):
        played.turn(Command("news"))
        assert "'worlds_of_somebody'" in played.told[0]["text"]
    assert main(["watch", str(run_folder), "--no-browser"]) == 2
    assert "with --import" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "worlds_of_somebody", types.ModuleType("worlds_of_somebody"))
    Run.open(run_folder).check_module()


# News


def test_files_with_other_names_are_no_checkpoints(run_folder: Path):
    (run_folder / "checkpoints" / "step-best.safetensors").touch()
    found = json.loads(News(run_folder).look().out[0].text)
    assert found["checkpoints"] == steps_of(run_folder)


def test_a_run_that_is_being_replaced_is_no_news(run_folder: Path):
    """First its description goes, and soon there is another; what stays away is told at the second look."""
    news, info, aside = News(run_folder), run_folder / "run.json", run_folder / "aside"
    news.look()
    info.rename(aside)
    assert news.look().out == []
    aside.rename(info)
    assert news.look().out == []
    info.unlink()
    assert news.look().out == []
    assert "has no run.json" in news.look().out[0].text
    assert news.look().out == []


# Messages


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ('{"type":"play"}', Command("play", None, 7)),
        ('{"type":"speed","value":0.25}', Command("speed", 0.25, 7)),
        ('{"type":"speed","value":"max"}', Command("speed", float("inf"), 7)),
        ('{"type":"seed","value":3}', Command("seed", 3, 7)),
        ('{"type":"follow","value":true}', Command("follow", True, 7)),
        ('{"type":"drag","handle":"goal","x":1,"y":-2.5}', Command("drag", ("goal", (1.0, -2.5)), 7)),
        ('{"type":"keys","held":["ArrowLeft"]}', Command("keys", ("ArrowLeft",), 7)),
    ],
)
def test_messages_become_commands(text: str, command: Command):
    assert messages.parse(text, 7) == command


MALFORMED = [
    *("", "no JSON", "7", "null", "[]", "{}", '{"type":7}', '{"type":"fly"}', '{"type":["play"]}', "[" * 4000),
    *(
        f'{{"type":"seed","value":{value}}}'
        for value in ("-1", "1.5", "true", "null", '"1"', "[]", "1e9999", "9" * 4000)
    ),
    *(f'{{"type":"speed","value":{value}}}' for value in ("0", "3", "-1", "NaN", "true", '"fast"')),
    *('{"type":"seed"}', '{"type":"follow","value":1}', '{"type":"keys","held":"a"}', '{"type":"keys","held":[1]}'),
    *('{"type":"drag","handle":"goal","x":NaN,"y":0}', '{"type":"drag","handle":1,"x":0,"y":0}'),
    *('{"type":"drag","handle":"goal","x":Infinity,"y":0}', '{"type":"drag","handle":"goal"}', '{"type":"\\ud800"}'),
]


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_messages_are_told_in_a_sentence(text: str):
    with pytest.raises(Malformed, match="A message was not understood") as told:
        messages.parse(text, 0)
    messages.notice(str(told.value)).encode()


# What is played


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Played:
    """A stage of the maze, which goes 4 steps a second, with a clock of the test's own."""

    def __init__(self, folder: Path, live: bool = False):
        self.clock = Clock()
        self.stage = Stage(folder, "maze", live, clock=self.clock)
        self.told: list[dict[str, Any]] = []

    def turn(self, *commands: Command, seconds: float = 0.0) -> dict[str, Any] | None:
        """The frame of a turn that comes so many seconds after the last; what else was said is in `told`."""
        self.clock.now += seconds
        turn = self.stage.turn(commands, {None, 0, 1})
        self.delay = turn.delay
        said = [json.loads(out.text) for out in turn.out]
        self.told = [message for message in said if message["type"] != "frame"]
        frames = [message for message in said if message["type"] == "frame"]
        assert len(frames) <= 1
        return frames[0] if frames else None

    def frame(self, *commands: Command, seconds: float = 0.0) -> dict[str, Any]:
        found = self.turn(*commands, seconds=seconds)
        assert found is not None
        return found

    def open(self) -> dict[str, Any]:
        """The run is told of first, and loaded in the turn that follows at once."""
        assert self.turn(Command("news")) is None
        self.hello = self.told[0]
        assert self.delay == 0.0
        return self.frame()


@pytest.fixture
def played(folder: Path) -> Iterator[Played]:
    made = Played(folder / "maze")
    yield made
    made.stage.close()


def test_a_run_is_introduced_and_its_newest_checkpoint_plays(played: Played, folder: Path):
    first = played.open()
    hello = played.hello
    assert hello["run"] | {"command": None, "status": None} == {
        "name": "maze",
        "algorithm": "q-learning",
        "environment": "Maze",
        "preset": None,
        "seeds": 2,
        "status": None,
        "step": STEPS,
        "total_timesteps": STEPS,
        "command": None,
    }
    assert hello["checkpoints"] == steps_of(folder / "maze")
    assert hello["steps_per_second"] == 4.0 and hello["drawing"] == "scene" and hello["evaluated"] is None
    assert hello["actions"]["kind"] == "discrete" and len(hello["actions"]["names"]) == 4
    assert (first["number"], first["episode"], first["step"], first["reward"]) == (1, 1, 0, None)
    assert first["control"] == {
        "playing": True,
        "speed": 1.0,
        "seed": 0,
        "checkpoint": STEPS,
        "follow": False,
        "start": 0,
    }
    assert first["scene"]["cells"] == [4, 4] and first["image"] is None
    assert len(first["insight"]["q_values"]) == 4
    (table,) = played.told
    assert (table["type"], table["columns"], table["rows"], len(table["values"])) == ("table", 4, 4, 16)
    assert table["values"][0] == first["insight"]["q_values"]
    assert table["directions"] == [[0, -1], [0, 1], [1, 0], [-1, 0]]


def test_steps_come_at_the_worlds_pace(played: Played):
    played.open()
    assert played.delay == pytest.approx(0.25)
    assert played.turn(seconds=0.24) is None
    assert played.frame(seconds=0.01)["step"] == 1
    assert played.frame(Command("speed", 8.0), seconds=0.0)["step"] == 2
    assert played.delay == pytest.approx(1 / 32)
    assert played.frame(Command("speed", 0.25), seconds=0.0)["step"] == 3
    assert played.delay == pytest.approx(1.0)


def test_who_is_late_does_not_hurry_afterwards(played: Played):
    played.open()
    assert played.frame(seconds=60.0)["step"] == 1
    assert played.turn(seconds=0.2) is None


def test_an_end_is_shown_for_a_while_before_the_next_start(played: Played):
    played.open()
    frame = played.frame(seconds=0.25)
    while frame["ended"] is None:
        frame = played.frame(seconds=0.25)
    assert frame["ended"] == "terminated"
    assert played.turn(seconds=0.6) is None
    following = played.frame(seconds=0.11)
    assert (following["step"], following["ended"], following["control"]["start"]) == (0, None, 1)
    assert (following["episode"], following["number"]) == (2, frame["number"] + 1)


def test_as_fast_as_it_goes_a_turn_ends_with_an_episode(played: Played):
    """The clock stands still, so that only the episodes' ends end the turns."""
    played.open()
    frames = [played.frame(Command("speed", float("inf")))]
    frames += [played.frame() for _ in range(5)]
    assert all(frame["ended"] for frame in frames)
    assert [frame["episode"] for frame in frames] == [1, 2, 3, 4, 5, 6]
    assert frames[0]["control"]["speed"] == "max"


def test_pausing_and_stepping(played: Played):
    played.open()
    frame = played.frame(Command("pause"))
    assert not frame["control"]["playing"] and played.delay is None
    assert played.turn(seconds=100.0) is None
    assert played.frame(Command("step"))["step"] == frame["step"] + 1
    assert played.frame(Command("step"), Command("step"))["step"] == frame["step"] + 3
    assert played.frame(Command("play"))["control"]["playing"]


def test_another_seed_goes_on_in_the_same_place(played: Played):
    played.open()
    played.frame(Command("step"))
    frame = played.frame(Command("seed", 1))
    assert (frame["control"]["seed"], frame["step"]) == (1, 1)
    (table,) = played.told
    assert frame["insight"]["q_values"] in table["values"]
    player: Any = played.stage._player
    player.follow = None
    assert played.frame(Command("seed", 0))["control"]["seed"] == 1, "the page is told what holds instead"
    assert played.told[0]["text"].startswith("That failed: TypeError")
    assert played.frame(Command("seed", 2))["control"]["seed"] == 1
    assert "no seed 2" in played.told[0]["text"] and played.told[0]["level"] == "error"


def test_a_start_of_a_number(played: Played):
    played.open()
    frame = played.frame(Command("pause"), Command("start", 41))
    assert (frame["control"]["start"], frame["step"], frame["episode"]) == (41, 0, 2)
    assert played.frame(Command("reset"))["control"]["start"] == 42


def test_what_a_page_wishes_before_there_is_anything_holds_when_it_comes(played: Played, folder: Path):
    """A page that comes back after the server was started anew says what it showed."""
    earlier = steps_of(folder / "maze")[0]
    wishes = [Command("pause"), Command("speed", 4.0), Command("seed", 1), Command("checkpoint", earlier)]
    played.turn(*wishes, Command("start", 7))
    control = played.open()["control"]
    expected = {"playing": False, "speed": 4.0, "seed": 1, "checkpoint": earlier, "follow": False, "start": 7}
    assert control == expected


def test_a_key_steps_while_paused_and_steers_while_held(played: Played):
    played.open()
    player: Any = played.stage._player
    player.keys = {"ArrowUp": 0, "ArrowRight": 2}
    assert played.frame(Command("pause"))["step"] == 0
    frame = played.frame(Command("keys", ("ArrowRight",), 0))
    assert (frame["step"], frame["action"], frame["person"]) == (1, 2, True)
    assert played.turn(Command("keys", ("ArrowRight",), 0)) is None
    frame = played.frame(Command("keys", ("ArrowRight", "ArrowUp"), 1))
    assert (frame["step"], frame["action"]) == (2, 0)
    assert played.turn(Command("keys", ("Space",), 1)) is None
    frame = played.frame(Command("step"))
    assert (frame["step"], frame["action"], frame["person"]) == (3, 2, True)
    # The client goes, and with it what it held.
    played.stage.turn([], {1})
    assert not played.frame(Command("step"))["person"]


def test_nothing_can_be_dragged_where_there_are_no_handles(played: Played):
    played.open()
    assert played.turn(Command("drag", ("goal", (1.0, 1.0)), 0)) is None
    assert "'goal'" in played.told[0]["text"]


def test_a_checkpoint_that_is_gone_gives_way_to_the_newest(run_folder: Path):
    played = Played(run_folder)
    played.open()
    earlier = steps_of(run_folder)[0]
    assert played.frame(Command("checkpoint", earlier))["control"]["checkpoint"] == earlier
    Run.open(run_folder).checkpoints()[1].unlink()
    gone = earlier + 100
    frame = played.frame(Command("checkpoint", gone), seconds=0.0)
    assert frame["control"]["checkpoint"] == STEPS
    assert f"step {gone:,} is no longer there" in played.told[0]["text"]
    played.stage.close()


def test_a_damaged_checkpoint_is_told_and_the_former_plays_on(run_folder: Path):
    played = Played(run_folder)
    played.open()
    path = Run.open(run_folder).checkpoints()[0]
    path.write_bytes(path.read_bytes()[:-10])
    played.turn(Command("checkpoint", int(path.stem[5:])))
    assert "damaged" in played.told[0]["text"]
    assert played.frame(Command("step"))["control"]["checkpoint"] == STEPS
    # That which is shown is not read again.
    Run.open(run_folder).checkpoints()[-1].write_bytes(b"")
    assert played.frame(Command("checkpoint", STEPS))["control"]["checkpoint"] == STEPS
    assert played.told == []
    played.stage.close()


def test_a_run_whose_newest_checkpoint_is_damaged_shows_the_one_before(run_folder: Path):
    earlier, newest = Run.open(run_folder).checkpoints()[-2:]
    newest.write_bytes(newest.read_bytes()[:-5])
    played = Played(run_folder)
    played.turn(Command("news"))
    shown = played.turn()
    assert shown is not None and shown["control"]["checkpoint"] == int(earlier.stem[5:])
    (told,) = [message["text"] for message in played.told if message["type"] == "notice"]
    assert "damaged" in told and told.endswith(f"is shown instead of that at step {STEPS:,}.")
    played.stage.close()


def test_a_run_whose_only_checkpoint_is_damaged_plays_once_it_is_whole(run_folder: Path):
    *others, newest = Run.open(run_folder).checkpoints()
    for path in others:
        path.unlink()
    data = newest.read_bytes()
    newest.write_bytes(data[:-5])
    played = Played(run_folder, live=True)
    played.turn(Command("news"))
    assert played.turn() is None and "damaged" in played.told[0]["text"]
    newest.write_bytes(data)
    assert played.frame(Command("news"))["control"]["playing"]
    played.stage.close()


def test_a_run_that_cannot_be_drawn_says_so_each_time(run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    def undrawn(task: Any) -> Any:
        raise TreadleError("it cannot be drawn")

    played = Played(run_folder)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "drawn_environment", undrawn)
        for command in ("news", "play", "news"):
            assert played.turn(Command(command)) is None
            assert [told["text"] for told in played.told] == ["it cannot be drawn"] * (command == "news")
    edit_evaluation(run_folder, float("nan"))
    assert played.open() and played.hello["evaluated"] is None
    played.stage.close()


def edit_evaluation(folder: Path, mean: float) -> None:
    about = {"environment": "Maze", "step": STEPS, "episodes": 3, "summary": {"mean": mean}}
    (folder / "evaluation.json").write_text(json.dumps(about))


def test_live_the_newest_checkpoint_is_followed(run_folder: Path):
    """First there is none, then one, then another; whoever chooses one stays with it."""
    run, aside = Run.open(run_folder), run_folder.parent / "aside"
    shutil.copytree(run_folder / "checkpoints", aside)
    files = run.checkpoints()
    for file in files:
        file.unlink()

    def bring(index: int) -> None:
        shutil.copy(aside / files[index].name, files[index])

    played = Played(run_folder, live=True)
    played.turn(Command("news"))
    assert played.turn() is None
    assert "Waiting for the first checkpoint" in played.told[0]["text"] and played.delay is None
    bring(0)
    first = played.frame(Command("news"))
    assert (first["control"]["checkpoint"], first["control"]["follow"], first["step"]) == (
        steps_of(run_folder)[0],
        True,
        0,
    )
    played.frame(seconds=0.25)
    bring(1)
    frame = played.frame(Command("news"))
    assert (frame["control"]["checkpoint"], frame["step"]) == (steps_of(run_folder)[1], 1)
    frame = played.frame(Command("checkpoint", steps_of(run_folder)[0]))
    assert not frame["control"]["follow"]
    bring(2)
    assert played.turn(Command("news")) is None
    assert played.frame(Command("follow", True))["control"]["checkpoint"] == steps_of(run_folder)[2]
    # What was chosen before is forgotten when the run goes on, too.
    edit_info(run_folder, total_timesteps=2 * STEPS)
    played.turn(Command("news"))
    assert played.frame()["control"]["checkpoint"] == steps_of(run_folder)[2]
    played.stage.close()


def test_a_run_that_was_replaced_is_opened_anew(run_folder: Path):
    played = Played(run_folder)
    played.open()
    edit_info(run_folder, total_timesteps=600)
    assert played.turn(Command("news"), Command("step")) is None
    assert played.told[0]["type"] == "hello" and played.told[0]["run"]["total_timesteps"] == 600
    assert played.frame()["control"]["checkpoint"] == STEPS
    played.stage.close()


def trained(folder: Path, environment: str, **config: Any) -> Path:
    run = Run.create("q-learning", environment, QLearning(), RunConfig(total_timesteps=20, out=str(folder), **config))
    trainer = run.trainer()
    training.train(run, trainer)
    trainer.close()
    return folder


def test_gymnasiums_environments_are_shown_by_their_frames(tmp_path: Path):
    played = Played(trained(tmp_path / "maze", "FrozenLake-v1", seeds=2))
    frame = played.open()
    assert (played.hello["drawing"], played.hello["keys"]) == ("image", [])
    assert frame["scene"] is None and frame["image"].startswith("data:image/jpeg;base64,")
    assert played.frame(Command("step"), Command("seed", 1))["step"] == 1
    played.stage.close()


def test_what_was_learned_from_stored_transitions_is_shown(tmp_path: Path):
    data = str(tmp_path / "data.safetensors")
    trained(tmp_path / "acting", "Maze", save_data=data)
    played = Played(trained(tmp_path / "maze", "Maze", data=data, seeds=2))
    assert played.open()["scene"] is not None
    played.stage.close()


def test_a_world_that_breaks_pauses(played: Played, caplog: pytest.LogCaptureFixture):
    played.open()
    player: Any = played.stage._player

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("of the world's own")

    player._advance = broken
    assert played.turn(seconds=1.0) is None
    assert "ZeroDivisionError" in played.told[0]["text"] and played.delay is None
    assert "Traceback" in caplog.text


# The session


def test_of_choices_that_wait_the_last_counts(folder: Path):
    async def asked(*commands: Command) -> list[Command]:
        session = Session(folder / "maze", "maze", Options())
        for command in commands:
            await session._ask(command)
        found, session._commands = session._commands, []
        await session.close()
        return found

    choices = [Command("checkpoint", step, 0) for step in (100, 200, 300)]
    drags = [Command("drag", (handle, (x, 0.0)), 0) for handle in ("goal", "lamp") for x in (1.0, 2.0)]
    others = [Command("checkpoint", 100, 1), Command("step", None, 1), Command("step", None, 1)]
    found = asyncio.run(asked(*choices, *drags, *others))
    assert found == [choices[-1], drags[1], drags[3], *others]


def test_another_run_takes_away_what_was_to_be_seen_of_the_last():
    client = Client(0)
    for kind in ("frame", "table", "curves", "hello"):
        client.put(kind, "")
    assert client._slots.keys() == {"curves", "hello"}


# The server


class Served:
    """A server in a thread, as `treadle watch` runs it."""

    def __init__(self, path: Path, host: str = "127.0.0.1", **options: Any):
        options = {"hold_seconds": 0.0, "poll_seconds": 0.05, **options}
        self.sock = listen("127.0.0.1", 0)
        self.port = self.sock.getsockname()[1]
        self.server = make_server(Runs(path, options.get("live", False)), Options(**options), host, self.port)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.sock]})
        self.thread.start()

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()

    def settle(self) -> None:
        """Wait until all who were connected are dealt with."""
        settle(lambda: not self.server.server_state.connections and not self.server.server_state.tasks)

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
        """The path is sent as it stands."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host="Host" in headers)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), {k.lower(): v for k, v in answer.getheaders()}

    def connect(self, name: str = "maze", **options: Any) -> ClientConnection:
        return connect(f"ws://127.0.0.1:{self.port}/ws/{name}", open_timeout=30, **options)


@contextlib.contextmanager
def serving(path: Path, **options: Any) -> Iterator[Served]:
    served = Served(path, **options)
    try:
        yield served
    finally:
        served.close()


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    """One server for all tests that leave their run as it is."""
    with serving(folder, frames_per_second=200.0, linger_seconds=0.0) as made:
        yield made


def until(
    page: ClientConnection, kind: str, accept: Callable[[dict[str, Any]], bool] = lambda _: True
) -> dict[str, Any]:
    """The first message of a kind that is accepted; the others before it are passed over."""
    while True:
        message = json.loads(page.recv(timeout=60))
        if message["type"] == kind and accept(message):
            return message


def send(page: ClientConnection, kind: str, **values: Any) -> None:
    page.send(json.dumps({"type": kind, **values}))


def test_the_runs_of_a_folder_are_listed(served: Served, folder: Path):
    status, text, _ = served.get("/api/runs")
    listed = json.loads(text)
    assert (status, listed["folder"], listed["live"]) == (200, str(folder.resolve()), False)
    (run,) = listed["runs"]
    assert (run["name"], run["algorithm"], run["environment"], run["seeds"]) == ("maze", "q-learning", "Maze", 2)
    assert (run["step"], run["checkpoints"], run["problem"]) == (STEPS, len(steps_of(folder / "maze")), None)
    assert -1.0 <= run["score"] <= 1.0
    assert len(run["curve"]["mean"]) == len(run["curve"]["steps"]) == 200


def test_a_page_that_connects_is_told_all_there_is(served: Served):
    with served.connect() as page:
        kinds = set()
        while kinds < {"hello", "checkpoints", "curves", "table", "frame"}:
            kinds.add(json.loads(page.recv(timeout=60))["type"])
        send(page, "speed", value=8)
        numbers = [until(page, "frame")["number"] for _ in range(5)]
        assert numbers == sorted(set(numbers))


def test_what_one_page_does_all_see(served: Served):
    with served.connect() as one, served.connect() as other:
        send(one, "pause")
        until(other, "frame", lambda frame: not frame["control"]["playing"])
        send(other, "seed", value=1)
        assert until(one, "frame", lambda frame: frame["control"]["seed"] == 1)["control"]["playing"] is False
        with served.connect() as late:
            control = until(late, "frame")["control"]
            assert (control["seed"], control["playing"]) == (1, False)


def test_messages_that_make_no_sense_are_answered_by_a_notice(served: Served):
    with served.connect() as page:
        until(page, "frame")
        for text in ["no JSON", '{"type":"fly"}', '{"type":"\\ud800"}', b"\xff\x00", '{"type":"seed","value":99}']:
            page.send(text)
            assert until(page, "notice", lambda notice: notice["level"] == "error")["text"]
        send(page, "step")
        until(page, "frame", lambda frame: not frame["control"]["playing"])


def test_a_message_that_is_too_long_ends_the_connection(served: Served):
    with served.connect() as page:
        until(page, "frame")
        send(page, "play", more="x" * 5000)
        with pytest.raises(ConnectionClosed) as closed:
            until(page, "never")
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
    with served.connect() as page:
        until(page, "frame")


def test_text_that_is_no_text_leaves_no_traceback(served: Served, caplog: pytest.LogCaptureFixture):
    with served.connect() as page:
        until(page, "frame")
        page.send(b"\xff\xfe", text=True)
        with pytest.raises(ConnectionClosed):
            until(page, "never")
    served.settle()
    assert caplog.text == ""


def test_only_known_runs_and_files_are_served(served: Served, folder: Path):
    outside = folder.parent / "outside"
    shutil.copytree(folder / "maze", outside, dirs_exist_ok=True)
    link = folder / "link"
    link.symlink_to(outside)
    try:
        assert [run["name"] for run in json.loads(served.get("/api/runs")[1])["runs"]] == ["maze"]
        names = [
            "link",
            "nothing",
            "..",
            "%2e%2e",
            "..%2foutside",
            "%2Fetc",
            "maze%2F..%2Fmaze",
            "maze%00",
            "checkpoints",
        ]
        for name in names:
            assert served.get(f"/run/{name}")[0] == 404, name
            assert served.get(f"/api/about/{name}")[0] == 404, name
            with pytest.raises((InvalidStatus, ConnectionClosed)) as refused, served.connect(name) as page:
                page.recv(timeout=60)
            if isinstance(refused.value, InvalidStatus):
                assert refused.value.response.status_code in (403, 404), name
            else:
                assert refused.value.rcvd is not None and refused.value.rcvd.code == GONE
        assert served.get("/run/maze")[0] == served.get("/api/about/maze")[0] == 200
    finally:
        link.unlink()
        shutil.rmtree(outside)
    for file in [
        "../server.py",
        "%2e%2e/server.py",
        "..%2fserver.py",
        "/etc/passwd",
        "%2fetc/passwd",
        "",
        "nothing.js",
    ]:
        assert served.get(f"/page/{file}")[0] == 404, file
    assert served.get("/page/main.js")[2]["content-type"] == "text/javascript; charset=utf-8"
    assert served.get("/metrics.jsonl")[0] == 404


def test_answers_keep_the_browser_to_this_server(served: Served):
    status, text, headers = served.get("/")
    assert status == 200 and "<html" in text
    assert headers["content-security-policy"].startswith("default-src 'self'; img-src 'self' data:;")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache"
    assert "access-control-allow-origin" not in headers and "server" not in headers


def test_other_names_for_this_machine_are_refused(served: Served):
    """A page whose name was made to point here (DNS rebinding) says that name as Host."""
    for host in ["evil.example", f"evil.example:{served.port}", "127.0.0.1", "127.0.0.1:1", ""]:
        assert served.get("/api/runs", Host=host)[0] == 403, host
    for host in [f"localhost:{served.port}", f"LOCALHOST:{served.port}", f"[::1]:{served.port}"]:
        assert served.get("/api/runs", Host=host)[0] == 200, host


def test_pages_of_others_are_refused(served: Served):
    own = f"http://127.0.0.1:{served.port}"
    for origin in ["http://evil.example", "null", f"http://127.0.0.1:{served.port + 1}", f"{own}.evil.example"]:
        with pytest.raises(InvalidStatus) as refused, served.connect(origin=origin):
            pass
        assert refused.value.response.status_code == 403
        assert served.get("/api/runs", "POST", Origin=origin)[0] == 403
    with served.connect(origin=own) as page:
        until(page, "hello")
    assert served.get("/api/runs", "POST", Origin=own)[0] == 405


OURS = ("localhost:9", "127.0.0.1:9", "[::1]:9")
NUMBERS = ("192.168.0.7:9", "192.168.0.7", "[fe80::1]:9")
OTHERS = ("evil.example:9", "evil.example", "127.0.0.1.evil.example:9", "", ":9")


def test_a_server_goes_by_its_own_names():
    """For other machines by any number too, which nobody can make point elsewhere, and by the names of this machine."""
    for address in ("127.0.0.1", "::1", "127.0.0.2"):
        own = own_hosts(address, 9)
        assert all(map(own, OURS)) and not any(map(own, (*NUMBERS, *OTHERS, "localhost")))
    assert own_hosts("127.0.0.2", 9)("127.0.0.2:9") and own_hosts("127.0.0.1", 80)("localhost")
    own = own_hosts("0.0.0.0", 9, "My.machine")
    assert all(map(own, (*OURS, *NUMBERS, "my.machine:9", socket.gethostname().lower()))) and not any(map(own, OTHERS))


@pytest.mark.parametrize("host", ["127.1", "LOCALHOST"])
def test_however_it_is_written_an_address_of_this_machine_alone_is_known(host: str):
    with contextlib.closing(listen(host, 0)) as sock:
        assert is_local(sock.getsockname()[0])


def test_with_another_host_an_origin_must_match_it(folder: Path):
    with serving(folder, host="0.0.0.0") as served:
        assert served.get("/", Host="10.0.0.1")[0] == 200
        assert served.get("/", Host="evil.example")[0] == 403
        assert served.get("/", "POST", Host="10.0.0.1", Origin="http://10.0.0.1")[0] == 405
        assert served.get("/", "POST", Host="10.0.0.1", Origin="http://evil.example")[0] == 403


def test_pages_that_vanish_are_nothing_special(served: Served, caplog: pytest.LogCaptureFixture):
    """In the middle of a message, or before they were answered."""
    asked = f"GET /ws/maze HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    asked += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", served.port)) as page:
            page.sendall(asked.encode())
    with served.connect() as stays:
        send(stays, "speed", value="max")
        for _ in range(10):
            with served.connect() as page:
                until(page, "frame")
                page.socket.shutdown(socket.SHUT_RDWR)
        number = until(stays, "frame")["number"]
        until(stays, "frame", lambda frame: frame["number"] > number + 20)
    served.settle()
    assert caplog.text == ""


def test_a_session_ends_after_its_last_page(folder: Path):
    before = threading.active_count()
    with serving(folder, linger_seconds=0.0) as served:
        for _ in range(2):
            with served.connect() as page:
                until(page, "frame")
            settle(lambda: not any(thread.name.startswith("treadle-") for thread in threading.enumerate()))
    settle(lambda: threading.active_count() <= before)


def settle(happens: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until it happens, which takes as long as it does on a busy machine only there."""
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_training_adds_is_seen(run_folder: Path):
    (run_folder / "metrics.jsonl").write_text("")
    run = Run.open(run_folder)
    last = run.checkpoints()[-1]
    last.rename(run_folder / "aside")
    with serving(run_folder) as served, served.connect() as page:
        until(page, "frame")
        write_lines(run_folder, [episode(0, 10, 5.0)])
        found = until(page, "curves", lambda curve: any(curve["return"]["mean"]))
        assert 5.0 in found["return"]["mean"]
        (run_folder / "aside").rename(last)
        until(page, "checkpoints", lambda message: STEPS in message["checkpoints"])
        with (run_folder / "metrics.jsonl").open("a") as file:
            file.write("damaged\n")
        assert "Line 2" in until(page, "notice", lambda notice: notice["level"] == "error")["text"]


class Reader(threading.Thread):
    """Reads what comes, and keeps the number of the newest frame: what is not read would grow here."""

    def __init__(self, page: ClientConnection):
        super().__init__()
        self.page, self.number = page, 0
        self.start()

    def run(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            for text in self.page:
                head = re.match(r'{"type":"frame","number":(\d+)', str(text))
                self.number = int(head[1]) if head else self.number


def soak(folder: Path, frames: int, clients: int) -> None:
    """So many frames as fast as they come, in which nothing grows: threads, tasks of the server, objects, memory."""
    with serving(folder, frames_per_second=1e5) as served, contextlib.ExitStack() as stack:
        pages = [stack.enter_context(served.connect()) for _ in range(clients)]
        readers = [Reader(page) for page in pages]
        send(pages[0], "speed", value="max")

        def measure(number: int) -> tuple[int, int, int, int]:
            settle(lambda: all(reader.number >= number for reader in readers), seconds=300)
            gc.collect()
            tasks = len(served.server.server_state.tasks)
            return threading.active_count(), tasks, len(gc.get_objects()), resident()

        first = measure(frames // 5)
        last = measure(frames)
        send(pages[0], "pause")
    for reader in readers:
        reader.join()
    assert last[:2] == first[:2]
    assert last[2] - first[2] < 0.1 * frames
    assert last[3] - first[3] < 10e6


def resident() -> int:
    """Bytes of memory; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_nothing_grows_while_it_plays(folder: Path):
    soak(folder, 2_500, 2)


@pytest.mark.slow
def test_nothing_grows_while_it_plays_for_long(folder: Path):
    soak(folder, 36_000, 2)


# The command


def test_what_cannot_be_watched_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def says(*words: str) -> str:
        assert main(["watch", *words, "--no-browser"]) == 2
        return capsys.readouterr().err

    assert "does not exist" in says(str(tmp_path / "nothing"))
    (tmp_path / "file").touch()
    assert "is a file" in says(str(tmp_path / "file"))
    assert "neither a run's folder nor a folder with runs in it" in says(str(tmp_path))
    assert "port (--port) was 0" in says(str(folder), "--port", "0")
    taken = listen("127.0.0.1", 0)
    with contextlib.closing(taken):
        assert "cannot be used on 127.0.0.1" in says(str(folder), "--port", str(taken.getsockname()[1]))
    shutil.copytree(folder / "maze", tmp_path / "maze")
    for path in Run.open(tmp_path / "maze").checkpoints():
        path.unlink()
    assert "--live" in says(str(tmp_path / "maze"))
    text = (tmp_path / "maze" / "run.json").read_text()
    (tmp_path / "maze" / "run.json").write_text(text.replace('"Maze"', '"Mine-v0"').replace("[]", '["mine.py"]', 2))
    assert "never runs code" in says(str(tmp_path / "maze"))


def test_where_the_usual_port_is_taken_the_next_serves():
    first = listen("127.0.0.1", None)
    with contextlib.closing(first):
        second = listen("127.0.0.1", None)
        with contextlib.closing(second):
            ports = [sock.getsockname()[1] for sock in (first, second)]
    assert DEFAULT_PORT <= ports[0] < ports[1]
    with pytest.raises(TreadleError, match=r"can be used on 203\.0\.113\.1"):
        listen("203.0.113.1", None)
    for host in ("", "a" * 70, "\udcff"):
        with pytest.raises(InvalidSetting, match=r"host \(--host\) was '"):
            listen(host, None)


def test_ctrl_c_ends_it_quietly(folder: Path):
    command = [sys.executable, "-m", "treadle", "watch", str(folder), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 120)[0]
        line = process.stdout.readline()
        assert line.startswith("Watch: http://127.0.0.1:") and line.endswith("/  (Ctrl-C ends)\n")
        port = line.split(":")[3].split("/")[0]
        with connect(f"ws://127.0.0.1:{port}/ws/maze") as page:
            until(page, "hello")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
        process.wait()


# How many checkpoints there are to choose from


def test_a_run_keeps_as_many_checkpoints_as_it_is_told(folder: Path, tmp_path: Path):
    assert len(steps_of(folder / "maze")) > 2
    run = Run.open(shutil.copytree(folder / "maze", tmp_path / "maze"))
    trainer = run.trainer(to_learn=False)
    run.restore(trainer)
    for kept in (0, 3, 2):
        run.info["config"]["keep_checkpoints"] = kept
        before = len(run.checkpoints())
        run.save_checkpoint(trainer, STEPS + 1 + kept)
        assert len(run.checkpoints()) == (kept or before + 1)
    with pytest.raises(InvalidSetting, match="keep_checkpoints"):
        RunConfig(keep_checkpoints=-1).check()


def test_a_run_from_before_there_were_these_settings_opens(run_folder: Path):
    info = json.loads((run_folder / "run.json").read_text())
    for name in ("keep_checkpoints", "layout"):
        del info["config"][name]
    (run_folder / "run.json").write_text(json.dumps(info))
    config = Run.open(run_folder).config
    assert (config.keep_checkpoints, config.layout) == (2, "auto")
