"""Treadle's PPO on Pendulum-v1 by its preset `distributed`: steps per second, and seconds until it has learned.

Prints one line of JSON. With `--engine ray` it uses the cluster of RAY_ADDRESS.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import treadle
from treadle.loops.choose import make_trainer
from treadle.loops.crew import Crew
from treadle.loops.execution import tune_cpu

SMOOTHED = 40
"""Episodes of the moving average of the return: 20 for each of two workers."""


def run(make: Callable[[], Any], steps: int, seconds: float, target: float) -> dict[str, Any]:
    """Train, an update at a time, until the moving average of the return reaches the target, or the steps or seconds
    are over. `start` are the seconds until the first update was made, compilation included."""
    begin = time.perf_counter()
    trainer = make()
    returns: deque[float] = deque(maxlen=SMOOTHED)
    rates, done, start, reached = [], 0, 0.0, None
    last = time.perf_counter()
    while done < steps and last - begin < seconds and reached is None:
        episodes = trainer.advance(1).episodes
        now = time.perf_counter()
        rates.append(episodes.lengths.size / (now - last))
        start, last, done = start or now - begin, now, done + episodes.lengths.size
        returns.extend(np.asarray(episodes.returns)[np.asarray(episodes.lengths) > 0].tolist())
        reached = now - begin if len(returns) == SMOOTHED and statistics.mean(returns) >= target else None
    trainer.close()
    return {
        "peer": "Treadle",
        "steps_per_second": statistics.median(rates[1:] or rates),
        "start": start,
        "seconds": reached,
        "steps": done,
        "return": statistics.mean(returns) if returns else None,
        "versions": {"treadle": treadle.__version__, "jax": jax.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("none", "ray"), default="ray")
    parser.add_argument("--loop", choices=("fused", "host"), default="host")
    parser.add_argument("--steps", type=int, default=200_000, help="at most")
    parser.add_argument("--seconds", type=float, default=240.0, help="at most")
    parser.add_argument("--target", type=float, default=-300.0, help="the return that ends it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    tune_cpu()
    preset = treadle.preset("ppo", "Pendulum-v1", "distributed")
    crew = Crew("ray", workers=2, address=os.environ["RAY_ADDRESS"]) if options.engine == "ray" else Crew("none")

    def make() -> Any:
        task, loop = preset.task(), options.loop
        return make_trainer(preset.make(), task, options.steps, options.seed, loop=loop, crew=crew)

    print(json.dumps(run(make, options.steps, options.seconds, options.target)))


if __name__ == "__main__":
    main()
