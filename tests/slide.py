"""A world with continuous actions in JAX and in Gymnasium, and an algorithm that notes what it is taught."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from treadle.algorithms.base import Algorithm
from treadle.registry import as_tree
from treadle.spaces import Box
from treadle.types import Step

CHANGES = {
    "discretise_actions": 3,
    "reward_scale": 0.25,
    "reward_offset": 8.0,
    "terminal_reward": -20.0,
    "time_limit": 7,
}
"""All that can be changed."""


@as_tree
class Slide:
    """A point that is pushed by two numbers; over when it leaves the unit circle. The reward is the first of both."""

    max_episode_steps: int | None = 4

    observation_space = Box(-9.0, 9.0, (2,))
    action_space = Box((-1.0, 0.0), (1.0, 0.5), (2,))

    def reset(self, key):
        return jnp.zeros(2), jnp.zeros(2)

    def step(self, state, action, key):
        state = state + 0.375 * action
        return state, Step(state, action[0], jnp.sum(state**2) > 1)


class SlideInGymnasium(gymnasium.Env):
    """The same on the host."""

    observation_space = gymnasium.spaces.Box(-9.0, 9.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 0.5], np.float32))

    def __init__(self):
        self._state = np.zeros(2, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._state = np.zeros(2, np.float32)
        return self._state, {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is no action"
        self._state = self._state + np.float32(0.375) * action
        return self._state, float(action[0]), bool(np.sum(self._state**2) > 1), False, {}


def slide() -> gymnasium.Env:
    return gymnasium.wrappers.TimeLimit(SlideInGymnasium(), 4)


class Notes(NamedTuple):
    """All rows so far, and the weights by which it acts when it does not explore."""

    rows: Any
    count: Any
    weights: Any


@as_tree
class Diary(Algorithm):
    """Acts at random and notes what it is taught."""

    name: ClassVar[str] = "treadle-tests-diary"
    num_envs: int = 2

    def init(self, key, spec):
        shape = (200, spec.num_envs)
        rows = jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape), x.dtype), spec.example)
        actions: Any = spec.action_space
        size = (*spec.observation_space.shape, actions.n)
        return Notes(rows, jnp.zeros((), jnp.int32), jax.random.normal(key, size))

    def act(self, state, carry, obs, key, *, explore=True):
        weights = state.weights if explore else state
        random = jax.random.randint(key, obs.shape[:1], 0, weights.shape[1], jnp.int32)
        return random if explore else jnp.argmax(obs @ weights, axis=1).astype(jnp.int32), carry, ()

    def update(self, state, rollout, key):
        rows = jax.tree.map(
            lambda all, new: jax.lax.dynamic_update_slice_in_dim(all, new, state.count, 0), state.rows, rollout
        )
        return Notes(rows, state.count + 1, state.weights), {"reward": jnp.mean(rollout.reward)}

    def policy(self, state):
        return state.weights


def first_seed(trainer: Any) -> Any:
    return jax.tree.map(lambda x: x[0], trainer.state.algorithm)


def noted(trainer: Any) -> Any:
    """The rows `[N, B]` that the first seed of a trainer was taught."""
    notes = jax.device_get(first_seed(trainer))
    return jax.tree.map(lambda x: x[: notes.count], notes.rows)
