"""What the command line shows of a run: evaluation, learning curve, and the list of what there is."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from treadle import metrics, registry, settings, study
from treadle.algorithms.base import Algorithm, require
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.errors import InvalidSetting, TreadleError
from treadle.loops import evaluate as evaluation
from treadle.loops.choose import evaluated_as, evaluation_environment
from treadle.loops.seeding import purpose, seed_key
from treadle.run import Run, write_whole

EVALUATION_ENVIRONMENTS = 10
LONGEST_DRAWING = 1_000


def evaluate(
    run: Run, episodes: int = 20, seed: int = 0, checkpoint: Path | None = None, render: str | None = None
) -> np.ndarray:
    """Evaluate every seed of a run, print a table, and keep the numbers in `evaluation.json`.

    Returns the returns `[S, episodes]`. Each seed's evaluation has a key of its own.
    """
    require(episodes >= 1, "episodes", episodes, "at least 1")
    require(0 <= seed < 2**31, "seed", seed, "between 0 and 2^31 - 1")
    if render is not None and not render.lower().endswith(".gif"):
        raise InvalidSetting(f"--render was given {render}; it must name a .gif file.")
    trainer = run.trainer()
    step = run.restore(trainer, checkpoint)
    # Before the episodes are played, since it may be impossible.
    drawn = _drawn_world(run.info["environment"]) if render else None
    policies = trainer.policies()
    algorithm = trainer.algorithm
    trainer.close()
    world = evaluation_environment(run.info["environment"], min(episodes, EVALUATION_ENVIRONMENTS))
    key = purpose(seed_key(seed), "evaluation")
    scores = []
    for index in range(run.config.seeds):
        policy = jax.tree.map(lambda x, i=index: x[i], policies)
        found = evaluation.evaluate(algorithm, policy, world, episodes, jax.random.fold_in(key, index))
        scores.append(np.asarray(found.returns))
    returns = np.stack(scores)
    is_host = isinstance(world, GymnasiumEnvironments)
    where = f"Gymnasium's {world.name}" if is_host else evaluated_as(run.info["environment"])
    _show_evaluation(run, returns, step, where)
    if isinstance(world, GymnasiumEnvironments):
        world.close()
    if render is not None and drawn is not None:
        best = int(np.argmax(returns.mean(axis=1)))
        policy = jax.tree.map(lambda x: x[best], policies)
        path = draw_episode(drawn, algorithm, policy, Path(render), jax.random.fold_in(key, best))
        print(f"Drawing of seed {best}: {path}")
    return returns


def _show_evaluation(run: Run, returns: np.ndarray, step: int, where: str) -> None:
    from rich.console import Console

    per_seed = returns.mean(axis=1)
    rows = [
        {"seed": i, "mean": float(r.mean()), "sd": float(r.std()), "minimum": float(r.min()), "maximum": float(r.max())}
        for i, r in enumerate(returns)
    ]
    summary = study.summarise(per_seed)
    episodes = "1 greedy episode" if returns.shape[1] == 1 else f"{returns.shape[1]} greedy episodes"
    Console().print(study.table(rows, summary, title=f"{episodes} a seed in {where}"))
    print(summary.sentence())
    content = {
        "environment": where,
        "step": step,
        "episodes": int(returns.shape[1]),
        "returns": returns.tolist(),
        "per_seed": per_seed.tolist(),
        "summary": summary._asdict(),
    }
    write_whole(run.folder / "evaluation.json", json.dumps(content, indent=1) + "\n")


def draw_episode(world: GymnasiumEnvironments, algorithm: Algorithm, policy: PyTree, path: Path, key: Array) -> Path:
    """One greedy episode as a GIF of the environment's own frames; the environment is closed.

    Raises `TreadleError` where it draws no frames, or where the file cannot be written.
    """
    from PIL import Image

    frames: list[Any] = []

    def keep(environments: GymnasiumEnvironments) -> None:
        if len(frames) < LONGEST_DRAWING:
            try:
                frame = environments.render()[0]
            except NotImplementedError:
                frame = None
            if frame is None:
                raise TreadleError(f"{world.name} cannot be drawn: it renders nothing in the mode rgb_array.")
            frames.append(Image.fromarray(np.asarray(frame)))

    try:
        evaluation.evaluate(algorithm, policy, world, 1, key, each_step=keep)
    finally:
        world.close()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        frames[0].save(temporary, "GIF", save_all=True, append_images=frames[1:], duration=20, loop=0, optimize=False)
        os.replace(temporary, path)
    except OSError as error:
        raise TreadleError(f"the drawing {path} cannot be written: {error.strerror}. Give another path.") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def _drawn_world(name: str) -> GymnasiumEnvironments:
    try:
        world = evaluation_environment(name, 1, render_mode="rgb_array")
    except (TreadleError, TypeError) as error:  # Gymnasium's, where an environment takes no render_mode
        raise TreadleError(f"{name} cannot be drawn: {error}") from None
    if not isinstance(world, GymnasiumEnvironments):
        raise TreadleError(f"{name} has no drawing yet: only Gymnasium's environments are drawn.")
    return world


def plot(run: Run, path: Path | None = None) -> Path:
    """Draw the learning curve from the episodes of training."""
    records = metrics.read(run.folder)
    target = path or run.folder / "figures" / "learning_curve.png"
    if not any("episode_return" in record for record in records):
        raise TreadleError(f"{run.folder} has no finished episode yet, so there is nothing to draw.")
    curves = study.learning_curves(records)
    seeds = "1 seed" if run.config.seeds == 1 else f"{run.config.seeds} seeds"
    title = f"{run.info['algorithm']} in {run.info['environment']}, {seeds}"
    return study.plot_learning_curve(curves, target, title)


def show_list() -> None:
    """Print the algorithms, the worlds and the presets."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    algorithms = Table("algorithm", "what it is", title="Algorithms", title_justify="left")
    for name, (cls, _) in registry.algorithms.entries().items():
        algorithms.add_row(name, _first_line(cls))
    worlds = Table("environment", "what it is", title="Worlds in JAX", title_justify="left")
    for name, (cls, _) in registry.environments.entries().items():
        worlds.add_row(name, _first_line(cls))
    tuned = Table("algorithm", "environment", "preset", "what it is", title="Presets", title_justify="left")
    for p in settings.presets():
        tuned.add_row(p.algorithm, p.environment, p.name, p.about)
    for table in (algorithms, worlds, tuned):
        console.print(table)
    console.print("Besides these, any Gymnasium environment by its own name, through the host loop.")


def _first_line(cls: type) -> str:
    module = sys.modules[cls.__module__].__doc__ or cls.__doc__ or ""
    return module.strip().splitlines()[0] if module.strip() else ""
