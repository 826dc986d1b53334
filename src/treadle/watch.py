"""A learner drawn in the terminal as it learns, step by step, at a pace that a person can follow."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from treadle import drawing, records, registry
from treadle.algorithms.base import require
from treadle.errors import InvalidSetting, TreadleError
from treadle.loops.choose import Trainer
from treadle.loops.fused import Record
from treadle.loops.host import HostSeeds
from treadle.loops.offline import OfflineSeeds
from treadle.loops.parallel import DataParallelSeeds
from treadle.loops.preview import next_round
from treadle.loops.seeds import FusedSeeds
from treadle.progress import number
from treadle.scene import Scene

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REDRAW_SECONDS = 0.025
"""A terminal is not drawn more often."""
LAST_EPISODES = 10
_COLUMNS, _OTHER_LINES = 60, 7


class Seen(NamedTuple):
    """The first environment of the first seed after a step: its drawing, and the episode's return and length so far."""

    drawing: Scene | str
    episode_return: float
    length: int
    ended: bool = False


class Watch:
    """Shows the first environment of a trainer's first seed: in place on a terminal, elsewhere as plain text, one
    drawing after the other.

    Each of its steps is a frame, also those that end an episode. More than `1 / REDRAW_SECONDS` a second are not all
    drawn on a terminal. `clock` and `sleep` are those of the module `time`.

    Raises `TreadleError` for an environment that cannot be drawn as text, and `InvalidSetting` for a pace that is none.
    """

    def __init__(
        self,
        trainer: Trainer,
        frames_per_second: float = 10.0,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        require(frames_per_second > 0, "watch_pace", frames_per_second, "more than 0")
        if isinstance(trainer, OfflineSeeds):
            raise InvalidSetting(
                "--watch shows a learner that acts, and from stored data (--data) it learns without acting. Draw an "
                "episode afterwards: treadle evaluate RUN --render FILE.gif."
            )
        if not isinstance(trainer, FusedSeeds | DataParallelSeeds | HostSeeds):
            raise InvalidSetting(
                "--watch shows one learner that acts by itself, and here workers act for it. Leave --watch out, or "
                "take --engine none; treadle watch RUN --live follows a run that trains."
            )
        self._source = _HostSource(trainer) if isinstance(trainer, HostSeeds) else _FusedSource(trainer)
        self._stride = trainer.spec.num_envs
        self._period, self._clock, self._sleep = 1 / frames_per_second, clock, sleep
        self._console, self._live = console, None
        self._due = self._drawn = -float("inf")
        self._metrics: dict[str, float | None] = {}
        self._lengths: collections.deque[int] = collections.deque(maxlen=LAST_EPISODES)
        self._title, self._step, self._total_steps, self._episodes = "", 0, 0, 0

    def begin(self, title: str, step: int, total_steps: int, episodes: int = 0) -> None:
        """Draw how things stand before the step after `step`, when so many episodes of the first seed have ended."""
        self._title, self._step, self._total_steps, self._episodes = title, step, total_steps, episodes
        self._draw(self._source.now(), "compiling ...")

    def advance(self, is_stopped: Callable[[], bool] = lambda: False) -> Record:
        """Advance the trainer by one update, show its steps unless it `is_stopped`, and return what it reported."""
        steps, record = self._source.advance()
        self._metrics |= {
            name: value
            for name, value in records.summary(jax.tree.map(lambda x: x[:1], record)).items()
            if value is not None and name != "return"
        }
        for seen, lengths in zip(steps, np.asarray(record.episodes.lengths)[0, 0], strict=True):
            self._step += self._stride
            self._lengths.extend(lengths[lengths > 0].tolist())
            if not is_stopped():
                self._show(seen, is_stopped)
            self._episodes += int((lengths > 0).sum())
        return record

    def close(self) -> None:
        """Give the terminal back, with the last drawing left on it. Closing twice does no harm."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _show(self, seen: Seen, is_stopped: Callable[[], bool]) -> None:
        is_slow = self._period >= REDRAW_SECONDS or self._is_plain()
        if is_slow or seen.ended or self._clock() - self._drawn >= REDRAW_SECONDS:
            self._draw(seen)
        # Who is late, such as after compiling, does not hurry afterwards. An end is looked at for longer.
        self._due = max(self._due, self._clock()) + self._period * (3 if seen.ended else 1)
        while (left := self._due - self._clock()) > 0 and not is_stopped():
            self._sleep(min(left, 0.1))

    def _draw(self, seen: Seen, note: str = "") -> None:
        self._drawn = self._clock()
        console = self._opened()
        first = f"{self._title}: step {self._step:,} of {self._total_steps:,}, episode {self._episodes + 1:,}"
        if self._is_plain():
            picture = seen.drawing if isinstance(seen.drawing, str) else drawing.as_text(seen.drawing, _COLUMNS)
            text = "\n".join([first, picture.strip("\n"), *self._details(seen, note), ""])
            console.out(_encodable(text, console), highlight=False)
        else:
            self._live_update(self._block(console, first, seen, note))

    def _block(self, console: Console, first: str, seen: Seen, note: str) -> RenderableType:
        from rich.text import Text

        if isinstance(seen.drawing, str):
            picture = Text.from_ansi(seen.drawing.strip("\n"))
        else:
            rows = max(4, console.height - _OTHER_LINES)
            picture = drawing.as_rich(seen.drawing, min(_COLUMNS, console.width), rows)
        picture.plain = _encodable(picture.plain, console)
        parts = [Text(first, style="bold"), Text(), picture, Text()]
        parts += [Text(line, style="dim") for line in self._details(seen, note)]
        block = Text("\n", no_wrap=True, overflow="ellipsis").join(parts)
        block.no_wrap, block.overflow = True, "ellipsis"
        return block

    def _details(self, seen: Seen, note: str) -> list[str]:
        ended = ", its last" if seen.ended else ""
        lines = [f"return {number(seen.episode_return)} at step {seen.length:,} of the episode{ended}"]
        if self._lengths:
            lines.append(f"steps of the last episodes: {' '.join(map(str, self._lengths))}")
        metrics = ", ".join(f"{name} {number(value)}" for name, value in self._metrics.items())
        return [*lines, *filter(None, [metrics, note])]

    def _live_update(self, block: RenderableType) -> None:
        if self._live is None:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        self._live.update(block, refresh=True)

    def _opened(self) -> Console:
        if self._console is None:
            from rich.console import Console

            self._console = Console()
        return self._console

    def _is_plain(self) -> bool:
        console = self._opened()
        return not console.is_terminal or console.is_dumb_terminal


class _FusedSource:
    """A world in JAX by its scenes."""

    def __init__(self, trainer: FusedSeeds | DataParallelSeeds):
        world = trainer.environment
        if not hasattr(world, "scene"):
            raise TreadleError(
                f"--watch cannot draw {getattr(world, 'name', type(world).__name__)}: the world has no method "
                "scene(state), which says what to draw. Add one, or train without --watch."
            )
        self._trainer = trainer
        self._world: Any = jax.device_get(world)  # plain numbers, with which a scene is quickly made

    def now(self) -> Seen:
        actor = jax.device_get(self._trainer.state.actor)
        state = jax.tree.map(lambda x: x[0, 0], actor.env_state)
        return Seen(self._world.scene(state), float(actor.episode_return[0, 0]), int(actor.episode_length[0, 0]))

    def advance(self) -> tuple[Iterator[Seen], Record]:
        before = self._trainer.state
        preview, actor = jax.device_get(
            (next_round(self._trainer.algorithm, self._trainer.environment, before), before.actor)
        )
        so_far = float(actor.episode_return[0, 0]), int(actor.episode_length[0, 0])
        return self._steps(preview, *so_far), self._trainer.advance(1)

    def _steps(self, preview: Any, episode_return: float, length: int) -> Iterator[Seen]:
        for t, (reward, ended) in enumerate(zip(preview.rewards.tolist(), preview.ended.tolist(), strict=True)):
            episode_return, length = episode_return + reward, length + 1
            state = jax.tree.map(lambda x, t=t: x[t], preview.states)
            yield Seen(self._world.scene(state), episode_return, length, ended)
            if ended:
                episode_return, length = 0.0, 0


class _HostSource:
    """Gymnasium's environment by what it renders as text."""

    def __init__(self, trainer: HostSeeds):
        self._trainer = trainer
        environments = trainer.environments[0]
        if environments.steps_by_itself:
            raise TreadleError(
                f"--watch cannot draw {environments.name} as text. Leave it out, and watch the run in the browser "
                "as it learns: treadle watch RUN --live."
            )
        self._recorded: _Recorded = environments.wrap_first(lambda env: _Recorded(env, environments.name))

    def now(self) -> Seen:
        return self._recorded.seen()

    def advance(self) -> tuple[Iterator[Seen], Record]:
        self._recorded.steps.clear()
        record = self._trainer.advance(1)
        return iter(self._recorded.steps), record


class _Recorded:
    """A Gymnasium environment that keeps what it renders after each step: an episode that has ended gives way to the
    next before anybody could ask."""

    def __init__(self, env: Any, name: str):
        if "ansi" not in env.metadata.get("render_modes", ()):
            raise TreadleError(
                f"--watch cannot draw {name}: Gymnasium does not render it as text.{_instead(name)} "
                "Train without --watch, and draw an episode afterwards: treadle evaluate RUN --render FILE.gif."
            )
        self._env = env
        self.steps: list[Seen] = []
        self._return, self._length = 0.0, 0
        env.unwrapped.render_mode = "ansi"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, **options: Any) -> Any:
        self._return, self._length = 0.0, 0
        return self._env.reset(**options)

    def step(self, action: Any) -> Any:
        result = self._env.step(action)
        _, reward, terminated, truncated, _ = result
        self._return, self._length = self._return + float(reward), self._length + 1
        self.steps.append(self.seen(bool(terminated or truncated)))
        return result

    def seen(self, ended: bool = False) -> Seen:
        return Seen(str(self._env.render()), self._return, self._length, ended)


def _instead(name: str) -> str:
    worlds = registry.environments
    has_scene = name in worlds and hasattr(worlds.find(name)[0], "scene")
    return " Leave --loop host out, and its world in JAX is drawn." if has_scene else ""


def _encodable(text: str, console: Console) -> str:
    """The text with question marks for what the terminal's encoding lacks."""
    return text.encode(console.encoding, "replace").decode(console.encoding)
