"""Training a run to its end, or to whatever stops it: metrics and checkpoints on the way, and nothing lost."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

from treadle import metrics, records
from treadle.errors import NonFinite, TreadleError
from treadle.loops.choose import Trainer
from treadle.progress import Progress
from treadle.run import Chunks, Run, step_of

CHECKPOINT_SECONDS = 30.0


class Interrupted(TreadleError):
    """The run was stopped by a signal."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_status = 128 + signal_number


class Stopped(TreadleError):
    """The run could not go on, for lack of room or the like; what was saved is as it was."""

    exit_status = 1


def train(run: Run, trainer: Trainer, step: int = 0, progress: Progress | None = None) -> None:
    """Train to the configured number of timesteps, from `step` on, writing metrics and checkpoints.

    SIGINT and SIGTERM stop it after the chunk at hand: it saves and raises `Interrupted`, which says how to resume.
    Raises `NonFinite` when a metric is NaN or infinite, and `Stopped` when something cannot be written; the last
    good checkpoint stays.
    """
    title = f"{run.info['algorithm']} {run.info['environment']}"
    shown = progress or Progress(title, run.config.total_timesteps, run.config.seeds, enabled=False)
    session = _Session(run, trainer, step, shown)
    status = "failed"
    try:
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
            f"{error} {session.kept()} Where observations and rewards are finite, a smaller learning rate or clipping "
            "(--max-grad-norm) is the usual cure."
        ) from None
    except TreadleError as error:
        raise Stopped(f"{error} {session.kept()} To go on afterwards: {run.resume_command}") from error
    finally:
        shown.close()
        with contextlib.suppress(TreadleError):
            run.save_info(status=status)


class _Session:
    """One stretch of training: from `step` to the end, or to whatever stops it."""

    def __init__(self, run: Run, trainer: Trainer, step: int, shown: Progress):
        self.run, self.trainer, self.shown, self.step = run, trainer, shown, step
        self.per_update = trainer.algorithm.num_steps * trainer.algorithm.num_envs
        self.plan = Chunks(run.config.total_timesteps, self.per_update, host=not trainer.exact_resume)
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
                self._chunk(writer)
                if self.step >= total or signals.received or self._is_due():
                    self._save()
                if signals.received and self.step < total:
                    raise Interrupted(
                        f"stopped at step {self.step:,} of {total:,} and saved. Go on with: {self.run.resume_command}",
                        signals.received,
                    )

    def kept(self) -> str:
        found = self.run.checkpoints()
        return f"The last good checkpoint is at step {step_of(found[-1]):,}." if found else "Nothing was saved."

    def _chunk(self, writer: metrics.MetricsWriter) -> None:
        count = self.plan.next(self.step)
        is_new, self.compiled = count not in self.compiled, self.compiled | {count}
        with self.shown.compiling() if is_new else contextlib.nullcontext():
            record = self.trainer.advance(count)
        writer.write(records.lines(record, self.step, self.per_update, self._seconds()))
        self.step += count * self.per_update
        self.shown.update(min(self.step, self.run.config.total_timesteps), records.summary(record))

    def _seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def _is_due(self) -> bool:
        period = self.run.config.checkpoint_period
        if period is None:
            return time.monotonic() - self.saved_at > CHECKPOINT_SECONDS
        return self.step // period > self.saved_step // period

    def _save(self) -> None:
        self.run.save_checkpoint(self.trainer, self.step)
        self.saved_at, self.saved_step = time.monotonic(), self.step
        self.run.save_info(step=self.step, wall_seconds=self._seconds())


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
