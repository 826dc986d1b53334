"""What the command line shows of a comparison: tables, sentences, a figure, and the numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from treadle import figures, study
from treadle.comparison import (
    ALIKE,
    CONFIDENCE,
    Comparison,
    Contrast,
    Entry,
    MeasureName,
    compare,
    least_pvalue,
    seeds_needed,
)
from treadle.files import replacing
from treadle.study import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

MOST_SEEDS = 1_000
"""Where more would be needed, the number is not told."""
_ENDED = {"finished": "ended", "failed": "failed", "interrupted": "was stopped"}
_DASHES = ("-", "--", "-.", ":")


def report(
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    json_file: str | Path | None = None,
    by: MeasureName | None = None,
) -> Comparison:
    """Compare runs and show it: tables and sentences on the terminal, the figure in `out` (figures/comparison.png in
    the first run's folder unless given), and all the numbers in `json_file` if there is to be one.

    Raises what `compare` raises, and `TreadleError` where a file cannot be written.
    """
    from rich.console import Console

    found = compare(folders, by)
    console = Console()
    console.print(scores_table(found))
    console.print(contrasts_table(found))
    for sentence in (*notes(found), *verdicts(found)):
        print(sentence)
    print(f"Figure: {plot(found, out or found.entries[0].run.folder / 'figures' / 'comparison.png')}")
    if json_file is not None:
        with replacing(Path(json_file)) as temporary:
            temporary.write_text(json.dumps(describe(found), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(f"Numbers: {json_file}")
    return found


def verdicts(found: Comparison) -> list[str]:
    """In words, for each run but the first, by the comparison's measure."""
    return [_verdict(found, contrast) for contrast in found.contrasts if contrast.measure == found.by]


def _verdict(found: Comparison, contrast: Contrast) -> str:
    run, first = found.entries[contrast.run], found.entries[0]
    if contrast.pvalue is None:
        single = " and of ".join(e.label for e in (run, first) if e.seeds == 1)
        return f"{run.label} and {first.label}: one seed says nothing, and there is no more of {single}. Train several."
    title, favours = found.measures[contrast.measure].title, contrast.favours(found.level)
    if favours == 0:
        evidence = _evidence(contrast, found.level)
        advice = _advice(contrast.improvement, run.seeds, first.seeds, found.level)
        return f"{run.label} against {first.label}: no difference shown by {title}. {evidence} {advice}"
    better, worse = (run, first) if favours > 0 else (first, run)
    evidence = _evidence(contrast if favours > 0 else contrast.reversed(), found.level)
    return f"{better.label} is better than {worse.label} by {title}. {evidence}"


def _evidence(contrast: Contrast, level: float) -> str:
    assert contrast.pvalue is not None
    improvement = _probability(contrast.improvement, contrast.improvement_interval, f"{_percent(level)} interval ")
    return (
        f"The probability of improvement is {improvement}, the difference of IQMs "
        f"{_with(contrast.difference, contrast.difference_interval)}; permutation test p "
        f"{_pvalue(contrast.pvalue, '= ')}."
    )


def _advice(improvement: float, n: int, m: int, level: float) -> str:
    """What could show a difference."""
    if (least := least_pvalue(n, m)) > 1 - level:
        enough = next(k for k in range(2, 100) if least_pvalue(k, k) <= 1 - level)
        return (
            f"With {n} and {m} seeds none could be: chance alone sets them all apart in {100 * least:.3g}% of cases. "
            f"Train at least {enough} of each."
        )
    needed = seeds_needed(improvement, level)
    if needed > MOST_SEEDS:
        return f"A difference as small as this would take more than {MOST_SEEDS:,} seeds of each to show."
    if needed <= min(n, m):
        return "That is not to say that they are equal: more seeds may tell."
    return (
        "That is not to say that they are equal: were the true probability as seen here, it would take about "
        f"{needed} seeds of each to show it in four cases of five."
    )


def notes(found: Comparison) -> list[str]:
    """Sentences on what was compared, and on what was not and why."""
    entries, first = found.entries, found.entries[0]
    said = _lengths(found)
    if not found.compares_training:
        said.append(f"Returns in training are not compared: {found.reasons['final']}.")
    if "evaluation" in found.reasons:
        exploring = " Returns in training are those of agents that explore." if found.compares_training else ""
        said.append(f"Greedy evaluation is not compared: {found.reasons['evaluation']}.{exploring}")
    for measure in found.measures.values():
        if measure.caution:
            about = "Mind that" if measure.name == found.by else f"The verdict is not by {measure.name}, because"
            said.append(f"{about} {measure.caution}.")
    if len(entries) > 2:
        said.append(
            f"{len(entries) - 1} runs are set against {first.label}, each at {_percent(found.level)} instead of "
            f"{_percent(CONFIDENCE)}, because of several comparisons one is more easily false (Bonferroni)."
        )
    for index, entry in enumerate(entries[1:], 1):
        if found.compares_training and _is_copy(found, index):
            said.append(
                f"{entry.label} and {first.label} have the very same scores, seed by seed: what was changed had no "
                "effect, or one is a copy of the other."
            )
    versions = {str(entry.run.info["versions"].get("treadle")) for entry in entries}
    if len(versions) > 1:
        said.append(f"The runs were trained by different versions of Treadle ({', '.join(sorted(versions))}).")
    return said


def _lengths(found: Comparison) -> list[str]:
    """Nothing where all are finished and of about the same length."""
    status = [str(entry.run.info.get("status")) for entry in found.entries]
    is_even = all(ALIKE * entry.reached <= found.steps for entry in found.entries)
    if is_even and set(status) == {"finished"}:
        return []
    listed = []
    for entry, how in zip(found.entries, status, strict=True):
        of = "" if how == "finished" else f" of {entry.run.config.total_timesteps:,}"
        listed.append(f"{entry.label} {_ENDED.get(how, 'is')} at {entry.reached:,}{of}")
    common = f"Compared over the first {found.steps:,} steps, to which all have come"
    said = [f"{common if found.compares_training else 'The runs are not of one length'}: {'; '.join(listed)}."]
    if failed := [e.label for e, how in zip(found.entries, status, strict=True) if how == "failed"]:
        said.append(f"That {' and '.join(failed)} failed then is not in the scores, which flatters it.")
    return said


def _is_copy(found: Comparison, index: int) -> bool:
    return all(np.array_equal(m.scores[index], m.scores[0]) for m in found.measures.values())


def scores_table(found: Comparison) -> Table:
    """A row for each run: the IQM over its seeds by each measure, with the 95% interval below it."""
    from rich.table import Table
    from rich.text import Text

    steps = f", {found.steps:,} steps of each seed" if found.compares_training else ""
    title = f"{found.task}{steps}: IQM and 95% bootstrap interval"
    built = Table(title=Text(title), title_justify="left", show_lines=True)
    built.add_column("run", overflow="fold")
    built.add_column("seeds", justify="right")
    for name, measure in found.measures.items():
        built.add_column(measure.heading, justify="right", style="bold" if name == found.by else "")
    for index, entry in enumerate(found.entries):
        scores = [measure.scores[index] for measure in found.measures.values()]
        cells = [_lines(_with(float(study.iqm(s)), study.interval(s))) for s in scores]
        built.add_row(Text(entry.label), str(entry.seeds), *cells)
    return built


def contrasts_table(found: Comparison) -> Table:
    """A row for each run but the first and each measure."""
    from rich.table import Table
    from rich.text import Text

    has_intervals = any(c.pvalue is not None for c in found.contrasts)
    title = f"Against {found.entries[0].label}" + has_intervals * f", with {_percent(found.level)} intervals"
    built = Table(title=Text(title), title_justify="left", show_lines=True)
    built.add_column("run", overflow="fold")
    built.add_column("by")
    for heading in ("difference of IQMs", "probability of improvement", "p"):
        built.add_column(heading, justify="right")
    count = len(found.measures)
    for number, c in enumerate(found.contrasts):
        built.add_row(
            Text(found.entries[c.run].label if number % count == 0 else ""),
            found.measures[c.measure].heading,
            _lines(_with(c.difference, c.difference_interval)),
            _lines(_probability(c.improvement, c.improvement_interval)),
            "" if c.pvalue is None else _pvalue(c.pvalue),
            style="bold" if c.measure == found.by else "",
        )
    return built


def plot(found: Comparison, path: str | Path) -> Path:
    """Draw the IQM of each run's learning curves and its 95% band, and beside them each seed's score by the measure of
    the verdict; the file's path.

    Where returns in training are not compared there are no curves. Raises `TreadleError` where it cannot be written.
    """
    drawn = [entry for entry in found.entries if entry.curves is not None]
    width = 10.0 if drawn else 6.0
    figure = figures.new_figure(width, 4.8)
    axes = figure.subplots(1, 2, width_ratios=(3, 1), squeeze=False)[0] if drawn else [figure.add_subplot()]
    for index, entry in enumerate(found.entries):
        _draw_curves(axes[0], entry, **_style(index))
    _draw_scores(axes[-1], found)
    if drawn:
        from matplotlib.ticker import EngFormatter

        title = f"{found.task}: IQM over seeds and its 95% bootstrap interval"
        figures.dress(axes[0], title, "environment steps", "episode return in training", legend=False)
        axes[0].set_xlim(0, found.steps)
        axes[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    # Below the axes it hides no part of any curve.
    handles, labels = axes[-1].get_legend_handles_labels()
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": figures.INK, "handlelength": 2.4}
    figure.legend(handles, labels, loc="outside lower left", ncols=_columns(labels, width), **style)
    return figures.save(figure, path)


def _draw_curves(axes: Axes, entry: Entry, **style: Any) -> None:
    if entry.curves is None:
        return
    middle, low, high = study.band(entry.curves)
    # A single point is shown by no line.
    marker = "o" if np.isfinite(middle).sum() == 1 else None
    axes.plot(entry.curves.steps, middle, label=_legend(entry), linewidth=2.0, marker=marker, **style)
    axes.fill_between(entry.curves.steps, low, high, color=style["color"], alpha=0.18, linewidth=0)


def _draw_scores(axes: Axes, found: Comparison) -> None:
    measure = found.measures[found.by]
    for index, (entry, scores) in enumerate(zip(found.entries, measure.scores, strict=True)):
        style = _style(index)
        at = index + np.linspace(-0.22, 0.22, len(scores)) if len(scores) > 1 else [index]
        dots = {"markersize": 5, "markeredgewidth": 0.7, "markeredgecolor": "white", "zorder": 3}
        axes.plot(at, np.sort(scores), "o", color=style["color"], **dots)
        middle, interval = float(study.iqm(scores)), study.interval(scores)
        axes.plot([index - 0.32, index + 0.32], [middle, middle], linewidth=2.4, label=_legend(entry), **style)
        if interval.low is not None and interval.high is not None:
            axes.fill_between(
                [index - 0.32, index + 0.32], interval.low, interval.high, color=style["color"], alpha=0.18, linewidth=0
            )
    title = measure.heading if found.compares_training else f"{found.task}: {measure.heading}"
    figures.dress(axes, title, "each seed", "", legend=False)
    axes.set_xticks([])
    axes.set_xlim(-0.6, len(found.entries) - 0.4)


def _style(index: int) -> dict[str, Any]:
    count = len(figures.COLOURS)
    return {"color": figures.COLOURS[index % count], "linestyle": _DASHES[index // count % len(_DASHES)]}


def _legend(entry: Entry) -> str:
    label = entry.label.replace("$", r"\$").lstrip("_")
    return f"{label} ({entry.seeds} seed{'s' if entry.seeds > 1 else ''})"


def _columns(labels: list[str], width: float) -> int:
    """As many as fit side by side, at 11 letters an inch."""
    return max(1, min(4, int(11 * width) // (8 + max(map(len, labels)))))


def describe(found: Comparison) -> dict[str, Any]:
    """All the numbers, as JSON values."""
    words = iter(verdicts(found))
    outcome = {1: "better", 0: "no difference shown", -1: "worse"}
    return {
        "environment": found.task,
        "steps": found.steps,
        "by": found.by,
        "level": found.level,
        "notes": notes(found),
        "measures": {name: measure.title for name, measure in found.measures.items()},
        "runs": [_described(found, index) for index in range(len(found.entries))],
        "comparisons": [
            {
                "run": found.entries[c.run].label,
                "against": found.entries[0].label,
                "measure": c.measure,
                "difference_of_iqms": {"value": c.difference, **_ends(c.difference_interval)},
                "probability_of_improvement": {"value": c.improvement, **_ends(c.improvement_interval)},
                "p": c.pvalue,
                "outcome": "one seed" if c.pvalue is None else outcome[c.favours(found.level)],
                "verdict": next(words) if c.measure == found.by else None,
            }
            for c in found.contrasts
        ],
    }


def _described(found: Comparison, index: int) -> dict[str, Any]:
    entry = found.entries[index]
    scores = {name: measure.scores[index] for name, measure in found.measures.items()}
    content: dict[str, Any] = {
        "label": entry.label,
        "folder": str(entry.run.folder),
        "seeds": entry.seeds,
        "status": entry.run.info.get("status"),
        "reached": entry.reached,
        "scores": {
            name: {"per_seed": s.tolist(), "iqm": float(study.iqm(s)), **_ends(study.interval(s))}
            for name, s in scores.items()
        },
    }
    if entry.curves is not None:
        middle, low, high = study.band(entry.curves)
        content["curve"] = {"steps": entry.curves.steps.tolist()} | {
            name: [None if np.isnan(v) else float(v) for v in values]
            for name, values in (("iqm", middle), ("low", low), ("high", high))
        }
    return content


def _ends(interval: Interval) -> dict[str, float | None]:
    return {"low": interval.low, "high": interval.high}


def _percent(level: float) -> str:
    return f"{100 * level:.3g}%"


def _pvalue(value: float, equal: str = "") -> str:
    return "< 0.001" if value < 0.001 else f"{equal}{value:.2g}"


def _number(value: float) -> str:
    """Without the last digits, in which the IQMs of equal scores may differ."""
    return study.number(round(value, 9) + 0.0)


def _with(value: float, interval: Interval) -> str:
    return _number(value) + _between(interval, _number)


def _probability(value: float, interval: Interval, about: str = "") -> str:
    return f"{value:.2f}" + _between(interval, "{:.2f}".format, about)


def _between(interval: Interval, form: Callable[[float], str], about: str = "") -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f" ({about}{form(interval.low)} to {form(interval.high)})"


def _lines(text: str) -> str:
    """A value above its interval, in a cell of a table."""
    return text.replace(" (", "\n").rstrip(")")
