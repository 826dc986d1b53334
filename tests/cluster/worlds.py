"""Gymnasium environments for workers, in a module that they can import."""

from __future__ import annotations

import os
import threading
from typing import Any

import gymnasium
import numpy as np


class Walk(gymnasium.Env):
    """Observations are (who walks, steps of this episode); the reward of each step is its number. Ends after 2 to 6
    steps. At step `at` of its life, something happens."""

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, at: int = -1):
        self._at, self._steps, self._last = at, 0, 0
        self._obs = np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._obs[:] = self.np_random.uniform(-1, 1), 0
        self._last = int(self.np_random.integers(2, 7))
        return self._obs, {}

    def step(self, action: Any) -> Any:
        self._steps += 1
        if self._steps == self._at:
            self.happen()
        self._obs[1] += 1
        return self._obs, float(self._obs[1]) + int(action), bool(self._obs[1] >= self._last), False, {}

    def happen(self) -> None:
        """Nothing."""


class Breaks(Walk):
    def happen(self) -> None:
        raise RuntimeError("the wheel came off")


class Dies(Walk):
    def happen(self) -> None:
        os._exit(1)


def walk() -> gymnasium.Env:
    return Walk()


def breaks() -> gymnasium.Env:
    return Breaks(at=12)


def dies() -> gymnasium.Env:
    return Dies(at=12)


def cannot_be_sent() -> Any:
    """A function that makes an environment, and holds what no other process can have."""
    lock = threading.Lock()

    def locked_walk() -> gymnasium.Env:
        with lock:
            return Walk()

    return locked_walk
