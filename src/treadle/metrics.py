"""A run's metrics: JSON lines, which are the truth, and TensorBoard event files, which can be made again from them.

A record is one line of `metrics.jsonl`: `{"seed", "step", "time", name: number...}`, with `step` in environment steps
of that seed and `time` in seconds since the run began. An episode is a record too, with `episode_return` and
`episode_length`. NaN and infinity are `null` there, and NaN in TensorBoard.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from treadle.errors import TreadleError

FILE = "metrics.jsonl"
EVENTS = "tensorboard"
REBUILT_AT_ONCE = 10_000

_KEYS = ("seed", "step", "time")
_encode = json.JSONEncoder(allow_nan=False).encode


class MetricsWriter:
    """Appends records to a run's folder. Everything of a call is with the operating system when `write` returns.

    A line that a killed process left half written is cut off first. Raises `TreadleError` where nothing can be
    written.
    """

    def __init__(self, folder: Path, seeds: Sequence[int]):
        self._path = folder / FILE
        self._encoder = _EventEncoder()
        self._origin: float | None = None
        self._closed = False
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(self._path)
            self._events = {seed: _new_events(_seed_folder(folder, seed)) for seed in seeds}
            for path in self._events.values():
                path.write_bytes(self._encoder.start())

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records; values are numbers or scalar arrays. Raises `TreadleError` for a seed not announced."""
        if self._closed:
            raise TreadleError("metrics were written after their writer was closed; make a new MetricsWriter.")
        plain = [{name: _plain(value) for name, value in record.items()} for record in records]
        if not plain:
            return
        by_seed = _by_seed(plain)
        if strangers := by_seed.keys() - self._events.keys():
            raise TreadleError(
                f"a metric was written for seed {min(strangers)}, and the writer was made for the seeds "
                f"{', '.join(map(str, self._events))}; name every seed when making it."
            )
        if self._origin is None:
            self._origin = time.time() - (plain[0].get("time") or 0.0)
        lines = "".join(_encode(record) + "\n" for record in plain)
        with _writing(self._path.parent):
            _append(self._path, lines.encode())
            for seed, own in by_seed.items():
                _append(self._events[seed], self._encoder.encode(own, self._origin))

    def close(self) -> None:
        """Bar further writes. No file is held open between calls, so that a thousand seeds need no more than one."""
        self._closed = True

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(folder: Path) -> list[dict[str, Any]]:
    """All records in the order in which they were written; none where no metric was written yet.

    A last line without its end, which a killed process leaves behind, is ignored. Raises `TreadleError` naming the
    line for any other damage.
    """
    return [record for _, record in _lines(folder / FILE)]


def drop_after(folder: Path, step: int | Mapping[int, int]) -> None:
    """Forget every record past `step` (or past each seed's own step; a seed left out of the mapping keeps all).

    The event files are made anew from what is left, so that no metric is there twice when the run goes on. Stopped
    half-way it can be called again: the JSON lines change all at once, and the event files come from them.
    """
    path = folder / FILE
    if not path.exists():
        return

    def limit(seed: int) -> float:
        return step.get(seed, math.inf) if isinstance(step, Mapping) else step

    kept = [(line, record) for line, record in _lines(path) if record["step"] <= limit(record["seed"])]
    temporary = path.with_suffix(".tmp")
    with _writing(folder):
        with temporary.open("wb") as file:
            file.writelines(line for line, _ in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _rebuild_events(folder, [record for _, record in kept])


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each whole line, as it stands and as a record."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    except OSError as error:
        raise TreadleError(f"{path} cannot be read: {error.strerror}.") from None
    with file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield line, _record(line, number, path)


def _record(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if (
        not isinstance(record, dict)
        or not all(isinstance(record.get(name), int) for name in ("seed", "step"))
        or not all(value is None or isinstance(value, int | float) for value in record.values())
    ):
        raise TreadleError(
            f"line {number} of {path} is damaged: it should be a JSON object of numbers with a seed and a step, and is "
            f"{line[:60].rstrip()!r}. Delete that line to go on without it."
        )
    return record


def _cut_torn_line(path: Path) -> None:
    """Without this the next record would continue the half line."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.truncate(path.read_bytes().rfind(b"\n") + 1)


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TreadleError(
            f"the metrics cannot be written to {folder}: {error.strerror}. Free some space or give another folder."
        ) from error


def _plain(value: Any) -> int | float | None:
    """A number that JSON knows; `None` for NaN and infinity."""
    if isinstance(value, int):
        return value
    if isinstance(value, np.integer):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _by_seed(records: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    parts: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        parts.setdefault(record["seed"], []).append(record)
    return parts


def _seed_folder(folder: Path, seed: int) -> Path:
    return folder / EVENTS / f"seed-{seed}"


def _new_events(folder: Path) -> Path:
    """A name that sorts after those already there, which is the order in which TensorBoard reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"events.out.tfevents.{time.time_ns()}"


def _rebuild_events(folder: Path, records: list[dict[str, Any]]) -> None:
    by_seed = _by_seed(records)
    present = {path.name for path in (folder / EVENTS).glob("seed-*")}
    # The wall clock goes on from here, as if the run had not been away.
    last = next((r["time"] for r in reversed(records) if r.get("time") is not None), 0.0)
    encoder, origin = _EventEncoder(), time.time() - last
    for name in sorted(present | {_seed_folder(folder, seed).name for seed in by_seed}):
        own = by_seed.get(int(name.removeprefix("seed-")), []) if name.removeprefix("seed-").isdigit() else []
        target = _new_events(folder / EVENTS / name)
        temporary = target.with_name("rebuilt.tmp")
        with temporary.open("wb") as file:
            file.write(encoder.start())
            for first in range(0, len(own), REBUILT_AT_ONCE):
                file.write(encoder.encode(own[first : first + REBUILT_AT_ONCE], origin))
        for old in target.parent.glob("*tfevents*"):
            old.unlink()
        os.replace(temporary, target)


class _EventEncoder:
    """Records as the bytes of a TensorBoard event file, one event for each record.

    The messages are tensorboardX's. Its writers are not used: one starts a thread, the other syncs the disk at every
    flush, and both compute checksums byte by byte in Python. Here one message serves all records of the same names,
    and the checksums of a call are computed side by side.
    """

    def __init__(self):
        # Half a second to import, so only where metrics are written.
        from tensorboardX.crc32c import CRC_TABLE
        from tensorboardX.proto import event_pb2

        self._event = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
        self._table = np.asarray(CRC_TABLE, np.uint32)
        self._templates: dict[tuple[str, ...], Any] = {}

    def start(self) -> bytes:
        """What an event file begins with."""
        return self._frame([self._event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()])

    def encode(self, records: Sequence[Mapping[str, Any]], origin: float) -> bytes:
        """Events with one scalar for each metric; `origin` is the wall-clock time, in seconds, of the run's start."""
        messages = []
        for record in records:
            names = tuple(record)
            template = self._templates.get(names) or self._template(names)
            template.wall_time = origin + (record.get("time") or 0.0)
            template.step = record["step"]
            for value in template.summary.value:
                number = record[value.tag]
                value.simple_value = math.nan if number is None else number
            messages.append(template.SerializeToString())
        return self._frame(messages)

    def _template(self, names: tuple[str, ...]) -> Any:
        template = self._event()
        for name in names:
            if name not in _KEYS:
                template.summary.value.add(tag=name)
        self._templates[names] = template
        return template

    def _frame(self, messages: list[bytes]) -> bytes:
        """TFRecords: length, its checksum, the message, its checksum (all little-endian)."""
        lengths = [struct.pack("<Q", len(message)) for message in messages]
        parts = zip(lengths, self._checksums(lengths), messages, self._checksums(messages), strict=True)
        return b"".join(part for four in parts for part in four)

    def _checksums(self, messages: list[bytes]) -> list[bytes]:
        """The masked CRC-32C of each message (at least four bytes long), as TFRecord wants it.

        Messages are aligned at their ends: zeros before a message leave a register of zero as it is, and flipping
        the first four bytes is the same as starting with the register full of ones.
        """
        width = max(map(len, messages))
        columns = np.frombuffer(b"".join(m.rjust(width, b"\0") for m in messages), np.uint8)
        columns = columns.reshape(len(messages), width).T.copy()
        starts = width - np.array([len(m) for m in messages])
        for offset in range(4):
            columns[starts + offset, np.arange(len(messages))] ^= 0xFF
        crc = np.zeros(len(messages), np.uint32)
        for column in columns:
            crc = self._table[(crc ^ column) & 0xFF] ^ (crc >> 8)
        crc = ~crc
        masked = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
        return [n.to_bytes(4, "little") for n in masked.tolist()]
