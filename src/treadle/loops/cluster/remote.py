"""What a driver knows of its workers: their answers, and whether they live. Nothing here waits without a limit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import pickle
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import ray
from ray import cloudpickle as _cloudpickle
from ray import exceptions

from treadle.errors import TreadleError
from treadle.loops.cluster.connection import Connection, worker_environment
from treadle.loops.cluster.worker import Failure, Pulse, Worker

cloudpickle: Any = _cloudpickle
_logger = logging.getLogger(__name__)

BEAT = 1.0
"""Seconds between two looks at the workers' health."""
FETCH = 120.0
"""Seconds in which an answer that is ready must arrive."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a worker is given up. None of them limits how long all its work may take."""

    start: float = 120.0
    """Seconds until a worker's process is there."""
    silence: float = 60.0
    """Seconds without a sign of life."""
    step: float = 120.0
    """Seconds that an environment may take for one step."""
    losses: int = 3
    """Times that a worker may be lost, one after the other, before it has done anything."""


class Lost(NamedTuple):
    """In the place of an answer: the worker is no more."""

    reason: str
    """Such as `its process ended`."""
    is_final: bool = False
    """Whether it would be lost again."""
    has_no_place: bool = False
    """Whether it never had a process, because the cluster had no core for it."""


class WorkerFailed(TreadleError):
    """A worker's environment or algorithm raised an error, or workers could not be kept alive."""

    exit_status = 1


class Remote:
    """A worker, in whichever process it is at the moment."""

    def __init__(self, connection: Connection, description: bytes, imports: Sequence[str], limits: Limits):
        self._connection, self._description, self._imports = connection, description, list(imports)
        self.limits = limits
        self._actor: Any = None
        self.seen: Pulse | None = None
        """Where its process was when it was last heard of."""
        self.shares_a_core = False
        """Whether it asks for no core of its own."""

    def start(self) -> None:
        """Ask for a process, and for the object in it; the former process is killed. Does not wait."""
        self.kill()
        options = {
            "num_cpus": 0 if self.shares_a_core else 1,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": "SPREAD",
        }
        # Signs of life come from a thread of their own; the object is called by one other thread alone.
        actor: Any = ray.remote(concurrency_groups={"pulse": 1}, **options)(Worker)  # type: ignore[call-overload]
        self._actor = actor.options(runtime_env={"env_vars": worker_environment()}).remote()
        self.seen = None
        self._ask_pulse()
        self._actor.build.remote(self._imports, self._description)

    def call(self, method: str, *arguments: Any) -> Any:
        """Ask the object for something; the reference to the answer. Calls are answered in their order."""
        return self._actor.call.remote(method, *arguments)

    def take(self, reference: Any) -> Any:
        """The answer that is ready, a `Failure`, or `Lost`."""
        try:
            return ray.get(reference, timeout=FETCH)
        except exceptions.GetTimeoutError:
            return Lost(f"its answer did not arrive within {FETCH:g} seconds")
        except exceptions.RayError as error:
            return _lost(error)

    def late(self) -> Lost | None:
        """Whether it has been silent for too long, or is known to be dead."""
        ready, _ = ray.wait([self._pulse], timeout=0)
        if ready:
            answer = self.take(self._pulse)
            if isinstance(answer, Lost):
                return answer
            self.seen = answer
            self._ask_pulse()
            if answer.stepping is not None and answer.stepping > self.limits.step:
                return Lost(f"its environment took longer than {self.limits.step:g} seconds for a step")
            return None
        waited = time.monotonic() - self._asked
        if self.seen is None and waited > self.limits.start:
            room = self._connection.room()
            return Lost(f"no process could be started for it within {self.limits.start:g} seconds ({room})", True, True)
        if self.seen is not None and waited > self.limits.silence:
            return Lost(f"it gave no sign of life for {self.limits.silence:g} seconds")
        return None

    def kill(self) -> None:
        """End its process, if it has one."""
        if self._actor is not None:
            with contextlib.suppress(Exception):
                ray.kill(self._actor, no_restart=True)
            self._actor = None

    def _ask_pulse(self) -> None:
        self._pulse = self._actor.pulse.options(concurrency_group="pulse").remote()
        self._asked = time.monotonic()


def answers(calls: dict[Any, Remote]) -> Iterator[tuple[Remote, Any]]:
    """Answers of workers, or `Lost`, as they come. `calls` maps references to workers, and may grow meanwhile."""
    looked = 0.0
    while calls:
        ready, _ = ray.wait(list(calls), num_returns=1, timeout=BEAT)
        for reference in ready:
            remote = calls.pop(reference)
            yield remote, remote.take(reference)
        if time.monotonic() - looked > BEAT:
            for reference, remote in list(calls.items()):
                lost = remote.late()
                if lost is not None and calls.pop(reference, None) is not None:
                    yield remote, lost
            looked = time.monotonic()


def pickled(make: Any, arguments: Sequence[Any], described: dict[str, Any]) -> bytes:
    """A function and its arguments, to be called in another process. `described` are the parts among them that are the
    user's, by what to call them. Raises `TreadleError` that names the part which cannot be sent."""
    for name, part in described.items():
        module = getattr(type(part), "__module__", None)
        if module == "__main__" and hasattr(type(part), "__treadle_tree__"):
            raise TreadleError(
                f"the {name} is a {type(part).__name__}, which the main program defines, and workers cannot import "
                "that. Put the class into a file of its own and import it (--import FILE.py)."
            )
        try:
            cloudpickle.dumps(part)
        except Exception as error:
            raise TreadleError(
                f"the {name} {_shown(part)} cannot be sent to workers ({type(error).__name__}: {error}). Give it by a "
                "name that a file of --import registers, or as a function of a module that makes it."
            ) from None
    try:
        return cloudpickle.dumps((make, tuple(arguments)))
    except (TypeError, pickle.PicklingError) as error:
        raise TreadleError(f"this training cannot be sent to workers: {error}") from error


def raise_failure(failure: Failure, who: str) -> None:
    """Raise what went wrong in a worker, as the error that it was if it is Treadle's, else as `WorkerFailed`."""
    if failure.error is not None:
        raise failure.error from RemoteTraceback(failure.traceback)
    raise WorkerFailed(
        f"{who} stopped, because its environment or algorithm raised {failure.line}."
    ) from RemoteTraceback(failure.traceback)


class RemoteTraceback(Exception):
    """The traceback in the worker, shown above the error in the driver."""


def _lost(error: BaseException) -> Lost:
    text = str(error)
    _logger.debug("a worker was lost: %s", text)
    if isinstance(error, (exceptions.RayTaskError, exceptions.RuntimeEnvSetupError)) or "creation task" in text:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return Lost(f"its process could not begin: {lines[-1] if lines else type(error).__name__}", True)
    if isinstance(error, exceptions.OutOfMemoryError) or "running low on memory" in text:
        return Lost("its machine ran out of memory")
    if isinstance(error, exceptions.NodeDiedError) or "node has died" in text:
        return Lost("its node left the cluster")
    return Lost("its process ended")


def _shown(part: Any) -> str:
    while isinstance(part, functools.partial):
        part = part.func
    text = repr(part)
    return text if len(text) < 100 else f"{text[:97]}..."
