"""What a chunk of training reported, as lines for `metrics.jsonl`, and whether it is finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from treadle.errors import InvalidSetting, NonFinite
from treadle.loops.fused import Record
from treadle.types import Alarm, Mean

EPISODES_A_CHUNK = 1_000


def lines(record: Record, step: int, per_update: int, seconds: float) -> list[dict[str, Any]]:
    """The metrics and episodes of every seed in a chunk that began at `step`, in the order of seeds.

    Raises what `check` raises.
    """
    check(record, step, per_update)
    returns, lengths = np.asarray(record.episodes.returns), np.asarray(record.episodes.lengths)
    end = step + lengths.shape[1] * per_update
    found: list[dict[str, Any]] = []
    for seed in range(len(lengths)):
        values = {name: value for name, m in _shown(record.metrics).items() if (value := _average(m, seed)) is not None}
        found += _episodes(returns[seed], lengths[seed], seed, step, per_update, seconds)
        found.append({"seed": seed, "step": end, "time": seconds, **values})
    return found


def summary(record: Record) -> dict[str, float | None]:
    """What to show of a chunk: means over seeds, `None` where nothing is known yet."""
    lengths = np.asarray(record.episodes.lengths)
    returns = np.asarray(record.episodes.returns)[lengths > 0]
    shown: dict[str, float | None] = {"return": float(returns.mean()) if returns.size else None}
    for name, metric in _shown(record.metrics).items():
        values = [value for seed in range(len(lengths)) if (value := _average(metric, seed)) is not None]
        shown[name] = float(np.mean(values)) if values else None
    return shown


def check(record: Record, step: int, per_update: int) -> None:
    """Look at a chunk that began at `step`. Raises `InvalidSetting` when an alarm was raised in it, and `NonFinite`
    when a metric or an episode's return is NaN or infinite."""
    returns = np.asarray(record.episodes.returns)
    total = np.asarray(returns.sum(axis=(2, 3), dtype=np.float64))
    end = step + returns.shape[1] * per_update
    check_alarms(record.metrics, step, end)
    check_finite({**record.metrics, "episode_return": Mean(total, np.ones_like(total))}, step, end)


def check_alarms(named: Mapping[str, Any], step: int, end: int) -> None:
    """Raise `InvalidSetting` with the sentence of the first alarm `[S, N]` that was raised, the seed and the step."""
    first: tuple[int, int, str] | None = None
    for alarm in named.values():
        if isinstance(alarm, Alarm) and np.any(alarm.raised):
            seed, update = _first(np.asarray(alarm.raised))
            candidate = (_step_of(update, alarm.raised, step, end), seed, alarm.sentence)
            first = min(first, candidate) if first else candidate
    if first:
        at, seed, sentence = first
        raise InvalidSetting(f"{sentence} The run was stopped at step {at:,} (seed {seed}).")


def check_finite(named: Mapping[str, Any], step: int, end: int) -> None:
    """Raise `NonFinite` naming the first metric `[S, N]` that is not finite, the seed and the step."""
    first: tuple[int, int, str, float] | None = None
    for name, metric in _shown(named).items():
        mean = metric if isinstance(metric, Mean) else Mean(metric, np.ones_like(metric))
        total, weight = np.asarray(mean.total), np.asarray(mean.weight)
        bad = ~np.isfinite(total) & (weight > 0)
        if bad.any():
            seed, update = _first(bad)
            candidate = (_step_of(update, bad, step, end), seed, name, float(total[seed, update]))
            first = min(first, candidate) if first else candidate
    if first:
        at, seed, name, value = first
        raise NonFinite(f"{name} became {value} at step {at:,} (seed {seed}); the run was stopped.")


def check_policy(policy: PyTree, step: int) -> None:
    """Raise `NonFinite` when the policy holds NaN: a finite loss can have a gradient that is not."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(policy):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.isnan(leaf).any():
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise NonFinite(f"{name} became nan by step {step:,}; the run was stopped.")


def _first(bad: np.ndarray) -> tuple[int, int]:
    """The seed and the update of the first `True` in `[S, N]`: the earliest update, and of its seeds the first."""
    update, seed = np.argwhere(bad.T)[0].tolist()
    return seed, update


def _step_of(update: int, of: Any, step: int, end: int) -> int:
    """The step at which an update of a chunk `[S, N]` ended."""
    return step + (end - step) * (update + 1) // of.shape[1]


def _shown(named: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that are numbers: all but alarms."""
    return {name: metric for name, metric in named.items() if not isinstance(metric, Alarm)}


def _average(metric: Any, seed: int) -> float | None:
    if not isinstance(metric, Mean):
        return float(np.mean(metric[seed]))
    weight = np.asarray(metric.weight[seed])
    total = np.where(weight > 0, metric.total[seed], 0.0)  # what has no weight may be NaN
    return float(np.sum(total) / np.sum(weight)) if weight.any() else None


def _episodes(
    returns: np.ndarray, lengths: np.ndarray, seed: int, step: int, per_update: int, seconds: float
) -> list[dict[str, Any]]:
    """A line for each episode `[N, T, B]` that ended; where there are very many, one for several."""
    update, t, env = np.nonzero(lengths)
    steps = step + update * per_update + (t + 1) * lengths.shape[2]
    group = -(-len(steps) // EPISODES_A_CHUNK) if len(steps) else 1
    found = []
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
        found.append(line if group == 1 else {**line, "episodes": len(index[0])})
    return found
