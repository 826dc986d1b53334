"""Ways to explore, and the schedules by which exploration fades."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def epsilon_greedy(key: Array, q: Float[Array, "B A"], epsilon: Float[Array, ""] | float) -> Int[Array, " B"]:
    """The best action, or with probability `epsilon` one drawn uniformly from all `A` (the best included)."""
    explore_key, action_key = jax.random.split(key)
    batch, actions = q.shape
    uniform = jax.random.randint(action_key, (batch,), 0, actions, jnp.int32)
    explore = jax.random.uniform(explore_key, (batch,)) < epsilon
    return jnp.where(explore, uniform, jnp.argmax(q, axis=-1).astype(jnp.int32))


def epsilon_greedy_fair(key: Array, q: Float[Array, "B A"], epsilon: Float[Array, ""] | float) -> Int[Array, " B"]:
    """The same, with ties between best actions broken at random: where all values start alike, the first action would
    otherwise be taken for ever."""
    explore_key, action_key = jax.random.split(key)
    lots = jax.random.uniform(action_key, q.shape)
    explore = jax.random.uniform(explore_key, q.shape[:1]) < epsilon
    eligible = explore[:, None] | (q == jnp.max(q, axis=-1, keepdims=True))
    return jnp.argmax(jnp.where(eligible, lots, -1.0), axis=-1).astype(jnp.int32)


def linear(start: float | Array, end: float | Array, steps: float | Array, step: Int[Array, ""]) -> Float[Array, ""]:
    """From `start` to `end` in `steps` steps, then `end`. With `steps` 0 it is `end` from the first step on."""
    progress = jnp.where(steps > 0, step / jnp.maximum(steps, 1e-9), 1.0)
    return start + (end - start) * jnp.clip(progress, 0.0, 1.0)


def exponential(
    start: float | Array, end: float | Array, scale: float | Array, step: Int[Array, ""]
) -> Float[Array, ""]:
    """end + (start - end) exp(-step / scale): `scale` steps bring it to 37% of the way up from `end`."""
    return end + (start - end) * jnp.exp(-step / scale)
