"""Gymnasium environments for workers, in a module that they can import."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

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


Incident = Literal["hangs", "raises", "nothing"]


class Numbered(gymnasium.Env):
    """Observations are (process, steps of its life), of which no two are the same; episodes have 5 steps, with a reward
    of 1 each. There is an incident at step `at` of every process, or in the one that finds the file `sign` first, in
    the place of which it leaves its number: `sign.PROCESS`."""

    observation_space = gymnasium.spaces.Box(0.0, 2.0**22, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, incident: Incident = "nothing", at: int = -1, sign: str | None = None, pause: float = 0.0):
        self._incident, self._at, self._sign, self._pause = incident, at, sign, pause
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._begun = self._steps
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self._steps += 1
        time.sleep(self._pause)
        if self._steps == self._at or self._finds_sign():
            if self._incident == "hangs":
                time.sleep(600)
            elif self._incident == "raises":
                raise RuntimeError("the wheel came off")
        return self._seen(), 1.0, self._steps - self._begun == 5, False, {}

    def _seen(self) -> np.ndarray:
        return np.array([os.getpid(), self._steps], np.float32)

    def _finds_sign(self) -> bool:
        if self._sign is None:
            return False
        try:
            os.rename(self._sign, f"{self._sign}.{os.getpid()}")
        except FileNotFoundError:
            return False
        return True


def numbered(**given: Any) -> Callable[[], gymnasium.Env]:
    """What makes such environments."""
    return functools.partial(Numbered, **given)


def cannot_be_sent() -> Any:
    """A function that makes an environment, and holds what no other process can have."""
    lock = threading.Lock()

    def locked_walk() -> gymnasium.Env:
        with lock:
            return Walk()

    return locked_walk
