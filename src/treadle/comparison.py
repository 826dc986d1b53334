"""Runs side by side: learning curves, scores with their intervals, and in words whether one is better than another.

The unit is the seed, as in `treadle.study`, and the statistics are those of Agarwal et al. (2021). Every run is set
against the first, over the steps to which all have come, and the verdict is by one measure, which is chosen before
the scores are looked at: the greedy evaluation where all have one, else the returns at the end of training.

One run is called better where three things agree: the interval of the probability of improvement lies clear of 1/2,
that of the difference of IQMs clear of 0 on the same side, and a permutation test finds chance an unlikely reason.
Everything else is "no difference shown", which is not the same as equal.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from treadle import metrics, study
from treadle.algorithms.base import require
from treadle.errors import TreadleError
from treadle.loops.choose import evaluated_as
from treadle.run import Run
from treadle.study import Curves, Interval

MeasureName = Literal["evaluation", "final", "area"]
CONFIDENCE, POWER = 0.95, 0.8
FINAL_PARTS = 10
"""Performance at the end is that of the last of so many parts of training."""
ALIKE = 0.99
"""Lengths closer than this are not worth a word."""
LONGEST_LABEL = 60


class Entry(NamedTuple):
    """A run in a comparison."""

    label: str
    run: Run
    reached: int
    """The step to which all of its seeds have come."""
    curves: Curves | None
    """Over the common steps; `None` where its returns in training cannot be compared, or where there are none."""

    @property
    def seeds(self) -> int:
        return self.run.config.seeds


class Measure(NamedTuple):
    """A score for each seed of each run."""

    name: str
    heading: str
    title: str
    """For a sentence."""
    scores: tuple[np.ndarray, ...]
    """One array `[S]` a run, `S` its seeds."""
    caution: str | None = None
    """Why it is taken for the verdict only where there is nothing else, or when asked for."""


class Contrast(NamedTuple):
    """A run against the first one by a measure; intervals are at the comparison's `level`."""

    run: int
    measure: str
    difference: float
    """Of the IQMs, the first run's subtracted."""
    difference_interval: Interval
    improvement: float
    """The probability that a seed of this run scores higher than one of the first."""
    improvement_interval: Interval
    pvalue: float | None
    """Of the permutation test; `None` where a run has a single seed."""

    def reversed(self) -> Contrast:
        """The first run against this one."""
        return self._replace(
            difference=-self.difference,
            difference_interval=_mirrored(self.difference_interval, 0.0),
            improvement=1 - self.improvement,
            improvement_interval=_mirrored(self.improvement_interval, 1.0),
        )

    def favours(self, level: float) -> int:
        """1 where this run is better than the first, -1 where it is worse, 0 where no difference is shown."""
        sides = {_side(self.difference_interval, 0.0), _side(self.improvement_interval, 0.5)}
        is_chance = self.pvalue is None or self.pvalue > 1 - level
        return 0 if is_chance or len(sides) > 1 else sides.pop()


@dataclass(frozen=True)
class Comparison:
    """Two or more runs side by side, the first being what the others are compared with."""

    task: str
    entries: tuple[Entry, ...]
    steps: int
    """The common steps of each seed."""
    measures: dict[str, Measure]
    by: str
    """The measure of the verdicts."""
    contrasts: tuple[Contrast, ...]
    reasons: dict[str, str]
    """Why there is none of the other measures."""

    @property
    def compares_training(self) -> bool:
        return "area" in self.measures

    @property
    def level(self) -> float:
        """The confidence of each comparison with the first run: all of them together reach 95% (Bonferroni)."""
        return _level(len(self.entries))


def compare(folders: Sequence[str | Path], by: MeasureName | None = None) -> Comparison:
    """Compare the runs in two or more folders, each with the first. The same folders give the same numbers.

    `by` is the measure of the verdicts: `evaluation` (the greedy episodes of `treadle evaluate`, preferred where all
    have it), `final` (the mean return in the last tenth of the common steps), or `area` (under the learning curve up
    to there, divided by its length: the mean return over the steps).

    Raises `TreadleError` for fewer than two runs, one that is given twice, runs of different tasks, runs that have
    nothing in common that could be compared, and files that cannot be read.
    """
    names = get_args(MeasureName)
    require(by is None or by in names, "by", repr(by), f"one of {', '.join(names)}")
    runs = _open(folders)
    task, labels = _common_task(runs), _labels(runs)
    records = [metrics.read(run.folder) for run in runs]
    reached = [_reached(run, own) for run, own in zip(runs, records, strict=True)]
    steps = min(reached)
    unlike = _unlike_training(runs)
    curves = [None if unlike else _curves(own, steps) for own in records]
    entries = tuple(Entry(*parts) for parts in zip(labels, runs, reached, curves, strict=True))
    found: dict[str, Measure | str] = {
        "evaluation": _evaluation(entries, steps),
        "final": unlike or _final(entries, records, steps),
        "area": unlike or _area(entries, steps),
    }
    measures = {name: m for name, m in found.items() if isinstance(m, Measure)}
    reasons = {name: m for name, m in found.items() if isinstance(m, str)}
    chosen = _choose(measures, reasons, by)
    level = _level(len(runs))
    contrasts = tuple(
        contrast(m.scores[i], m.scores[0], i, m.name, level) for i in range(1, len(runs)) for m in measures.values()
    )
    return Comparison(task, entries, steps, measures, chosen, contrasts, reasons)


def _open(folders: Sequence[str | Path]) -> list[Run]:
    if len(folders) < 2:
        given = f"only {folders[0]} was" if folders else "none was"
        raise TreadleError(f"a comparison needs at least two runs, and {given} given: treadle compare RUN RUN.")
    runs = [Run.open(folder) for folder in folders]
    for index, run in enumerate(runs):
        if any(run.folder.resolve() == other.folder.resolve() for other in runs[:index]):
            raise TreadleError(
                f"{run.folder} is given twice, and a run compared with itself shows nothing: leave one out."
            )
    return runs


def _common_task(runs: list[Run]) -> str:
    tasks = [evaluated_as(run.info["environment"]) for run in runs]
    if len(set(tasks)) == 1:
        return tasks[0]
    listed = ", ".join(f"{run.folder} in {task}" for run, task in zip(runs, tasks, strict=True))
    files = sorted({file for run in runs for file in run.info["imports"]})
    hint = (
        f" A world of your own that is evaluated as another is known by its file: --import {files[0]}." if files else ""
    )
    raise TreadleError(
        f"the runs are of different tasks ({listed}), and returns in one say nothing about returns in another. Compare "
        f"runs of one environment.{hint}"
    )


def _unlike_training(runs: list[Run]) -> str | None:
    """Why returns in training are of different things, though evaluation is not."""
    without = [str(run.folder) for run in runs if run.config.data is not None]
    if without:
        return f"{' and '.join(without)} learned from stored transitions, without episodes in training"
    environments = list(dict.fromkeys(run.info["environment"] for run in runs))
    if len(environments) > 1:
        return f"the runs were trained in different environments ({', '.join(environments)})"
    limits = list(dict.fromkeys(str(run.info["wrappers"]["time_limit"]) for run in runs))
    return f"training had different time limits ({', '.join(limits)})" if len(limits) > 1 else None


def _labels(runs: list[Run]) -> list[str]:
    """What tells the runs apart: the algorithm, the settings in which it differs, or else the folder's name."""
    algorithms = [run.info["algorithm"] for run in runs]
    settings = [
        {"environment": r.info["environment"], "data": _source(r), **r.info["wrappers"], **r.info["settings"]}
        for r in runs
    ]
    labels = []
    for algorithm, own in zip(algorithms, settings, strict=True):
        kin = [s for a, s in zip(algorithms, settings, strict=True) if a == algorithm]
        words = [algorithm] if len(set(algorithms)) > 1 else []
        words += [
            f"{name}={_value(v)}" for name, v in own.items() if any(_value(s.get(name)) != _value(v) for s in kin)
        ]
        labels.append(", ".join(words))
    count = Counter(labels)
    for i, run in enumerate(runs):
        if count[labels[i]] > 1 or not 0 < len(labels[i]) <= LONGEST_LABEL:
            labels[i] = run.folder.resolve().name
    return labels if len(set(labels)) == len(labels) else [str(run.folder) for run in runs]


def _source(run: Run) -> str:
    return "its own" if run.config.data is None else Path(run.config.data).name


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _reached(run: Run, records: list[dict[str, Any]]) -> int:
    last = dict.fromkeys(range(run.config.seeds), 0)
    for record in records:
        if record["seed"] in last:
            last[record["seed"]] = max(last[record["seed"]], record["step"])
    if not all(last.values()):
        raise TreadleError(f"{run.folder} has no metrics of every seed yet, so there is nothing to compare.")
    return min(last.values())


def _curves(records: list[dict[str, Any]], steps: int, grid: int | None = None) -> Curves | None:
    has_ended = any(r["step"] <= steps and r.get("episode_return") is not None for r in records)
    return study.learning_curves(records, grid, until=steps) if has_ended else None


def _final(entries: tuple[Entry, ...], records: list[list[dict[str, Any]]], steps: int) -> Measure | str:
    parts = [_curves(own, steps, FINAL_PARTS) for own in records]
    title = "return at the end of training (the last tenth of the steps)"
    return _without_episode(entries) or Measure(
        "final", "end of training", title, tuple(c.returns[:, -1] for c in parts if c)
    )


def _area(entries: tuple[Entry, ...], steps: int) -> Measure | str:
    title = "area under the learning curve (mean return over the steps)"
    return _without_episode(entries) or Measure(
        "area", "area under the curve", title, tuple(area(e.curves) for e in entries if e.curves)
    )


def area(curves: Curves) -> np.ndarray:
    """The area under each seed's curve divided by its length `[S]`: its mean return over the steps. Up to the end of a
    seed's first episode the return is that episode's, which was under way."""
    first = np.isfinite(curves.returns).argmax(axis=1)
    known = np.where(np.isnan(curves.returns), curves.returns[np.arange(len(first)), first][:, None], curves.returns)
    return np.average(known, axis=1, weights=np.diff(curves.steps, prepend=0))


def _without_episode(entries: tuple[Entry, ...]) -> str | None:
    without = [e.label for e in entries if e.curves is None or np.isnan(e.curves.returns[:, -1]).any()]
    return f"not every seed of {' and '.join(without)} has finished an episode in the common steps" if without else None


def _evaluation(entries: tuple[Entry, ...], common: int) -> Measure | str:
    contents = [_read_evaluation(entry.run) for entry in entries]
    missing = [str(e.run.folder) for e, content in zip(entries, contents, strict=True) if content is None]
    if missing:
        return f"there is none of {' and '.join(missing)} (treadle evaluate RUN)"
    found = [content for content in contents if content is not None]
    environments = list(dict.fromkeys(content["environment"] for content in found))
    if len(environments) > 1:
        return f"it was in different environments ({', '.join(environments)})"
    steps = list(dict.fromkeys(content["step"] for content in found))
    at = " and ".join(f"{step:,}" for step in steps)
    title = f"greedy evaluation at step{'s' if len(steps) > 1 else ''} {at}"
    caution = None
    if len(steps) > 1:
        caution = f"the evaluations are at different steps ({at}), so that some runs had more training"
    elif steps[0] < ALIKE * common:
        caution = f"the evaluations are at step {at}, and the runs have come to {common:,} since (treadle evaluate RUN)"
    scores = tuple(np.asarray(content["per_seed"], np.float64) for content in found)
    return Measure("evaluation", "greedy evaluation", title, scores, caution)


def _read_evaluation(run: Run) -> dict[str, Any] | None:
    path = run.folder / "evaluation.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores = np.asarray(content["per_seed"], np.float64)
        is_whole = scores.shape == (run.config.seeds,) and np.isfinite(scores).all()
        if not (is_whole and isinstance(content["step"], int) and isinstance(content["environment"], str)):
            raise ValueError("it has not one score for each seed, with the step and the environment")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TreadleError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise TreadleError(f"{path} is damaged ({error}). Make it anew: treadle evaluate {run.folder}") from None
    return content


def _choose(measures: dict[str, Measure], reasons: dict[str, str], by: str | None) -> str:
    if by is not None and by not in measures:
        raise TreadleError(f"the runs cannot be compared by {by}: {reasons[by]}.")
    if not measures:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise TreadleError(f"the runs have nothing that could be compared ({why}).")
    return by or next((m.name for m in measures.values() if m.caution is None), next(iter(measures)))


def _level(runs: int) -> float:
    return 1 - (1 - CONFIDENCE) / (runs - 1)


def contrast(x: np.ndarray, y: np.ndarray, index: int = 1, name: str = "score", level: float = CONFIDENCE) -> Contrast:
    """The scores of a run's seeds `x` against those of another, `y`."""
    return Contrast(
        index,
        name,
        float(study.difference_of_iqms(x, y)),
        study.interval_between(x, y, study.difference_of_iqms, level),
        float(study.probability_of_improvement(x, y)),
        study.interval_between(x, y, study.probability_of_improvement, level),
        None if min(len(x), len(y)) == 1 else study.permutation_pvalue(x, y),
    )


def _side(interval: Interval, middle: float) -> int:
    if interval.low is None or interval.high is None:
        return 0
    return int(interval.low > middle) - int(interval.high < middle)


def _mirrored(interval: Interval, whole: float) -> Interval:
    if interval.low is None or interval.high is None:
        return interval
    return Interval(whole - interval.high, whole - interval.low)


def seeds_needed(improvement: float, level: float = CONFIDENCE) -> float:
    """About how many seeds of each of two runs show a probability of improvement in four cases of five, by a rank test
    (Noether 1987: `N = (z_{1-alpha/2} + z_{1-beta})^2 / (12 c (1 - c) (p - 1/2)^2)` in all, `c = 1/2`)."""
    from scipy import stats

    if improvement == 0.5:
        return math.inf
    z = stats.norm.ppf(0.5 + level / 2) + stats.norm.ppf(POWER)
    return math.ceil(z**2 / (6 * (improvement - 0.5) ** 2))


def least_pvalue(n: int, m: int) -> float:
    """Of the permutation test, where every one of `n` seeds is above every one of `m` others."""
    return min(1.0, 2 / math.comb(n + m, n))
