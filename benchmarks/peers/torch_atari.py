"""Samples per second of gradient steps of DQN with the network of Mnih et al. (2015), written in plain PyTorch.

A batch is drawn from a NumPy array of stacked frames and becomes numbers between 0 and 1; then the target network
forward, the network forward and backward, the Huber loss, the norm of the gradient clipped at 10, Adam. The fastest
counts of several numbers of threads, and of the two layouts of images in memory, channels last and channels first.

Prints one line of JSON. Runs in the peers' environment, without Treadle.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time

import numpy as np
import torch
from torch import nn

NUM_ENVS, NUM_ACTIONS, GAMMA = 8, 6, 0.99
LAYOUTS = ("channels last", "channels first")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="that are timed, about")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--capacity", type=int, default=100_000, help="transitions in memory")
    options = parser.parse_args()

    torch.manual_seed(0)
    replay = Replay(options.capacity)
    threads = [n for n in (1, 2, 4, 8) if n <= (os.cpu_count() or 1)]
    tried: dict[tuple[str, int], float] = {}
    for layout in LAYOUTS:
        learner = Learner(replay, options.batch_size, layout)
        for n in threads:
            tried[layout, n] = updates_per_second(learner, n, options.seconds / 10)
    layout, best = max(tried, key=lambda way: tried[way])
    learner = Learner(replay, options.batch_size, layout)
    rate = updates_per_second(learner, best, options.seconds)
    result = {
        "peer": "PyTorch",
        "samples_per_second": rate * options.batch_size,
        "threads": best,
        "layout": layout,
        "tried": {f"{name}, {n} threads": value * options.batch_size for (name, n), value in tried.items()},
        "work": {
            "batch_size": options.batch_size,
            "parameters": sum(p.numel() for p in learner.network.parameters()),
            "capacity": options.capacity,
        },
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
    print(json.dumps(result))


class Replay:
    """Stacks of frames `[rows, 84, 84, 4]`; the one of the next step lies `NUM_ENVS` rows later, and is not stored
    again."""

    def __init__(self, capacity: int):
        self.rng = np.random.default_rng(0)
        self.capacity = capacity
        self.stacks = np.empty((capacity + NUM_ENVS, 84, 84, 4), np.uint8)
        for part in np.array_split(self.stacks, max(1, capacity // 1_000)):
            part[:] = self.rng.integers(0, 256, part.shape, np.uint8)
        self.actions = self.rng.integers(0, NUM_ACTIONS, capacity)
        self.rewards = self.rng.integers(-1, 2, capacity).astype(np.float32)
        self.terminated = np.zeros(capacity, np.float32)

    def sample(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        """Observations `[batch, 84, 84, 4]` of bytes, actions, rewards, next observations, and whether terminated."""
        rows = self.rng.integers(0, self.capacity, batch_size)
        columns = self.actions[rows], self.rewards[rows], self.stacks[rows + NUM_ENVS], self.terminated[rows]
        return tuple(map(torch.from_numpy, (self.stacks[rows], *columns)))


class Learner:
    """A network, its target network and Adam."""

    def __init__(self, replay: Replay, batch_size: int, layout: str):
        self.replay, self.batch_size, self.layout = replay, batch_size, layout
        network = nn.Sequential(
            nn.Conv2d(4, 32, 8, 4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(7 * 7 * 64, 512),
            nn.ReLU(),
            nn.Linear(512, NUM_ACTIONS),
        )
        form = torch.channels_last if layout == "channels last" else torch.contiguous_format
        self.network = network.to(memory_format=form)
        self.target_network = copy.deepcopy(self.network)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=1e-4, fused=True)

    def picture(self, stacks: torch.Tensor) -> torch.Tensor:
        """Numbers between 0 and 1, `[batch, 4, 84, 84]`."""
        pixels = stacks.permute(0, 3, 1, 2)
        if self.layout == "channels first":
            pixels = pixels.contiguous()
        return pixels.float().mul_(1 / 255)

    def update(self) -> float:
        """One gradient step; the loss before it."""
        obs, action, reward, next_obs, terminated = self.replay.sample(self.batch_size)
        with torch.no_grad():
            best = self.target_network(self.picture(next_obs)).amax(1)
            target = reward + GAMMA * (1 - terminated) * best
        q = self.network(self.picture(obs)).gather(1, action[:, None])[:, 0]
        loss = nn.functional.smooth_l1_loss(q, target)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
        self.optimiser.step()
        return loss.item()


def updates_per_second(learner: Learner, threads: int, seconds: float) -> float:
    torch.set_num_threads(threads)
    for _ in range(3):
        learner.update()
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        if not np.isfinite(learner.update()):
            raise RuntimeError("the loss is no finite number.")
        count += 1
    return count / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
