"""Treadle: deep reinforcement learning in JAX.

from treadle import DQN, Agent

agent = Agent(DQN(learning_rate=1e-3), "CartPole-v1", seed=0).learn(50_000)
agent.evaluate(episodes=20).returns.mean()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from treadle.agent import Agent
    from treadle.algorithms.dqn import DQN
    from treadle.environments.cartpole import CartPole
    from treadle.environments.wrappers import wrap
    from treadle.errors import TreadleError
    from treadle.loops.execution import tune_cpu
    from treadle.loops.fused import train
    from treadle.settings import preset, presets
    from treadle.spaces import Box, Discrete

__all__ = [
    "DQN",
    "Agent",
    "Box",
    "CartPole",
    "Discrete",
    "TreadleError",
    "preset",
    "presets",
    "train",
    "tune_cpu",
    "wrap",
]

_HOMES = {
    "Agent": "agent",
    "Box": "spaces",
    "CartPole": "environments.cartpole",
    "DQN": "algorithms.dqn",
    "Discrete": "spaces",
    "TreadleError": "errors",
    "preset": "settings",
    "presets": "settings",
    "train": "loops.fused",
    "tune_cpu": "loops.execution",
    "wrap": "environments.wrappers",
}


def __getattr__(name: str) -> Any:
    """Parts are imported when they are first asked for, so that `import treadle` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'treadle' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"treadle.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
