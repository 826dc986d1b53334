"""Workers as threads around compiled code, for one learner in the same process."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable

import jax
from jaxtyping import Array

from treadle.errors import TreadleError
from treadle.loops.desk import Desk, Task
from treadle.loops.workers import Contribution, Post, Worker

PERIOD = 0.02
"""Seconds between two looks at whether somebody is late."""
LAST = 5.0
"""Seconds in which workers may finish what they are at where they are to end."""
RESTARTS = 3
"""How often in succession a worker that hangs is replaced before the run is given up."""


@dataclasses.dataclass(eq=False)
class _Seat:
    """One worker and its thread. Whoever is replaced loses the seat, and nothing that it says counts any more."""

    index: int
    hung: int
    """Times in succession that the workers before it in this place hung."""
    making: float | None
    """Since when its environments are being made; `None` once they are."""
    has_answer: bool = False
    """Whether it has an answer that was not taken yet."""
    thread: threading.Thread = dataclasses.field(init=False)


class Threads:
    """`count` workers, each in a thread of its own.

    A thread outlives the updates that were asked for: what it is at then is for those that will be asked for next, so
    that nobody is waited for. A task that takes longer than `timeout` seconds, or environments that take as long to be
    made, are taken for lost: the worker is left to itself, and another with fresh environments stands in. What a
    worker's environment raises passes through.
    """

    def __init__(self, post: Post, count: int, key: Array, timeout: float, log: Callable[[str], None]):
        self.post, self.count, self._key, self._timeout, self._log = post, count, key, timeout, log
        self._made = 0
        self._seats: list[_Seat | None] = [None] * count
        self._lock = threading.Condition()
        self._error: BaseException | None = None

    def run(self, desk: Desk) -> None:
        """Work until the desk is done. Raises what a worker raised, and `TreadleError` where one hangs again and
        again."""
        with self._lock:
            if not any(self._seats):
                # A run that goes on is not to see again what it saw first.
                self._key = jax.random.fold_in(self._key, desk.version)
            desk.alive = self.count
            for index, seat in enumerate(self._seats):
                if seat is None:
                    self._sit_down(desk, index)
            self._lock.notify_all()
            while not desk.is_done:
                if self._error is not None:
                    error, self._error = self._error, None
                    raise error
                self._lock.wait(PERIOD)
                for seat in self._seats:
                    if seat is not None and self._hangs(desk, seat):
                        self._replace(desk, seat)

    def rest(self) -> None:
        """End the workers: each closes its environments when it has finished what it is at. Whoever takes long for that
        is not waited for."""
        with self._lock:
            ending = [seat for seat in self._seats if seat is not None]
            self._seats, self._error = [None] * self.count, None
            self._lock.notify_all()
        deadline = time.monotonic() + LAST
        for seat in ending:
            seat.thread.join(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """The same."""
        self.rest()

    def _sit_down(self, desk: Desk, index: int, hung: int = 0) -> None:
        """Put a new worker into a place. Each that is made has randomness of its own."""
        desk.lost(index)
        self._made += 1
        key = jax.random.fold_in(jax.random.fold_in(self._key, index), self._made)
        seat = self._seats[index] = _Seat(index, hung, time.monotonic())
        seat.thread = threading.Thread(
            target=self._serve, args=(desk, seat, key), daemon=True, name=f"worker-{index}-{self._made}"
        )
        seat.thread.start()

    def _is_in(self, seat: _Seat) -> bool:
        return self._seats[seat.index] is seat

    def _serve(self, desk: Desk, seat: _Seat, key: Array) -> None:
        worker: Worker | None = None
        try:
            worker = self.post.worker(key)
            while (task := self._next(desk, seat)) is not None:
                self._hand_in(desk, seat, task, worker.work(task.shared))
        except BaseException as error:
            with self._lock:
                if self._is_in(seat):
                    desk.lost(seat.index)
                    self._seats[seat.index] = None
                    self._error = self._error or error
                self._lock.notify_all()
        finally:
            if worker is not None:
                with contextlib.suppress(Exception):
                    worker.close()

    def _next(self, desk: Desk, seat: _Seat) -> Task | None:
        """The next task, for which it may have to wait; `None` for whoever is not in the seat any more."""
        with self._lock:
            seat.making = None
            while self._is_in(seat):
                task = desk.begin(seat.index, time.monotonic(), ahead=True)
                if task is not None:
                    return task
                # Whether somebody is late, for whom to stand in, is a matter of time.
                self._lock.wait(None if desk.is_done else PERIOD)
        return None

    def _hand_in(self, desk: Desk, seat: _Seat, task: Task, answer: Contribution) -> None:
        """Have an answer taken, as soon as updates are asked for."""
        seat.has_answer = True
        with self._lock:
            while desk.is_done and self._is_in(seat):
                self._lock.wait()
            seat.has_answer = False
            if not self._is_in(seat):
                return
            seat.hung = 0
            queued = sum(other is not None and other.has_answer for other in self._seats)
            desk.take(seat.index, task.number, answer, time.monotonic(), queued)
            if not self.post.sends_gradients or desk.is_done:
                self._lock.notify_all()

    def _hangs(self, desk: Desk, seat: _Seat) -> bool:
        since = seat.making or (None if seat.has_answer else desk.since(seat.index))
        return since is not None and time.monotonic() - since > self._timeout

    def _replace(self, desk: Desk, seat: _Seat) -> None:
        what = "a rollout" if seat.making is None else "making its environments"
        if seat.hung >= RESTARTS:
            raise TreadleError(
                f"worker {seat.index} took longer than {self._timeout:g} seconds for {what}, {RESTARTS + 1} times in "
                "succession. Look in the environment for what it waits for, or allow more with --worker-timeout."
            )
        self._log(f"worker {seat.index} took longer than {self._timeout:g} s for {what}: another stands in for it.")
        self._sit_down(desk, seat.index, seat.hung + 1)
