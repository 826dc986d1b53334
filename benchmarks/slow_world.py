"""A Gymnasium environment whose step takes a millisecond: what a simulator outside of Python is to a worker."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np

STEP = 0.001
"""Seconds of a step."""
EPISODE = 200
"""Steps."""


class SlowWorld(gymnasium.Env):
    """A point on a line that is to be brought to 0 by pushes in [-1, 1]; the reward is minus its distance.

    A step takes `STEP` seconds: asleep, as if somebody else's process or machine were at work, or `busy` on the core of
    the worker.
    """

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (4,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, busy: bool):
        self._busy = busy

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._place, self._steps = self.np_random.uniform(-1.0, 1.0), 0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self._busy:
            until = time.thread_time() + STEP
            while time.thread_time() < until:
                pass
        else:
            time.sleep(STEP)
        self._place = float(np.clip(self._place + 0.1 * float(action[0]), -10.0, 10.0))
        self._steps += 1
        return self._obs(), -abs(self._place), False, self._steps >= EPISODE, {}

    def _obs(self) -> np.ndarray:
        return np.array([self._place, self._place**2, self._steps / EPISODE, 1.0], np.float32)


def sleeping() -> gymnasium.Env:
    """One whose step waits."""
    return SlowWorld(busy=False)


def busy() -> gymnasium.Env:
    """One whose step takes a millisecond of a core."""
    return SlowWorld(busy=True)
