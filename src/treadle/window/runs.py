"""The runs that a server shows: one, or those in a folder, which may come and go."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from treadle.errors import TreadleError
from treadle.run import Run
from treadle.window.curves import Curves


class Runs:
    """`path` is a run's folder, or a folder with runs in it. Raises `TreadleError` for another."""

    def __init__(self, path: str | Path, live: bool = False):
        given = Path(path)
        if not given.is_dir():
            why = "is a file" if given.exists() else "does not exist"
            raise TreadleError(f"{path} {why}: give a run's folder, or a folder with runs in it.")
        self.folder, self.live = given.resolve(), live
        self.is_one = (given / "run.json").is_file()
        self._curves: dict[str, tuple[tuple[int, int], Curves]] = {}
        self._lock = threading.Lock()
        if not self.is_one and not self.names():
            hint = (
                " It may come yet: --live waits for a run's first checkpoint, once there is its folder." if live else ""
            )
            raise TreadleError(
                f"{path} is neither a run's folder nor a folder with runs in it: there is no run.json. Give the folder "
                f"that `treadle train` printed, or the one it lies in.{hint}"
            )

    def names(self) -> list[str]:
        """Of the runs: folders with a `run.json` that lie here, links to elsewhere left out."""
        if self.is_one:
            return [self.folder.name]
        try:
            with os.scandir(self.folder) as entries:
                return sorted(entry.name for entry in entries if self._is_run(Path(entry.path)))
        except OSError:
            return []

    def folder_of(self, name: str) -> Path | None:
        """The folder of a run, `None` where there is no run of this name."""
        if name not in self.names():
            return None
        return self.folder if self.is_one else self.folder / name

    def listed(self) -> dict[str, Any]:
        """What the page's list says."""
        with self._lock:
            names = self.names()
            self._curves = {name: kept for name, kept in self._curves.items() if name in names}
            runs = [self._described(name) for name in names]
        return {"folder": None if self.is_one else str(self.folder), "live": self.live, "runs": runs}

    def _is_run(self, path: Path) -> bool:
        try:
            return (path / "run.json").is_file() and path.resolve().parent == self.folder
        except OSError:
            return False

    def _described(self, name: str) -> dict[str, Any]:
        folder = self.folder if self.is_one else self.folder / name
        unknown = dict.fromkeys(
            ("algorithm", "environment", "seeds", "status", "step", "total_timesteps", "wall_seconds", "score", "curve")
        )
        try:
            run = Run.open(folder)
        except TreadleError as error:
            return {"name": name, **unknown, "checkpoints": 0, "problem": str(error)}
        try:
            run.algorithm()
            problem = None
        except TreadleError as error:
            problem = str(error)
        curves = self._read(name, run)
        mean = curves.mean_return()
        known = [value for value in mean if value is not None]
        return {
            "name": name,
            "algorithm": run.info["algorithm"],
            "environment": run.info["environment"],
            "seeds": run.config.seeds,
            "status": run.info.get("status"),
            "step": run.info.get("step"),
            "total_timesteps": run.config.total_timesteps,
            "wall_seconds": run.info["wall_seconds"],
            "checkpoints": len(run.checkpoints()),
            "score": known[-1] if known else None,
            "curve": {"steps": curves.steps, "mean": mean} if known else None,
            "problem": problem,
        }

    def _read(self, name: str, run: Run) -> Curves:
        shape = (run.config.total_timesteps, run.config.seeds)
        known = self._curves.get(name)
        if known is None or known[0] != shape:
            known = self._curves[name] = (shape, Curves(run.folder, *shape, with_others=False))
        known[1].read()
        while known[1].has_more():
            known[1].read()
        return known[1]
