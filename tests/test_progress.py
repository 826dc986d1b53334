"""The display: what it says of a run, how seldom it draws, and that it gives the terminal back."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from treadle.progress import Progress

METRICS = {"return": 195.25, "loss": 0.0123, "epsilon": 0.05, "max_q": 99.0}


class Clock:
    """A clock that stands until it is told to go on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def terminal() -> Console:
    """Eighty columns, recorded; not tied to the screen that the tests run on."""
    return Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None, _environ={})


def screen(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def last_frame(progress: Progress, width: int = 80) -> list[str]:
    """The block as it would be drawn now, line by line."""
    console = Console(file=io.StringIO(), width=width, color_system=None, _environ={})
    console.print(progress._block())
    return screen(console).splitlines()


def test_the_block_tells_how_far_and_how_it_goes(clock, terminal):
    progress = Progress("dqn CartPole-v1", 10_000, 8, enabled=True, console=terminal, clock=clock)
    with progress.compiling():
        assert "compiling 0 s ..." in screen(terminal)
        clock.wait(3.0)
        assert "compiling 3 s ..." in last_frame(progress)[1]
    progress.update(1_000, METRICS)
    clock.wait(2.0)
    progress.update(5_000, METRICS)
    first, second = last_frame(progress)
    progress.close()
    assert first.startswith("dqn CartPole-v1 ")
    assert first.endswith("50% of 10,000 steps x 8 seeds  0:02 left")
    assert second == "  16,000 steps/s · return 195.2 · loss 0.0123 · epsilon 0.05 · compile 3.0 s"


def test_speed_leaves_out_compilation_and_the_steps_made_in_the_same_call(clock):
    progress = Progress("dqn", 10_000, 2, enabled=False, clock=clock)
    assert progress.steps_per_second() is None
    with progress.compiling():
        clock.wait(30.0)
    progress.update(1_000, {})
    assert progress.steps_per_second() is None
    clock.wait(1.0)
    progress.update(1_500, {})
    with progress.compiling():
        clock.wait(20.0)
    progress.update(1_700, {})
    clock.wait(1.0)
    progress.update(2_400, {})
    assert progress.steps_per_second() == 2 * (500 + 700) / 2.0
    assert progress.compile_seconds == 50.0


def test_a_resumed_run_does_not_count_the_steps_of_before(clock):
    progress = Progress("dqn", 10_000, 1, enabled=False, clock=clock)
    with progress.compiling():
        clock.wait(1.0)
    progress.update(8_000, {})
    clock.wait(1.0)
    progress.update(8_100, {})
    assert progress.steps_per_second() == 100.0


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ({}, "return -"),
        ({"return": None, "loss": None, "epsilon": None}, "return - · loss - · epsilon -"),
        ({"return": None, "td_error": 0.5, "other": 1.0}, "return - · td_error 0.5"),
    ],
)
def test_what_is_not_known_is_a_dash(clock, metrics, shown):
    progress = Progress("dqn", 10_000, 1, enabled=False, clock=clock)
    progress.update(0, metrics)
    first, second = last_frame(progress)
    assert first.endswith("0% of 10,000 steps  - left")
    assert second == f"  - steps/s · {shown}"


def test_a_narrow_terminal_cuts_lines_and_keeps_two_of_them(clock):
    progress = Progress("dqn", 10_000, 8, enabled=False, clock=clock)
    progress.update(5_000, METRICS)
    lines = last_frame(progress, width=50)
    assert len(lines) == 2
    assert lines[1].endswith("…")


def test_a_title_in_brackets_is_not_taken_for_markup(clock):
    progress = Progress("dqn [bold]", 10, 1, enabled=False, clock=clock)
    assert last_frame(progress)[0].startswith("dqn [bold]")


def test_many_updates_draw_at_most_eight_times_a_second(clock, terminal, monkeypatch):
    progress = Progress("dqn", 100_000, 1, enabled=True, console=terminal, clock=clock)
    drawn = []
    monkeypatch.setattr(progress, "_refresh", lambda: drawn.append(clock.now))
    for step in range(10_000):
        clock.wait(0.001)
        progress.update(step, METRICS)
    progress.close()
    assert 70 <= len(drawn) <= 82


def test_an_interrupt_gives_the_cursor_back_and_keeps_the_last_state(clock, terminal):
    hide, show = "\x1b[?25l", "\x1b[?25h"
    progress = Progress("dqn", 10_000, 1, enabled=True, console=terminal, clock=clock)
    stdout, stderr = sys.stdout, sys.stderr
    progress.update(1_000, METRICS)
    progress.update(2_000, METRICS)
    assert screen(terminal).count(hide) == 1
    try:
        with progress.compiling():
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        progress.close()
    progress.close()
    shown = screen(terminal)
    assert shown.count(show) == 1
    assert shown.rindex(show) > shown.rindex(hide)
    assert "20% of 10,000 steps" in shown
    assert "compiling" not in last_frame(progress)[1]
    assert (sys.stdout, sys.stderr) == (stdout, stderr)


def test_nothing_is_drawn_before_there_is_something_to_tell(terminal):
    Progress("dqn", 10_000, 1, enabled=True, console=terminal).close()
    assert screen(terminal) == ""


def test_a_closing_message_stands_below_the_block(clock, terminal):
    progress = Progress("dqn", 1_000, 1, enabled=True, console=terminal, clock=clock)
    clock.wait(65.0)
    progress.update(1_000, METRICS)
    progress.close("saved in runs/[1]")
    shown = screen(terminal)
    assert "100% of 1,000 steps  in 1:05" in shown
    assert shown.endswith("saved in runs/[1]\n")


def test_without_a_terminal_a_plain_line_comes_every_ten_seconds_and_at_the_end(clock, capsys):
    progress = Progress("dqn CartPole-v1", 2_000, 2, clock=clock)
    with progress.compiling():
        clock.wait(4.0)
    for step in range(100, 2_001, 100):
        clock.wait(1.0)
        progress.update(step, {**METRICS, "loss": None})
    progress.close("done")
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "dqn CartPole-v1: compiling ...",
        "dqn CartPole-v1: 5% of 2,000 steps x 2 seeds, - left, - steps/s, return 195.2, loss -, epsilon 0.05, "
        "compile 4.0 s",
        "dqn CartPole-v1: 55% of 2,000 steps x 2 seeds, 0:09 left, 200 steps/s, return 195.2, loss -, epsilon 0.05, "
        "compile 4.0 s",
        "dqn CartPole-v1: 100% of 2,000 steps x 2 seeds, in 0:24, 200 steps/s, return 195.2, loss -, epsilon 0.05, "
        "compile 4.0 s",
        "done",
    ]


def test_switched_off_it_is_silent(clock, capsys):
    progress = Progress("dqn", 1_000, 1, enabled=False, clock=clock)
    with progress.compiling():
        clock.wait(1.0)
    progress.update(1_000, METRICS)
    progress.close("done")
    assert capsys.readouterr() == ("", "")
