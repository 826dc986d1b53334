"""Steps per second of a run of DQN on CartPole-v1, 2 seeds, by itself or while pages watch it live: a server of
`treadle watch --live` beside it, and so many clients of its WebSocket, to which the agent plays.

The clients stand for browsers, most of which are on other machines: the processor time that they take themselves is
of the lowest priority (nice 19). The server is as users have it. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import treadle

COMMAND = [sys.executable, "-m", "treadle"]
WAIT = 120.0
"""Seconds until the run or the server must have begun."""


def until(found: Any, what: str) -> Any:
    """What `found()` gives once it is true."""
    end = time.monotonic() + WAIT
    while not (value := found()):
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not come within {WAIT:.0f} seconds.")
        time.sleep(0.1)
    return value


def last_record(folder: Path) -> dict[str, float] | None:
    """The last whole line of a run's metrics."""
    with contextlib.suppress(OSError):
        lines = (folder / "metrics.jsonl").read_bytes()[-4096:].split(b"\n")
        if len(lines) > 2:
            return json.loads(lines[-2])
    return None


class Clients:
    """Pages that receive whatever the server sends."""

    def __init__(self, url: str, count: int):
        self._counts = [0] * count
        self._sockets = [connect(url, max_size=None) for _ in range(count)]
        for number in range(count):
            threading.Thread(target=self._receive, args=(number,), daemon=True).start()

    def _receive(self, number: int) -> None:
        with contextlib.suppress(ConnectionClosed):
            for text in self._sockets[number]:
                self._counts[number] += '"type":"frame"' in str(text)[:20]

    @property
    def frames(self) -> list[int]:
        return list(self._counts)

    def close(self) -> None:
        for socket in self._sockets:
            socket.close()


def watched(folder: Path, count: int) -> tuple[subprocess.Popen[str] | None, Clients | None]:
    """A server beside a run, and its clients once each has seen the agent play."""
    if count == 0:
        return None, None
    command = [*COMMAND, "watch", str(folder), "--live", "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = re.search(r"http://(\S+)/", server.stdout.readline())
    assert address is not None
    os.nice(19)
    clients = Clients(f"ws://{address[1]}/ws/{folder.name}", count)
    until(lambda: min(clients.frames) > 30, "the play")
    return server, clients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0, help="of training that are measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "run")
        flags = ["--seeds", "2", "--total-timesteps", "20000000", "--out", str(folder)]
        run = subprocess.Popen([*COMMAND, "train", "dqn", "CartPole-v1", *flags], stdout=subprocess.DEVNULL)
        server = clients = None
        try:
            until(lambda: last_record(folder), "the first metrics")
            server, clients = watched(folder, options.clients)
            first, frames = until(lambda: last_record(folder), "metrics"), clients.frames if clients else []
            time.sleep(options.seconds)
            last = until(lambda: last_record(folder), "metrics")
            passed = [after - before for before, after in zip(frames, clients.frames if clients else [], strict=True)]
        finally:
            for process in filter(None, (server, run)):
                process.terminate()
            for process in filter(None, (server, run)):
                process.wait()
    result = {
        "peer": "Treadle",
        "steps_per_second": 2 * (last["step"] - first["step"]) / (last["time"] - first["time"]),
        "clients": options.clients,
        "frames": passed,
        "device": jax.default_backend(),
        "versions": {"treadle": treadle.__version__, "jax": jax.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
