"""The shapes that the rooms of Treadle hand to one another.

Notation used throughout: `T` steps of a rollout, `B` environments side by side, `...` the shape of one
observation or action. Rollouts are time-major, `[T, B, ...]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from treadle.spaces import Space

Obs = PyTree
Action = PyTree
Carry = PyTree
EnvState = PyTree


class Transition(NamedTuple):
    """One step of an environment, or a rollout of them `[T, B, ...]`.

    `next_obs` is the true successor, also where an episode ends. `terminated` (a terminal state of the task)
    stops bootstrapping, `truncated` (a time limit) does not; both end the episode. `valid` is false for rows that
    must not teach or count; `None` says at compile time that every row counts, which lets memory write them as
    one block. `extras` is what `act` remembered for `update` (log-probabilities, values ...).
    """

    obs: Obs
    action: Action
    reward: Float[Array, "..."]
    next_obs: Obs
    terminated: Bool[Array, "..."]
    truncated: Bool[Array, "..."]
    valid: Bool[Array, "..."] | None = None
    extras: PyTree = ()

    @property
    def count(self) -> int | Int[Array, ""]:
        """The rows that count."""
        return self.reward.size if self.valid is None else jnp.sum(self.valid, dtype=jnp.int32)

    @property
    def ended(self) -> Bool[Array, "..."]:
        """Where an episode ends, for whatever reason."""
        return self.terminated | self.truncated


class Step(NamedTuple):
    """What one environment answers to an action. The time limit belongs to the rollout, so it is not here."""

    obs: Obs
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]


@dataclass(frozen=True)
class Spec:
    """What an algorithm may know of its surroundings when it makes its state.

    `example` is one transition without batch axes; its values do not matter, its shapes and dtypes do.
    `total_timesteps` counts environment steps over all environments of one seed: schedules given as fractions are
    fractions of it. `max_episode_steps` is the time limit, `None` where there is none or it is not known.
    `transitions`, of small worlds only, gives the exact table (`treadle.exact.Transitions`). Where `frame_stack` is
    `k`, observations are stacks `[k, ...]` of the last frames, oldest first and zeros before the episode began, in an
    unbroken stream: every row begins where the one before it led to, and one that is not valid leads from the end of an
    episode to the next one. 0 promises none of this.
    """

    observation_space: Space
    action_space: Space
    num_envs: int
    total_timesteps: int
    example: Transition
    max_episode_steps: int | None = None
    transitions: Callable[[], Any] | None = None
    frame_stack: int = 0


def space_spec(observation_space: Space, action_space: Space, num_envs: int = 1, total_timesteps: int = 1) -> Spec:
    """The spec of an environment known by its spaces alone."""
    obs = jnp.zeros(observation_space.shape, observation_space.dtype)
    action = jnp.zeros(action_space.shape, action_space.dtype)
    never = jnp.zeros((), jnp.bool_)
    example = Transition(obs, action, jnp.zeros(()), obs, never, never)
    return Spec(observation_space, action_space, num_envs, total_timesteps, example)


class Counter(NamedTuple):
    """A count that advances alike in every seed.

    Loops that `vmap` over seeds leave counters unbatched, so that a `cond` on a period stays a branch instead of
    becoming a `select` that copies what it returns.
    """

    value: Int[Array, ""]

    @classmethod
    def zero(cls) -> Counter:
        return cls(jnp.zeros((), jnp.int32))

    def add(self, count: int | Array) -> Counter:
        """The counter `count` later."""
        return Counter(self.value + jnp.asarray(count, jnp.int32))

    def passes(self, period: int, since: Counter) -> Bool[Array, ""]:
        """Whether a multiple of `period` lies in `(since, self]`, whatever the stride."""
        return self.value // period > since.value // period


class Mean(NamedTuple):
    """A metric that is an average: `total / weight`, absent where `weight` is zero (nothing was learned yet)."""

    total: Float[Array | np.ndarray, "..."]
    weight: Float[Array | np.ndarray, "..."]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Alarm:
    """A metric that stops the run with `sentence` once it is raised, because compiled code cannot raise an error. It is
    neither written nor shown."""

    raised: Bool[Array | np.ndarray, "..."]
    sentence: str = field(metadata={"static": True})
    """What went wrong, and what to do."""


Metrics = dict[str, Any]
"""Names to scalars, to `Mean`s or to `Alarm`s."""


def select(condition: Bool[Array, "..."], if_true: PyTree, if_false: PyTree) -> PyTree:
    """`jnp.where` over two trees of the same structure; `condition` broadcasts against the leading axes."""

    def leaf(a, b):
        mask = condition.reshape(condition.shape + (1,) * (jnp.ndim(b) - condition.ndim))
        return jnp.where(mask, a, b)

    return jax.tree.map(leaf, if_true, if_false)
