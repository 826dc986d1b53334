"""A worker's process: it holds one object that the driver described, and calls its methods.

It says that it is alive in a thread beside, whatever the object is at.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from treadle import registry
from treadle.errors import TreadleError


class Failure(NamedTuple):
    """What the object raised, in a form that every driver can read."""

    line: str
    """The last line of the traceback, and where that was: `RuntimeError: the wheel came off (walk.py, line 52)`."""
    traceback: str
    error: TreadleError | None
    """The error itself, if it is meant to be read."""


class Pulse(NamedTuple):
    """A sign of life."""

    node: str
    """The node's id."""
    pid: int
    stepping: float | None = None
    """Seconds since the step began that an environment is at, where somebody could say so."""


class Worker:
    """The actor. After a failure the object is not called again, and every further call returns that failure."""

    def __init__(self) -> None:
        # As `tune_cpu` does it; all else of the environment was set before the process began.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        self._object: Any = None
        self._failure: Failure | None = None

    def pulse(self) -> Pulse:
        import ray

        stepping = getattr(self._object, "stepping", None)
        return Pulse(ray.get_runtime_context().get_node_id(), os.getpid(), stepping)

    def build(self, imports: Sequence[str], description: bytes) -> Failure | None:
        """Make the object of the pickled pair of a function and its arguments, after running the user's files."""

        def make() -> None:
            for file in imports:
                registry.import_file(file)
            make_object, arguments = pickle.loads(description)
            self._object = make_object(*arguments)

        return self._guarded(make)

    def call(self, method: str, *arguments: Any) -> Any:
        """What the object's method returns, or the `Failure`."""
        return self._guarded(lambda: getattr(self._object, method)(*arguments))

    def _guarded(self, do: Any) -> Any:
        if self._failure is not None:
            return self._failure
        try:
            return do()
        except (Exception, SystemExit) as error:
            self._failure = _failure(error)
            return self._failure


def _failure(error: BaseException) -> Failure:
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = traceback.format_exception_only(error)[-1].strip()
    where = f"{line} ({Path(last.filename).name}, line {last.lineno})"
    return Failure(where, "".join(traceback.format_exception(error)), _readable(error))


def _readable(error: BaseException) -> TreadleError | None:
    """The error, if it is one of Treadle's and arrives whole at another process."""
    if not isinstance(error, TreadleError):
        return None
    try:
        same = pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return same if str(same) == str(error) else None
