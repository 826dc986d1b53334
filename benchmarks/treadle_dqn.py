"""Steps per second of Treadle's DQN on CartPole-v1, compiled beforehand, after learning has started.

Prints one line of JSON. With several seeds it counts the steps of all of them.
"""

from __future__ import annotations

import argparse
import json
import time

import jax

import treadle
from treadle.algorithms.dqn import DQN
from treadle.loops.choose import make_trainer
from treadle.loops.execution import tune_cpu

CHUNK = {"fused": 10_000, "host": 2_000}
"""Updates between two looks at the metrics. The first chunk, which is not timed, passes `learning_starts`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", choices=("fused", "host"), default="fused")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50_000, help="steps of each seed that are timed, at least")
    options = parser.parse_args()

    tune_cpu()
    algorithm = DQN(
        learning_rate=1e-3,
        capacity=10_000,
        learning_starts=1_000,
        batch_size=64,
        train_frequency=1,
        gradient_steps=1,
        target_update_period=100,
        epsilon_fraction=0.1,
        epsilon_end=0.05,
        hidden_sizes=(64, 64),
        activation="relu",
    )
    updates = CHUNK[options.loop]
    chunks = -(-options.steps // updates)
    total_timesteps = (chunks + 1) * updates
    trainer = make_trainer(algorithm, "CartPole-v1", total_timesteps, num_seeds=options.seeds, loop=options.loop)
    trainer.advance(updates)

    begin = time.perf_counter()
    for _ in range(chunks):
        trainer.advance(updates)
    jax.block_until_ready(trainer.state)
    seconds = time.perf_counter() - begin
    trainer.close()

    result = {
        "peer": "Treadle",
        "steps_per_second": options.seeds * chunks * updates / seconds,
        "loop": options.loop,
        "seeds": options.seeds,
        "device": jax.default_backend(),
        "versions": {"treadle": treadle.__version__, "jax": jax.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
