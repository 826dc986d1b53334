"""Training a run to its end, or to whatever stops it: metrics and checkpoints on the way, and nothing lost."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

import jax
import numpy as np

from treadle import metrics, records
from treadle.errors import InvalidSetting, NonFinite, TreadleError
from treadle.loops.choose import Trainer
from treadle.loops.chunks import Chunks
from treadle.loops.fused import Record
from treadle.progress import Progress
from treadle.recording import Recording
from treadle.run import Run, step_of
from treadle.watch import Watch

CHECKPOINT_SECONDS = 30.0
CHUNK_BYTES = 1 << 28
"""Of transitions that are kept, no more are fetched from the device at once."""


class Interrupted(TreadleError):
    """The run was stopped by a signal."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_status = 128 + signal_number


class Stopped(TreadleError):
    """The run could not go on, for lack of room or the like; what was saved is as it was."""

    exit_status = 1


def train(
    run: Run, trainer: Trainer, step: int = 0, progress: Progress | None = None, watch: Watch | None = None
) -> None:
    """Train to the configured number of timesteps, from `step` on, writing metrics and checkpoints. A `watch` of this
    trainer draws the learner on the way, in the place of `progress`; the run stays the same, to the last bit.

    SIGINT and SIGTERM stop it after the chunk at hand: it saves and raises `Interrupted`, which says how to resume.
    Raises `NonFinite` when a metric is NaN or infinite, and `Stopped` when something cannot be written; the last
    good checkpoint stays.
    """
    title = f"{run.info['algorithm']} {run.info['environment']}"
    if progress is None or watch is not None:
        progress = Progress(title, run.config.total_timesteps, run.config.seeds, enabled=False)
    session = _Session(run, trainer, step, progress, watch)
    status = "failed"
    try:
        if watch is not None:
            watch.begin(title, step, run.config.total_timesteps, _episodes_so_far(run) if step else 0)
        with _Signals() as signals:
            session.go(signals)
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise Interrupted(
            f"stopped at once, without saving. {session.kept()} Go on with: {run.resume_command}", signal.SIGINT
        ) from None
    except Interrupted:
        status = "interrupted"
        raise
    except NonFinite as error:
        raise NonFinite(
            f"{error} {session.kept()} Where observations and rewards are finite, a smaller learning rate is the "
            "usual cure; with networks, clipping the gradient is another."
        ) from None
    except InvalidSetting as error:  # an alarm: to go on as before would end as before
        raise Stopped(f"{error} {session.kept()}") from error
    except TreadleError as error:
        raise Stopped(f"{error} {session.kept()} To go on afterwards: {run.resume_command}") from error
    finally:
        progress.close()
        if watch is not None:
            watch.close()
        with contextlib.suppress(TreadleError):
            run.save_info(status=status)


class _Session:
    """One stretch of training: from `step` to the end, or to whatever stops it."""

    def __init__(self, run: Run, trainer: Trainer, step: int, shown: Progress, watch: Watch | None):
        self.run, self.trainer, self.shown, self.step, self.watch = run, trainer, shown, step, watch
        self.per_update = trainer.algorithm.num_steps * trainer.algorithm.num_envs
        self.recording = Recording(run, trainer.spec, step) if run.config.save_data is not None else None
        self.plan = Chunks(run.config.total_timesteps, self.per_update, self._most_steps())
        self.began, self.before = time.monotonic(), float(run.info["wall_seconds"])
        self.saved_at, self.saved_step = self.began, step
        self.compiled: set[int] = set()

    def go(self, signals: _Signals) -> None:
        total = self.plan.total_steps
        self.run.save_info(status="running", step=self.step)
        if self.step == 0:
            self._save()
        with metrics.MetricsWriter(self.run.folder, list(range(self.run.config.seeds))) as writer:
            while self.step < total:
                self._chunk(writer, signals)
                if self.step >= total or signals.received or self._is_due():
                    self._save()
                if signals.received and self.step < total:
                    later = f"; {self.run.config.save_data} is written at the run's end" if self.recording else ""
                    raise Interrupted(
                        f"stopped at step {self.step:,} of {total:,} and saved{later}. Go on with: "
                        f"{self.run.resume_command}",
                        signals.received,
                    )
        if self.recording is not None:
            self.recording.finish()

    def kept(self) -> str:
        found = self.run.checkpoints()
        return f"The last good checkpoint is at step {step_of(found[-1]):,}." if found else "Nothing was saved."

    def _chunk(self, writer: metrics.MetricsWriter, signals: _Signals) -> None:
        count = self.plan.next(self.step)
        if self.watch is not None:
            record, count = self._watched(self.watch, count, signals)
        else:
            is_new, self.compiled = count not in self.compiled, self.compiled | {count}
            with self.shown.compiling() if is_new else contextlib.nullcontext():
                record = self.trainer.advance(count)
        writer.write(records.lines(record, self.step, self.per_update, self._seconds()))
        self.step += count * self.per_update
        if self.recording is not None and record.data is not None:
            self.recording.add(record.data, self.step)
        summary = records.summary(record)
        if self.run.config.data is not None:  # no episode will ever end
            del summary["return"]
        self.shown.update(min(self.step, self.run.config.total_timesteps), summary)

    def _watched(self, watch: Watch, count: int, signals: _Signals) -> tuple[Record, int]:
        """A chunk one update at a time, or as much of it as there is before a signal, and how many updates that was."""
        parts: list[Record] = []
        while len(parts) < count and not (parts and signals.received):
            part = watch.advance(lambda: bool(signals.received))
            records.check(part, self.step + len(parts) * self.per_update, self.per_update)
            parts.append(part)
        return _joined(parts, is_summed=not self.trainer.exact_resume), len(parts)

    def _most_steps(self) -> int:
        """Of a chunk."""
        if self.recording is None:
            return self.trainer.chunk_steps
        row = sum(x.nbytes for x in jax.tree.leaves(self.trainer.spec.example))
        return min(self.trainer.chunk_steps, max(1, CHUNK_BYTES // (row * self.run.config.seeds)))

    def _seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def _is_due(self) -> bool:
        period = self.run.config.checkpoint_period
        if period is None:
            return time.monotonic() - self.saved_at > CHECKPOINT_SECONDS
        return self.step // period > self.saved_step // period

    def _save(self) -> None:
        if self.recording is not None:
            self.recording.flush()
        self.run.save_checkpoint(self.trainer, self.step)
        self.saved_at, self.saved_step = time.monotonic(), self.step
        self.run.save_info(step=self.step, wall_seconds=self._seconds())


def _joined(parts: list[Record], is_summed: bool) -> Record:
    """What a trainer reports of a chunk, to the last bit, from its reports of each of the chunk's updates. The host
    loop sums its metrics, one update after the other."""
    joined = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
    if not is_summed:
        return joined
    return joined._replace(metrics=jax.tree.map(lambda x: np.cumsum(x, axis=1, dtype=x.dtype)[:, -1:], joined.metrics))


def _episodes_so_far(run: Run) -> int:
    """Of the first seed."""
    found = (r for r in metrics.read(run.folder) if r["seed"] == 0 and "episode_return" in r)
    return sum(int(record.get("episodes", 1)) for record in found)


class _Signals:
    """While it lasts, the first SIGINT or SIGTERM is only noted; a second SIGINT interrupts at once."""

    def __enter__(self) -> _Signals:
        self.received = 0
        self._old = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # outside the main thread another decides
                self._old[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.received:
            # A handler may not print: it may have interrupted another print.
            with contextlib.suppress(OSError):
                os.write(2, b"\nStopping and saving after the steps at hand. Ctrl-C (again) stops at once.\n")
        self.received = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
