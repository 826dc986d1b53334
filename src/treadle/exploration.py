"""Ways to explore."""

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


def ornstein_uhlenbeck(
    key: Array, x: Float[Array, "..."], theta: float | Array, sigma: float | Array, dt: float | Array
) -> Float[Array, "..."]:
    """The next value of noise that is drawn to 0 at the rate `theta` and pushed about with deviation `sigma` per root
    of time, `dt` later (Uhlenbeck and Ornstein 1930; Lillicrap et al. 2016, section 3)."""
    return x - theta * x * dt + sigma * jnp.sqrt(dt) * jax.random.normal(key, x.shape)
