"""Updates per second of Treadle's Q-learning on the maze, compiled beforehand.

Prints one line of JSON. With several seeds it counts the updates of all of them.
"""

from __future__ import annotations

import argparse
import json
import time

import jax

import treadle
from treadle.algorithms.q_learning import QLearning
from treadle.loops.choose import make_trainer
from treadle.loops.execution import tune_cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2_000_000, help="updates of all seeds that are timed, at least")
    options = parser.parse_args()

    tune_cpu()
    algorithm = QLearning(learning_rate=0.01, gamma=0.9, epsilon=0.1)
    updates = 200_000 if options.seeds == 1 else 4_000
    chunks = max(1, options.steps // (updates * options.seeds))
    trainer = make_trainer(algorithm, "Maze", (chunks + 1) * updates, num_seeds=options.seeds)
    trainer.advance(updates)

    begin = time.perf_counter()
    for _ in range(chunks):
        trainer.advance(updates)
    jax.block_until_ready(trainer.state)
    seconds = time.perf_counter() - begin

    result = {
        "peer": "Treadle",
        "steps_per_second": options.seeds * chunks * updates / seconds,
        "seeds": options.seeds,
        "device": jax.default_backend(),
        "versions": {"treadle": treadle.__version__, "jax": jax.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
