"""Stable-Baselines3's part of `make bench-atari`: DQN on Pong, and its replay buffer.

    python benchmarks/peers/sb3_atari.py dqn

Prints one line of JSON. Runs in the peers' environment, without Treadle.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
import stable_baselines3
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

GAME, NUM_ENVS = "PongNoFrameskip-v4", 8
BEFORE = 512
"""Steps before the first gradient step."""
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-4,
    "batch_size": 32,
    "train_freq": 1,
    "gradient_steps": 2,
    "target_update_interval": 8_000,
    "exploration_initial_eps": 0.01,
    "exploration_final_eps": 0.01,
    "seed": 0,
    "device": "cpu",
}
PROCESSES = {"one process": DummyVecEnv, "a process for each environment": SubprocVecEnv}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("dqn", "memory"))
    parser.add_argument("--seconds", type=float, default=20.0, help="dqn: that are timed, about")
    parser.add_argument("--capacity", type=int, default=100_000, help="memory: transitions that it holds")
    parser.add_argument("--optimised", action="store_true", help="memory: with optimize_memory_usage")
    options = parser.parse_args()

    gymnasium.register_envs(ale_py)
    measure = {"dqn": dqn, "memory": memory}[options.what]
    result = {
        "peer": "Stable-Baselines3",
        **measure(options),
        "versions": {
            "stable-baselines3": stable_baselines3.__version__,
            "torch": torch.__version__,
            "ale-py": ale_py.__version__,
        },
    }
    print(json.dumps(result))


def make(processes: str, **settings: Any) -> DQN:
    """A learner on 8 games with Stable-Baselines3's own wrappers."""
    games = make_atari_env(GAME, NUM_ENVS, seed=0, vec_env_cls=PROCESSES[processes])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*apparently not enough memory.*")  # it counts what is never written to
        return DQN("CnnPolicy", VecFrameStack(games, 4), **SETTINGS, **settings)


def dqn(options: argparse.Namespace) -> dict[str, Any]:
    """Steps per second of the setting that is the fastest of those tried, for a tenth of the time each."""
    threads = [n for n in (1, 2, 4, 8) if n <= (os.cpu_count() or 1)]
    torch.set_num_threads(1)
    tried: dict[tuple[str, int], float] = {}
    models = {}
    for processes in PROCESSES:
        models[processes] = make(processes, buffer_size=100_000, learning_starts=BEFORE)
        models[processes].learn(BEFORE + 8 * NUM_ENVS)
    for n, processes in itertools.product(threads, PROCESSES):
        torch.set_num_threads(n)
        rate_for(models[processes], options.seconds / 40)
        tried[processes, n] = rate_for(models[processes], options.seconds / 10)
    processes, best = max(tried, key=lambda way: tried[way])
    torch.set_num_threads(best)
    model = models.pop(processes)
    for other in models.values():
        other.get_env().close()

    updates, steps = model._n_updates, model.num_timesteps
    rate = rate_for(model, options.seconds)
    updates, steps = model._n_updates - updates, model.num_timesteps - steps
    model.get_env().close()
    if not all(torch.isfinite(p).all() for p in model.q_net.parameters()):
        raise RuntimeError("the parameters are no finite numbers.")
    return {
        "steps_per_second": rate,
        "threads": best,
        "processes": processes,
        "tried": {f"{name}, {n} threads": value for (name, n), value in tried.items()},
        "work": {
            "num_envs": model.n_envs,
            "batch_size": model.batch_size,
            "obs": list(model.observation_space.shape),
            "parameters": sum(p.numel() for p in model.q_net.parameters()),
            # After the last step of all it stops before it learns.
            "gradient_steps_per_step": round(updates / (steps - NUM_ENVS), 2),
        },
    }


def rate_for(model: DQN, seconds: float) -> float:
    """Steps per second of about so many seconds."""
    before, begin = model.num_timesteps, time.perf_counter()
    model.learn(10_000_000, lambda *_: time.perf_counter() - begin < seconds, reset_num_timesteps=False)
    return (model.num_timesteps - before) / (time.perf_counter() - begin)


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Bytes of the replay buffer, and by how much the process grows when a run is made, its buffer is full, and it
    learns."""
    settings: dict[str, Any] = {"buffer_size": options.capacity, "learning_starts": 0}
    if options.optimised:
        # Without which it is refused: a time limit then counts as an end.
        settings |= {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    before = resident()
    model = make("one process", **settings)
    buffer, rng = model.replay_buffer, np.random.default_rng(0)
    obs = rng.integers(0, 256, (NUM_ENVS, *model.observation_space.shape), np.uint8)
    zeros = np.zeros(NUM_ENVS, np.float32)
    while not buffer.full:
        buffer.add(obs, obs, zeros.astype(np.int64), zeros, zeros, [{}] * NUM_ENVS)
    torch.set_num_threads(1)
    model.learn(8 * NUM_ENVS)
    taken = sum(array.nbytes for array in vars(buffer).values() if isinstance(array, np.ndarray))
    growth = resident() - before
    model.get_env().close()
    if growth < taken:
        raise RuntimeError("parts of the buffer have not been written to, and the process will grow.")
    return {"memory_bytes": taken, "growth_bytes": growth, "work": {"capacity": buffer.buffer_size * NUM_ENVS}}


def resident() -> int:
    """Bytes of this process that are in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


if __name__ == "__main__":
    main()
