"""Steps per second of Treadle with one worker and with two, in turn in one process.

Prints one line of JSON. With `--engine ray` it uses the cluster of RAY_ADDRESS, on which the worker of the one and the
two of the other wait for their turns.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import jax

import slow_world
import treadle
from treadle.algorithms.a3c import A3C
from treadle.algorithms.ppo import PPO
from treadle.environments.wrappers import Task
from treadle.loops.choose import make_trainer
from treadle.loops.crew import Crew
from treadle.loops.execution import tune_cpu

WORLDS = {"sleeping": slow_world.sleeping, "busy": slow_world.busy}
METHODS = {
    "ppo": PPO(num_envs=2, rollout_length=64, epochs=4, num_minibatches=4, hidden_sizes=(64, 64)),
    "a3c": A3C(num_envs=1, rollout_length=20, hidden_sizes=(64, 64)),
}
FIRST = 3
"""Updates, for each worker, that compile and are not timed."""


def made(method: str, world: str) -> tuple[Any, Any]:
    """Algorithm and environment: those of the preset where the world is one of Treadle's."""
    if world in WORLDS:
        return METHODS[method], WORLDS[world]
    preset = treadle.preset(method, world)
    return preset.make(), preset.task()


def timed(trainer: Any, updates: int) -> tuple[float, float]:
    """Steps and seconds of so many updates."""
    begin = time.perf_counter()
    record = trainer.advance(updates)
    jax.block_until_ready(trainer.state)
    return record.episodes.lengths.size, time.perf_counter() - begin


def measure(algorithm: Any, task: Any, crews: list[Crew], seconds: float, rounds: int) -> list[list[float]]:
    """Steps per second of each crew in each round, of about so many seconds."""
    trainers = [make_trainer(algorithm, task, 2**30, crew=crew) for crew in crews]
    try:
        lengths = []
        for trainer, crew in zip(trainers, crews, strict=True):
            trainer.advance(FIRST * crew.count())
            updates, taken = FIRST, 0.0
            while taken < seconds / 4:
                updates *= 2
                _, taken = timed(trainer, updates)
            lengths.append(max(1, round(updates * seconds / taken)))
        rates: list[list[float]] = [[] for _ in crews]
        for _ in range(rounds):
            for trainer, updates, own in zip(trainers, lengths, rates, strict=True):
                steps, taken = timed(trainer, updates)
                own.append(steps / taken)
        return rates
    finally:
        for trainer in trainers:
            trainer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=tuple(METHODS), default="ppo")
    parser.add_argument("--world", default="sleeping", help="sleeping, busy, or a world of Treadle's")
    parser.add_argument("--engine", choices=("threads", "ray"), default="ray")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    tune_cpu()
    algorithm, task = made(options.method, options.world)
    address = os.environ["RAY_ADDRESS"] if options.engine == "ray" else None
    crews = [Crew(options.engine, workers=n, address=address) for n in options.workers]
    rates = measure(algorithm, Task.of(task), crews, options.seconds, options.rounds)
    versions = {"treadle": treadle.__version__, "jax": jax.__version__}
    if options.engine == "ray":
        import ray

        versions["ray"] = ray.__version__
    names = [str(n) for n in options.workers]
    print(json.dumps({"peer": "Treadle", "rates": dict(zip(names, rates, strict=True)), "versions": versions}))


if __name__ == "__main__":
    main()
