"""How a run is going, on the terminal: a small live block, or plain lines where nobody watches."""

from __future__ import annotations

import atexit
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

REFRESH_SECONDS = 0.125
PLAIN_SECONDS = 10.0
SHOWN = ("return", "loss", "td_error", "error", "epsilon", "workers", "staleness", "queue", "dropped")
_DASH = "-"


class Progress:
    """The display of one run of `seeds` seeds, `total_steps` environment steps each.

    `enabled`: `True` for the live block, `False` for nothing, `None` for the live block where stderr is a terminal and
    else a plain line at most every ten seconds and at the end. Nothing is drawn before `compiling` or `update`.
    """

    def __init__(
        self,
        title: str,
        total_steps: int,
        seeds: int,
        enabled: bool | None = None,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.title, self.total_steps, self.seeds = title, total_steps, seeds
        self.compile_seconds = 0.0
        self._shows_live = _is_terminal() if enabled is None else enabled
        self._shows_plain = enabled is None and not self._shows_live
        self._console, self._clock, self._live = console, clock, None
        self._began = self._updated = clock()
        self._drawn = -math.inf
        self._steps = 0
        self._metrics: dict[str, float | None] = {}
        self._timed_steps, self._timed_seconds = 0, 0.0
        self._has_compiled = self._is_stale = False
        self._compiling_since: float | None = None

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Show that a program is being compiled; the time within adds to `compile_seconds`."""
        self._has_compiled = True
        self._compiling_since = began = self._clock()
        if self._shows_live:
            self._refresh()
        elif self._shows_plain:
            self._print(f"{self.title}: compiling ...")
        try:
            yield
        finally:
            self.compile_seconds += self._clock() - began
            self._compiling_since = None

    def update(self, steps: int, metrics: Mapping[str, float | None]) -> None:
        """Show `steps`, of one seed so far, and of `metrics` those in `SHOWN`."""
        now = self._clock()
        if not self._has_compiled:
            self._timed_steps += steps - self._steps
            self._timed_seconds += now - self._updated
        # Steps that ran in a call that also compiled say nothing about speed: both are left out of it.
        self._has_compiled = False
        self._steps, self._metrics, self._updated = steps, dict(metrics), now
        self._is_stale = True
        if now - self._drawn >= (REFRESH_SECONDS if self._shows_live else PLAIN_SECONDS):
            self._draw()

    def close(self, message: str | None = None) -> None:
        """Show the last state and give the terminal back as it was. Closing twice does no harm."""
        if self._is_stale:
            self._draw()
        if self._live is not None:
            live, self._live = self._live, None
            atexit.unregister(live.stop)
            live.stop()
        if message is not None and (self._shows_live or self._shows_plain):
            self._print(message)

    def steps_per_second(self) -> float | None:
        """Of all seeds together, without compilation; `None` before it is known."""
        if not self._timed_steps or self._timed_seconds <= 0:
            return None
        return self.seeds * self._timed_steps / self._timed_seconds

    def _draw(self) -> None:
        self._drawn, self._is_stale = self._clock(), False
        if self._shows_live:
            self._refresh()
        elif self._shows_plain:
            self._print(f"{self.title}: {self._count()}, {self._time()}, {', '.join(self._details())}")

    def _refresh(self) -> None:
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._console = self._console or Console(stderr=True)
            # Only a stdout that shares the terminal needs to be led around the block; a file must stay as it is.
            shared = sys.stdout.isatty()
            self._live = Live(
                get_renderable=self._block,
                console=self._console,
                refresh_per_second=2,
                redirect_stdout=shared,
                redirect_stderr=shared,
            )
            atexit.register(self._live.stop)
            self._live.start()
        self._live.refresh()

    def _block(self) -> Any:
        """Two lines: how far, and how it goes."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        first = Table.grid(padding=(0, 1), expand=True)
        first.add_column(no_wrap=True)
        first.add_column(ratio=1)
        first.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(total=max(self.total_steps, 1), completed=self._steps)
        first.add_row(Text(self.title, style="bold"), bar, Text(f"{self._count()}  {self._time()}"))
        return Group(first, Text("  " + " · ".join(self._details()), style="dim", no_wrap=True, overflow="ellipsis"))

    def _count(self) -> str:
        percent = math.floor(100 * self._steps / self.total_steps) if self.total_steps else 100
        seeds = f" x {self.seeds} seeds" if self.seeds > 1 else ""
        return f"{percent}% of {self.total_steps:,} steps{seeds}"

    def _time(self) -> str:
        if self._steps >= self.total_steps:
            return f"in {_duration(self._updated - self._began)}"
        rate = self.steps_per_second()
        return f"{_duration(self.seeds * (self.total_steps - self._steps) / rate) if rate else _DASH} left"

    def _details(self) -> list[str]:
        rate = self.steps_per_second()
        details = [f"{_DASH if rate is None else f'{rate:,.0f}'} steps/s"]
        known = [name for name in SHOWN if name in self._metrics] or SHOWN[:1]
        details += [f"{name} {number(self._metrics.get(name))}" for name in known]
        if self._compiling_since is not None:
            details.append(f"compiling {self._clock() - self._compiling_since:.0f} s ...")
        elif self.compile_seconds:
            details.append(f"compile {self.compile_seconds:.1f} s")
        return details

    def _print(self, text: str) -> None:
        if self._shows_live and self._console is not None:
            self._console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


def _is_terminal() -> bool:
    if not sys.stderr.isatty():
        return False
    from rich.console import Console

    return not Console(stderr=True).is_dumb_terminal


def number(value: float | None) -> str:
    """Four digits, or all before the point; a dash for what is not known."""
    if value is None:
        return _DASH
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:,.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
