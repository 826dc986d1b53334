"""Workers for one learner as processes of a cluster: they act, and the learner stays with the driver.

What the learner shares travels through the object store, once for each update. A worker that dies, hangs or raises an
error is started anew with fresh environments; its task is lost, and what it had not answered never counts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import ray
from jaxtyping import Array

from treadle import registry
from treadle.errors import TreadleError
from treadle.loops.cluster.connection import connect
from treadle.loops.cluster.remote import (
    BEAT,
    Limits,
    Lost,
    Remote,
    RemoteTraceback,
    WorkerFailed,
    pickled,
    raise_failure,
)
from treadle.loops.cluster.worker import Failure, Pulse
from treadle.loops.desk import Desk
from treadle.loops.workers import Contribution, Post

WAIT = 0.02
"""Seconds between two looks at whether a worker that has nothing to do may begin something."""


class Seat:
    """What a worker's process holds: its environments, and how it acts in them."""

    def __init__(self, post: Post, key: np.ndarray):
        self._post, self._key = post, jax.random.wrap_key_data(jnp.asarray(key))

    def begin(self, *numbers: int) -> None:
        """Make the environments, with the randomness of these numbers."""
        key = self._key
        for number in numbers:
            key = jax.random.fold_in(key, number)
        self._worker = self._post.worker(key)

    def work(self, shared: tuple[np.ndarray, ...]) -> Contribution:
        """The answer to the next task."""
        return jax.device_get(self._worker.work(shared))


@dataclasses.dataclass
class _Member:
    """What the driver knows of one worker."""

    remote: Remote
    asked: float = 0.0
    """When its process was asked for."""
    seen_at: float | None = None
    """When its process was heard of for the first time."""
    is_ready: bool = False
    """Whether its environments are made."""
    is_first: bool = True
    """Whether it has never been ready, and not been given up either."""
    has_answered: bool = False
    losses: int = 0
    """One after the other, without a rollout between."""
    is_missed: bool = False
    """Whether the user was told that it has no process."""


class RayWorkers:
    """`count` workers of a cluster, at `address` or of this machine alone.

    One that dies, raises an error, says nothing or takes longer than `timeout` seconds for a rollout is started anew;
    `log` is told. One for which the cluster has no place is waited for while others work.

    Raises what `connect` does, and `TreadleError` for an environment that cannot be sent to another process.
    """

    def __init__(
        self,
        post: Post,
        count: int,
        key: Array,
        address: str | None,
        timeout: float,
        log: Callable[[str], None],
        limits: Limits | None = None,
    ):
        # Where a step never lets another thread run, a worker is as silent as its rollout is long.
        self._limits = limits or Limits(silence=max(Limits.silence, timeout))
        self._timeout, self._log = timeout, log
        described = {"environment": post.world, "algorithm": post.algorithm}
        keys = [np.asarray(jax.random.key_data(jax.random.fold_in(key, index))) for index in range(count)]
        seats = [pickled(Seat, (post, own), described) for own in keys]
        self._connection = connect(address, count)
        imports = registry.imported_files()
        self._members = [_Member(Remote(self._connection, seat, imports, self._limits)) for seat in seats]
        self._calls: dict[Any, tuple[int, int | None]] = {}
        """What each worker was asked for: a task by its number, or to make its environments (`None`)."""
        self._version: int | None = None
        self._made = 0
        self._shared: tuple[int, Any] = (-1, None)
        self._looked = self._heard = 0.0
        self._error: TreadleError | None = None

    def run(self, desk: Desk) -> None:
        """Work until the desk is done. Workers are busy for later updates already when it returns. Raises
        `WorkerFailed` where workers cannot be kept alive, and what Treadle itself raised in one; whatever it raised, it
        raises again."""
        if self._error is not None:
            raise self._error
        try:
            self._work(desk)
        except TreadleError as error:
            self._error = error
            raise

    def _work(self, desk: Desk) -> None:
        if self._version is None:
            # A run that goes on is not to see again what it saw first.
            self._version = desk.version
            for index in range(len(self._members)):
                desk.lost(index)
                self._start(index)
        self._heard = time.monotonic()
        self._tell(desk)
        while not desk.is_done:
            self._hand_out(desk)
            self._collect(desk)
            if not desk.is_done and time.monotonic() - self._looked > BEAT:
                self._look_after(desk)
                self._looked = time.monotonic()

    def processes(self) -> list[Pulse | None]:
        """Node and process of each worker, where they are known."""
        for member in self._members:
            member.remote.late()
        return [member.remote.seen for member in self._members]

    def rest(self) -> None:
        """End the workers, whose cores are free for others; the connection stays, and a later `run` asks for new
        processes."""
        for member in self._members:
            member.remote.kill()
        self._members = [_Member(member.remote) for member in self._members]
        self._calls, self._version = {}, None

    def close(self) -> None:
        """End the workers, and the connection if it was made here."""
        self.rest()
        self._members = []
        self._connection.close()

    def _start(self, index: int) -> None:
        """A fresh process for a worker. What is random in it is like no other's, also in a run that goes on."""
        member = self._members[index]
        member.remote.start()
        member.asked, member.seen_at = time.monotonic(), None
        member.is_ready = member.has_answered = False
        self._calls[member.remote.call("begin", self._version, self._made)] = index, None
        self._made += 1

    def _hand_out(self, desk: Desk) -> None:
        """Tasks for all that have none and could begin at once."""
        for index, member in enumerate(self._members):
            task = desk.begin(index, time.monotonic(), ahead=True) if member.is_ready else None
            if task is None:
                continue
            if self._shared[0] != task.version:
                self._shared = task.version, ray.put(jax.device_get(task.shared))
            self._calls[member.remote.call("work", self._shared[1])] = index, task.number

    def _collect(self, desk: Desk) -> None:
        """Take the answers that are there, after waiting a little for the first. Those that come when all is done are
        for the next time."""
        if not self._calls:
            time.sleep(WAIT)
            return
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=WAIT)
        if ready:
            ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        for place, reference in enumerate(ready):
            self._take(desk, reference, len(ready) - place - 1)
            if desk.is_done:
                return
            self._hand_out(desk)

    def _take(self, desk: Desk, reference: Any, queued: int = 0) -> None:
        """What came back from a worker, or did not."""
        index, number = self._calls.pop(reference)
        member = self._members[index]
        answer = member.remote.take(reference)
        if isinstance(answer, Lost | Failure):
            self._lose(desk, index, answer)
        elif number is None:
            member.is_ready, member.is_first = True, False
            self._tell(desk)
            if member.is_missed:
                self._log(f"worker {index} has a process again, and goes on with fresh environments.")
                member.is_missed = False
        else:
            member.losses, member.has_answered = 0, True
            desk.take(index, number, answer, time.monotonic(), queued)

    def _look_after(self, desk: Desk) -> None:
        """Start anew whoever is silent or takes too long."""
        for index in range(len(self._members)):
            lost = self._late(desk, index)
            if lost is None:
                continue
            mine = [reference for reference, (owner, _) in self._calls.items() if owner == index]
            ready = ray.wait(mine, timeout=0)[0] if mine else []
            if ready:  # an answer that is there counts, whatever has become of its worker since
                self._take(desk, ready[0])
            else:
                self._lose(desk, index, lost)
            if desk.is_done:
                return
        self._check_anybody()
        self._tell(desk)

    def _late(self, desk: Desk, index: int) -> Lost | None:
        """Whether a worker is to be started anew. One that has no process yet waits for it; if that fails, its
        answer says so."""
        member, limits, now = self._members[index], self._limits, time.monotonic()
        lost = member.remote.late()
        if member.remote.seen is None:
            waited = now - member.asked
            if not member.is_missed and waited > limits.start / 4:
                member.is_missed = True
                room = self._connection.room()
                self._log(f"worker {index} has no process after {waited:.0f} seconds ({room}), and waits for one.")
            member.is_first = member.is_first and waited < limits.start
            return None
        member.seen_at = member.seen_at or now
        since = desk.since(index) if member.is_ready else member.seen_at
        limit = self._timeout + (0 if member.has_answered else limits.start)
        if lost is None and since is not None and now - since > limit:
            what = "a rollout" if member.is_ready else "making its environments"
            return Lost(f"it took longer than {limit:g} seconds for {what}")
        return lost

    def _check_anybody(self) -> None:
        """Raise `WorkerFailed` where no worker has had a process for too long."""
        if any(member.remote.seen is not None for member in self._members):
            self._heard = time.monotonic()
        elif time.monotonic() - self._heard > self._limits.start:
            raise WorkerFailed(
                f"no worker has had a process for {self._limits.start:g} seconds ({self._connection.room()}). The run "
                "was stopped."
            )

    def _tell(self, desk: Desk) -> None:
        """Let the desk know how many are at work; one that waits for every worker waits for their first beginning."""
        waits = desk.patience is None
        desk.alive = max(1, sum(m.is_ready or (waits and m.is_first) for m in self._members))

    def _lose(self, desk: Desk, index: int, why: Lost | Failure) -> None:
        """A worker is gone: its task is free for others, and a fresh process is asked for."""
        desk.lost(index)
        self._calls = {reference: call for reference, call in self._calls.items() if call[0] != index}
        member = self._members[index]
        member.is_ready = member.is_first = False
        member.remote.late()
        # A process that never came to life says nothing against its worker: it may be that its node is leaving.
        member.losses += isinstance(why, Failure) or member.remote.seen is not None
        self._tell(desk)
        if isinstance(why, Failure) and why.error is not None:
            raise_failure(why, f"worker {index}")
        reason = why.reason if isinstance(why, Lost) else f"its environment or algorithm raised {why.line}"
        if member.losses > self._limits.losses or (isinstance(why, Lost) and why.is_final):
            times = f", {member.losses} times without a rollout between" if member.losses > 1 else ""
            cause = RemoteTraceback(why.traceback) if isinstance(why, Failure) else None
            raise WorkerFailed(f"worker {index} was lost{times}: {reason}. The run was stopped.") from cause
        self._log(f"worker {index} was lost: {reason}. It is started anew.")
        self._start(index)
