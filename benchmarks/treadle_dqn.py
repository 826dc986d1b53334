"""Steps per second of Treadle's DQN on CartPole-v1 or LunarLander-v3, compiled beforehand, after learning has started.

Prints one line of JSON. With several seeds it counts the steps of all of them.
"""

from __future__ import annotations

import argparse
import dataclasses

import timing
from treadle.algorithms.dqn import DQN

STEPS = {"fused": 10_000, "host": 2_000}
"""Steps of each seed between two looks at the metrics."""
TASKS = {
    "CartPole-v1": DQN(
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
    ),
    "LunarLander-v3": DQN(
        learning_rate=6.3e-4,
        capacity=50_000,
        learning_starts=0,
        batch_size=128,
        train_frequency=4,
        gradient_steps=4,
        target_update_period=250,
        epsilon_fraction=0.12,
        epsilon_end=0.1,
        hidden_sizes=(256, 256),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=tuple(TASKS), default="CartPole-v1")
    parser.add_argument("--loop", choices=tuple(STEPS), default="fused")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50_000, help="steps of each seed that are timed, at least")
    parser.add_argument("--prioritized", action="store_true", help="replay by priorities")
    parser.add_argument("--full", type=int, metavar="N", help="a memory of N transitions, full when learning starts")
    options = parser.parse_args()

    settings = {"prioritized": options.prioritized}
    if options.full:
        settings |= {"capacity": options.full, "learning_starts": options.full}
    algorithm = dataclasses.replace(TASKS[options.task], **settings)
    chunk = STEPS[options.loop]
    timing.measure(
        algorithm,
        options.task,
        loop=options.loop,
        seeds=options.seeds,
        chunk=chunk,
        before=algorithm.learning_starts // chunk + 1,
        chunks=-(-options.steps // chunk),
    )


if __name__ == "__main__":
    main()
