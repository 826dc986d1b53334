"""What is played in a session: one run's world, the policy of a seed and a checkpoint, and the controls.

Whatever here takes time (JAX, the disk) is called from one thread at a time, and never from the server's own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from treadle.checkpoint import CheckpointError
from treadle.errors import TreadleError
from treadle.loops.choose import drawn_environment
from treadle.loops.play import HostPlayer, WorldPlayer, action_of_keys, player_of
from treadle.run import Run, step_of
from treadle.spaces import Discrete
from treadle.window import messages
from treadle.window.messages import Command
from treadle.window.policies import Policies

LOGGER = logging.getLogger("treadle.window")


class Out(NamedTuple):
    """A message on its way: to one client, or to all. Of each kind but notices only the newest counts."""

    kind: str
    text: str
    client: int | None = None


class Turn(NamedTuple):
    """What a turn brought, and the seconds until the next is due: `None` where only a command makes one."""

    out: list[Out]
    delay: float | None


class Stage:
    """`frames_per_second` is how long a turn plays at most; `clock` gives seconds."""

    def __init__(
        self,
        folder: Path,
        name: str,
        live: bool = False,
        frames_per_second: float = 30.0,
        hold_seconds: float = 0.7,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.folder, self.name, self.live = folder, name, live
        self._burst, self._hold, self._clock = 1 / frames_per_second, hold_seconds, clock
        self._run: Run | None = None
        self._policies: Policies | None = None
        self._states: Any = None
        self._player: WorldPlayer | HostPlayer | None = None
        self._playing, self._speed, self._seed, self._start = True, 1.0, 0, 0
        self._follow = live
        self._checkpoint: int | None = None
        self._wanted: int | None = None
        self._is_behind = False
        self._held: dict[int | None, tuple[str, ...]] = {}
        self._number = self._episode = 0
        self._due = -math.inf
        self._has_table = False
        self._out: list[Out] = []

    def turn(self, commands: Iterable[Command], present: Collection[int | None]) -> Turn:
        """Obey commands in their order, play for as long as a frame lasts, and say what there is to see. Whoever is
        not `present` holds no keys any more."""
        self._out = []
        self._held = {client: held for client, held in self._held.items() if client in present}
        changed = False
        for command in commands:
            # Where it fails, what is shown says what holds instead.
            changed |= command.kind in ("checkpoint", "seed")
            with self._telling(command.client):
                changed |= self._obey(command)
        with self._telling():
            if self._is_behind and not self._out:
                changed |= self._catch_up()
        with self._telling(is_fatal=True):
            if self._playing and self._checkpoint is not None:
                changed |= self._play()
            if changed and self._checkpoint is not None:
                self._show()
        return Turn(self._out, self._delay())

    def close(self) -> None:
        """Release what was opened."""
        if self._player is not None:
            with contextlib.suppress(Exception):
                self._player.close()
        self._run = self._player = self._policies = self._states = self._checkpoint = None
        self._is_behind = False

    @contextlib.contextmanager
    def _telling(self, client: int | None = None, is_fatal: bool = False) -> Any:
        """Turn errors into notices: a mistake in a sentence, and whatever else a world raises with its traceback on
        the server's terminal. What would come again with the next step pauses."""
        try:
            yield
        except TreadleError as error:
            self._playing &= not is_fatal
            self._tell(str(error), "error", client)
        except Exception as error:
            LOGGER.exception("while playing %s", self.name)
            self._playing &= not is_fatal
            what = "Stopped by an error" if is_fatal else "That failed"
            self._tell(f"{what}: {type(error).__name__}: {error}", "error")

    def _tell(self, text: str, level: str = "info", client: int | None = None) -> None:
        self._out.append(Out("notice", messages.notice(text[:1000], level), client))

    def _obey(self, command: Command) -> bool:
        """Whether there is something else to see now. What is chosen before there is a policy holds when it comes."""
        kind, value = command.kind, command.value
        if kind == "news":
            return self._renew()
        if kind in ("play", "pause", "speed"):
            self._pace(kind, value)
            return True
        if kind in ("seed", "checkpoint", "follow"):
            return self._choose(kind, value)
        if self._checkpoint is None:
            self._start = value if kind == "start" else self._start
            return False
        return self._act(command)

    def _pace(self, kind: str, value: Any) -> None:
        if kind == "speed":
            self._speed = value
        else:
            self._playing = kind == "play"
        self._due = self._clock()

    def _choose(self, kind: str, value: Any) -> bool:
        if kind == "seed":
            seeds = self._run.config.seeds if self._run else math.inf
            if value >= seeds:
                raise TreadleError(f"There is no seed {value}: this run has {seeds}, counted from 0.")
            if self._checkpoint is not None:
                self._take(self._states, value)
            self._seed = value
        elif kind == "checkpoint":
            self._follow, self._wanted = False, value
            if self._checkpoint not in (None, value):
                self._load(value)
        else:
            self._follow, self._wanted = value, None if value else self._wanted
            if self._checkpoint is not None:
                self._renew()
        return True

    def _act(self, command: Command) -> bool:
        """What changes the episode itself."""
        assert self._player is not None
        kind, value = command.kind, command.value
        if kind == "step":
            self._playing = False
            self._step()
        elif kind in ("reset", "start"):
            self._begin(self._start + 1 if kind == "reset" else value)
            self._due = self._clock() + self._period(False)
        elif kind == "drag":
            self._player.move(*value)
        elif kind == "keys":
            before = self._keys()
            self._held.pop(command.client, None)
            if value:
                self._held[command.client] = value
            is_new = any(key not in before and key in self._player.keys for key in value)
            if self._playing or not is_new:
                return False
            self._step()
        return True

    def _keys(self) -> list[str]:
        """All that are held down, those of whoever pressed last at the end."""
        return [key for held in self._held.values() for key in held]

    def _play(self) -> bool:
        """The steps that are due, for as long as a frame lasts at most and no further than an episode's end."""
        assert self._player is not None
        began = self._clock()
        # Who is late, such as after compiling, does not hurry afterwards.
        self._due = max(self._due, began - self._burst)
        played = False
        while self._due <= self._clock():
            due = self._due
            self._step()
            played, is_over = True, self._player.ended is not None
            self._due = due + self._period(is_over)
            if is_over or self._clock() - began >= self._burst:
                break
        return played

    def _period(self, is_over: bool) -> float:
        """Seconds from a step to the next."""
        assert self._player is not None
        if is_over and math.isfinite(self._speed):
            return self._hold / max(1.0, self._speed)
        return 1 / (self._speed * self._player.steps_per_second)

    def _step(self) -> None:
        assert self._player is not None
        if self._player.ended:
            self._begin(self._start + 1)
        else:
            self._player.step(action_of_keys(self._player, self._keys()))

    def _begin(self, start: int) -> None:
        assert self._player is not None
        self._start = start % 2**31
        self._episode += 1
        self._player.reset(self._start)

    def _delay(self) -> float | None:
        if self._is_behind:
            return 0.0
        if self._checkpoint is None or not self._playing:
            return None
        return max(0.0, self._due - self._clock())

    def _show(self) -> None:
        assert self._player is not None
        self._number += 1
        control = {
            "playing": self._playing,
            "speed": self._speed if math.isfinite(self._speed) else "max",
            "seed": self._seed,
            "checkpoint": self._checkpoint,
            "follow": self._follow,
            "start": self._start,
        }
        self._out.append(Out("frame", messages.frame(self._number, self._episode, self._player.see(), control)))

    def _open(self) -> None:
        """Open the run, or open it anew where it was replaced. Its policy is loaded in the next turn, so that what it
        is can be told before."""
        run = Run.open(self.folder)
        run.algorithm()
        run.check_module()
        self.close()
        self._player = player_of(drawn_environment(run.task))
        self._out.append(Out("hello", messages.encode(self._hello(run, self._player))))
        self._run, self._is_behind = run, True
        self._seed = min(self._seed, run.config.seeds - 1)

    def _renew(self) -> bool:
        """Take what is new on the disk: another run in the folder, and the newest checkpoint if it is to be shown."""
        run = self._run
        if run is None or any(run.info[name] != now for name, now in self._on_disk().items()):
            self._open()
            return False
        return self._catch_up()

    def _on_disk(self) -> dict[str, Any]:
        """What makes a run another one."""
        info = Run.open(self.folder).info
        return {name: info[name] for name in ("algorithm", "settings", "environment", "wrappers", "config", "imports")}

    def _catch_up(self) -> bool:
        """Load the checkpoint that is to be shown, where it is not shown yet."""
        assert self._run is not None
        self._is_behind = False
        found = self._run.checkpoints()
        if self._checkpoint is None:
            if not found:
                self._tell(f"Waiting for the first checkpoint of {self.name}.")
                return False
            self._load(self._wanted)
            return True
        if self._follow and found and step_of(found[-1]) != self._checkpoint:
            self._load(None)
            return True
        return False

    def _load(self, step: int | None) -> None:
        """Take the policy of a checkpoint, the newest unless `step` says another. One that is gone, because training
        keeps a few, is replaced by the newest, and a newest that is damaged by the one before."""
        assert self._run is not None
        if self._policies is None:
            self._policies = Policies(self._run)
        damaged: dict[int, CheckpointError] = {}
        for _ in range(10):
            found = {s: path for path in self._run.checkpoints() if (s := step_of(path)) not in damaged}
            if step is not None and step not in found:
                self._tell(f"The checkpoint at step {step:,} is no longer there; the newest is shown instead.")
                step = None
            if not found:
                break
            path = found[max(found) if step is None else step]
            try:
                states, loaded = self._policies.load(path)
            except CheckpointError as error:
                if not path.exists():
                    continue  # training has just removed it
                if step is not None:
                    raise
                damaged[step_of(path)] = error
                continue
            for at, error in damaged.items():
                self._tell(f"{error} The one at step {loaded:,} is shown instead of that at step {at:,}.", "error")
            self._take(states, self._seed)
            is_first, self._checkpoint, self._states = self._checkpoint is None, loaded, states
            if is_first:
                self._begin(self._start)
                self._due = self._clock() + self._period(False)
            return
        raise next(iter(damaged.values()), TreadleError(f"{self.name} has no checkpoint any longer."))

    def _take(self, states: PyTree, seed: int) -> None:
        """Play by the policy of a seed."""
        assert self._policies is not None and self._player is not None
        state = self._policies.of_seed(states, seed)
        self._player.follow(self._policies.algorithm, state, self._policies.spec)
        values = messages.table(self._player.world, state) if isinstance(self._player, WorldPlayer) else None
        if values is not None or self._has_table:
            self._out.append(Out("table", messages.encode(values or {"type": "table", "values": None})))
        self._has_table = values is not None

    def _hello(self, run: Run, player: WorldPlayer | HostPlayer) -> dict[str, Any]:
        return {
            "type": "hello",
            "run": {
                "name": self.name,
                "algorithm": run.info["algorithm"],
                "environment": run.info["environment"],
                "preset": run.info.get("preset"),
                "seeds": run.config.seeds,
                "status": run.info.get("status"),
                "step": run.info.get("step"),
                "total_timesteps": run.config.total_timesteps,
                "command": run.info.get("command"),
            },
            "live": self.live,
            "speeds": [*messages.SPEEDS, "max"],
            "checkpoints": [step_of(path) for path in run.checkpoints()],
            "actions": messages.actions(player, player.action_names),
            "keys": list(player.keys),
            "key_actions": _key_actions(player),
            "steps_per_second": player.steps_per_second,
            "drawing": "scene" if player.is_drawn_as_scene else "image",
            "evaluated": _evaluated(run.folder),
        }


def _key_actions(player: WorldPlayer | HostPlayer) -> dict[str, str]:
    """What a person does by each key, as far as the environment has names for it."""
    names = list(player.action_names or ())
    said = {}
    for key, action in player.keys.items():
        if isinstance(player.own_actions, Discrete):
            words = names[action : action + 1]
        else:
            numbers = np.broadcast_to(np.asarray(action), player.own_actions.shape).ravel()
            parts = zip(names, numbers, strict=True) if len(names) == len(numbers) else ()
            words = [f"{name} {'+' if number > 0 else '-'}" for name, number in parts if number]
        if words:
            said[key] = ", ".join(words)
    return said


def _evaluated(folder: Path) -> dict[str, Any] | None:
    """What `treadle evaluate` found last, if it did."""
    try:
        content = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        found = {name: content[name] for name in ("environment", "step", "episodes")}
        found["mean"] = float(content["summary"]["mean"])
        messages.encode(found)  # which NaN is not
        return found
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
