"""Steps per second of Treadle's PPO on CartPole-v1 or DDPG on Pendulum-v1, compiled beforehand, after learning has
started.

Prints one line of JSON. With several seeds it counts the steps of all of them.
"""

from __future__ import annotations

import argparse

import timing
from treadle.algorithms.ddpg import DDPG
from treadle.algorithms.ppo import PPO

METHODS = {
    "ppo": PPO(
        num_envs=4,
        rollout_length=128,
        epochs=4,
        num_minibatches=4,
        hidden_sizes=(64, 64),
        activation="tanh",
        learning_rate=3e-4,
        gamma=0.99,
        gae_lambda=0.95,
        clip=0.2,
        entropy_coefficient=0.0,
        value_coefficient=0.5,
        max_grad_norm=0.5,
    ),
    "ddpg": DDPG(
        hidden_sizes=(30,),
        activation="relu",
        learning_rate=1e-3,
        critic_learning_rate=1e-3,
        gamma=0.9,
        tau=0.01,
        batch_size=32,
        capacity=10_000,
        learning_starts=1_000,
        train_frequency=1,
        gradient_steps=1,
        noise="gaussian",
        noise_std=0.1,
    ),
}
TASKS = {"ppo": "CartPole-v1", "ddpg": "Pendulum-v1"}
CHUNKS = {"fused": 100 * 512, "host": 4 * 512}
"""Steps of each seed between two looks at the metrics: whole rollouts of PPO."""
STEPS = {"ppo": 500_000, "ddpg": 100_000}
BEFORE = 1_000
"""Steps of each seed, at least, that compile and pass the start of learning and are not timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=tuple(METHODS), default="ppo")
    parser.add_argument("--task", help="another than CartPole-v1 for PPO and Pendulum-v1 for DDPG")
    parser.add_argument("--loop", choices=tuple(CHUNKS), default="fused")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--layout", choices=("auto", "in-turn", "together"), default="auto")
    parser.add_argument("--steps", type=int, help="steps of each seed that are timed, at least")
    options = parser.parse_args()

    algorithm, chunk = METHODS[options.method], CHUNKS[options.loop]
    timing.measure(
        algorithm,
        options.task or TASKS[options.method],
        loop=options.loop,
        seeds=options.seeds,
        layout=options.layout,
        chunk=chunk,
        before=BEFORE // chunk + 1,
        chunks=-(-(options.steps or STEPS[options.method]) // chunk),
    )


if __name__ == "__main__":
    main()
