"""Workers for one learner as processes of a cluster: they act, and the learner stays with the driver.

What the learner shares travels through the object store, once for each update. A worker that dies, hangs or raises an
error is started anew with fresh environments; its task is lost, and what it had not answered never counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import ray
from jaxtyping import Array

from treadle import registry
from treadle.loops.cluster.connection import connect
from treadle.loops.cluster.remote import BEAT, Limits, Lost, Remote, WorkerFailed, pickled
from treadle.loops.cluster.worker import Failure
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


class RayWorkers:
    """`count` workers of a cluster, at `address` or of this machine alone.

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
        self._timeout, self._log, self._limits = timeout, log, limits or Limits()
        described = {"environment": post.world, "algorithm": post.algorithm}
        keys = [np.asarray(jax.random.key_data(jax.random.fold_in(key, index))) for index in range(count)]
        seats = [pickled(Seat, (post, own), described) for own in keys]
        self._connection = connect(address, count)
        imports = registry.imported_files()
        self._remotes = [Remote(self._connection, seat, imports, self._limits) for seat in seats]
        self._calls: dict[Any, tuple[int, int]] = {}
        self._losses = [0] * count
        self._has_answered = [False] * count
        self._version: int | None = None
        self._made = 0
        self._shared: tuple[int, Any] = (-1, None)
        self._looked = self._alive_at = 0.0

    def run(self, desk: Desk) -> None:
        """Work until the desk is done. Raises `WorkerFailed` where workers cannot be kept alive."""
        if self._version is None:
            self._version = desk.version
            self._alive_at = time.monotonic()
            for index in range(len(self._remotes)):
                self._start(index)
        while not desk.is_done:
            self._hand_out(desk)
            self._collect(desk)
            if time.monotonic() - self._looked > BEAT:
                self._looked = time.monotonic()
                self._look_after(desk)

    def processes(self) -> list[Any]:
        """Node and process of each worker, where they are known."""
        for remote in self._remotes:
            remote.late()
        return [remote.seen for remote in self._remotes]

    def close(self) -> None:
        """End the workers, and the connection if it was made here."""
        for remote in self._remotes:
            remote.kill()
        self._remotes, self._calls = [], {}
        self._connection.close()

    def _start(self, index: int) -> None:
        """A fresh process for a worker. What is random in it is like no other's, also in a run that goes on."""
        self._remotes[index].start()
        self._remotes[index].call("begin", self._version, self._made)
        self._made += 1
        self._has_answered[index] = False

    def _hand_out(self, desk: Desk) -> None:
        """Tasks for all that have none."""
        for index, remote in enumerate(self._remotes):
            task = desk.begin(index, time.monotonic(), ahead=True)
            if task is None:
                continue
            if self._shared[0] != task.version:
                self._shared = task.version, ray.put(jax.device_get(task.shared))
            self._calls[remote.call("work", self._shared[1])] = index, task.number

    def _collect(self, desk: Desk) -> None:
        """Take the answers that are there, after waiting a little for the first."""
        if not self._calls:
            time.sleep(WAIT)
            return
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=WAIT)
        if ready:
            ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        for place, reference in enumerate(ready):
            index, number = self._calls.pop(reference)
            answer = self._remotes[index].take(reference)
            if isinstance(answer, Lost | Failure):
                self._lose(desk, index, answer)
                continue
            self._losses[index], self._has_answered[index] = 0, True
            desk.take(index, number, answer, time.monotonic(), len(ready) - place - 1)

    def _look_after(self, desk: Desk) -> None:
        """Start anew whoever is silent or takes too long. Who waits for a place in the cluster goes on waiting, as long
        as others work."""
        now = time.monotonic()
        for index, remote in enumerate(self._remotes):
            lost, since = remote.late(), desk.since(index)
            if lost is not None and remote.seen is None and lost.is_final and self._alive() > 0:
                continue
            limit = self._timeout + (0 if self._has_answered[index] else self._limits.start)
            if lost is None and remote.seen is not None and since is not None and now - since > limit:
                lost = Lost(f"it took longer than {self._timeout:g} seconds for a rollout")
            if lost is not None:
                self._lose(desk, index, lost)
        alive = self._alive()
        if alive != desk.alive:
            told = f"{alive} of {len(self._remotes)} workers are at work"
            if alive < desk.alive and desk.version > 0:
                self._log(f"{told}; the others wait for a place in the cluster.")
            desk.alive = max(alive, 1)

    def _alive(self) -> int:
        return sum(remote.seen is not None for remote in self._remotes)

    def _lose(self, desk: Desk, index: int, why: Lost | Failure) -> None:
        """A worker is gone: its task is free for others, and a fresh process is asked for."""
        desk.lost(index)
        self._calls = {reference: call for reference, call in self._calls.items() if call[0] != index}
        reason = why.reason if isinstance(why, Lost) else f"its environment or algorithm raised {why.line}"
        self._losses[index] += 1
        if self._losses[index] > self._limits.losses or (isinstance(why, Lost) and why.is_final):
            times = f", {self._losses[index]} times without a rollout between" if self._losses[index] > 1 else ""
            raise WorkerFailed(f"worker {index} was lost{times}: {reason}. The run was stopped.")
        self._log(f"worker {index} was lost: {reason}. It is started anew.")
        self._start(index)
