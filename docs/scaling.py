"""Measure what workers cost, predict where a cluster saturates, and write both into docs/scaling.md.

    python docs/scaling.py

Measures by benchmarks/treadle_costs.py, on a cluster of two nodes on this machine. Rewrites what stands between the
markers of docs/scaling.md, and docs/images/scaling.png.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from treadle import figures

ROOT = Path(__file__).resolve().parent.parent
PAGE, FIGURE = ROOT / "docs" / "scaling.md", ROOT / "docs" / "images" / "scaling.png"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
BANDWIDTH = 125e6
"""Bytes a second, each way, of the network that is assumed between the machines: 1 Gbit/s."""
ENVIRONMENTS = 64
"""Of all workers together where the steps of PPO are predicted."""
MOST = 4096
"""Workers up to which a knee is looked for."""


class Ray(NamedTuple):
    """What Ray takes, in seconds, and in seconds for each MB (1e6 bytes)."""

    trip: float
    """From a call of a worker's method that answers little, and at once, until the answer is here."""
    trip_mb: float
    """For each MB that the answer brings."""
    handling: float
    """Of the driver's own time for such a call."""
    put: float
    put_mb: float
    get_mb: float
    """Of reading what was put, by a worker on another node of this machine."""


class Work(NamedTuple):
    """What one learner and its workers do, in seconds and bytes."""

    name: str
    gradients: bool
    steps: int
    """Of one rollout: of one worker (gradients), or of all (rollouts)."""
    envs: int
    """Of one worker (gradients), or of all (rollouts)."""
    fixed: float
    """Seconds of a rollout, and of the gradients from it."""
    for_each: float
    """Seconds more for every environment of a worker."""
    learn: float
    """Seconds of an update."""
    parameters: int
    """Bytes that a worker pulls."""
    answer: int
    """Bytes that come for one update: gradients, or the rollouts of all workers."""

    def updates(self, workers: int, ray: Ray, bandwidth: float = float("inf")) -> float:
        """Updates a second."""
        return (self._by_gradients if self.gradients else self._by_rollouts)(workers, ray, bandwidth)

    def _by_gradients(self, workers: int, ray: Ray, bandwidth: float) -> float:
        """Each worker goes round by itself; the learner serves one after the other."""
        learner, wire = self._learner(ray), max(self.parameters, self.answer) / bandwidth
        cycle = self.fixed + self._trip(ray, self.answer) + learner + (self.parameters + self.answer) / bandwidth
        return min(workers / cycle, 1 / (learner + ray.handling), 1 / wire if wire else float("inf"))

    def _by_rollouts(self, workers: int, ray: Ray, bandwidth: float) -> float:
        """All act at once, then the learner learns."""
        act = self.fixed + self.for_each * -(-self.envs // workers)
        sent = (self.answer + workers * self.parameters) / bandwidth
        calls = self._trip(ray, self.answer) + (workers - 1) * ray.handling
        return 1 / (act + calls + self._learner(ray) + sent)

    def _trip(self, ray: Ray, answer: float) -> float:
        return ray.trip + ray.trip_mb * answer / 1e6 + ray.get_mb * self.parameters / 1e6

    def _learner(self, ray: Ray) -> float:
        return self.learn + ray.put + ray.put_mb * self.parameters / 1e6

    def fits(self, workers: int) -> bool:
        """Whether an update's environments can be shared out among so many."""
        return self.gradients or self.envs % workers == 0

    def knee(self, ray: Ray, bandwidth: float) -> int:
        """Workers beyond which more bring nothing (gradients), or twice as many bring less than 1.5 times the steps."""
        n, enough = 1, 1 + 1e-9 if self.gradients else 1.5
        while n < MOST:
            more = n + 1 if self.gradients else 2 * n
            if not self.fits(more):
                return n
            if self.updates(more, ray, bandwidth) < enough * self.updates(n, ray, bandwidth):
                return n
            n = more
        return MOST

    def with_envs(self, envs: int) -> Work:
        """The same with so many environments of all workers: the learner's time and the rollouts in proportion."""
        more = envs / self.envs
        return self._replace(
            envs=envs, steps=round(self.steps * more), learn=self.learn * more, answer=round(self.answer * more)
        )


class Check(NamedTuple):
    """A prediction for this machine, and what was measured."""

    work: Work
    workers: int
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def number(value: float) -> str:
    return f"{value:,.0f}"


def milliseconds(value: float) -> str:
    return f"{1e3 * value:.3g}"


def size_text(count: float) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def constants(works: list[Work]) -> list[str]:
    lines = [
        row("work", "steps of an update", "rollout, ms", "update, ms", "parameters", "what comes for an update"),
        row(*["---"] * 6),
    ]
    for work in works:
        act = milliseconds(work.fixed)
        if not work.gradients:
            act = f"{act} + {milliseconds(work.for_each)} for each environment of a worker"
        lines.append(
            row(
                work.name,
                number(work.steps),
                act,
                milliseconds(work.learn),
                size_text(work.parameters),
                f"{size_text(work.answer)} of {'gradients' if work.gradients else 'rollouts'}",
            )
        )
    return lines


def predictions(works: list[Work], ray: Ray) -> list[str]:
    counts = (1, 2, 8, 32, 128)
    lines = [
        row("work", *(f"{n} machine{'s' if n > 1 else ''}" for n in counts), "knee", "what limits it there"),
        row(*["---"] * (3 + len(counts))),
    ]
    for work in works:
        rates = [number(work.steps * work.updates(n, ray, BANDWIDTH)) if work.fits(n) else "" for n in counts]
        lines.append(row(work.name, *rates, f"**{work.knee(ray, BANDWIDTH)}**", limit(work, ray)))
    return lines


def limit(work: Work, ray: Ray) -> str:
    """What takes the most time of an update where workers take none."""
    if work.gradients:
        wire = max(work.parameters, work.answer) / BANDWIDTH
        own = work.learn + ray.put + ray.put_mb * work.parameters / 1e6 + ray.handling
        return "the network" if wire > own else "the learner"
    knee = work.knee(ray, BANDWIDTH)
    parts = {
        "the learner": work.learn,
        "the network": (work.answer + knee * work.parameters) / BANDWIDTH,
        "the environments, fewer for each worker": work.fixed,
    }
    return max(parts, key=lambda name: parts[name])


def checks_table(checks: list[Check]) -> list[str]:
    lines = [row("work", "workers", "predicted, steps/s", "measured, steps/s", "error"), row(*["---"] * 5)]
    for check in checks:
        cells = check.work.name, str(check.workers), number(check.predicted), number(check.measured)
        lines.append(row(*cells, f"{100 * check.error:+.0f}%"))
    return lines


def drawn(works: list[Work], ray: Ray) -> None:
    figure = figures.new_figure(8.0, 4.4)
    axes = figure.add_subplot()
    for work, colour in zip(works, figures.COLOURS, strict=False):
        counts = [2**k for k in range(10) if work.fits(2**k)]
        times = [work.updates(n, ray, BANDWIDTH) / work.updates(1, ray, BANDWIDTH) for n in counts]
        axes.plot(counts, times, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=work.name)
    ticks = [2**k for k in range(10)]
    axes.plot(ticks, ticks, color=figures.GREY, linewidth=1.0, linestyle="--", label="ideal")
    axes.set(xscale="log", yscale="log", ylim=(0.8, 512))
    axes.set_xticks(ticks, [str(n) for n in ticks], minor=False)
    axes.set_yticks([1, 2, 5, 10, 20, 50, 100, 200, 500], ["1", "2", "5", "10", "20", "50", "100", "200", "500"])
    axes.minorticks_off()
    figures.dress(axes, "Steps per second against one machine, predicted", "machines, one worker each", "times")
    figures.save(figure, FIGURE)


def text(ray: Ray, works: list[Work], predicted: list[Work], checks: list[Check], told: dict) -> str:
    lines = [
        BEGIN,
        "",
        f"A worker's task takes Ray {milliseconds(ray.trip)} ms from the learner's side, of which the "
        f"learner itself is busy for {milliseconds(ray.handling)} ms. Each MB of an answer takes "
        f"{milliseconds(ray.trip_mb)} ms more. To put something into the object store takes {milliseconds(ray.put)} "
        f"ms, and {milliseconds(ray.put_mb)} ms for each MB; a worker's reading {milliseconds(ray.get_mb)} ms for "
        "each MB.",
        "",
        *constants(works),
        "",
        "### Checked with one worker and two, on this machine",
        "",
        *checks_table(checks),
        "",
        "### Predicted for machines with a network of 1 Gbit/s",
        "",
        *predictions(predicted, ray),
        "",
        f"In steps per second. PPO has {ENVIRONMENTS} environments in all, which must share out evenly.",
        "",
        "![Predicted speed-up over one machine, by the number of machines](images/scaling.png)",
        "",
        f"- Date: {datetime.date.today().isoformat()}; commit: {told['commit']}",
        f"- Machine: {told['machine']}",
        "",
        END,
    ]
    return "\n".join(lines)


def measured() -> dict:
    """What benchmarks/treadle_costs.py tells."""
    python, folder = sys.executable, ROOT / "benchmarks"
    command = [python, str(folder / "two_nodes.py"), "--cpus", "2", python, str(folder / "treadle_costs.py")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit("The costs of workers could not be measured.")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    told = measured()
    ray, works = Ray(**told["ray"]), [Work(**work) for work in told["works"]]
    checks = [
        Check(work, n, work.steps * work.updates(n, ray), told["rates"][work.name][n - 1])
        for work in works
        if work.name in told["rates"]
        for n in (1, 2)
    ]
    predicted = [work if work.gradients else work.with_envs(ENVIRONMENTS) for work in works]
    drawn(predicted, ray)
    page, written = PAGE.read_text(), text(ray, works, predicted, checks, told)
    PAGE.write_text(page.split(BEGIN)[0] + written + page.split(END)[1])
    print(written)


if __name__ == "__main__":
    main()
