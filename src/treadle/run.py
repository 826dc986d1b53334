"""A run's folder: the exact command, the resolved settings, versions, metrics, checkpoints, figures."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import platform
import shlex
import shutil
import sys
import time
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from treadle import __version__, checkpoint, config, metrics, recording, records, registry, settings
from treadle.algorithms.base import Algorithm
from treadle.config import RunConfig
from treadle.dataset import Dataset, checksum
from treadle.environments.gymnasium import counterpart
from treadle.environments.wrappers import Task, Wrappers
from treadle.errors import InvalidSetting, TreadleError
from treadle.files import replacing
from treadle.loops.choose import Trainer, make_offline_trainer, make_trainer
from treadle.loops.crew import check_used
from treadle.loops.host import HostSeeds
from treadle.loops.play import needed_for_policy

FORMAT = 1
CONTENTS = ("run.json", "metrics.jsonl", "evaluation.json", "tensorboard", "checkpoints", "figures", recording.FOLDER)
"""What Treadle puts into a run's folder; replacing a run leaves everything else there."""


class Run:
    """A folder on disk. `create` and `open` make one, `training.train` fills it."""

    def __init__(self, folder: Path, info: dict[str, Any]):
        self.folder, self.info = folder, info

    @classmethod
    def create(
        cls,
        algorithm: str,
        environment: str,
        configured: Algorithm,
        config: RunConfig,
        command: list[str] | None = None,
        preset: str | None = None,
        imports: list[str] | None = None,
        wrappers: Wrappers | None = None,
    ) -> Run:
        """A new run's folder with its `run.json`. Everything else is to be checked before: a run that was in the
        folder is gone afterwards.

        Raises `TreadleError` when the folder holds a run already, unless `config.overwrite`, or cannot be made.
        """
        config.check()
        folder = Path(config.out) if config.out else _fresh_folder(algorithm, environment)
        check_room(config)
        # Whoever resumes may stand in another folder.
        files = {name: getattr(config, name) for name in ("save_data", "data")}
        absolute = {name: file and str(Path(file).absolute()) for name, file in files.items()}
        config = dataclasses.replace(config, **absolute)
        _check_apart(folder, config)
        info = {
            "format": FORMAT,
            "command": shlex.join(command) if command else None,
            "resumed": [],
            "algorithm": algorithm,
            "settings": settings.describe(configured),
            "environment": environment,
            "wrappers": settings.describe(wrappers or Wrappers()),
            "config": dataclasses.asdict(config),
            "preset": preset,
            "imports": imports or [],
            "versions": versions(),
            "status": "new",
            "step": 0,
            "wall_seconds": 0.0,
        }
        if config.save_data is not None:
            info["recording"] = uuid.uuid4().hex
        if config.data is not None:
            info["data_checksum"] = checksum(Path(config.data))
        run, is_new = cls(folder, info), not folder.exists()
        try:
            for name in CONTENTS:
                _remove(folder / name)
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            run.save_info()
        except (OSError, TreadleError) as error:
            if is_new:
                shutil.rmtree(folder, ignore_errors=True)
            why = error.strerror if isinstance(error, OSError) else error
            raise TreadleError(f"the folder {folder} cannot be made: {why}. Give another with --out.") from None
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """The run in a folder. Raises `TreadleError` when there is none or its `run.json` cannot be read."""
        path = Path(folder)
        info = _read_info(path)
        if info is None:
            raise TreadleError(
                f"{folder} is not a run's folder: it has no run.json. Give the folder that `treadle train` printed."
            )
        return cls(path, info)

    @property
    def config(self) -> RunConfig:
        return RunConfig(**self.info["config"])

    @property
    def task(self) -> Task:
        """The environment with what this run changed about it."""
        return Task(self.info["environment"], Wrappers(**self.info["wrappers"]))

    @property
    def resume_command(self) -> str:
        return " ".join(["treadle resume", shlex.quote(str(self.folder)), *self._imports()])

    @property
    def anew_command(self) -> str:
        """What trains this run anew, in this folder, wherever it was at first."""
        words = shlex.split(self.info["command"] or "treadle train ...")
        while "--out" in words:
            at = words.index("--out")
            del words[at : at + 2]
        kept = [word for word in words if word != "--overwrite" and not word.startswith("--out=")]
        return shlex.join([*kept, "--out", str(self.folder), "--overwrite"])

    def algorithm(self, **own: Any) -> Algorithm:
        """The algorithm with the settings of this run.

        Raises `TreadleError` when the run used a file of the user's own that was not imported again, or when its
        settings are damaged.
        """
        self._check_imports()
        try:
            algorithm = settings.restore(self.info["algorithm"], self.info["settings"], **own)
            algorithm.check()
        except (InvalidSetting, TypeError, AttributeError) as error:
            raise _damaged(self.folder, f"its settings make no sense ({error})") from None
        return algorithm

    def _check_imports(self) -> None:
        if not self.info["imports"]:
            return
        algorithm, environment = self.info["algorithm"], self.info["environment"]
        missing = []
        if algorithm not in registry.algorithms:
            missing.append(f"algorithm '{algorithm}'")
        if environment not in registry.environments and ":" not in environment and not counterpart(environment):
            missing.append(f"environment '{environment}'")
        if missing:
            raise TreadleError(
                f"this run used the {' and the '.join(missing)} of your own; opening a run never runs code, so name "
                f"the file again: {' '.join(self._imports())}"
            )

    def check_module(self) -> None:
        """Raise `TreadleError` where making the environment, `module:Id`, would import what nobody has named."""
        module, colon, _ = self.info["environment"].partition(":")
        if colon and not {module, f"treadle_user_{module.rpartition('.')[2]}"} & set(sys.modules):
            raise TreadleError(
                f"this run's environment comes from the module '{module}', and the window never runs code that was not "
                "named: give its file, or one that imports it, with --import."
            )

    def _imports(self) -> list[str]:
        return [f"--import {shlex.quote(file)}" for file in self.info["imports"]]

    def save_info(self, **changes: Any) -> None:
        """Raises `TreadleError` when it cannot be written; the former is then as it was."""
        self.info.update(changes)
        write_whole(self.folder / "run.json", json.dumps(self.info, indent=2) + "\n")

    def trainer(self, to_learn: bool = True, config: RunConfig | None = None) -> Trainer:
        """The loop that serves this run, at its start; with another `config` than the run's own if one is given. One
        that is not `to_learn` needs no stored transitions.

        Raises `TreadleError` where those that the run learns from are gone or have changed.
        """
        data = self._data(Path(self.config.data)) if to_learn and self.config.data is not None else None
        return start(self.algorithm(), self.task, config or self.config, data, to_learn)

    def _data(self, path: Path) -> Dataset:
        if not path.exists():
            raise TreadleError(
                f"{self.folder} learns from the transitions in {path}, which is no longer there. Put it back (a link "
                f"will do), and go on: {self.resume_command}"
            )
        if checksum(path) != self.info["data_checksum"]:
            raise TreadleError(
                f"{path} has changed since {self.folder} began to learn from it. Put the former file back, or start "
                f"anew: {self.anew_command}"
            )
        return Dataset.load(path)

    def checkpoints(self) -> list[Path]:
        """Oldest first; files that carry other names are none of them."""
        return checkpoints_in(self.folder)

    def save_checkpoint(self, trainer: Trainer, step: int) -> Path:
        """Raises `NonFinite` for a policy that holds NaN, and `CheckpointError` where it cannot be written."""
        path = self.folder / "checkpoints" / f"step-{step:012d}.safetensors"
        parts = ("algorithm", "settings", "environment", "wrappers", "config", "versions")
        about = {key: self.info[key] for key in parts}
        state = trainer.state
        records.check_policy(trainer.algorithm.policy(state.algorithm), step)
        checkpoint.save(path, state, {"kind": "run", "step": step, **about})
        kept = self.config.keep_checkpoints
        for old in self.checkpoints()[:-kept] if kept else ():
            with contextlib.suppress(OSError):
                old.unlink()
        return path

    def restore(self, trainer: Trainer, path: Path | None = None) -> int:
        """Put a checkpoint (the last, unless named) into a trainer; the step at which it was taken. Raises what
        `load` does."""
        like = trainer.shapes if isinstance(trainer, HostSeeds) else trainer.state
        state, step = self._load_or_hint(like, path)
        trainer.restore(state)
        return step

    def policies(self, trainer: Trainer, path: Path | None = None) -> tuple[PyTree, int]:
        """What acting greedily needs, of all seeds, in a checkpoint (the last, unless named), and its step. Of a
        checkpoint of the host loop nothing else is read, such as a replay memory. Raises what `load` does."""
        if not isinstance(trainer, HostSeeds):
            step = self.restore(trainer, path)
            return trainer.policies(), step
        wanted = jax.tree.map(lambda _: False, trainer.shapes)
        wanted = wanted._replace(algorithm=needed_for_policy(trainer.algorithm, trainer.shapes_of_one.algorithm))
        state, step = self._load_or_hint(trainer.shapes, path, wanted)
        return trainer.policies_in(state), step

    def _load_or_hint(self, like: PyTree, path: Path | None, wanted: PyTree[bool] | None = None) -> tuple[Any, int]:
        try:
            return self.load(like, path, wanted)
        except checkpoint.CheckpointError as error:
            found = self.checkpoints()
            others = [p for p in found if p != (path or found[-1])]
            hint = f" Another one is at hand: --checkpoint {shlex.quote(str(others[-1]))}" if others else ""
            raise checkpoint.CheckpointError(f"{error}{hint}") from None

    def load(self, like: PyTree, path: Path | None = None, wanted: PyTree[bool] | None = None) -> tuple[Any, int]:
        """What a checkpoint (the last, unless named) holds, which has the structure, shapes and dtypes of `like`, and
        the step at which it was taken. Of what is not `wanted` there is only what `like` says.

        Raises `TreadleError` when there is none, and `CheckpointError` when it is damaged or of something else.
        """
        found = self.checkpoints()
        if path is None:
            if not found:
                raise TreadleError(f"{self.folder} has no checkpoint. Start it anew: {self.anew_command}")
            path = found[-1]
        described = checkpoint.read_metadata(path)
        self._check_belongs(path, described)
        state, _ = checkpoint.load(path, like, wanted)
        return state, int(described["step"])

    def _check_belongs(self, path: Path, described: dict[str, Any]) -> None:
        if described.get("kind") != "run":
            raise checkpoint.CheckpointError(f"{path} is not a run's checkpoint. Give one from this run's folder.")
        parts = ("seeds", "seed", "loop")
        saved = {k: described[k] for k in ("algorithm", "environment")} | described["settings"]
        saved |= _wrappers(described) | {k: described["config"][k] for k in parts}
        own = {k: self.info[k] for k in ("algorithm", "environment")} | self.info["settings"]
        own |= self.info["wrappers"] | {k: self.info["config"][k] for k in parts}
        for name in own | saved:
            if saved.get(name) != own.get(name):
                raise checkpoint.CheckpointError(
                    f"{path} is a checkpoint of another run: its {name} is {saved.get(name)}, and this run's is "
                    f"{own.get(name)}. Give a checkpoint of this run."
                )

    def forget_after(self, step: int) -> bool:
        """Remove the checkpoints, transitions and metrics past `step`, so that a run that goes on from there has each
        once; whether there were checkpoints to remove."""
        later = [path for path in self.checkpoints() if step_of(path) > step]
        # Before the metrics: stopped in between, the run goes on from a checkpoint that has all of its metrics.
        for path in later:
            _remove(path)
        if self.config.save_data is not None:
            recording.forget_after(self, step)
        metrics.drop_after(self.folder, step)
        return bool(later)


def start(
    algorithm: Algorithm,
    environment: str | Task,
    config: RunConfig,
    data: Dataset | None = None,
    to_learn: bool = True,
) -> Trainer:
    """The loop that serves, at its start; `data` is what the configured file holds, if it is to learn from that. One
    that is not `to_learn` has no workers."""
    steps, seed, seeds = config.total_timesteps, config.seed, config.seeds
    if config.data is not None:
        return make_offline_trainer(algorithm, environment, data, steps, seed, seeds, config.loop)
    keeps = config.save_data is not None
    if config.engine == "ray" and seeds > 1 and algorithm.workers != "gradients":
        return _study_on_ray(algorithm, environment, config, keeps, to_learn)
    return make_trainer(
        algorithm,
        environment,
        steps,
        seed,
        seeds,
        config.loop,
        keeps,
        config.layout,
        config,
        to_learn,
        config.devices,
        config.overlap,
    )


def _study_on_ray(
    algorithm: Algorithm, environment: str | Task, config: RunConfig, keeps: bool, to_learn: bool
) -> Trainer:
    """Seeds spread over the workers of a cluster, or without them a trainer to be looked at: its state is the same."""
    steps, seed, seeds, loop, layout = config.total_timesteps, config.seed, config.seeds, config.loop, config.layout
    check_used(config, "here each trains some of the seeds by itself: leave it out")
    if config.devices > 1:
        raise InvalidSetting(
            f"devices (--devices) was {config.devices}, and workers of a cluster train each on one core: leave it out."
        )
    if not to_learn:
        return make_trainer(algorithm, environment, steps, seed, seeds, loop, keeps, layout)
    from treadle.loops.cluster.remote import Limits
    from treadle.loops.cluster.seeds import RaySeeds

    study: Any = RaySeeds(
        algorithm,
        environment,
        steps,
        seed,
        seeds,
        loop,
        keeps,
        layout,
        workers=config.count(),
        address=config.address,
        imports=registry.imported_files(),
        limits=Limits(silence=config.worker_timeout, step=config.worker_timeout),
    )
    return study


def check_room(config: RunConfig) -> None:
    """Raise `TreadleError` unless the configured folder is free, or holds a run that may be replaced, and likewise the
    file for its transitions."""
    if config.save_data is not None:
        recording.check_target(config.save_data, config.overwrite)
    if config.out is None:
        return
    folder = Path(config.out)
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
        is_run = folder.is_dir() and _read_info(folder) is not None
    except OSError as error:
        raise TreadleError(f"the folder {folder} cannot be read: {error.strerror}. Give another with --out.") from None
    except TreadleError as error:
        raise TreadleError(f"{error} It is left as it is: give another folder with --out.") from None
    if not is_run:
        raise TreadleError(f"{folder} exists and is not a run's folder. Give another with --out.")
    if not config.overwrite:
        raise TreadleError(
            f"{folder} holds a run already. Go on with it (treadle resume {shlex.quote(str(folder))}), replace "
            "it (--overwrite), or give another folder with --out."
        )


def _check_apart(folder: Path, config: RunConfig) -> None:
    """Raise `TreadleError` where a file of transitions lies among what a run keeps, or replaces, in its own folder."""
    own = [folder.absolute() / name for name in CONTENTS]
    for flag, file in (("--save-data", config.save_data), ("--data", config.data)):
        if file is None:
            continue
        path = Path(file)
        if path == folder.absolute() or any(path == place or place in path.parents for place in own):
            raise TreadleError(f"{flag} was given {file}, where the run in {folder} keeps its own files. Give another.")


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step. Raises `TreadleError` when it cannot be written; the former is then as it was."""
    # A folder that was removed while the run went on is not to come back with this file alone.
    with replacing(path, advice="Make room, and try again.", make_folder=False) as temporary:
        temporary.write_text(text, encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of what the numbers may depend on."""
    names = ("jax", "jaxlib", "numpy", "optax", "equinox", "gymnasium", "safetensors")
    found = {name: metadata.version(name) for name in names}
    return {"treadle": __version__, "python": platform.python_version(), "platform": platform.platform(), **found}


def checkpoints_in(folder: Path) -> list[Path]:
    """Those of the run in a folder, oldest first; files that carry other names are none of them."""
    return sorted(p for p in (folder / "checkpoints").glob("step-*.safetensors") if p.stem[5:].isdecimal())


def step_of(path: Path) -> int:
    """The step at which a run's checkpoint was taken, by its name."""
    return int(path.stem.removeprefix("step-"))


def _fresh_folder(algorithm: str, environment: str) -> Path:
    stem = f"runs/{algorithm}-{environment.replace('/', '-').replace(':', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    return next(path for path in map(Path, names) if not path.exists())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read_info(folder: Path) -> dict[str, Any] | None:
    """What `run.json` says; `None` where there is none. Raises `TreadleError` when it is damaged."""
    path = folder / "run.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise TreadleError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, str(error)) from None
    if not isinstance(info, dict) or "format" not in info:
        raise _damaged(folder, "it is not what Treadle writes")
    if info["format"] != FORMAT:
        raise TreadleError(f"{path} has format {info['format']}, and this Treadle reads format {FORMAT}.")
    for name, kind in _INFO.items():
        if not isinstance(info.get(name), kind):
            raise _damaged(folder, f"'{name}' is {info.get(name)!r}")
    for name in ("step", "wall_seconds"):
        if not 0 <= info[name] < math.inf:
            raise _damaged(folder, f"'{name}' is {info[name]!r}")
    try:
        info["config"] = dataclasses.asdict(config.read(info["config"]))
    except InvalidSetting as error:
        raise _damaged(folder, str(error)) from None
    for name, needed in (("save_data", "recording"), ("data", "data_checksum")):
        if info["config"].get(name) is not None and not isinstance(info.get(needed), str):
            raise _damaged(folder, f"'{needed}' is {info.get(needed)!r}")
    try:
        info["wrappers"] = _wrappers(info)
        Wrappers(**info["wrappers"]).check()
    except (InvalidSetting, TypeError) as error:
        raise _damaged(folder, f"its wrappers make no sense ({error})") from None
    return info


def _wrappers(info: dict[str, Any]) -> dict[str, Any]:
    """The wrappers of a run or a checkpoint; those from before there were any say nothing of them."""
    return settings.describe(Wrappers()) | info.get("wrappers", {})


_INFO = {
    **dict.fromkeys(("algorithm", "environment", "status"), str),
    **dict.fromkeys(("settings", "config", "versions"), dict),
    **dict.fromkeys(("imports", "resumed"), list),
    **dict.fromkeys(("command", "preset"), (str, type(None))),
    "step": int,
    "wall_seconds": (int, float),
}


def _damaged(folder: Path, why: str) -> TreadleError:
    return TreadleError(
        f"{folder / 'run.json'} is damaged: {why}. Put it right; the metadata of the run's checkpoints says the same."
    )
