"""What is measured: the programs, the kinds of rows, and the rows of docs/benchmarks.md."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = sys.executable
PEERS = str(ROOT / ".venv-peers" / "bin" / "python")


class BenchmarkError(Exception):
    """Something that keeps a benchmark from running; its text is meant to be read."""


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
ARM_DDPG = Program("Treadle, fused", (*DDPG_FUSED.command, "--task", "ArmHard"), quick=("--steps", "10000"))
SB3_DDPG = Program("Stable-Baselines3", (PEERS, "benchmarks/peers/sb3_ddpg.py"), quick=("--steps", "500"))
SB3_ARM = Program("Stable-Baselines3, the arm in NumPy", (*SB3_DDPG.command, "--task", "arm"), quick=("--steps", "500"))
ARMS = Program("Treadle, 1,024 arms", (OURS, "benchmarks/treadle_arm.py"), quick=("--steps", "1000000"))
NUMPY_ARM = Program(
    "one arm in NumPy, in a Python loop", (PEERS, "benchmarks/peers/numpy_arm.py"), quick=("--steps", "2000")
)
WATCHED = Program(
    "Treadle, ten pages watching",
    (OURS, "benchmarks/treadle_watched.py"),
    quick=("--seconds", "3"),
)
UNWATCHED = Program("Treadle, nobody", (*WATCHED.command, "--clients", "0"), quick=("--seconds", "3"))
NUMPY_ARMS = Program(
    "1,024 arms as NumPy arrays",
    (*NUMPY_ARM.command, "--arms", "1024", "--steps", "5000000"),
    quick=("--steps", "200000"),
)
REJAX_PPO = Program("rejax", (PEERS, "-W", "ignore", "benchmarks/peers/rejax_ppo.py"), quick=("--steps", "10000"))

TABLE_WORK = "Q-learning on the 4x4 maze"
DQN_WORK = "DQN on CartPole-v1"
LANDER_WORK = "DQN on LunarLander-v3 of Gymnasium"
FULL_WORK = f"{DQN_WORK}, a full memory of 100,000"
PPO_WORK = "PPO on CartPole-v1"
DDPG_WORK = "DDPG on Pendulum-v1"
ARM_DDPG_WORK = "DDPG on the arm, a random goal"
ARM_WORK = "the arm itself, random actions"
WATCHED_WORK = "a run of DQN on CartPole-v1, 2 seeds, as it is watched live"
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
    Race(ARM_DDPG_WORK, ARM_DDPG, SB3_ARM, at_least=15),
    Race(ARM_WORK, ARMS, NUMPY_ARM, at_least=None),
    Race(ARM_WORK, ARMS, NUMPY_ARMS, at_least=None),
    Race(WATCHED_WORK, WATCHED, UNWATCHED, at_least=0.9),
    Start("import", IMPORT, JAX_IMPORT, at_most=0.5),
    Start("import of what a user needs", USE, JAX_IMPORT, at_most=0.5),
    Start("help on the command line", HELP, JAX_IMPORT, at_most=0.5),
)
