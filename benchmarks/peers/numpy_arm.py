"""The arm with a random goal in plain NumPy, as a Gymnasium environment, and how many steps it makes in a second: one
arm in a Python loop, which is the tutorials' way, or many as arrays.

Prints one line of JSON. Runs in the peers' environment, without Treadle.
"""

from __future__ import annotations

import argparse
import json
import time

import gymnasium
import numpy as np

LINK, HALF, WIDTH, HOLD, LIMIT = 100.0, 200.0, 15.0, 50, 200


class Arms:
    """Arms side by side; `n` of 1 is one arm."""

    def __init__(self, n: int, rng: np.random.Generator):
        self.n, self.rng = n, rng
        self.angles, self.goal = np.zeros((n, 2)), np.zeros((n, 2))
        self.hold, self.length = np.zeros(n, int), np.zeros(n, int)
        self.reset(np.ones(n, bool))

    def reset(self, which: np.ndarray) -> None:
        count = int(which.sum())
        self.angles[which] = self.rng.uniform(0, 2 * np.pi, (count, 2))
        self.goal[which] = self.rng.uniform(100, 300, (count, 2))
        self.hold[which] = self.length[which] = 0

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Observations `[n, 7]`, rewards, and where episodes have ended, by holding the goal or by the time limit."""
        self.angles = (self.angles + 0.1 * np.clip(action, -1, 1)) % (2 * np.pi)
        obs, inside = self.observe()
        self.hold = np.where(inside, self.hold + 1, 0)
        self.length += 1
        held = self.hold > HOLD
        reward = inside - np.hypot(obs[:, 3], obs[:, 4]) + 10.0 * held
        return obs, reward, held, self.length >= LIMIT

    def observe(self) -> tuple[np.ndarray, np.ndarray]:
        first, both = self.angles[:, 0], self.angles.sum(axis=1)
        elbow = HALF + LINK * np.stack([np.cos(first), np.sin(first)], axis=1)
        finger = elbow + LINK * np.stack([np.cos(both), np.sin(both)], axis=1)
        inside = (np.abs(finger - self.goal) < WIDTH).all(axis=1)
        offsets = [elbow - self.goal, finger - self.goal, HALF - self.goal]
        return np.concatenate([inside[:, None], np.concatenate(offsets, axis=1) / HALF], axis=1), inside


class Arm(gymnasium.Env):
    """One of them, for other libraries."""

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-3, 3, (7,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.arms = Arms(1, np.random.default_rng(0))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.arms.reset(np.ones(1, bool))
        return self.arms.observe()[0][0].astype(np.float32), {}

    def step(self, action):
        obs, reward, terminated, truncated = self.arms.step(action[None])
        return obs[0].astype(np.float32), float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", type=int, default=1, help="arms side by side")
    parser.add_argument("--steps", type=int, default=100_000, help="steps of all arms that are timed")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    arms, total, length = Arms(options.arms, rng), 0.0, options.steps // options.arms
    begin = time.perf_counter()
    for _ in range(length):
        _, reward, terminated, truncated = arms.step(rng.uniform(-1, 1, (options.arms, 2)))
        total += float(reward.mean())
        ended = terminated | truncated
        if ended.any():
            arms.reset(ended)
    result = {
        "peer": "NumPy",
        "steps_per_second": length * options.arms / (time.perf_counter() - begin),
        "mean_reward": total / length,
        "versions": {"numpy": np.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
