"""What the command line shows of a run: evaluation, learning curve, and the list of what there is."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from treadle import figures, film, metrics, registry, study, tables
from treadle.algorithms.base import Algorithm, require
from treadle.environments.base import Environment
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.errors import InvalidSetting, TreadleError
from treadle.features import Table
from treadle.loops import evaluate as evaluation
from treadle.loops.choose import drawn_environment, evaluated_as, evaluation_environment
from treadle.loops.play import HOST_PACE
from treadle.loops.seeding import purpose, seed_key
from treadle.run import Run, write_whole
from treadle.scene import Scene

EVALUATION_ENVIRONMENTS = 10
LONGEST_DRAWING = 1_000
ERRORS = ("loss", "td_error", "error")
"""Metrics of which one is drawn where there are no episodes."""


def evaluate(
    run: Run, episodes: int = 20, seed: int = 0, checkpoint: Path | None = None, render: str | None = None
) -> np.ndarray:
    """Evaluate every seed of a run, print a table, and keep the numbers in `evaluation.json`.

    Returns the returns `[S, episodes]`. Each seed's evaluation has a key of its own.
    """
    require(1 <= episodes <= 1_000_000, "episodes", episodes, "between 1 and 1,000,000")
    require(0 <= seed < 2**31, "seed", seed, "between 0 and 2^31 - 1")
    if render is not None:
        _require_drawable(render)
    trainer = run.trainer(to_learn=False)
    policies, step = run.policies(trainer, checkpoint)
    # Before the episodes are played, since it may be impossible.
    drawn = drawn_environment(run.task) if render else None
    algorithm = trainer.algorithm
    trainer.close()
    world = evaluation_environment(run.task, min(episodes, EVALUATION_ENVIRONMENTS))
    key = purpose(seed_key(seed), "evaluation")
    scores, successes, cut = [], [], 0
    for index in range(run.config.seeds):
        policy = jax.tree.map(lambda x, i=index: x[i], policies)
        found = evaluation.evaluate(algorithm, policy, world, episodes, jax.random.fold_in(key, index))
        scores.append(np.asarray(found.returns))
        successes += [] if found.successes is None else [float(np.mean(found.successes))]
        cut += int(np.sum(found.lengths >= evaluation.STEP_LIMIT)) if world.max_episode_steps is None else 0
    returns = np.stack(scores)
    is_host = isinstance(world, GymnasiumEnvironments)
    where = f"Gymnasium's {world.name}" if is_host else evaluated_as(run.info["environment"])
    _show_evaluation(run, returns, successes, step, where)
    if cut:
        print(
            f"{cut} of {returns.size} episodes were cut after {evaluation.STEP_LIMIT:,} steps: this environment has no "
            "time limit."
        )
    if isinstance(world, GymnasiumEnvironments):
        world.close()
    if render is not None and drawn is not None:
        best = int(np.argmax(returns.mean(axis=1)))
        policy = jax.tree.map(lambda x: x[best], policies)
        path = draw_episode(drawn, algorithm, policy, Path(render), jax.random.fold_in(key, best))
        print(f"Drawing of seed {best}: {path}")
    return returns


def _require_drawable(render: str) -> None:
    if not render.lower().endswith((".gif", ".mp4", ".png")):
        raise InvalidSetting(
            f"--render was given {render}; it must name a .gif or .mp4 file, or a .png file for a film strip."
        )
    if render.lower().endswith(".mp4"):
        film.require_video()


def _show_evaluation(run: Run, returns: np.ndarray, successes: list[float], step: int, where: str) -> None:
    """`successes` are the share of each seed's episodes that ended in success, in worlds that say so."""
    from rich.console import Console

    per_seed = returns.mean(axis=1)
    rows = [
        {"seed": i, "mean": float(r.mean()), "sd": float(r.std()), "minimum": float(r.min()), "maximum": float(r.max())}
        for i, r in enumerate(returns)
    ]
    for row, share in zip(rows, successes, strict=bool(successes)):
        row["success"] = f"{share:.1%}"
    summary = study.summarise(per_seed)
    episodes = "1 greedy episode" if returns.shape[1] == 1 else f"{returns.shape[1]} greedy episodes"
    Console().print(study.table(rows, summary, title=f"{episodes} a seed in {where}"))
    print(summary.sentence())
    if successes:
        print(f"Ended in success: {np.mean(successes):.1%} of the episodes, mean of the seeds.")
    content = {
        "environment": where,
        "step": step,
        "episodes": int(returns.shape[1]),
        "returns": returns.tolist(),
        "per_seed": per_seed.tolist(),
        "summary": summary._asdict(),
        **({"successes": successes} if successes else {}),
    }
    write_whole(run.folder / "evaluation.json", json.dumps(content, indent=1) + "\n")


def draw_episode(
    world: Environment | GymnasiumEnvironments, algorithm: Algorithm, policy: PyTree, path: Path, key: Array
) -> Path:
    """One greedy episode as a moving picture (.gif, .mp4) or a film strip (.png): scenes of a world in JAX, or the
    frames of Gymnasium's environment, which is closed.

    Raises `TreadleError` where it draws no frames, or where the file cannot be written.
    """
    if isinstance(world, GymnasiumEnvironments):
        pictures, seconds = _frames(world, algorithm, policy, key), 1 / (world.steps_per_second or HOST_PACE)
    else:
        states = evaluation.greedy_episode(algorithm, policy, world, key, LONGEST_DRAWING)
        fixed: Any = jax.device_get(world)  # plain numbers, with which a scene is quickly made
        pictures = [fixed.scene(state) for state in states]
        seconds = _frame_seconds(fixed, pictures[0])
    if path.suffix.lower() == ".png":
        return film.save_strip(pictures, path)
    save = film.save_mp4 if path.suffix.lower() == ".mp4" else film.save_gif
    return save(pictures, path, seconds)


def _frames(world: GymnasiumEnvironments, algorithm: Algorithm, policy: PyTree, key: Array) -> list[Any]:
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
    return frames


def _frame_seconds(world: Any, scene: Scene) -> float:
    """As long as a step lasts in the world, if that can be followed; in grids, where steps are large, a quarter of a
    second."""
    return 0.25 if scene.cells else min(max(float(getattr(world, "dt", 0.04)), 0.02), 0.1)


def plot(run: Run, path: Path | None = None) -> Path:
    """Draw the learning curve from the episodes of training, or, where it learned from stored transitions, the error
    over the rows."""
    records = metrics.read(run.folder)
    target = path or run.folder / "figures" / "learning_curve.png"
    if run.config.data is not None:
        return _plot_error(run, records, target)
    if not any("episode_return" in record for record in records):
        raise TreadleError(f"{run.folder} has no finished episode yet, so there is nothing to draw.")
    curves = study.learning_curves(records)
    seeds = "1 seed" if run.config.seeds == 1 else f"{run.config.seeds} seeds"
    title = f"{run.info['algorithm']} in {run.info['environment']}, {seeds}"
    return study.plot_learning_curve(curves, target, title)


def _plot_error(run: Run, records: list[dict[str, Any]], target: Path) -> Path:
    name = next((name for name in ERRORS if any(record.get(name) is not None for record in records)), None)
    if name is None:
        raise TreadleError(
            f"{run.folder} learned from stored transitions, so that it has no episodes of its own, and it has no "
            f"{' or '.join(ERRORS)} yet: there is nothing to draw. How good it is: treadle evaluate {run.folder}"
        )
    figure = figures.new_figure()
    axes = figure.subplots()
    for seed in range(run.config.seeds):
        own = [(r["step"], r[name]) for r in records if r["seed"] == seed and r.get(name) is not None]
        axes.plot(*zip(*own, strict=True), color=figures.BLUE, alpha=0.7, linewidth=1.2)
    seeds = "1 seed" if run.config.seeds == 1 else f"{run.config.seeds} seeds"
    title = f"{run.info['algorithm']} in {run.info['environment']}, from stored transitions, {seeds}"
    figures.dress(axes, title, "rows of the data", name.replace("_", " "))
    return figures.save(figure, target)


def plot_table(run: Run) -> Path | None:
    """Draw the first seed's table of values over the grid of its world, for methods and worlds that have these; else
    `None`."""
    world: Any = evaluated_as(run.info["environment"])
    world = registry.environments.make(world) if world in registry.environments else None
    if not hasattr(world, "scene") or not hasattr(world, "transitions") or not run.checkpoints():
        return None
    if run.info["algorithm"] not in registry.algorithms:  # one of the user's own, which this command does not import
        return None
    trainer = run.trainer(to_learn=False)
    run.restore(trainer)
    q = getattr(trainer.state.algorithm, "q", None)
    trainer.close()
    if q is None or not isinstance(q.features, Table) or tables.scene_of(world).cells is None:
        return None
    figure = figures.new_figure(6.0, 4.8)
    tables.draw_values(figure.subplots(), world, np.asarray(q.weights[0]), f"{run.info['algorithm']}, seed 0")
    return figures.save(figure, run.folder / "figures" / "q_table.png")


def reproduce(name: str, folder: Path, seed: int, seeds: int | None, command: str) -> None:
    """Run an experiment, and print its claims as they were found and where the figure is."""
    from rich.console import Console

    from treadle import experiment

    console, progress = Console(), Console(stderr=True)
    declared = experiment.find(name)
    console.print(f"{declared.about} ({declared.source}).", markup=False)
    total = len(declared.trials)
    with progress.status("compiling ...") as status:
        count = itertools.count(1)
        judged = experiment.reproduce(
            name, folder, seed, seeds, command, lambda label: status.update(f"{next(count)} of {total}: {label}")
        )
    for found in judged:
        verdict = "holds" if found.holds else "does not hold"
        console.print(f"  {verdict}: {found.claim} ({found.figures})", markup=False, soft_wrap=True)
    console.print(f"Figure: {folder / 'figures' / name}.png", markup=False, soft_wrap=True)
