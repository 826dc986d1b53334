"""The runs that a server shows: one, or those in a folder, which may come and go."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from treadle.errors import TreadleError
from treadle.run import Run
from treadle.window.curves import Curves

UNKNOWN = dict.fromkeys(("algorithm", "environment", "seeds", "status", "step", "total_timesteps", "wall_seconds"))


class Runs:
    """`path` is a run's folder, or a folder with runs in it. Raises `TreadleError` for another."""

    def __init__(self, path: str | Path, live: bool = False):
        given = Path(path)
        if not given.is_dir():
            why = "is a file" if given.exists() else "does not exist"
            raise TreadleError(f"{path} {why}: give a run's folder, or a folder with runs in it.")
        self.folder, self.live = given.resolve(), live
        self.is_one = (given / "run.json").is_file()
        self._curves: dict[str, Curves] = {}
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
            return [_in_unicode(self.folder.name)]
        try:
            with os.scandir(self.folder) as entries:
                return sorted(entry.name for entry in entries if self._is_run(Path(entry.path)))
        except OSError:
            return []

    def folder_of(self, name: str) -> Path | None:
        """The folder of a run, `None` where there is no run of this name."""
        return self._path(name) if name in self.names() else None

    def about(self, name: str | None = None) -> dict[str, Any] | None:
        """What the page of a run is told before all else, at once: `run` is what the list says of it but for its
        curve. Without a name it is the one run, or `None` where there may be several. `None` for a name of no run."""
        name = self.names()[0] if name is None and self.is_one else name
        if name is not None and name not in self.names():
            return None
        return {**self._place(), "run": None if name is None else self._described(name, False)}

    def listed(self) -> dict[str, Any]:
        """What the page's list says. Of metrics that are long no more than a part is read at once: a run's `is_whole`
        tells whether that was all."""
        names = self.names()
        with self._lock:
            self._curves = {name: kept for name, kept in self._curves.items() if name in names}
        return {**self._place(), "runs": [self._described(name, True) for name in names]}

    def _place(self) -> dict[str, Any]:
        return {"folder": None if self.is_one else str(self.folder), "live": self.live}

    def _path(self, name: str) -> Path:
        return self.folder if self.is_one else self.folder / name

    def _is_run(self, path: Path) -> bool:
        try:
            return (path / "run.json").is_file() and path.resolve().parent == self.folder
        except OSError:
            return False

    def _described(self, name: str, with_curve: bool) -> dict[str, Any]:
        """Whatever is wrong with one run is no trouble of the others."""
        about = {"name": name, **UNKNOWN, "checkpoints": 0, "problem": None}
        about |= {"score": None, "curve": None, "is_whole": True}
        try:
            if name != _in_unicode(name):
                raise TreadleError(f"{name!a} is not in UTF-8, so that no address leads here: rename the folder.")
            run = Run.open(self._path(name))
            known = {**run.info, **run.info["config"]}
            about |= {key: known[key] for key in UNKNOWN} | {"checkpoints": len(run.checkpoints())}
            if with_curve:
                about |= self._curve(name, run)
            run.algorithm()
            run.check_module()
        except TreadleError as error:
            about["problem"] = str(error)
        except Exception as error:
            about["problem"] = f"{name} cannot be shown: {type(error).__name__}: {error}"
        return about

    def _curve(self, name: str, run: Run) -> dict[str, Any]:
        """With what is new by now."""
        given = run.folder, run.config.total_timesteps, run.config.seeds
        with self._lock:
            known = self._curves.get(name)
            if known is None or known.given != given:
                known = self._curves[name] = Curves(*given, with_others=False)
            known.read()
            mean, is_whole = known.mean_return(), not known.has_more()
        values = [value for value in mean if value is not None]
        curve = {"steps": known.steps, "mean": mean} if values else None
        return {"curve": curve, "score": values[-1] if values and is_whole else None, "is_whole": is_whole}


def _in_unicode(name: str) -> str:
    """A folder's name as an address can say it."""
    return name.encode("utf-8", "replace").decode()
