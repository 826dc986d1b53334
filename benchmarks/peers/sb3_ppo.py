"""Steps per second of Stable-Baselines3's PPO on CartPole-v1, after learning has started.

Prints one line of JSON. Runs in the peers' environment, without Treadle.
"""

from __future__ import annotations

import argparse
import json

import sb3
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

NUM_ENVS, NUM_STEPS = 4, 128


def make() -> PPO:
    return PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=NUM_ENVS, seed=0),
        n_steps=NUM_STEPS,
        batch_size=NUM_ENVS * NUM_STEPS // 4,
        n_epochs=4,
        learning_rate=3e-4,
        gamma=0.99,
        gae_lambda=0.95,
        clip_range=0.2,
        ent_coef=0.0,
        vf_coef=0.5,
        max_grad_norm=0.5,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": torch.nn.Tanh},
        device="cpu",
        seed=0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000, help="steps that are timed, at least")
    print(json.dumps(sb3.measure(make, before=2 * NUM_ENVS * NUM_STEPS, steps=parser.parse_args().steps)))


if __name__ == "__main__":
    main()
