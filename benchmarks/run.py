"""`make bench`: Treadle against other libraries doing the same work, in alternating runs on this machine.

Each row is measured in rounds: ours, theirs, ours, theirs ... so that a slow minute of the machine meets both. The
figure that counts is the median of the ratios round by round. Writes docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rows import ROOT, ROWS, BenchmarkError, Row, Start, execute

REPORT = ROOT / "docs" / "benchmarks.md"
STARTS = 5
"""Rounds, at least, for rows that time the start of a process: each is short and the noise is large."""


@dataclass
class Result:
    """A row's measurements, round by round, and what else the programs told."""

    row: Row
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    told: list[dict] = field(default_factory=list)

    @property
    def figures(self) -> list[float]:
        theirs = self.theirs or self.ours
        return [self.row.compare(a, b) for a, b in zip(self.ours, theirs, strict=True)]

    @property
    def line(self) -> str:
        row, figure = self.row, statistics.median(self.figures)
        spread = f"{row.show(min(self.figures))} to {row.show(max(self.figures))}"
        cells = (
            row.work,
            f"{row.ours.label}: {number(statistics.median(self.ours))} {row.unit}",
            f"{row.theirs.label}: {number(statistics.median(self.theirs))} {row.unit}" if row.theirs else "",
            f"**{row.show(figure)}** ({spread})",
            row.target,
            {True: "yes", False: "**no**", None: ""}[row.reached(figure)],
        )
        return f"| {' | '.join(cells)} |"


def measure(row: Row, rounds: int, quick: bool) -> Result:
    """`rounds` pairs of runs, ours and theirs in turn."""
    result = Result(row)
    key = "s" if isinstance(row, Start) else "steps_per_second"
    if isinstance(row, Start):  # the first start after an installation compiles Python's byte code
        for program in (row.ours, row.theirs):
            row.measure(program, quick)
    for n in range(rounds):
        for program, values in ((row.ours, result.ours), (row.theirs, result.theirs)):
            if program is None:
                continue
            told = row.measure(program, quick)
            values.append(told[key])
            result.told.append(told)
        other = f", {row.theirs.label} {number(result.theirs[-1])} {row.unit}" if row.theirs else ""
        print(
            f"{row.work}, round {n + 1}: {row.ours.label} {number(result.ours[-1])} {row.unit}{other}, "
            f"{row.show(result.figures[-1])}",
            file=sys.stderr,
            flush=True,
        )
    return result


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def machine() -> str:
    """CPU model, cores that this process may use, and memory."""
    model, memory = platform.processor() or platform.machine(), ""
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        model = found[1].strip() if found else model
        total = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
        memory = f", {int(total[1]) / 2**20:.0f} GiB of memory" if total else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores{memory}, {platform.system()}, Python {platform.python_version()}"


def commit() -> str:
    """The commit that was measured, and whether files had changed since."""
    try:
        name = execute(["git", "rev-parse", "--short", "HEAD"]).strip()
        changed = execute(["git", "status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks"]).strip()
    except BenchmarkError:
        return "unknown"
    return f"{name}, with changes not yet committed" if changed else name


def report(results: list[Result], rounds: int) -> str:
    told = [t for result in results for t in result.told]
    by_side: dict[str, dict[str, str]] = {}
    for entry in told:
        if entry["versions"]:
            by_side.setdefault(entry["peer"], {}).update(entry["versions"])
    versions = "; ".join(
        f"{peer} with " + ", ".join(f"{name} {version}" for name, version in found.items())
        for peer, found in by_side.items()
    )
    threads = sorted({entry["threads"] for entry in told if "threads" in entry})
    devices = sorted({entry["device"] for entry in told if "device" in entry})
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Each row was measured in rounds that alternate between Treadle and the other; the",
        "figures are medians, the ratio is the median of the ratios round by round, with the lowest and the highest.",
        "",
        "| work | Treadle | compared with | ratio | must reach | reached |",
        "| --- | --- | --- | --- | --- | --- |",
        *[result.line for result in results],
        "",
        "The work of DQN: one environment, a network of 64 and 64 ReLU units, batches of 64 from a memory of 10,000, a",
        "gradient step of Adam (1e-3) for every step, the target network copied every 100 steps, epsilon down to 0.05.",
        "Measured after compilation and after the first gradient steps. rejax runs without evaluation and without",
        "double targets. With a full memory of 100,000 the rest is the same; prioritized takes alpha 0.6, beta from",
        "0.4 to 1, and draws one transition from each of 64 equal slices.",
        "",
        "Replay alone: one transition of CartPole is added, 64 are sampled and read with their weights, and their",
        "priorities are set (uniform replay has none), compiled into one loop without environment and network.",
        "",
        "The work on LunarLander is RL Zoo's: a network of 256 and 256 ReLU units, batches of 128 from a memory of",
        "50,000, 4 gradient steps of Adam (6.3e-4) after every 4 steps, the target network copied every 250 steps,",
        "epsilon down to 0.1. The work of Q-learning: alpha 0.01, gamma 0.9, epsilon 0.1, ties broken at random.",
        "",
        "The work of PPO: 4 environments, rollouts of 128 steps of each, 4 epochs of 4 minibatches, policy and values",
        "with networks of 64 and 64 tanh units each, Adam (3e-4), ratios clipped at 0.2, no bonus for entropy. rejax",
        "runs without evaluation; it clips values too, and gradients by element. The steps of many seeds are those of",
        "one for each. The work of DDPG: 30 ReLU units in actor and critic, batches of 32 from a memory of 10,000, a",
        "gradient step of Adam (1e-3) for every step, targets averaged by 0.01, Gaussian noise of 0.1. Both are",
        "measured after compilation and after the first gradient steps. purejaxrl is no package that can be installed,",
        "and so it is not among the others.",
        "",
        "DDPG on the arm is the same work with 7 inputs and 2 actions. The arm itself is stepped with random actions",
        "and begins anew where an episode ends. Watched live, ten clients receive what the browser's page does, at 30",
        "frames a second each, from a server on the same machine.",
        *(
            [
                "",
                f"Stable-Baselines3 was tried with 1 and 2 threads of PyTorch; the faster counted ({listed(threads)}).",
            ]
            if threads
            else []
        ),
        "",
        f"- Date: {datetime.date.today().isoformat()}",
        f"- Commit: {commit()}",
        f"- Machine: {machine()}" + (f"; JAX on {listed(devices)}" if devices else ""),
        f"- Versions: {versions or 'of this environment'}",
        f"- Rounds: {rounds}; {max(rounds, STARTS)} for rows that start a process",
        "",
    ]
    return "\n".join(lines)


def listed(items: list) -> str:
    return ", ".join(str(item) for item in items)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs for each row")
    parser.add_argument("--only", default="", help="only rows whose work or programs contain this text")
    parser.add_argument("--quick", action="store_true", help="a short look at whether everything runs; no report")
    options = parser.parse_args()

    def wanted(row: Row) -> bool:
        labels = f"{row.ours.label} {row.theirs.label}" if row.theirs else row.ours.label
        return options.only.lower() in f"{row.work} {labels}".lower()

    rows = [row for row in ROWS if wanted(row)]
    if not rows:
        print(f"No row contains '{options.only}'.", file=sys.stderr)
        return 2
    try:
        results = [
            measure(row, max(options.rounds, STARTS) if isinstance(row, Start) else options.rounds, options.quick)
            for row in rows
        ]
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    text = report(results, options.rounds)
    print(text)
    if not options.quick and not options.only:
        REPORT.write_text(text)
        print(f"Written to {REPORT.relative_to(ROOT)}.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
