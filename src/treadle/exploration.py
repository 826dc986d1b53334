"""Ways to explore, and the schedules by which exploration fades."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
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
    otherwise be taken for ever.

    Two random numbers serve, whatever the number of actions: in a tabular method, drawing them takes most of a step.
    """
    batch, actions = q.shape
    whether, which = jax.random.uniform(key, (2, batch))
    eligible = (whether < epsilon)[:, None] | ~(q < jnp.max(q, axis=-1, keepdims=True))  # all where some are NaN
    up_to = jnp.sum(eligible[:, None, :] & np.tri(actions, dtype=bool), axis=-1)  # eligible actions up to each
    return jnp.sum(up_to <= jnp.floor(which * up_to[:, -1])[:, None], axis=-1, dtype=jnp.int32)


def linear(start: float | Array, end: float | Array, steps: float | Array, step: Int[Array, ""]) -> Float[Array, ""]:
    """From `start` to `end` in `steps` steps, then `end`. With `steps` 0 it is `end` from the first step on."""
    progress = jnp.where(steps > 0, step / jnp.maximum(steps, 1e-9), 1.0)
    return start + (end - start) * jnp.clip(progress, 0.0, 1.0)


def exponential(
    start: float | Array, end: float | Array, scale: float | Array, step: Int[Array, ""]
) -> Float[Array, ""]:
    """end + (start - end) exp(-step / scale): `scale` steps bring it to 37% of the way up from `end`."""
    return end + (start - end) * jnp.exp(-step / scale)
