"""RLlib's PPO on Pendulum-v1 with two env runners: steps per second, and seconds until it has learned.

    .venv-rllib/bin/python benchmarks/two_nodes.py .venv-rllib/bin/python benchmarks/peers/rllib_ppo.py

Prints one line of JSON. Runs in an environment of its own, without Treadle, on the cluster of RAY_ADDRESS.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections import deque
from typing import Any

import gymnasium
import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune import register_env

SMOOTHED = 40
"""Episodes of the moving average of the return: 20 for each of two env runners."""
OFFSET, SCALE, EPISODE = 8.0, 0.125, 200
"""Of the rewards that the shared settings learn from, (r + 8) / 8, and steps of an episode."""


def scaled(_: Any) -> gymnasium.Env:
    return gymnasium.wrappers.TransformReward(gymnasium.make("Pendulum-v1"), lambda r: SCALE * (float(r) + OFFSET))


def shared(steps: int) -> PPOConfig:
    """The work that Treadle does by its preset `distributed`."""
    register_env("scaled-pendulum", scaled)
    return (
        PPOConfig()
        .environment("scaled-pendulum")
        .env_runners(num_env_runners=2, num_envs_per_env_runner=2, rollout_fragment_length=256)
        .training(
            train_batch_size_per_learner=1024,
            minibatch_size=64,
            num_epochs=10,
            lr=[[0, 1e-3], [steps, 0.0]],
            gamma=0.95,
            lambda_=0.95,
            clip_param=0.2,
            vf_clip_param=float("inf"),
            vf_loss_coeff=0.5,
            entropy_coeff=0.0,
            use_kl_loss=False,
            grad_clip=0.5,
            grad_clip_by="global_norm",
        )
        .rl_module(
            model_config=DefaultModelConfig(
                fcnet_hiddens=[64, 64], fcnet_activation="tanh", vf_share_layers=False, free_log_std=True
            )
        )
    )


def own(_: int) -> PPOConfig:
    """RLlib's own settings for Pendulum (rllib/examples/algorithms/ppo/pendulum_ppo.py of its repository)."""
    return (
        PPOConfig()
        .environment("Pendulum-v1")
        .env_runners(
            num_env_runners=2,
            num_envs_per_env_runner=20,
            env_to_module_connector=lambda env, spaces, device: MeanStdFilter(),
        )
        .training(train_batch_size_per_learner=1024, minibatch_size=128, lr=0.0002, gamma=0.95, lambda_=0.5)
        .rl_module(model_config=DefaultModelConfig(fcnet_activation="relu"))
    )


def log_return(*, episode: Any, prev_episode_chunks: Any = None, metrics_logger: Any, **_: Any) -> None:
    """Keep the return of every episode: RLlib's own average is one over those of the last iteration or two."""
    chunks = [*(prev_episode_chunks or []), episode]
    metrics_logger.log_value("returns", sum(chunk.get_return() for chunk in chunks), reduce="item_series")


def run(settings: str, steps: int, seconds: float, target: float, seed: int) -> dict[str, Any]:
    """Train until the moving average of the return reaches the target, or the steps or seconds are over."""
    begin = time.perf_counter()
    config = {"shared": shared, "own": own}[settings](steps).debugging(seed=seed, log_level="ERROR")
    algorithm = config.callbacks(on_episode_end=log_return).reporting(min_time_s_per_iteration=0).build_algo()
    returns: deque[float] = deque(maxlen=SMOOTHED)
    rates, done, start, reached = [], 0, 0.0, None
    last = time.perf_counter()
    while done < steps and last - begin < seconds and reached is None:
        result = algorithm.train()["env_runners"]
        now, before, done = time.perf_counter(), done, int(result["num_env_steps_sampled_lifetime"])
        rates.append((done - before) / (now - last))
        start, last = start or now - begin, now
        ended = [float(x) for x in result.get("returns", [])]
        returns.extend([x / SCALE - OFFSET * EPISODE for x in ended] if settings == "shared" else ended)
        reached = now - begin if len(returns) == SMOOTHED and statistics.mean(returns) >= target else None
    algorithm.stop()
    return {
        "peer": "RLlib",
        "steps_per_second": statistics.median(rates[1:] or rates),
        "start": start,
        "seconds": reached,
        "steps": done,
        "return": statistics.mean(returns) if returns else None,
        "versions": {"ray": ray.__version__, "torch": torch.__version__, "gymnasium": gymnasium.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", choices=("shared", "own"), default="shared")
    parser.add_argument("--steps", type=int, default=200_000, help="at most")
    parser.add_argument("--seconds", type=float, default=240.0, help="at most")
    parser.add_argument("--target", type=float, default=-300.0, help="the return that ends it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ray.init(log_to_driver=False, logging_level="ERROR")
    print(json.dumps(run(options.settings, options.steps, options.seconds, options.target, options.seed)))


if __name__ == "__main__":
    main()
