"""The learner's side of many workers: who may begin what, and what becomes of what comes back.

A desk knows no threads and no processes. An engine asks it for tasks (`begin`), hands it answers (`take`) and tells it
of workers that are gone (`lost`), one call at a time.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from treadle.loops.fused import Record
from treadle.loops.rollout import Episodes
from treadle.loops.seeding import purpose
from treadle.loops.workers import Contribution, LearnerPrograms, Post
from treadle.types import Counter, Mean

REMEMBERED_DURATIONS = 64
"""Tasks by whose median time it is judged whether one takes long."""


class LearnerState(NamedTuple):
    """What of one seed a checkpoint keeps: workers begin new episodes when a run goes on."""

    algorithm: PyTree
    updates: Counter
    key: Array


class Task(NamedTuple):
    """One rollout for a worker."""

    number: int
    """Of all tasks of this learner: no two are the same."""
    version: int
    """Updates that the learner had made."""
    shared: tuple[Any, ...]
    """The snapshot."""


class _Begun(NamedTuple):
    task: Task
    since: float


class _Answer(NamedTuple):
    worker: int
    number: int
    contribution: Contribution


class Desk:
    """The learner, the versions of its parameters, and the tasks that are out.

    With gradients, every answer is an update, whatever the age of its snapshot. With rollouts, an update takes
    `needed` of them, and those of a policy more than `max_staleness` updates old are dropped. As many are begun as
    updates need. Where one takes `patience` times as long as they usually do, another worker may begin one in its
    place; with a patience of `None` every worker is waited for.
    """

    def __init__(
        self,
        post: Post,
        programs: LearnerPrograms,
        state: LearnerState,
        needed: int = 1,
        max_staleness: int = 0,
        patience: float | None = None,
    ):
        self.post, self._programs = post, programs
        self.needed, self.max_staleness, self.patience = needed, max_staleness, patience
        self.alive = needed
        self._settings = programs.settings.pack(post.algorithm)
        self._tasks = 0
        self._durations: deque[float] = deque(maxlen=REMEMBERED_DURATIONS)
        self.restore(state)

    @property
    def state(self) -> LearnerState:
        """What a checkpoint keeps."""
        return LearnerState(
            self._programs.state.unpack(self._buffers), Counter(jnp.asarray(self.version, jnp.int32)), self._key
        )

    def restore(self, state: LearnerState) -> None:
        """Go on from a state as `state` returned it. Answers to tasks from before are not taken any more."""
        self._key = state.key
        self._update_key = purpose(state.key, "update")
        self.version = self.target = int(state.updates.value)
        self._buffers = self._programs.state.pack(state.algorithm)
        self._shared = self._programs.share(self._settings, self._buffers)
        self._begun: dict[int, _Begun] = {}
        self._batch: list[_Answer] = []
        self._clear()

    def ask(self, num_updates: int) -> None:
        """So many updates more are wanted."""
        self.target += num_updates
        self._since = time.monotonic()

    @property
    def is_done(self) -> bool:
        """Whether the updates that were asked for are made."""
        return self.version >= self.target

    def begin(self, worker: int, now: float, ahead: bool = False) -> Task | None:
        """A task for a worker that has none, at the time `now` in seconds; `None` where there is nothing to do for it
        yet. `ahead`: also what only later updates than those that were asked for may need."""
        if worker in self._begun:
            return None
        left = self.target - self.version
        if self.post.sends_gradients:
            wanted = ahead or len(self._begun) < left
        else:
            wanted = self._wants_rollout(worker, now, 1 + self.max_staleness if ahead else left)
        if not wanted:
            return None
        task = Task(self._tasks, self.version, self._shared)
        self._tasks += 1
        self._begun[worker] = _Begun(task, now)
        return task

    def _wants_rollout(self, worker: int, now: float, left: int) -> bool:
        """Whether so many updates, that are left, may need one more."""
        if self.patience is None:
            # One of each worker; more only where there are fewer than rollouts.
            own = sum(answer.worker == worker for answer in self._batch)
            if own >= -(-self.needed // max(self.alive, 1)):
                return False
        expected = len(self._batch)
        expected += sum(self._is_fresh(begun.task) and not self._is_late(begun, now) for begun in self._begun.values())
        return expected < self.needed * min(left, 1 + self.max_staleness)

    def _is_fresh(self, task: Task) -> bool:
        return self.version - task.version <= self.max_staleness

    def _is_late(self, begun: _Begun, now: float) -> bool:
        if self.patience is None or len(self._durations) < self.needed:
            return False
        return now - begun.since > self.patience * statistics.median(self._durations)

    def take(self, worker: int, number: int, contribution: Contribution, now: float, queued: int = 0) -> bool:
        """The answer to the task `number` of a worker, behind which so many more are waiting. Whether it was taken: an
        answer to a task that is not out, because it was lost or answered before, never counts."""
        begun = self._begun.get(worker)
        if begun is None or begun.task.number != number:
            return False
        del self._begun[worker]
        self._durations.append(now - begun.since)
        self._queues.append(queued)
        staleness = self.version - begun.task.version
        if self.post.sends_gradients:
            self._apply(contribution)
        elif not self._is_fresh(begun.task):
            self._dropped += 1
            return False
        else:
            self._batch.append(_Answer(worker, number, contribution))
        self._staleness.append(staleness)
        if len(self._batch) == self.needed:
            self._update()
        return True

    def lost(self, worker: int) -> None:
        """A worker's task will never be answered."""
        self._begun.pop(worker, None)

    def since(self, worker: int) -> float | None:
        """When a worker began the task that it has out; `None` where it has none."""
        begun = self._begun.get(worker)
        return None if begun is None else begun.since

    def _apply(self, contribution: Contribution) -> None:
        self._buffers, self._shared = self._programs.apply(self._settings, self._buffers, contribution.payload)
        self._advanced(contribution.totals, contribution.episodes)

    def _update(self) -> None:
        answers = [answer.contribution for answer in sorted(self._batch, key=lambda answer: answer[:2])]
        self._batch = []
        rollouts = [answer.payload for answer in answers]
        self._buffers, self._shared, totals = self._programs.update(
            self._settings, self._buffers, rollouts, self._update_key, np.int32(self.version)
        )
        episodes = [answer.episodes for answer in answers]
        self._advanced(np.asarray(totals), jax.tree.map(lambda *x: np.concatenate(x, axis=1), *episodes))

    def _advanced(self, totals: Any, episodes: Episodes) -> None:
        self.version += 1
        self._totals += totals
        self._episodes.append(episodes)

    def take_record(self) -> Record:
        """What the updates since the last record reported: metrics `[1]`, episodes `[N, T, B]`."""
        steps = sum(episodes.lengths.size for episodes in self._episodes)
        told = {
            "staleness": _mean(self._staleness),
            "queue": _mean(self._queues),
            "workers": _mean([self.alive]),
            "steps_per_second": _mean([steps / max(time.monotonic() - self._since, 1e-9)]),
        }
        if not self.post.sends_gradients:
            answers = len(self._staleness) + self._dropped
            told["dropped"] = Mean(np.array([float(self._dropped)]), np.array([float(answers)]))
        metrics = {**self._programs.totals.metrics(self._totals), **told}
        episodes = jax.tree.map(lambda *x: np.stack(x), *self._episodes)
        self._clear()
        return Record(metrics, episodes)

    def _clear(self) -> None:
        self._episodes: list[Episodes] = []
        self._totals = np.zeros((2, len(self._programs.totals.names)), np.float32)
        self._staleness: list[int] = []
        self._queues: list[int] = []
        self._dropped = 0
        self._since = time.monotonic()


def _mean(values: list[Any]) -> Mean:
    return Mean(np.array([float(sum(values))]), np.array([float(len(values))]))
