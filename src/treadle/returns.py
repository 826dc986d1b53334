"""The formulas of value learning, each for one example; `jax.vmap` makes them serve a batch.

Names follow the literature: `q` are the action values of a state `[A]`, `discount` is gamma, or 0 where the episode
terminated (a time limit does not terminate).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from treadle.types import Transition


def taken(q: Float[Array, "... A"], action: Int[Array, "..."]) -> Float[Array, "..."]:
    """`q[action]`, written as a masked sum: the gradient of an index is a scatter, which is slow on a CPU."""
    return jnp.sum(jnp.where(jnp.arange(q.shape[-1]) == jnp.asarray(action)[..., None], q, 0.0), axis=-1)


def td_error(
    v: Float[Array, ""], reward: Float[Array, ""], discount: Float[Array, ""], v_next: Float[Array, ""]
) -> Float[Array, ""]:
    """r + discount v(s') - v(s)   (Sutton 1988; Sutton and Barto 2018, equation 6.5)."""
    return jax.lax.stop_gradient(reward + discount * v_next) - v


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


def n_step(t: Transition, gamma: float | Array) -> tuple[Transition, Float[Array, ""]]:
    """`n` consecutive rows `[n, ...]` of one environment as one transition, and the discount of its bootstrap.

    The reward is `r_1 + gamma r_2 + ...` up to the first row that ends the episode, if one does; `next_obs` and the
    ends are those of the last row that counts, and the discount is `gamma^k` for the `k` rows that count, or 0 where
    the last of them terminated. A time limit within the rows cuts the sum, not the bootstrap (Sutton and Barto 2018,
    equation 7.1).
    """
    n = t.reward.shape[0]
    ended = t.terminated | t.truncated
    counts = jnp.concatenate([jnp.ones(1, jnp.bool_), jnp.cumsum(ended[:-1]) == 0])
    last = jnp.sum(counts) - 1
    reward = jnp.sum(jnp.where(counts, gamma ** jnp.arange(n) * t.reward, 0.0))
    first = jax.tree.map(lambda x: x[0], t)
    end = jax.tree.map(lambda x: x[last], t)
    whole = first._replace(reward=reward, next_obs=end.next_obs, terminated=end.terminated, truncated=end.truncated)
    return whole, gamma ** (last + 1) * (1.0 - end.terminated)


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


def lambda_return(
    reward: Float[Array, ""],
    discount: Float[Array, ""] | float,
    v_next: Float[Array, ""],
    return_next: Float[Array, ""],
    trace_decay: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """The lambda-return of a step from that of the step after it:

    `G_t = r + discount [(1 - lambda) v(s_t+1) + lambda G_t+1]`   (Sutton and Barto 2018, equation 12.18)

    Nothing follows the last step that is known, nor an episode's last one: there `return_next` is `v_next`.
    """
    return reward + discount * ((1.0 - trace_decay) * v_next + trace_decay * return_next)


def lambda_returns(
    reward: Float[Array, " T"],
    discount: Float[Array, " T"],
    v_next: Float[Array, " T"],
    ended: Bool[Array, " T"],
    trace_decay: Float[Array, ""] | float,
) -> Float[Array, " T"]:
    """The lambda-returns of every step of one trajectory, which may hold several episodes.

    `discount` is gamma, 0 where an episode terminated. `v_next` is the value of each true successor, so that the last
    step, and those at which a time limit cut an episode, are completed by it. `ended` (terminated or truncated) keeps
    one episode's rewards out of another's returns.
    """

    def step(return_next, t):
        reward, discount, v_next, ended = t
        return_next = jnp.where(ended, v_next, return_next)
        now = lambda_return(reward, discount, v_next, return_next, trace_decay)
        return now, now

    _, returns = jax.lax.scan(step, v_next[-1], (reward, discount, v_next, ended), reverse=True)
    return returns


def discounted_returns(
    reward: Float[Array, " T"], discount: Float[Array, " T"], future: Float[Array, ""] | float
) -> Float[Array, " T"]:
    """`G_t = r + discount G_t+1` of every step, where `future` is the return of what follows the last one."""
    at_end, never = jnp.full(len(reward), future, jnp.float32), jnp.zeros(len(reward), jnp.bool_)
    return lambda_returns(reward, discount, at_end, never, 1.0)


def gae(
    reward: Float[Array, " T"],
    discount: Float[Array, " T"],
    v: Float[Array, " T"],
    v_next: Float[Array, " T"],
    ended: Bool[Array, " T"],
    trace_decay: Float[Array, ""] | float,
) -> Float[Array, " T"]:
    """Generalised advantage estimates of every step of one trajectory, which may hold several episodes (Schulman et al.
    2016, equation 16): the lambda-return less the value,

    `A_t = delta_t + gamma lambda delta_t+1 + ...` with `delta = r + discount v(s') - v(s)`, up to the episode's end.

    Arguments are those of `lambda_returns`; `v` is the value of each observation.
    """
    return lambda_returns(reward, discount, v_next, ended, trace_decay) - v
