"""A run's curves from `metrics.jsonl` as it grows: in constant memory, each line read once."""

from __future__ import annotations

import bisect
import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from treadle import metrics

BINS = 200
LINES_AT_ONCE = 20_000
LONGEST_LINE = 1 << 16
MOST_METRICS = 40
"""A run with more names of metrics shows the first of them."""
MOST_SEEDS = 500
"""Likewise of seeds."""
_LARGEST = 1e100
"""What is larger is no metric, of which a sum over a whole run is finite still."""
_OWN = ("seed", "step", "time", "episode_return", "episode_length", "episodes")
_TAIL = 64


class Curves:
    """Means over `BINS` equal parts of a run: returns for each seed, other metrics over all seeds.

    A bin holds what was reported after the end of the one before and no later than its own end. Only whole lines are
    read. Where the file was cut or replaced, as by a run that goes on from an earlier checkpoint, all is read anew.
    """

    problem: str | None
    """A sentence about the first line that is damaged and therefore left out, `None` where there is none."""

    def __init__(self, folder: Path, total_timesteps: int, seeds: int, with_others: bool = True):
        self.given = folder, total_timesteps, seeds
        self._path, self._seeds, self._with_others = folder / metrics.FILE, seeds, with_others
        bins = min(BINS, total_timesteps)
        self.steps = [-(-total_timesteps * number // bins) for number in range(1, bins + 1)]
        self._forget()

    def read(self) -> bool:
        """Read what is new, but no more than so many lines at once; whether the curves are others now."""
        try:
            with self._path.open("rb") as file:
                anew = not self._continues(file)
                if anew:
                    self._forget()
                file.seek(self._offset)
                return self._read_lines(file) > 0 or anew
        except OSError:  # there is none yet, or it is being replaced
            anew = self._offset > 0
            self._forget()
            return anew

    def has_more(self) -> bool:
        """Whether the last `read` stopped before the end of the file."""
        return self._has_more

    def returns(self) -> list[list[float | None]]:
        """The mean return of the episodes that ended in each bin, a list for each seed. Where none did, the one before
        is carried on, up to the last step reported."""
        known = 0 if self._last_step is None else self._bin(self._last_step) + 1
        with np.errstate(invalid="ignore", divide="ignore"):
            means = self._total / self._weight
        rows: list[list[float | None]] = []
        for mean in means:
            row, last = [], math.nan
            for number, value in enumerate(mean.tolist()):
                last = last if math.isnan(value) else value
                row.append(None if number >= known or math.isnan(last) else last)
            rows.append(row)
        return rows

    def mean_return(self) -> list[float | None]:
        """Over the seeds that have one."""
        found: list[float | None] = []
        for values in zip(*self.returns(), strict=True):
            known = [value for value in values if value is not None]
            found.append(sum(known) / len(known) if known else None)
        return found

    def others(self) -> dict[str, list[float | None]]:
        """The means of all other metrics by name; `None` in bins without any."""
        return {
            name: [t / n if n else None for t, n in zip(total, count, strict=True)]
            for name, (total, count) in self._others.items()
        }

    def _forget(self) -> None:
        self._offset, self._line, self._tail, self._has_more = 0, 0, b"", False
        self._last_step: int | None = None
        self.problem = None
        shape = min(self._seeds, MOST_SEEDS), len(self.steps)
        self._total, self._weight = np.zeros(shape), np.zeros(shape)
        self._others: dict[str, tuple[list[float], list[int]]] = {}

    def _continues(self, file: BinaryIO) -> bool:
        """Whether the bytes before what is to be read are those that were there."""
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def _read_lines(self, file: BinaryIO) -> int:
        lines, is_overlong = 0, False
        self._has_more = False
        while line := file.readline(LONGEST_LINE):
            if not line.endswith(b"\n"):
                if len(line) < LONGEST_LINE:
                    break  # being written, or torn
                is_overlong = True
                continue
            self._offset, self._tail = file.tell(), line[-_TAIL:]
            self._line += 1
            lines += 1
            self._add(None if is_overlong else line)
            is_overlong = False
            if lines == LINES_AT_ONCE:
                self._has_more = True
                break
        return lines

    def _add(self, line: bytes | None) -> None:
        record = None if line is None else _record(line, self._seeds)
        if record is None:
            if self.problem is None:
                self.problem = (
                    f"Line {self._line} of {metrics.FILE} is damaged, and it is left out of the curves, as all such "
                    "lines are."
                )
            return
        seed, step = record["seed"], record["step"]
        if seed >= len(self._total):
            return
        self._last_step = max(step, self._last_step or 0)
        number, value = self._bin(step), record.get("episode_return")
        if value is not None:
            weight = float(record.get("episodes") or 1)
            self._total[seed, number] += weight * value
            self._weight[seed, number] += weight
        elif self._with_others:
            for name, other in record.items():
                if other is not None and name not in _OWN:
                    self._add_other(name, number, other)

    def _add_other(self, name: str, number: int, value: float) -> None:
        if name not in self._others:
            if len(self._others) >= MOST_METRICS:
                return
            self._others[name] = [0.0] * len(self.steps), [0] * len(self.steps)
        total, count = self._others[name]
        total[number] += float(value)
        count[number] += 1

    def _bin(self, step: int) -> int:
        """Steps past the end, as rounds of several environments have them, count as the last."""
        return min(bisect.bisect_left(self.steps, step), len(self.steps) - 1)


def _record(line: bytes, seeds: int) -> dict[str, Any] | None:
    """A line's numbers by name; `None` for a line that is damaged."""
    try:
        record = json.loads(line)
        numbers = [value for value in record.values() if value is not None]
        whole = all(isinstance(record[name], int) for name in ("seed", "step"))
        sensible = 0 <= record["seed"] < seeds and record["step"] >= 0 and (record.get("episodes") or 1) > 0
        if whole and sensible and all(abs(number) < _LARGEST for number in numbers):
            return record
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        pass
    return None


def message(curves: Curves) -> dict[str, Any]:
    """The curves as the page takes them."""
    returns = {"seeds": curves.returns(), "mean": curves.mean_return()}
    return {"type": "curves", "steps": curves.steps, "return": returns, "others": curves.others()}
