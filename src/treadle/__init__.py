"""Treadle: reinforcement learning in JAX, from a table to deep networks.

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
    from treadle.algorithms.a2c import A2C
    from treadle.algorithms.a3c import A3C
    from treadle.algorithms.actor_critic import ActorCritic
    from treadle.algorithms.ddpg import DDPG
    from treadle.algorithms.dqn import DQN
    from treadle.algorithms.dyna_q import DynaQ
    from treadle.algorithms.expected_sarsa import ExpectedSarsa
    from treadle.algorithms.lambda_return import LambdaReturn
    from treadle.algorithms.monte_carlo import MonteCarlo
    from treadle.algorithms.ppo import PPO
    from treadle.algorithms.q_learning import QLearning
    from treadle.algorithms.reinforce import Reinforce
    from treadle.algorithms.sarsa import Sarsa
    from treadle.algorithms.sarsa_lambda import SarsaLambda
    from treadle.algorithms.td_lambda import TD0, TDLambda
    from treadle.dataset import Dataset
    from treadle.environments.acrobot import Acrobot
    from treadle.environments.cartpole import CartPole
    from treadle.environments.cliff_walking import CliffWalking
    from treadle.environments.maze import Maze
    from treadle.environments.mountain_car import MountainCar
    from treadle.environments.mountain_car_continuous import MountainCarContinuous
    from treadle.environments.pendulum import Pendulum
    from treadle.environments.random_walk import RandomWalk
    from treadle.environments.treasure_line import TreasureLine
    from treadle.environments.wrappers import wrap
    from treadle.errors import TreadleError
    from treadle.loops.crew import Crew
    from treadle.loops.execution import tune_cpu
    from treadle.loops.fused import train
    from treadle.settings import preset, presets
    from treadle.spaces import Box, Discrete

__all__ = [
    "A2C",
    "A3C",
    "DDPG",
    "DQN",
    "PPO",
    "TD0",
    "Acrobot",
    "ActorCritic",
    "Agent",
    "Box",
    "CartPole",
    "CliffWalking",
    "Crew",
    "Dataset",
    "Discrete",
    "DynaQ",
    "ExpectedSarsa",
    "LambdaReturn",
    "Maze",
    "MonteCarlo",
    "MountainCar",
    "MountainCarContinuous",
    "Pendulum",
    "QLearning",
    "RandomWalk",
    "Reinforce",
    "Sarsa",
    "SarsaLambda",
    "TDLambda",
    "TreadleError",
    "TreasureLine",
    "preset",
    "presets",
    "train",
    "tune_cpu",
    "wrap",
]

_HOMES = {
    "A2C": "algorithms.a2c",
    "A3C": "algorithms.a3c",
    "Acrobot": "environments.acrobot",
    "ActorCritic": "algorithms.actor_critic",
    "Agent": "agent",
    "Box": "spaces",
    "CartPole": "environments.cartpole",
    "CliffWalking": "environments.cliff_walking",
    "Crew": "loops.crew",
    "DDPG": "algorithms.ddpg",
    "DQN": "algorithms.dqn",
    "Dataset": "dataset",
    "Discrete": "spaces",
    "DynaQ": "algorithms.dyna_q",
    "ExpectedSarsa": "algorithms.expected_sarsa",
    "LambdaReturn": "algorithms.lambda_return",
    "Maze": "environments.maze",
    "MonteCarlo": "algorithms.monte_carlo",
    "MountainCar": "environments.mountain_car",
    "MountainCarContinuous": "environments.mountain_car_continuous",
    "PPO": "algorithms.ppo",
    "Pendulum": "environments.pendulum",
    "QLearning": "algorithms.q_learning",
    "RandomWalk": "environments.random_walk",
    "Reinforce": "algorithms.reinforce",
    "Sarsa": "algorithms.sarsa",
    "SarsaLambda": "algorithms.sarsa_lambda",
    "TD0": "algorithms.td_lambda",
    "TDLambda": "algorithms.td_lambda",
    "TreadleError": "errors",
    "TreasureLine": "environments.treasure_line",
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
