"""Steps per second of Stable-Baselines3's DDPG on Pendulum-v1, after learning has started.

Prints one line of JSON. Runs in the peers' environment, without Treadle.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import sb3
import torch
from stable_baselines3 import DDPG
from stable_baselines3.common.noise import NormalActionNoise

LEARNING_STARTS = 1_000


def make() -> DDPG:
    return DDPG(
        "MlpPolicy",
        "Pendulum-v1",
        learning_rate=1e-3,
        gamma=0.9,
        tau=0.01,
        batch_size=32,
        buffer_size=10_000,
        learning_starts=LEARNING_STARTS,
        train_freq=1,
        gradient_steps=1,
        # In units of half the range of actions, as all of its actions.
        action_noise=NormalActionNoise(np.zeros(1), np.full(1, 0.1)),
        policy_kwargs={"net_arch": [30], "activation_fn": torch.nn.ReLU},
        device="cpu",
        seed=0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3_000, help="steps that are timed")
    print(json.dumps(sb3.measure(make, before=LEARNING_STARTS + 100, steps=parser.parse_args().steps)))


if __name__ == "__main__":
    main()
