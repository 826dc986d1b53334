"""The formulas of value learning, each for one example; `jax.vmap` makes them serve a batch.

Names follow the literature: `q` are the action values of a state `[A]`, `discount` is gamma, or 0 where the episode
terminated (a time limit does not terminate).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def taken(q: Float[Array, " A"], action: Int[Array, ""]) -> Float[Array, ""]:
    """`q[action]`, written as a masked sum: the gradient of an index is a scatter, which is slow on a CPU."""
    return jnp.sum(jnp.where(jnp.arange(q.shape[-1]) == action, q, 0.0))


def q_learning_error(
    q: Float[Array, " A"],
    action: Int[Array, ""],
    reward: Float[Array, ""],
    discount: Float[Array, ""],
    q_next: Float[Array, " A"],
) -> Float[Array, ""]:
    """r + discount max_a' Q'(s', a') - Q(s, a)   (Watkins and Dayan 1992; Mnih et al. 2015, algorithm 1)."""
    target = reward + discount * jnp.max(q_next)
    return jax.lax.stop_gradient(target) - taken(q, action)


def double_q_learning_error(
    q: Float[Array, " A"],
    action: Int[Array, ""],
    reward: Float[Array, ""],
    discount: Float[Array, ""],
    q_next: Float[Array, " A"],
    q_next_selector: Float[Array, " A"],
) -> Float[Array, ""]:
    """r + discount Q'(s', argmax_a' Q(s', a')) - Q(s, a)   (van Hasselt, Guez and Silver 2016, equation 4).

    `q_next_selector` are the online network's values, which choose; `q_next` the target network's, which judge.
    """
    target = reward + discount * taken(q_next, jnp.argmax(q_next_selector))
    return jax.lax.stop_gradient(target) - taken(q, action)
