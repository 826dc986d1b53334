"""`make bench-cluster`: what a second worker brings, and Treadle beside RLlib, on a Ray cluster of two nodes.

The nodes are processes of this machine, in a network of their own. Whatever is compared is measured in turn within one
run, round by round. Writes docs/benchmarks-cluster.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
from dataclasses import dataclass, field

from rows import OURS, ROOT, BenchmarkError, execute
from run import commit, machine, number

REPORT = ROOT / "docs" / "benchmarks-cluster.md"
RLLIB = str(ROOT / ".venv-rllib" / "bin" / "python")
AT_LEAST = 1.5
"""Times the steps of one worker that two must reach."""


def on_cluster(python: str, *command: str, cpus: int = 1) -> tuple[str, ...]:
    """The command, with a cluster of two nodes."""
    return (python, "benchmarks/two_nodes.py", "--cpus", str(cpus), python, *command)


@dataclass(frozen=True)
class Pair:
    """Two workers against one: a program that measures both in turn."""

    work: str
    command: tuple[str, ...]
    at_least: float | None = None

    def measure(self, rounds: int, quick: bool) -> dict:
        length = ("--rounds", "1", "--seconds", "0.5") if quick else ("--rounds", str(rounds))
        return told([*self.command, *length])


@dataclass(frozen=True)
class Contender:
    """A library that learns Pendulum-v1 until its returns pass -300."""

    label: str
    command: tuple[str, ...]
    once: bool = False
    """Measured in the first round only, because it takes long."""

    def measure(self, seed: int, quick: bool) -> dict:
        return told([*self.command, "--seed", str(seed), *(("--steps", "3000") if quick else ())])


@dataclass
class Learned:
    """A contender's rounds."""

    contender: Contender
    rounds: list[dict] = field(default_factory=list)


WORKERS = "benchmarks/treadle_workers.py"
RAY = on_cluster(OURS, WORKERS, "--engine", "ray", cpus=2)
PAIRS = (
    Pair(
        "A3C on Pendulum-v1 in JAX, threads",
        (OURS, WORKERS, "--method", "a3c", "--world", "Pendulum-v1", "--engine", "threads"),
        AT_LEAST,
    ),
    Pair("PPO, steps of 1 ms asleep, Ray", (*RAY, "--method", "ppo", "--world", "sleeping"), AT_LEAST),
    Pair("PPO, steps of 1 ms of a core, Ray", (*RAY, "--method", "ppo", "--world", "busy")),
    Pair("A3C, steps of 1 ms asleep, Ray", (*RAY, "--method", "a3c", "--world", "sleeping"), AT_LEAST),
    Pair("A3C, steps of 1 ms of a core, Ray", (*RAY, "--method", "a3c", "--world", "busy")),
)
PENDULUM, PEER = "benchmarks/treadle_pendulum.py", "benchmarks/peers/rllib_ppo.py"


def contenders(rllib: str) -> tuple[Contender, ...]:
    """Who learns Pendulum-v1, with the Python that has RLlib."""
    return (
        Contender("Treadle, 2 Ray workers", on_cluster(OURS, PENDULUM, "--engine", "ray")),
        Contender("RLlib, 2 env runners", on_cluster(rllib, PEER, "--settings", "shared")),
        Contender(
            "RLlib, 2 env runners, its own settings",
            on_cluster(rllib, PEER, "--settings", "own", "--seconds", "100"),
            once=True,
        ),
        Contender("Treadle, one process, the same environment", (OURS, PENDULUM, "--engine", "none")),
        Contender("Treadle, one process, fused", (OURS, PENDULUM, "--engine", "none", "--loop", "fused")),
    )


def told(command: list[str]) -> dict:
    """The line of JSON that a program prints at its end."""
    return json.loads(execute(command).strip().splitlines()[-1])


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def span(values: list[float]) -> str:
    """The median, and the lowest and the highest."""
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))} to {number(max(values))})"


def pair_line(pair: Pair, rates: dict[str, list[float]]) -> str:
    one, two = rates["1"], rates["2"]
    ratios = [b / a for a, b in zip(one, two, strict=True)]
    ratio = statistics.median(ratios)
    cells = (
        pair.work,
        span(one),
        span(two),
        f"**{ratio:.2f}x** ({min(ratios):.2f}x to {max(ratios):.2f}x)",
        "" if pair.at_least is None else f"at least {pair.at_least:g}x",
        "" if pair.at_least is None else ("yes" if ratio >= pair.at_least else "**no**"),
    )
    return f"| {' | '.join(cells)} |"


def learned_line(learned: Learned, first: Learned) -> str:
    rounds = learned.rounds
    reached = [told["seconds"] for told in rounds if told["seconds"] is not None]
    learning = [told["seconds"] - told["start"] for told in rounds if told["seconds"] is not None]
    ratios = [b["steps_per_second"] / a["steps_per_second"] for a, b in zip(first.rounds, rounds, strict=False)]
    missed = len(rounds) - len(reached)
    seconds = [span(reached)] if reached else []
    if missed:
        last = max(rounds, key=lambda told: told["steps"])
        seconds.append(f"{missed} of {len(rounds)} not within {number(last['steps'])} steps")
    cells = (
        learned.contender.label,
        span([told["steps_per_second"] for told in rounds]),
        "" if learned is first else f"{statistics.median(ratios):.2f}x",
        span([told["start"] for told in rounds]),
        span(learning) if learning else "",
        ", ".join(seconds),
        span([told["steps"] for told in rounds if told["seconds"] is not None]) if reached else "",
    )
    return f"| {' | '.join(cells)} |"


def report(pairs: list[tuple[Pair, dict]], learned: list[Learned], rounds: int) -> str:
    versions: dict[str, dict[str, str]] = {}
    for entry in [*(told for _, told in pairs), *(told for one in learned for told in one.rounds)]:
        versions.setdefault(entry["peer"], {}).update(entry["versions"])
    shown = "; ".join(
        f"{peer} with " + ", ".join(f"{name} {version}" for name, version in found.items())
        for peer, found in versions.items()
    )
    lines = [
        "# Benchmarks with workers",
        "",
        "Written by `make bench-cluster`. The cluster is two nodes of Ray that are processes of one machine, so what",
        "passes between them crosses no cable, and they share its cores with the learner. Figures are medians over",
        "rounds that alternate between what is compared, with the lowest and the highest.",
        "",
        "## Two workers against one",
        "",
        "| work | 1 worker, steps/s | 2 workers, steps/s | 2 against 1 | must reach | reached |",
        "| --- | --- | --- | --- | --- | --- |",
        *[pair_line(pair, told["rates"]) for pair, told in pairs],
        "",
        "The environment with steps of 1 ms is a point on a line (benchmarks/slow_world.py). Asleep, it models a",
        "simulator in another process or on another machine, which leaves the core to others; the other kind computes",
        "for a millisecond, so that on 2 cores two workers and the learner contend for them. PPO takes rollouts of 64",
        "steps of 2 environments, which two workers share, and 4 epochs of 4 minibatches; A3C pushes gradients of 20",
        "steps of one environment of each worker. Both have networks of 64 and 64 units. A3C on Pendulum-v1 is its",
        "preset. While PPO's learner learns nobody acts, and so two workers cannot reach twice the steps. Ray runs its",
        "workers at a low priority (nice 15): whatever else the machine is at slows them first.",
        "",
        "## Beside RLlib: PPO on Gymnasium's Pendulum-v1",
        "",
        "| | steps/s | of Treadle's with Ray | start, s | learning, s | both, s | steps to learn |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *[learned_line(one, learned[0]) for one in learned],
        "",
        "The work is Treadle's preset `ppo Pendulum-v1 --preset distributed`: two workers with 2 environments each,",
        "rollouts of 256 steps, 10 epochs of minibatches of 64, networks of 64 and 64 tanh units for policy and values",
        "each, Adam with a rate from 1e-3 to 0 at 200,000 steps, gamma and lambda 0.95, ratios clipped at 0.2,",
        "gradients at a norm of 0.5, rewards (r + 8) / 8; RLlib is set to the same, with its learner in the process",
        "that drives it, as Treadle's is, and one thread of PyTorch. It ends when the mean return of the last 40",
        "training episodes passes -300, or at 200,000 steps or 240 seconds. The start is from the making of the",
        "trainer to the end of the first update, with compilation and the start of workers, without that of the",
        "cluster. One seed a round: the seconds and steps to learn are those of few seeds. RLlib's own settings are",
        "those that its repository publishes for Pendulum (rllib/examples/algorithms/ppo/pendulum_ppo.py: 2 env",
        "runners with 20 environments each, batches of 1,024, minibatches of 128, 30 epochs, lambda 0.5, normalised",
        "observations), measured once, for at most 100 seconds.",
        "",
        f"- Date: {datetime.date.today().isoformat()}",
        f"- Commit: {commit()}",
        f"- Machine: {machine()}",
        f"- Versions: {shown}",
        f"- Rounds: {2 * rounds - 1} of 2 seconds for two workers against one, {rounds} for RLlib",
        "",
    ]
    return "\n".join(lines)


def measure_pairs(pairs: list[Pair], rounds: int, quick: bool) -> list[tuple[Pair, dict]]:
    results = []
    for pair in pairs:
        results.append((pair, pair.measure(rounds, quick)))
        note(pair_line(pair, results[-1][1]["rates"]))
    return results


def measure_learning(learners: list[Contender], rounds: int, quick: bool) -> list[Learned]:
    results = [Learned(contender) for contender in learners]
    for seed in range(rounds):
        for result in results:
            if seed > 0 and result.contender.once:
                continue
            entry = result.contender.measure(seed, quick)
            result.rounds.append(entry)
            learned = "has not learned" if entry["seconds"] is None else f"learned in {entry['seconds']:.1f} s"
            rate, steps = number(entry["steps_per_second"]), number(entry["steps"])
            note(f"{result.contender.label}, round {seed + 1}: {rate} steps/s, {learned}, {steps} steps")
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="only what has this text in its name")
    parser.add_argument("--quick", action="store_true", help="a short look at whether everything runs; no report")
    parser.add_argument("--rllib", default=RLLIB, help="the Python that has RLlib")
    options = parser.parse_args()

    only, rounds = options.only.lower(), 1 if options.quick else options.rounds
    pairs = [pair for pair in PAIRS if only in pair.work.lower()]
    learners = [contender for contender in contenders(options.rllib) if only in contender.label.lower()]
    if not pairs and not learners:
        note(f"Nothing has '{options.only}' in its name.")
        return 2
    try:
        found = measure_pairs(pairs, 2 * rounds - 1, options.quick)
        learned = measure_learning(learners, rounds, options.quick)
    except BenchmarkError as error:
        note(str(error))
        return 1
    if not only:
        text = report(found, learned, rounds)
        print(text)
        if not options.quick:
            REPORT.write_text(text)
            note(f"Written to {REPORT.relative_to(ROOT)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
