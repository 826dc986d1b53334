"""The transitions of a run, kept while it trains: in parts in the run's folder, at the end in one file (`--save-data`).

A part is a file of transitions itself, of the steps that its name gives. Each checkpoint has all parts up to its step,
so that a run that goes on from there neither lacks a row nor has one twice.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import safe_open

from treadle import dataset
from treadle.dataset import FIELDS, DatasetError
from treadle.types import Spec, Transition

if TYPE_CHECKING:
    from treadle.run import Run

FOLDER = "transitions"
BUFFER_BYTES = 1 << 26
"""Parts are written when the rows in memory have come to so much, and with each checkpoint."""


class Part(NamedTuple):
    """A file with the rows from step `start` to step `end`."""

    path: Path
    start: int
    end: int


class Recording:
    """Takes the transitions of a run as it trains, from `step` on.

    Raises `DatasetError` where those before `step` are not to be found.
    """

    def __init__(self, run: Run, spec: Spec, step: int):
        check(run, step)
        self._run, self._spec = run, spec
        self._start = self._end = step
        self._columns: list[Transition] = []
        self._bytes = 0
        try:
            (run.folder / FOLDER).mkdir(exist_ok=True)
        except OSError as error:
            raise DatasetError(f"the folder {run.folder / FOLDER} cannot be made: {error.strerror}.") from None

    def add(self, data: Transition, end: int) -> None:
        """The transitions `[S, N, T, B, ...]` of the steps up to `end`."""
        self._columns.append(data)
        self._bytes += sum(x.nbytes for x in data if isinstance(x, np.ndarray))
        self._end = end
        if self._bytes >= BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory. Raises `DatasetError` where it cannot be written."""
        if not self._columns:
            return
        rows, lengths = by_stream(self._columns)
        path = self._run.folder / FOLDER / f"rows-{self._start:012d}-{self._end:012d}.safetensors"
        dataset.write(path, rows, _about(self._run, self._spec, lengths))
        self._columns, self._bytes, self._start = [], 0, self._end

    def finish(self) -> None:
        """Put all parts together in the file that was asked for, and remove them."""
        self.flush()
        put_together(self._run, self._spec, self._end)


def check_target(path: str, overwrite: bool) -> None:
    """Raise `DatasetError` unless a new file of transitions can be made there."""
    target = Path(path)
    if target.is_dir():
        raise DatasetError(f"--save-data was given {path}, which is a folder; give a file in it.")
    if target.exists():
        if not overwrite:
            raise DatasetError(
                f"--save-data was given {path}, which exists already. Give another, or replace it (--overwrite)."
            )
        try:
            is_ours = bool(dataset.read_about(target))
        except DatasetError:
            is_ours = False
        if not is_ours:
            raise DatasetError(
                f"--save-data was given {path}, which is no file of transitions that Treadle wrote, and so is not "
                "replaced. Give another."
            )
    folder = next(p for p in target.absolute().parents if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DatasetError(f"--save-data was given {path}, and nothing can be written to {folder}. Give another.")


def check(run: Run, step: int) -> None:
    """Raise `DatasetError` unless all rows of a run up to `step` are to be found."""
    reached = 0
    for part, until in _chosen(run, step):
        if part.start > reached:
            break
        _lengths_until(run, part, until)
        reached = until
    if reached < step:
        raise DatasetError(
            f"the transitions of {run.folder} are kept up to step {reached:,} only, and it would go on from step "
            f"{step:,}. Without the files that are missing in {run.folder / FOLDER} (or {run.config.save_data}, once "
            f"the run has finished) it cannot go on; start it anew: {run.anew_command}"
        )
    target = Path(str(run.config.save_data))
    if target.exists() and not run.config.overwrite and not _is_own(run, target):
        raise DatasetError(
            f"{target} was made by something else in the meantime, and this run is to write its transitions there. "
            f"Move it away, and go on: {run.resume_command}"
        )


def forget_after(run: Run, step: int) -> None:
    """Remove the parts that begin at `step` or later; of one that goes on beyond it the beginning counts."""
    for part in parts(run):
        if part.start >= step:
            part.path.unlink(missing_ok=True)


def is_unfinished(run: Run) -> bool:
    """Whether there are parts that are not in the file yet."""
    return run.config.save_data is not None and bool(parts(run))


def put_together(run: Run, spec: Spec, step: int) -> None:
    """All parts up to `step` as one file, which is replaced whole if there is one, and the parts removed."""
    check(run, step)
    chosen = list(_chosen(run, step))
    for part, _ in chosen:
        dataset.check_bytes(part.path)
    taken = [_lengths_until(run, part, until) for part, until in chosen]
    lengths = np.sum(taken, axis=0)
    target = Path(str(run.config.save_data))
    target.parent.mkdir(parents=True, exist_ok=True)
    joined = [_Joined(name, [p.path for p, _ in chosen], taken, run.folder / FOLDER) for name in FIELDS]
    rows: Any = Transition(*joined)  # pyright: ignore[reportArgumentType]
    dataset.write(target, rows, _about(run, spec, lengths.tolist()) | {"steps": step})
    for part in parts(run):
        part.path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # what else lies there stays
        (run.folder / FOLDER).rmdir()


def parts(run: Run) -> list[Part]:
    """Those in the run's folder, in order."""
    found = []
    for path in (run.folder / FOLDER).glob("rows-*-*.safetensors"):
        start, _, end = path.stem.removeprefix("rows-").partition("-")
        if start.isdecimal() and end.isdecimal():
            found.append(Part(path, int(start), int(end)))
    return sorted(found, key=lambda part: part.start)


def by_stream(columns: list[Transition]) -> tuple[Transition, list[int]]:
    """Transitions `[S, N, T, B, ...]`, one after the other in time, as rows `[n, ...]` of one stream after the other,
    without those that do not count, and the length of each stream."""

    def rows(name: str) -> np.ndarray:
        """`[S, B, time, ...]`."""
        moved = [np.moveaxis(np.asarray(getattr(c, name)), 3, 1) for c in columns]
        return np.concatenate([x.reshape(*x.shape[:2], -1, *x.shape[4:]) for x in moved], axis=2)

    fields = [rows(name) for name in FIELDS]
    seeds, batch, time = fields[0].shape[:3]
    counts = np.ones((seeds * batch, time), np.bool_)
    if columns[0].valid is not None:
        counts = rows("valid").reshape(counts.shape)
    flat: Any = [x.reshape(-1, *x.shape[3:])[counts.ravel()] for x in fields]
    return Transition(*flat), counts.sum(1).tolist()


def _chosen(run: Run, step: int) -> Iterator[tuple[Part, int]]:
    """The parts that hold the rows up to `step`, and up to which step each counts: a run that went on from an earlier
    step has later parts that take the place of the rest of earlier ones. The rows of a run that has finished once are
    in its file."""
    found = [part for part in parts(run) if part.start < step]
    if not found or found[0].start > 0:
        target = Path(str(run.config.save_data))
        if target.exists() and _is_own(run, target):
            found.insert(0, Part(target, 0, int(dataset.read_about(target)["steps"])))
    laters = [*(part.start for part in found[1:]), step]
    for part, later in zip(found, laters, strict=False):
        yield part, min(part.end, later)


def _lengths_until(run: Run, part: Part, step: int) -> list[int]:
    """Rows of each stream of a part up to a step. Raises `DatasetError` where the part is damaged or cannot be cut."""
    lengths = dataset.read_about(part.path)["lengths"]
    if step == part.end:
        return lengths
    num_envs = int(run.info["settings"]["num_envs"])
    # Where rows that did not count were left out, they do not tell the step at which they were seen.
    if any(n * num_envs != part.end - part.start for n in lengths) or (step - part.start) % num_envs:
        raise DatasetError(f"{part.path} cannot be cut at step {step:,}, because its streams lack rows of some steps.")
    return [(step - part.start) // num_envs] * len(lengths)


def _is_own(run: Run, path: Path) -> bool:
    """Whether a file was made by this run."""
    try:
        made_by = dataset.read_about(path).get("made_by", {})
    except DatasetError:
        return False
    return made_by.get("run") == run.info["recording"]


def _about(run: Run, spec: Spec, lengths: list[int]) -> dict[str, Any]:
    made_by = {name: run.info[name] for name in ("algorithm", "settings", "wrappers", "command", "versions")}
    made_by["run"] = run.info["recording"]
    return dataset.describe(lengths, run.info["environment"], spec.observation_space, spec.action_space, made_by)


class _Joined:
    """A field of all parts, stream by stream: an array that is made, on the disk, when it is asked for."""

    def __init__(self, name: str, paths: list[Path], taken: list[list[int]], folder: Path):
        self._name, self._paths, self._taken, self._folder = name, paths, taken, folder
        with safe_open(paths[0], framework="numpy") as file:
            first = file.get_slice(name)[0:1]
        self.dtype = first.dtype
        self.shape = (int(np.sum(taken)), *first.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        firsts = [np.cumsum([0, *dataset.read_about(path)["lengths"]]) for path in self._paths]
        with tempfile.TemporaryFile(dir=self._folder) as scratch:
            for stream in range(len(self._taken[0])):
                for path, first, taken in zip(self._paths, firsts, self._taken, strict=True):
                    begin, count = int(first[stream]), taken[stream]
                    if count:
                        with safe_open(path, framework="numpy") as file:
                            rows = file.get_slice(self._name)[begin : begin + count]
                        scratch.write(np.ascontiguousarray(rows).data)
            scratch.flush()
            return np.memmap(scratch, self.dtype, "r", shape=self.shape)
