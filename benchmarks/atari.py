"""`make bench-atari`: DQN on Pong from pixels beside Stable-Baselines3, PyTorch and ale-py, on this machine.

What is compared is measured in turn within one run, round by round. Writes docs/benchmarks-atari.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import textwrap
from dataclasses import dataclass

from rows import OURS, PEERS, ROOT, BenchmarkError, Program, execute
from run import commit, listed, machine, number

REPORT = ROOT / "docs" / "benchmarks-atari.md"
UNITS = {
    "steps_per_second": ("steps/s", 1.0),
    "bare_steps_per_second": ("steps/s", 1.0),
    "samples_per_second": ("samples/s", 1.0),
    "memory_bytes": ("MB", 1e-6),
    "growth_bytes": ("MB", 1e-6),
}
"""What the figures of the programs' lines of JSON are shown in."""
Rounds = dict[tuple[str, ...], list[dict]]
"""What the programs told, by their commands, round by round."""


@dataclass(frozen=True)
class Row:
    """A figure of one program over that of another; of one by itself where there is no other."""

    work: str
    ours: Program
    theirs: Program | None = None
    figure: str = "steps_per_second"
    their_figure: str | None = None
    """Of the other program, where it is called otherwise."""
    at_least: float | None = None
    aim: float | None = None
    """More than what must be reached."""
    below: float | None = None

    def figures(self, rounds: Rounds) -> tuple[list[float], list[float]]:
        """Ours and theirs, round by round."""
        ours = [told[self.figure] for told in rounds[self.ours.command]]
        name = self.their_figure or self.figure
        return ours, [told[name] for told in rounds[self.theirs.command]] if self.theirs else []

    @property
    def target(self) -> str:
        if self.below is not None:
            return f"below {self.below:g}x"
        aim = "" if self.aim is None else f" (aim: {self.aim:g}x)"
        return "" if self.at_least is None else f"at least {self.at_least:g}x{aim}"

    def reached(self, ratio: float) -> str:
        if self.below is not None:
            return "yes" if ratio < self.below else "**no**"
        if self.at_least is None:
            return ""
        if self.aim is not None and self.at_least <= ratio < self.aim:
            return "yes, not the aim"
        return "yes" if ratio >= self.at_least else "**no**"

    def line(self, rounds: Rounds) -> str:
        ours, theirs = self.figures(rounds)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)] if theirs else []
        ratio = statistics.median(ratios) if ratios else 0.0
        cells = (
            self.work,
            f"{self.ours.label}: {self.shown(ours)}",
            f"{self.theirs.label}: {self.shown(theirs)}" if self.theirs else "",
            f"**{ratio:.2f}x** ({min(ratios):.2f}x to {max(ratios):.2f}x)" if ratios else "",
            self.target,
            self.reached(ratio),
        )
        return f"| {' | '.join(cells)} |"

    def shown(self, values: list[float]) -> str:
        """The median, with its unit."""
        unit, scale = UNITS[self.figure]
        return f"{number(scale * statistics.median(values))} {unit}"


@dataclass(frozen=True)
class Section:
    """Rows that are measured together: in each round every program of theirs runs once."""

    rows: tuple[Row, ...]
    once: bool = False
    """Where no round differs from another."""

    @property
    def programs(self) -> tuple[Program, ...]:
        """Each program once, in the order of the rows."""
        every = [program for row in self.rows for program in (row.ours, row.theirs) if program]
        return tuple({program.command: program for program in every}.values())

    def measure(self, rounds: int, quick: bool) -> Rounds:
        told: Rounds = {program.command: [] for program in self.programs}
        for n in range(1 if self.once else rounds):
            for program in self.programs:
                entry = run(program, quick)
                told[program.command].append(entry)
                shown = ", ".join(f"{number(v)} {name}" for name, v in entry.items() if name in UNITS)
                note(f"Round {n + 1}, {' '.join(program.command[1:])}: {shown}{how(entry)}")
            for row in self.rows:
                if row.theirs:
                    check_same(row, told[row.ours.command][-1], told[row.theirs.command][-1])
        return told


OWN, SB3, TORCH = "benchmarks/treadle_atari.py", "benchmarks/peers/sb3_atari.py", "benchmarks/peers/torch_atari.py"
SHORT, FEW = ("--seconds", "2"), ("--capacity", "8000")


def dqn(label: str, *arguments: str) -> Program:
    return Program(f"Treadle, {label}", (OURS, OWN, "dqn", *arguments), quick=SHORT)


OVERLAPPED = dqn("learning while the games step")
IN_TURN = dqn("learning and games in turn", "--in-turn")
SB3_DQN = Program("Stable-Baselines3", (PEERS, SB3, "dqn"), quick=SHORT)
MEMORY = Program("Treadle", (OURS, OWN, "memory"), quick=FEW)
SB3_MEMORY = Program("Stable-Baselines3", (PEERS, SB3, "memory"), quick=FEW)
SB3_OPTIMISED = Program("Stable-Baselines3, optimize_memory_usage", (*SB3_MEMORY.command, "--optimised"), quick=FEW)
EMULATION = Program("Treadle", (OURS, OWN, "emulation"), quick=SHORT)
ALE = Program("ale-py's AtariVectorEnv", EMULATION.command, quick=SHORT)

DQN_WORK = "DQN on Pong"
MEMORY_WORK = "replay memory of 100,000 transitions"
GROWTH_WORK = "growth of a process that trains with it"
SMALL_WORK = f"{DQN_WORK}, the network of 2013"


def learners(batch_size: int) -> Row:
    """The gradient step alone."""
    arguments = ("--batch-size", str(batch_size))
    return Row(
        f"gradient steps of DQN, batches of {batch_size}",
        Program("Treadle", (OURS, OWN, "learner", "--seconds", "10", *arguments), quick=(*SHORT, *FEW)),
        Program("PyTorch", (PEERS, TORCH, *arguments), quick=(*SHORT, *FEW)),
        figure="samples_per_second",
    )


SECTIONS = (
    Section(
        (
            Row(DQN_WORK, OVERLAPPED, SB3_DQN, at_least=1.0, aim=1.5),
            Row(DQN_WORK, IN_TURN, SB3_DQN),
        )
    ),
    Section(
        (
            Row(f"{SMALL_WORK}, 84x84", dqn("frames of 84x84", "--features", "dqn2013")),
            Row(f"{SMALL_WORK}, 44x44", dqn("frames of 44x44", "--features", "dqn2013", "--size", "44")),
            Row(f"{DQN_WORK}, the preset for a CPU", dqn("its preset", "--preset", "default")),
        )
    ),
    Section(
        (
            Row(MEMORY_WORK, MEMORY, SB3_MEMORY, figure="memory_bytes", below=0.25),
            Row(GROWTH_WORK, MEMORY, SB3_MEMORY, figure="growth_bytes", below=0.25),
            Row(MEMORY_WORK, MEMORY, SB3_OPTIMISED, figure="memory_bytes"),
            Row(GROWTH_WORK, MEMORY, SB3_OPTIMISED, figure="growth_bytes"),
        ),
        once=True,
    ),
    Section((learners(32),)),
    Section((learners(256),)),
    Section(
        (Row("Pong by random actions", EMULATION, ALE, their_figure="bare_steps_per_second", at_least=0.95),),
    ),
)


def run(program: Program, quick: bool) -> dict:
    """The line of JSON that the program prints at its end."""
    output = execute([*program.command, *(program.quick if quick else ())])
    return json.loads(output.strip().splitlines()[-1])


def how(entry: dict) -> str:
    """The way that a peer was the fastest in."""
    ways = [entry[name] for name in ("layout", "processes") if name in entry]
    if "threads" in entry:
        ways.append(f"{entry['threads']} thread{'s' * (entry['threads'] > 1)}")
    return f" ({listed(ways)})" if ways else ""


def check_same(row: Row, ours: dict, theirs: dict) -> None:
    """Raise `BenchmarkError` where two programs say that their work differs."""
    a, b = ours.get("work"), theirs.get("work")
    if a != b:
        other = row.theirs.label if row.theirs else ""
        raise BenchmarkError(f"{row.work}: the work is not the same, {a} for Treadle and {b} for {other}.")


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def report(results: list[tuple[Section, Rounds]], rounds: int) -> str:
    told = [entry for _, found in results for entries in found.values() for entry in entries]
    versions: dict[str, dict[str, str]] = {}
    for entry in told:
        versions.setdefault(entry["peer"], {}).update(entry["versions"])
    shown = "; ".join(
        f"{peer} with " + ", ".join(f"{name} {version}" for name, version in found.items())
        for peer, found in versions.items()
    )
    paragraphs = [
        """
        Written by `make bench-atari`. What is compared was measured in turn, round by round; the figures are medians,
        the ratio is the median of the ratios round by round, with the lowest and the highest.
        """,
        "\n".join(
            [
                "| work | Treadle | compared with | ratio | must reach | reached |",
                "| --- | --- | --- | --- | --- | --- |",
                *[row.line(found) for section, found in results for row in section.rows],
            ]
        ),
        """
        The work of DQN: `PongNoFrameskip-v4` in 8 environments, 4 frames skipped, grey, 84x84, 4 of them stacked; the
        network of Mnih et al. (2015), 1,687,206 parameters; after each step of all environments 2 gradient steps on
        batches of 32, which is one for every 4 transitions, from a memory of 100,000; Adam (1e-4), Huber loss, the
        gradient's norm clipped at 10, the target network copied every 8,000 steps, epsilon 0.01, neither double nor
        dueling. A step is one action in one environment. Compilation and the first gradient steps are not timed.
        Treadle emulates with ale-py's vector environment, Stable-Baselines3 with its own wrappers around ale-py's
        single ones, in one process or in one for each, whichever is faster. The network of 2013 is the smaller one of
        Mnih et al. (2013), with two convolutions and 256 units; the preset is the one for a CPU.
        """,
        """
        Memory: the arrays of the replay memory, and by how much a process grows from before the run is made until it
        has learned from a full memory, with networks, emulators and compiled programs. Stable-Baselines3 refuses
        optimize_memory_usage unless time limits count as ends.
        """,
        """
        Gradient steps alone: a batch drawn from 100,000 transitions of random pixels in bytes, made numbers, the target
        network forward, the network forward and backward, Huber loss, the gradient's norm clipped at 10, Adam.
        Treadle's is the compiled update of a run, 2 gradient steps at a time, which also stores 8 transitions; it puts
        its stacks together from single frames, while PyTorch's lie ready. PyTorch has its fused Adam, and images with
        channels last or first, whichever is faster.
        """,
        """
        Emulation alone: 8 environments by the same random actions, with Treadle's masks, copies and bookkeeping and
        without, in turns of half a second.
        """,
        f"Of the ways tried, with each number of threads, these were the fastest: {'; '.join(ways(told))}.",
        "\n".join(
            [
                f"- Date: {datetime.date.today().isoformat()}",
                f"- Commit: {commit()}",
                f"- Machine: {machine()}; JAX on {listed(sorted({e['device'] for e in told if 'device' in e}))}",
                f"- Versions: {shown}",
                f"- Rounds: {rounds}; 1 for memory",
            ]
        ),
    ]
    return "\n\n".join(["# Benchmarks on Atari", *map(filled, paragraphs)]) + "\n"


def ways(told: list[dict]) -> list[str]:
    """How the peers were the fastest, each way once."""
    return sorted({f"{entry['peer']}{how(entry)}" for entry in told if how(entry)}) or ["none was tried"]


def filled(paragraph: str) -> str:
    """In lines of at most 120 characters, where it is no table and no list."""
    return paragraph if paragraph.startswith(("|", "-")) else textwrap.fill(" ".join(paragraph.split()), 120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="only rows that have this text in their work or programs")
    parser.add_argument("--quick", action="store_true", help="a short look at whether everything runs; no report")
    options = parser.parse_args()

    def wanted(row: Row) -> bool:
        labels = f"{row.ours.label} {row.theirs.label}" if row.theirs else row.ours.label
        return options.only.lower() in f"{row.work} {labels}".lower()

    chosen = [Section(tuple(filter(wanted, section.rows)), section.once) for section in SECTIONS]
    chosen = [section for section in chosen if section.rows]
    if not chosen:
        note(f"No row contains '{options.only}'.")
        return 2
    rounds, results = 1 if options.quick else options.rounds, []
    try:
        for section in chosen:
            results.append((section, section.measure(rounds, options.quick)))
            for row in section.rows:
                note(row.line(results[-1][1]))
    except BenchmarkError as error:
        note(str(error))
        return 1
    text = report(results, rounds)
    print(text)
    if not options.quick and not options.only:
        REPORT.write_text(text)
        note(f"Written to {REPORT.relative_to(ROOT)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
