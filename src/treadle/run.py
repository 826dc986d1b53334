"""A run and its folder: the exact command, the resolved settings, versions, metrics, checkpoints, figures."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import shlex
import shutil
import signal
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from treadle import __version__, checkpoint, metrics, registry, settings
from treadle.algorithms.base import Algorithm
from treadle.errors import NonFinite, TreadleError
from treadle.loops.choose import LoopName, Trainer, make_trainer
from treadle.loops.fused import Record
from treadle.progress import Progress
from treadle.types import Mean

FORMAT = 1
CHECKPOINT_SECONDS = 30.0
KEPT_CHECKPOINTS = 2
EPISODES_A_CHUNK = 1_000


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What a run is, apart from the algorithm's own settings."""

    total_timesteps: int = 50_000
    """Environment steps of each seed, over all its environments."""
    seeds: int = 1
    """How many seeds to train: every result is a distribution."""
    seed: int = 0
    """Base of the seeds; another base shares no randomness with this one."""
    loop: LoopName = "auto"
    """`auto`: fused where the world is in JAX, else host. `host` forces Gymnasium's own environment."""
    out: str | None = None
    """The run's folder; runs/ALGORITHM-ENVIRONMENT-TIME unless given."""
    overwrite: bool = False
    """Replace the run in the folder, if there is one."""
    checkpoint_period: int | None = None
    """Environment steps between two checkpoints; every 30 seconds unless given. There is always one at the end."""


class Interrupted(TreadleError):
    """The run was stopped by a signal and saved; `signal` says by which."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal = signal_number


class Run:
    """A folder on disk. `create` and `open` make one, `train` fills it."""

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
    ) -> Run:
        """A new run's folder with its `run.json`.

        Raises `TreadleError` when the folder holds a run already, unless `config.overwrite`, or cannot be made.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = Path(config.out or f"runs/{algorithm}-{environment.replace('/', '-').replace(':', '-')}-{stamp}")
        _make_room(folder, config.overwrite)
        info = {
            "format": FORMAT,
            "command": shlex.join(command) if command else None,
            "algorithm": algorithm,
            "settings": settings.describe(configured),
            "environment": environment,
            "config": dataclasses.asdict(config),
            "preset": preset,
            "imports": imports or [],
            "versions": versions(),
            "status": "new",
            "step": 0,
            "wall_seconds": 0.0,
        }
        run = cls(folder, info)
        run.save_info()
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """The run in a folder. Raises `TreadleError` when there is none or its `run.json` cannot be read."""
        path = Path(folder)
        try:
            info = json.loads((path / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TreadleError(
                f"{folder} is not a run's folder: it has no run.json. Give the folder that `treadle train` printed."
            ) from None
        except (OSError, ValueError) as error:
            raise TreadleError(f"{path / 'run.json'} cannot be read: {error}.") from None
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            raise TreadleError(f"{path / 'run.json'} is not of this version of Treadle (format {FORMAT}).")
        return cls(path, info)

    @property
    def config(self) -> RunConfig:
        return RunConfig(**self.info["config"])

    def algorithm(self, **own: Any) -> Algorithm:
        """The algorithm with the settings of this run."""
        if self.info["algorithm"] not in registry.algorithms and self.info["imports"]:
            files = " ".join(f"--import {shlex.quote(f)}" for f in self.info["imports"])
            raise TreadleError(
                f"this run used the algorithm '{self.info['algorithm']}' of your own; opening a run never runs code "
                f"from it, so name the file again: {files}"
            )
        return settings.restore(self.info["algorithm"], self.info["settings"], **own)

    def save_info(self, **changes: Any) -> None:
        self.info.update(changes)
        temporary = self.folder / "run.json.tmp"
        temporary.write_text(json.dumps(self.info, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self.folder / "run.json")

    def trainer(self, algorithm: Algorithm | None = None) -> Trainer:
        """The loop that serves this run, at its start."""
        config = self.config
        algorithm = self.algorithm() if algorithm is None else algorithm
        return make_trainer(
            algorithm, self.info["environment"], config.total_timesteps, config.seed, config.seeds, config.loop
        )

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-*.safetensors"))

    def save_checkpoint(self, trainer: Trainer, step: int) -> Path:
        path = self.folder / "checkpoints" / f"step-{step:012d}.safetensors"
        about = {key: self.info[key] for key in ("algorithm", "settings", "environment", "config", "versions")}
        checkpoint.save(path, trainer.state, {"kind": "run", "step": step, **about})
        for old in self.checkpoints()[:-KEPT_CHECKPOINTS]:
            old.unlink(missing_ok=True)
        return path

    def restore(self, trainer: Trainer, path: Path | None = None) -> int:
        """Put a checkpoint (the last, unless named) into a trainer; the step at which it was taken.

        Raises `TreadleError` when there is none, and `CheckpointError` when it is damaged or of something else.
        """
        if path is None:
            found = self.checkpoints()
            if not found:
                raise TreadleError(f"{self.folder} has no checkpoint yet. Start it anew: {self.info['command']}")
            path = found[-1]
        described = checkpoint.read_metadata(path)
        if described.get("kind") != "run" or described.get("algorithm") != self.info["algorithm"]:
            raise checkpoint.CheckpointError(
                f"{path} is a checkpoint of {described.get('algorithm', 'something else')}, and this run trains "
                f"{self.info['algorithm']}. Give a checkpoint of this run."
            )
        try:
            state, _ = checkpoint.load(path, trainer.state)
        except checkpoint.CheckpointError as error:
            others = [p for p in self.checkpoints() if p != path]
            hint = f" An earlier one is at hand: --checkpoint {others[-1]}" if others else ""
            raise checkpoint.CheckpointError(f"{error}{hint}") from None
        trainer.restore(state)
        return int(described["step"])


def train(run: Run, trainer: Trainer, step: int = 0, progress: Progress | None = None) -> None:
    """Train to the configured number of timesteps, from `step` on, writing metrics and checkpoints.

    SIGINT and SIGTERM stop it after the chunk at hand: it saves and raises `Interrupted`, which says how to resume.
    Raises `NonFinite` when a metric is NaN or infinite; the last good checkpoint stays.
    """
    config, algorithm = run.config, trainer.algorithm
    per_update = algorithm.num_steps * algorithm.num_envs
    plan = Chunks(config.total_timesteps, per_update, host=not trainer.exact_resume)
    shown = progress or Progress(_title(run), config.total_timesteps, config.seeds, enabled=False)
    writer = metrics.MetricsWriter(run.folder, list(range(config.seeds)))
    began, before = time.monotonic(), float(run.info["wall_seconds"])
    saved_at, saved_step = began, step
    first = True
    run.save_info(status="running", step=step)
    if step == 0:
        run.save_checkpoint(trainer, 0)
    with _Signals() as signals:
        try:
            while step < plan.total_steps:
                count = plan.next(step)
                if first:
                    with shown.compiling():
                        record = trainer.advance(count)
                    first = False
                else:
                    record = trainer.advance(count)
                now = time.monotonic()
                summary = _write(writer, record, step, per_update, before + now - began, run)
                step += count * per_update
                shown.update(min(step, config.total_timesteps), summary)
                period = config.checkpoint_period
                due = now - saved_at > CHECKPOINT_SECONDS if period is None else step // period > saved_step // period
                if due or step >= plan.total_steps or signals.received:
                    run.save_checkpoint(trainer, step)
                    saved_at, saved_step = time.monotonic(), step
                    run.save_info(step=step, wall_seconds=before + saved_at - began)
                if signals.received and step < plan.total_steps:
                    run.save_info(status="interrupted")
                    raise Interrupted(
                        f"stopped at step {step:,} of {plan.total_steps:,} and saved. "
                        f"Go on with: treadle resume {shlex.quote(str(run.folder))}",
                        signals.received,
                    )
        except NonFinite as error:
            run.save_info(status="failed")
            raise NonFinite(
                f"{error} The last good checkpoint is at step {saved_step:,}. A smaller learning rate, or clipping "
                "(--max-grad-norm), is the usual cure."
            ) from None
        finally:
            writer.close()
            shown.close()
    run.save_info(status="finished")


class Chunks:
    """How many updates go into one call of a compiled loop: about a fiftieth of the run.

    Chunks of the fused loop are alike as far as possible, because each length is compiled on its own. The plan
    depends on the whole run only, so that a resumed run goes through the same programs.
    """

    def __init__(self, total_timesteps: int, per_update: int, host: bool, largest: int = 20_000):
        updates = -(-total_timesteps // per_update)
        self.per_update, self.total_steps = per_update, updates * per_update
        wanted = max(1, min(updates // 50, (500 if host else largest) // per_update))
        divisors = [d for d in range(wanted, max(1, wanted // 2) - 1, -1) if updates % d == 0]
        self.size = divisors[0] if divisors else wanted

    def next(self, step: int) -> int:
        """Updates in the chunk that begins at `step`."""
        left = (self.total_steps - step) // self.per_update
        return min(self.size, left)


def versions() -> dict[str, str]:
    """Versions of what the numbers may depend on."""
    names = ("jax", "jaxlib", "numpy", "optax", "equinox", "gymnasium", "safetensors")
    found = {name: metadata.version(name) for name in names}
    return {"treadle": __version__, "python": platform.python_version(), "platform": platform.platform(), **found}


def _title(run: Run) -> str:
    return f"{run.info['algorithm']} {run.info['environment']}"


def _make_room(folder: Path, overwrite: bool) -> None:
    if (folder / "run.json").exists() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        is_run = (folder / "run.json").exists()
        if not is_run:
            raise TreadleError(f"{folder} exists and is not a run's folder. Give another with --out.")
        if not overwrite:
            raise TreadleError(
                f"{folder} holds a run already. Go on with it (treadle resume {shlex.quote(str(folder))}), replace "
                "it (--overwrite), or give another folder with --out."
            )
        shutil.rmtree(folder)
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TreadleError(f"the folder {folder} cannot be made: {error.strerror}. Give another with --out.") from None


def _write(
    writer: metrics.MetricsWriter, record: Record, step: int, per_update: int, seconds: float, run: Run
) -> dict[str, float | None]:
    """Write a chunk's metrics and episodes; what to show of them: means over seeds. Raises `NonFinite`."""
    records: list[dict[str, Any]] = []
    summary: dict[str, list[float]] = {}
    lengths = np.asarray(record.episodes.lengths)
    seeds, updates = lengths.shape[:2]
    end = step + updates * per_update
    check_finite(record.metrics, step, end)
    for seed in range(seeds):
        values = {name: value for name, m in record.metrics.items() if (value := _average(m, seed)) is not None}
        records += _episodes(record, seed, step, per_update, seconds)
        records.append({"seed": seed, "step": end, "time": seconds, **values})
        for name, value in values.items():
            summary.setdefault(name, []).append(value)
    writer.write(records)
    returns = np.asarray(record.episodes.returns)[lengths > 0]
    shown: dict[str, float | None] = {name: float(np.mean(values)) for name, values in summary.items()}
    return {"return": float(returns.mean()) if returns.size else None, **shown}


def check_finite(named: Mapping[str, Any], step: int, end: int) -> None:
    """Raise `NonFinite` naming the first metric that is not finite, the seed and the step."""
    first: tuple[int, int, str, float] | None = None
    for name, metric in named.items():
        mean = metric if isinstance(metric, Mean) else Mean(metric, np.ones_like(metric))  # pyright: ignore
        total, weight = np.asarray(mean.total), np.asarray(mean.weight)
        bad = ~np.isfinite(total) & (weight > 0)
        if bad.any():
            seed, update = min(np.argwhere(bad).tolist(), key=lambda place: (place[1], place[0]))
            candidate = (update, seed, name, float(total[seed, update]))
            first = min(first, candidate) if first else candidate
    if first:
        update, seed, name, value = first
        count = np.asarray(jax.tree.leaves(dict(named))[0]).shape[1]
        at = step + (end - step) * (update + 1) // count
        raise NonFinite(f"{name} became {value} at step {at:,} (seed {seed}); the run was stopped.")


def _average(metric: Any, seed: int) -> float | None:
    if not isinstance(metric, Mean):
        return float(np.mean(metric[seed]))
    weight = float(np.sum(metric.weight[seed]))
    return float(np.sum(metric.total[seed] * (np.asarray(metric.weight[seed]) > 0)) / weight) if weight else None


def _episodes(record: Record, seed: int, step: int, per_update: int, seconds: float) -> list[dict[str, Any]]:
    """A line for each episode that ended; where there are very many, one for several."""
    lengths, returns = np.asarray(record.episodes.lengths)[seed], np.asarray(record.episodes.returns)[seed]
    update, t, env = np.nonzero(lengths)
    num_envs = lengths.shape[2]
    steps = step + update * per_update + (t + 1) * num_envs
    group = -(-len(steps) // EPISODES_A_CHUNK) if len(steps) else 1
    records = []
    for i in range(0, len(steps), group):
        part = slice(i, i + group)
        index = (update[part], t[part], env[part])
        line = {
            "seed": seed,
            "step": int(steps[part][-1]),
            "time": seconds,
            "episode_return": float(returns[index].mean()),
            "episode_length": float(lengths[index].mean()),
        }
        records.append(line if group == 1 else {**line, "episodes": len(index[0])})
    return records


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
        self.received = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
