"""A run that is being shown: one stage for all its clients, and the news from its folder.

The server's thread passes messages on; whatever takes time runs in a thread of the session's own. Nothing queues up:
commands wait in a list of bounded length, and a client gets the newest message of each kind.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from treadle.errors import TreadleError
from treadle.run import Run, checkpoints_in, step_of
from treadle.window import curves, messages
from treadle.window.curves import Curves
from treadle.window.messages import Command, Malformed
from treadle.window.stage import LOGGER, Out, Stage

MOST_COMMANDS = 64
MOST_NOTICES = 8
KINDS = ("hello", "checkpoints", "curves", "table", "frame")
"""The order in which a new client gets to know what there is."""
NEWEST_ONLY = ("drag", "seed", "checkpoint", "start")
"""Commands that a newer one of the same kind takes the place of, while they wait: loading takes its time."""


class Options(NamedTuple):
    """How sessions are served."""

    live: bool = False
    frames_per_second: float = 30.0
    hold_seconds: float = 0.7
    poll_seconds: float = 2.0
    linger_seconds: float = 10.0
    """How long a session outlives its last client."""


class Client:
    """What waits to be sent to one page: a slot for the newest of each kind, and a few notices."""

    def __init__(self, number: int):
        self.number = number
        self._slots: dict[str, str] = {}
        self._notices: collections.deque[str] = collections.deque(maxlen=MOST_NOTICES)
        self._filled = asyncio.Event()

    def put(self, kind: str, text: str) -> None:
        if kind == "notice":
            self._notices.append(text)
        else:
            _put(self._slots, kind, text)
        self._filled.set()

    async def send_all(self, send: Callable[[str], Awaitable[None]], frame_seconds: float) -> None:
        """Send what comes, for ever, and frames no more often than every so many seconds."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._notices:
                await send(self._notices.popleft())
            for kind in KINDS:
                if kind in self._slots:
                    await send(self._slots.pop(kind))
            if self._notices or self._slots:
                self._filled.set()
            await asyncio.sleep(frame_seconds)


class Session:
    """Made with the first client of a run; `close` ends it."""

    def __init__(self, folder: Path, name: str, options: Options):
        self._options = options
        self.stage = Stage(folder, name, options.live, options.frames_per_second, options.hold_seconds)
        self._news = News(folder)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="treadle-stage")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="treadle-news")
        self._clients: dict[int, Client] = {}
        self._numbers = itertools.count()
        self._commands: list[Command] = []
        self._latest: dict[str, str] = {"notice": messages.notice("Loading the run ...")}
        self._wake, self._taken = asyncio.Event(), asyncio.Event()
        self._tasks = [asyncio.create_task(self._guarded(part)) for part in (self._play, self._look)]

    def join(self) -> Client:
        """A new client, who is told all that there is."""
        client = Client(next(self._numbers))
        self._clients[client.number] = client
        for kind, text in self._latest.items():
            client.put(kind, text)
        self._wake.set()
        return client

    def leave(self, client: Client) -> None:
        del self._clients[client.number]

    @property
    def is_watched(self) -> bool:
        return bool(self._clients)

    async def receive(self, client: Client, text: str | None) -> None:
        """Take a message from a page. Waits where too many commands wait already."""
        try:
            command = messages.parse(text, client.number)
        except Malformed as problem:
            client.put("notice", messages.notice(str(problem), "error"))
        else:
            await self._ask(command)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # After a turn that may be under way.
        self._worker.submit(self.stage.close)
        self._worker.shutdown(wait=False)
        self._reader.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, command: Command) -> None:
        last = self._commands[-1] if self._commands else None
        if last is not None and command.kind in NEWEST_ONLY and _aim(command) == _aim(last):
            self._commands[-1] = command
            return
        while len(self._commands) >= MOST_COMMANDS:
            self._taken.clear()
            await self._taken.wait()
        self._commands.append(command)
        self._wake.set()

    async def _guarded(self, part: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await part()
        except Exception:
            LOGGER.exception("the session of %s ended", self.stage.name)
            self._publish(Out("notice", messages.notice("The session ended by an error; see the terminal.", "error")))

    async def _play(self) -> None:
        """Turn after turn, as long as somebody watches."""
        loop = asyncio.get_running_loop()
        delay: float | None = 0.0
        while True:
            if not self._clients:
                delay = None
            if delay is None or delay > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._wake.wait()
            self._wake.clear()
            if not self._clients:
                delay = None
                continue
            commands, self._commands = self._commands, []
            self._taken.set()
            began = loop.time()
            turn = await loop.run_in_executor(self._worker, self.stage.turn, commands, frozenset(self._clients))
            for out in turn.out:
                self._publish(out)
            # No more turns than frames can be sent.
            spare = max(0.0, began + 1 / self._options.frames_per_second - loop.time())
            await asyncio.sleep(spare)
            delay = None if turn.delay is None else max(0.0, turn.delay - spare)

    async def _look(self) -> None:
        """What is new in the run's folder, again and again."""
        loop = asyncio.get_running_loop()
        while True:
            if self._clients:
                news = await loop.run_in_executor(self._reader, self._news.look)
                for out in news.out:
                    self._publish(out)
                if news.is_other:
                    await self._ask(Command("news"))
                if news.has_more:
                    continue
            await asyncio.sleep(self._options.poll_seconds)

    def _publish(self, out: Out) -> None:
        if out.client is None:
            self._remember(out)
        clients = self._clients.values() if out.client is None else filter(None, [self._clients.get(out.client)])
        for client in clients:
            client.put(out.kind, out.text)

    def _remember(self, out: Out) -> None:
        """What a client who comes later is told: of notices only one that stands in the place of what is to come."""
        if out.kind == "frame":
            self._latest.pop("notice", None)
        if out.kind != "notice" or "frame" not in self._latest:
            _put(self._latest, out.kind, out.text)


def _put(slots: dict[str, str], kind: str, text: str) -> None:
    """In its slot, and with another run away with what was to be seen of the one before."""
    if kind == "hello":
        for former in ("frame", "table"):
            slots.pop(former, None)
    slots[kind] = text


def _aim(command: Command) -> tuple[Any, ...]:
    """Who does what, and of a drag with what."""
    return command.client, command.kind, command.value[0] if command.kind == "drag" else None


class Found(NamedTuple):
    """What a look into a run's folder brought."""

    out: list[Out]
    is_other: bool
    """Whether there are other checkpoints, or another run."""
    has_more: bool
    """Whether to look again at once."""


class News:
    """Looks into a run's folder: cheap where nothing has changed."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._signature: Any = None
        self._problem: str | None = None
        self._doubt: str | None = None
        self._curves: Curves | None = None
        self._are_new = False

    def look(self) -> Found:
        out: list[Out] = []
        try:
            is_other = self._look_at_run(out)
        except TreadleError as error:
            # Between two looks, or in the middle of one, a run may be replaced.
            is_again, self._doubt = self._doubt == str(error), str(error)
            return Found(self._told(str(error)) if is_again else [], False, False)
        self._doubt = None
        has_more = self._curves is not None and self._look_at_curves(self._curves, out)
        return Found(out, is_other, has_more)

    def _look_at_run(self, out: list[Out]) -> bool:
        info = self._folder / "run.json"
        try:
            stat = info.stat()
            written = stat.st_mtime_ns, stat.st_size
        except OSError:
            written = None
        steps = [step_of(path) for path in checkpoints_in(self._folder)]
        signature = (written, steps)
        if signature == self._signature:
            return False
        run = Run.open(self._folder)
        self._signature = signature
        status = {"status": run.info.get("status"), "step": run.info.get("step")}
        out.append(Out("checkpoints", messages.encode({"type": "checkpoints", "checkpoints": steps, **status})))
        given = self._folder, run.config.total_timesteps, run.config.seeds
        if self._curves is None or self._curves.given != given:
            self._curves, self._are_new = Curves(*given), True
        return True

    def _look_at_curves(self, read: Curves, out: list[Out]) -> bool:
        self._are_new |= read.read()
        if self._are_new and not read.has_more():
            self._are_new = False
            out.append(Out("curves", messages.encode(curves.message(read))))
        if read.problem is not None:
            out.extend(self._told(read.problem))
        return read.has_more()

    def _told(self, problem: str) -> list[Out]:
        """A notice, once."""
        is_new, self._problem = problem != self._problem, problem
        return [Out("notice", messages.notice(problem, "error"))] if is_new else []
