"""Workers as threads around compiled code, for one learner in the same process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import jax
from jaxtyping import Array

from treadle.errors import TreadleError
from treadle.loops.desk import Desk, Task
from treadle.loops.workers import Post, Worker

PERIOD = 0.02
"""Seconds between two looks at whether somebody is late."""
LAST = 5.0
"""Seconds in which workers may finish what they are at where the run ends early."""
RESTARTS = 3
"""How often a worker that hangs is replaced before the run is given up."""


class Threads:
    """`count` workers, each in a thread of its own while updates are asked for.

    A task that takes longer than `timeout` seconds is taken for lost: its worker is left to itself and another with
    fresh environments stands in. What a worker's environment raises passes through.
    """

    def __init__(self, post: Post, count: int, key: Array, timeout: float, log: Callable[[str], None]):
        self.post, self.count, self._key, self._timeout, self._log = post, count, key, timeout, log
        self._made = 0
        self._hung = [0] * count
        self._workers: list[Worker] = []
        self._lock = threading.Condition()
        self._error: BaseException | None = None
        self._is_queued = [False] * count
        self._abandoned: list[threading.Thread] = []
        self._threads: dict[int, threading.Thread] = {}

    def _make(self, index: int) -> Worker:
        """Each that is made has randomness of its own."""
        self._made += 1
        return self.post.worker(jax.random.fold_in(jax.random.fold_in(self._key, index), self._made))

    def run(self, desk: Desk) -> None:
        """Work until the desk is done. Raises what a worker raised, and `TreadleError` where one hangs again and
        again."""
        desk.alive = self.count
        if not self._workers:
            # A run that goes on is not to see again what it saw first.
            self._key = jax.random.fold_in(self._key, desk.version)
            self._workers = [self._make(i) for i in range(self.count)]
        threads = [self._start(desk, i) for i in range(self.count)]
        try:
            with self._lock:
                while not desk.is_done and self._error is None:
                    self._lock.wait(PERIOD)
                    threads += [self._replace(desk, i) for i in range(self.count) if self._hangs(desk, i)]
                    self._lock.notify_all()
        except BaseException as error:
            self._error = self._error or error
            raise
        finally:
            self._finish(desk, threads)

    def _finish(self, desk: Desk, threads: list[threading.Thread]) -> None:
        """Wait for what is still under way, but not for what hangs; raise what was raised."""
        with self._lock:
            self._lock.notify_all()
        limit = self._timeout if self._error is None else LAST
        for thread in threads:
            thread.join(0.0 if thread in self._abandoned else limit)
        error, self._error = self._error, None
        for index in range(self.count):
            desk.lost(index)
        if error is not None:
            raise error

    def _start(self, desk: Desk, index: int) -> threading.Thread:
        worker = self._workers[index]
        thread = threading.Thread(target=self._serve, args=(desk, index, worker), daemon=True, name=f"worker-{index}")
        self._threads[index] = thread
        thread.start()
        return thread

    def _serve(self, desk: Desk, index: int, worker: Worker) -> None:
        try:
            while (task := self._next(desk, index, worker)) is not None:
                answer = worker.work(task.shared)
                self._is_queued[index] = True
                with self._lock:
                    self._is_queued[index] = False
                    if self._workers[index] is worker:
                        desk.take(index, task.number, answer, time.monotonic(), sum(self._is_queued))
                        if not self.post.sends_gradients or desk.is_done:
                            self._lock.notify_all()
        except BaseException as error:
            with self._lock:
                if self._workers[index] is worker:
                    self._error = self._error or error
                self._lock.notify_all()

    def _next(self, desk: Desk, index: int, worker: Worker) -> Task | None:
        """The next task, for which it may have to wait; `None` where there will be none."""
        with self._lock:
            while not desk.is_done and self._error is None and self._workers[index] is worker:
                task = desk.begin(index, time.monotonic())
                if task is not None:
                    return task
                self._lock.wait(PERIOD)
        return None

    def _hangs(self, desk: Desk, index: int) -> bool:
        since = desk.since(index)
        return since is not None and time.monotonic() - since > self._timeout

    def _replace(self, desk: Desk, index: int) -> threading.Thread:
        self._hung[index] += 1
        if self._hung[index] > RESTARTS:
            raise TreadleError(
                f"worker {index} took longer than {self._timeout:g} seconds for a rollout, {RESTARTS + 1} times. Look "
                "in the environment for what it waits for, or allow more with --worker-timeout."
            )
        self._log(f"worker {index} took longer than {self._timeout:g} s for a rollout: another stands in for it.")
        desk.lost(index)
        self._abandoned.append(self._threads[index])
        self._workers[index] = self._make(index)
        return self._start(desk, index)

    def close(self) -> None:
        """Close every worker's environments."""
        for worker in self._workers:
            worker.close()
