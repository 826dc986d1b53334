"""Steps per second of Stable-Baselines3's DQN on CartPole-v1 or LunarLander-v3, after learning has started.

Prints one line of JSON. Runs in the peers' environment, without Treadle.
"""

from __future__ import annotations

import argparse
import json
import os
import time

import gymnasium
import stable_baselines3
import torch
from stable_baselines3 import DQN

TASKS = {
    "CartPole-v1": {
        "learning_rate": 1e-3,
        "buffer_size": 10_000,
        "learning_starts": 1_000,
        "batch_size": 64,
        "train_freq": 1,
        "gradient_steps": 1,
        "target_update_interval": 100,
        "exploration_fraction": 0.1,
        "exploration_final_eps": 0.05,
        "policy_kwargs": {"net_arch": [64, 64], "activation_fn": torch.nn.ReLU},
    },
    "LunarLander-v3": {
        "learning_rate": 6.3e-4,
        "buffer_size": 50_000,
        "learning_starts": 0,
        "batch_size": 128,
        "train_freq": 4,
        "gradient_steps": -1,
        "target_update_interval": 250,
        "exploration_fraction": 0.12,
        "exploration_final_eps": 0.1,
        "policy_kwargs": {"net_arch": [256, 256], "activation_fn": torch.nn.ReLU},
    },
}
BEFORE = {"CartPole-v1": 1_200, "LunarLander-v3": 800}
"""Steps that are not timed, past the start of learning."""


def steps_per_second(task: str, steps: int, threads: int) -> float:
    torch.set_num_threads(threads)
    model = DQN("MlpPolicy", task, device="cpu", seed=0, **TASKS[task])
    model.learn(BEFORE[task])
    begin = time.perf_counter()
    model.learn(steps, reset_num_timesteps=False)
    return steps / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=tuple(TASKS), default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=4_000, help="steps that are timed, for each number of threads")
    options = parser.parse_args()
    # More threads do not help networks this small, so 1 and 2 are enough to find its fastest setting.
    counts = [n for n in (1, 2) if n <= (os.cpu_count() or 1)]
    by_threads = {n: steps_per_second(options.task, options.steps, n) for n in counts}
    best = max(by_threads, key=lambda n: by_threads[n])
    versions = {
        "stable-baselines3": stable_baselines3.__version__,
        "torch": torch.__version__,
        "gymnasium": gymnasium.__version__,
    }
    result = {
        "peer": "Stable-Baselines3",
        "steps_per_second": by_threads[best],
        "threads": best,
        "steps_per_second_by_threads": by_threads,
        "task": options.task,
        "versions": versions,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
