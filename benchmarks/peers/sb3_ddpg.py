"""Steps per second of Stable-Baselines3's DDPG on Pendulum-v1, or on the arm in NumPy, after learning has started.

Prints one line of JSON. Runs in the peers' environment, without Treadle.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import sb3
import torch
from numpy_arm import Arm
from stable_baselines3 import DDPG
from stable_baselines3.common.noise import NormalActionNoise

LEARNING_STARTS = 1_000


def make(task: str) -> DDPG:
    env: Any = Arm() if task == "arm" else task
    size = 2 if task == "arm" else 1
    return DDPG(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        gamma=0.9,
        tau=0.01,
        batch_size=32,
        buffer_size=10_000,
        learning_starts=LEARNING_STARTS,
        train_freq=1,
        gradient_steps=1,
        # In units of half the range of actions, as all of its actions.
        action_noise=NormalActionNoise(np.zeros(size), np.full(size, 0.1)),
        policy_kwargs={"net_arch": [30], "activation_fn": torch.nn.ReLU},
        device="cpu",
        seed=0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=("Pendulum-v1", "arm"), default="Pendulum-v1")
    parser.add_argument("--steps", type=int, default=3_000, help="steps that are timed")
    options = parser.parse_args()
    print(json.dumps(sb3.measure(lambda: make(options.task), before=LEARNING_STARTS + 100, steps=options.steps)))


if __name__ == "__main__":
    main()
