"""`make bench`: Treadle against other libraries doing the same work, in alternating runs on this machine.

Each row is measured in rounds: ours, theirs, ours, theirs ... so that a slow minute of the machine meets both. The
figure that counts is the median of the ratios round by round. Writes docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "docs" / "benchmarks.md"
OURS = sys.executable
STARTS = 5
"""Rounds, at least, for rows that time the start of a process: each is short and the noise is large."""
PEERS = str(ROOT / ".venv-peers" / "bin" / "python")


class BenchmarkError(Exception):
    """Something that keeps a benchmark from running; its text is meant to be read."""


@dataclass(frozen=True)
class Program:
    """A command that is measured. `quick` are arguments that make it short, for a look at whether it works."""

    label: str
    command: tuple[str, ...]
    quick: tuple[str, ...] = ()


@dataclass(frozen=True)
class Race:
    """Steps per second of one program over another's: at least `at_least` times."""

    work: str
    ours: Program
    theirs: Program
    at_least: float | None
    """`None` where nothing is to be reached and the row only informs."""

    unit = "steps/s"

    @property
    def target(self) -> str:
        return "" if self.at_least is None else f"at least {self.at_least:g}x"

    def compare(self, ours: float, theirs: float) -> float:
        return ours / theirs

    def reached(self, figure: float) -> bool | None:
        return None if self.at_least is None else figure >= self.at_least

    def show(self, figure: float) -> str:
        return f"{figure:.2f}x" if figure < 10 else f"{figure:.1f}x"

    def measure(self, program: Program, quick: bool) -> dict:
        """The line of JSON that the program prints."""
        output = execute([*program.command, *(program.quick if quick else ())])
        return json.loads(output.strip().splitlines()[-1])


@dataclass(frozen=True)
class Cost(Race):
    """Time that one program takes for a step over another's: at most `at_most` times."""

    at_least: None = None
    at_most: float | None = None
    """`None` where nothing is to be reached and the row only informs."""
    seeds: int | None = None
    """Where ours runs so many seeds at once and theirs one: the time for a step of all of them counts."""

    @property
    def target(self) -> str:
        return "" if self.at_most is None else f"at most {self.at_most:g}x the time"

    def compare(self, ours: float, theirs: float) -> float:
        return (self.seeds or 1) * theirs / ours

    def reached(self, figure: float) -> bool | None:
        return None if self.at_most is None else figure <= self.at_most

    def show(self, figure: float) -> str:
        return f"{super().show(figure)} the time"


@dataclass(frozen=True)
class Rate:
    """Steps per second of a program by itself."""

    work: str
    ours: Program
    at_least: float

    unit = "steps/s"
    theirs = None

    @property
    def target(self) -> str:
        return f"at least {self.at_least:,.0f} steps/s"

    def compare(self, ours: float, theirs: float) -> float:
        return ours

    def reached(self, figure: float) -> bool | None:
        return figure >= self.at_least

    def show(self, figure: float) -> str:
        return f"{figure:,.0f}"

    def measure(self, program: Program, quick: bool) -> dict:
        return Race.measure(self, program, quick)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Start:
    """Seconds that one program takes from start to end over another's: at most `at_most` more."""

    work: str
    ours: Program
    theirs: Program
    at_most: float

    unit = "s"

    @property
    def target(self) -> str:
        return f"at most {self.at_most:g} s more"

    def compare(self, ours: float, theirs: float) -> float:
        return ours - theirs

    def reached(self, figure: float) -> bool | None:
        return figure <= self.at_most

    def show(self, figure: float) -> str:
        return f"{figure:+.2f} s"

    def measure(self, program: Program, quick: bool) -> dict:
        """Wall time of a fresh process."""
        begin = time.perf_counter()
        execute(list(program.command))
        return {"s": time.perf_counter() - begin, "versions": {}}


TREADLE = (OURS, "benchmarks/treadle_dqn.py")
FUSED = Program("Treadle, fused", (*TREADLE, "--loop", "fused"), quick=("--steps", "10000"))
HOST = Program("Treadle, host loop", (*TREADLE, "--loop", "host", "--steps", "20000"), quick=("--steps", "2000"))
EIGHT = Program("Treadle, 8 seeds", (*TREADLE, "--loop", "fused", "--seeds", "8"), quick=("--steps", "10000"))
ONE = Program("Treadle, 1 seed", FUSED.command, FUSED.quick)
SB3 = Program("Stable-Baselines3", (PEERS, "benchmarks/peers/sb3_dqn.py"), quick=("--steps", "500"))
FULL = (*TREADLE, "--full", "100000")
FULL_UNIFORM = Program("Treadle, uniform", FULL, quick=("--steps", "10000"))
FULL_PRIORITIZED = Program("Treadle, prioritized", (*FULL, "--prioritized"), quick=("--steps", "10000"))
REPLAY = (OURS, "benchmarks/treadle_replay.py")
REPLAY_UNIFORM = Program("Treadle, uniform", (*REPLAY, "--memory", "uniform"), quick=("--steps", "20000"))
REPLAY_PRIORITIZED = Program("Treadle, prioritized", REPLAY, quick=("--steps", "20000"))
FLASHBAX = Program("flashbax, prioritised", (PEERS, "benchmarks/peers/flashbax_replay.py"), quick=("--steps", "5000"))
LANDER = ("--task", "LunarLander-v3")
HOST_LANDER = Program(
    "Treadle, host loop", (*TREADLE, "--loop", "host", *LANDER, "--steps", "20000"), quick=("--steps", "2000")
)
SB3_LANDER = Program("Stable-Baselines3", (*SB3.command, *LANDER), quick=("--steps", "500"))
REJAX = Program("rejax", (PEERS, "-W", "ignore", "benchmarks/peers/rejax_dqn.py"), quick=("--steps", "2000"))
JAX_IMPORT = Program("`import jax`", (OURS, "-c", "import jax"))
IMPORT = Program("`import treadle`", (OURS, "-c", "import treadle"))
USE = Program("`from treadle import Agent, DQN`", (OURS, "-c", "from treadle import Agent, DQN"))
HELP = Program("`treadle --help`", (str(Path(OURS).parent / "treadle"), "--help"))

TABULAR = (OURS, "benchmarks/treadle_tabular.py")
TABLE = Program("Treadle, 1 seed", TABULAR, quick=("--steps", "200000"))
TABLES = Program("Treadle, 256 seeds", (*TABULAR, "--seeds", "256"), quick=("--steps", "1000000"))
LOOP = (PEERS, "benchmarks/peers/python_q_learning.py", "--table")
PANDAS = Program("a Python loop with a pandas table", (*LOOP, "pandas"), quick=("--steps", "500"))
NUMPY = Program("a Python loop with a NumPy array", (*LOOP, "numpy"), quick=("--steps", "500"))

POLICY = (OURS, "benchmarks/treadle_policy.py")
PPO_FUSED = Program("Treadle, fused", POLICY, quick=("--steps", "10000"))
PPO_HOST = Program("Treadle, host loop", (*POLICY, "--loop", "host", "--steps", "50000"), quick=("--steps", "2000"))
PPO_SIXTEEN = Program(
    "Treadle, 16 seeds together", (*POLICY, "--seeds", "16", "--layout", "together"), quick=("--steps", "10000")
)
PPO_ONE = Program("Treadle, 1 seed", PPO_FUSED.command, PPO_FUSED.quick)
DDPG_FUSED = Program("Treadle, fused", (*POLICY, "--method", "ddpg"), quick=("--steps", "10000"))
SB3_PPO = Program("Stable-Baselines3", (PEERS, "benchmarks/peers/sb3_ppo.py"), quick=("--steps", "1000"))
SB3_DDPG = Program("Stable-Baselines3", (PEERS, "benchmarks/peers/sb3_ddpg.py"), quick=("--steps", "500"))
REJAX_PPO = Program("rejax", (PEERS, "-W", "ignore", "benchmarks/peers/rejax_ppo.py"), quick=("--steps", "10000"))

TABLE_WORK = "Q-learning on the 4x4 maze"
DQN_WORK = "DQN on CartPole-v1"
LANDER_WORK = "DQN on LunarLander-v3 of Gymnasium"
FULL_WORK = f"{DQN_WORK}, a full memory of 100,000"
PPO_WORK = "PPO on CartPole-v1"
DDPG_WORK = "DDPG on Pendulum-v1"
REPLAY_WORK = "replay alone from a full memory of 100,000"
Row = Race | Rate | Start
ROWS: tuple[Row, ...] = (
    Race(TABLE_WORK, TABLE, PANDAS, at_least=200),
    Race(TABLE_WORK, TABLE, NUMPY, at_least=None),
    Rate(TABLE_WORK, TABLE, at_least=2e6),
    Rate(f"{TABLE_WORK}, steps of all seeds", TABLES, at_least=6e6),
    Race(DQN_WORK, FUSED, SB3, at_least=30),
    Race(DQN_WORK, FUSED, REJAX, at_least=7),
    Race(f"{DQN_WORK} of Gymnasium", HOST, SB3, at_least=6),
    Race(f"{DQN_WORK}, steps of all seeds", EIGHT, ONE, at_least=1.8),
    Race(LANDER_WORK, HOST_LANDER, SB3_LANDER, at_least=2.5),
    Cost(FULL_WORK, FULL_PRIORITIZED, FULL_UNIFORM, at_most=2),
    Cost(REPLAY_WORK, REPLAY_PRIORITIZED, REPLAY_UNIFORM),
    Race(REPLAY_WORK, REPLAY_PRIORITIZED, FLASHBAX, at_least=1),
    Race(PPO_WORK, PPO_FUSED, SB3_PPO, at_least=30),
    Race(PPO_WORK, PPO_FUSED, REJAX_PPO, at_least=1),
    Cost(f"{PPO_WORK}, all seeds", PPO_SIXTEEN, PPO_ONE, at_most=8, seeds=16),
    Race(f"{PPO_WORK} of Gymnasium", PPO_HOST, SB3_PPO, at_least=3),
    Race(DDPG_WORK, DDPG_FUSED, SB3_DDPG, at_least=15),
    Start("import", IMPORT, JAX_IMPORT, at_most=0.5),
    Start("import of what a user needs", USE, JAX_IMPORT, at_most=0.5),
    Start("help on the command line", HELP, JAX_IMPORT, at_most=0.5),
)


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


def execute(command: list[str]) -> str:
    """The command's standard output. Raises `BenchmarkError` with the end of its errors if it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BenchmarkError(f"{command[0]} was not found. `make bench` sets up what the benchmark needs.") from None
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise BenchmarkError(f"`{' '.join(command)}` failed with exit status {done.returncode}:\n{last}")
    return done.stdout


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
