"""Exact solutions of small worlds, from their transition tables: what learned values are compared with.

Sutton and Barto (2018), chapter 4. `S` states, `A` actions. All by iteration, for LAPACK calls inside compiled
programs can wait for each other's threads for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from treadle.errors import TreadleError

if TYPE_CHECKING:
    from treadle.environments.base import Environment

MAX_SWEEPS = 100_000
"""Of value iteration."""
MAX_DOUBLINGS = 24
"""Of policy evaluation: 16 million sweeps. In many more, the rounding of probabilities would matter."""
_RELATIVE = 2e-7
"""A change of less than this part of a value is rounding."""


class Transitions(NamedTuple):
    """A world with `Discrete` observations as a table.

    `probability[s, a, s2]` is that of going on in `s2`; what the sum over `s2` lacks to 1 is the probability that the
    episode terminates. `reward[s, a]` is the expected reward, `start[s]` the probability that an episode begins in
    `s`. Rows of states in which no action is ever taken (terminal ones) are zero.
    """

    probability: Float[np.ndarray, "S A S"]
    reward: Float[np.ndarray, "S A"]
    start: Float[np.ndarray, " S"]


class Values(NamedTuple):
    """What a policy is worth: `v(s)` and `q(s, a)`."""

    v: Float[Array, " S"]
    q: Float[Array, "S A"]


def tabulate(environment: Environment, num_states: int) -> Transitions:
    """The table of a deterministic world whose state is one integer in `[0, num_states)`, by stepping every state with
    every action. Rows of states that no episode reaches are zero, as those of terminal ones are.

    Works inside `jit` too, if the world's fields are not traced. Raises `TreadleError` where a first state or a step
    depends on its key.
    """
    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(0), 8)
        firsts = np.asarray(jax.vmap(environment.reset)(keys)[0])
        actions: Any = environment.action_space
        every_state, every_action = jnp.indices((num_states, actions.n), jnp.int32)

        def outcome(state, action, key):
            after, step = environment.step(state, action, key)
            return after, step.reward, step.terminated

        table = jax.vmap(jax.vmap(jax.vmap(outcome, (None, None, 0)), (0, 0, None)), (0, 0, None))
        successor, reward, terminated = (np.asarray(x) for x in table(every_state, every_action, keys))
    same = all((x == x[..., :1]).all() for x in (successor, reward, terminated))
    if not same or (firsts != firsts[0]).any():
        raise TreadleError(
            f"{type(environment).__name__} is random: its first state or what a step does depends on the key, and only "
            "deterministic worlds can be tabulated by stepping them. Write its transitions() by hand."
        )
    successor, reward, goes_on = successor[..., 0], reward[..., 0], ~terminated[..., 0]
    reached = _reached(successor, goes_on, firsts[0])
    probability = (np.arange(num_states) == successor[..., None]) & (goes_on & reached[:, None])[..., None]
    start = np.arange(num_states) == firsts[0]
    return Transitions(probability.astype(np.float32), reward * reached[:, None], start.astype(np.float32))


def _reached(successor: np.ndarray, goes_on: np.ndarray, first: int) -> Bool[np.ndarray, " S"]:
    """The states in which an episode that begins in `first` can take an action."""
    reached = np.arange(len(successor)) == first
    while True:
        wider = reached.copy()
        wider[successor[goes_on & reached[:, None]]] = True
        if (wider == reached).all():
            return reached
        reached = wider


def value_iteration(transitions: Transitions, gamma: float | Array) -> Float[Array, "S A"]:
    """The optimal action values, by sweeps until they change no more (equation 4.10, for `q`):

    `q(s, a) <- r(s, a) + gamma sum_s' p(s' | s, a) max_a' q(s', a')`

    What is left out by then is about `2e-7 / (1 - gamma)` of a value; where every episode ends soon, nothing. Raises
    `TreadleError`, outside `jit`, where they do not settle: with gamma 1, where rewards can be had for ever.
    """
    q, change = _optimal_values(*_arrays(transitions), gamma)
    _require_settled(q, change, gamma)
    return q


@jax.jit
def _optimal_values(probability: Array, reward: Array, gamma: float | Array) -> tuple[Array, Array]:
    """The values, and what the last sweep changed."""

    def sweep(loop):
        q, _, sweeps = loop
        better = _look_ahead(probability, reward, gamma, jnp.max(q, axis=1))
        return better, jnp.abs(better - q), sweeps + 1

    def unsettled(loop):
        q, change, sweeps = loop
        return jnp.any(change > _RELATIVE * jnp.abs(q)) & (sweeps < MAX_SWEEPS)

    q, change, _ = jax.lax.while_loop(unsettled, sweep, (reward, jnp.full_like(reward, jnp.inf), 0))
    return q, change


def policy_evaluation(
    transitions: Transitions, policy: Float[Array | np.ndarray, "S A"], gamma: float | Array
) -> Values:
    """The values of a policy, which gives the probabilities of actions (equations 4.4 and 4.6):

    `v(s) = sum_a pi(a | s) q(s, a)`, `q(s, a) = r(s, a) + gamma sum_s' p(s' | s, a) v(s')`

    The sweeps of iterative policy evaluation (equation 4.5), `v <- r + P v`, are taken in doubled strides: if `v_n` is
    what `n` sweeps from zero make, then `v_2n = v_n + P^n v_n`. So long episodes without discount cost little.

    Raises `TreadleError`, outside `jit`, where the values do not settle: with gamma 1, under a policy that earns
    rewards for ever.
    """
    probability, reward = _arrays(transitions)
    v, change = _policy_values(probability, reward, jnp.asarray(policy, jnp.float32), gamma)
    _require_settled(v, change, gamma)
    return Values(v, _look_ahead(probability, reward, gamma, v))


@jax.jit
def _policy_values(probability: Array, reward: Array, policy: Array, gamma: float | Array) -> tuple[Array, Array]:
    """`v`, and what the second half of the sweeps changed."""

    def double(loop):
        v, power, _, doublings = loop
        rest = jnp.matmul(power, v, precision="highest")
        return v + rest, jnp.matmul(power, power, precision="highest"), jnp.abs(rest), doublings + 1

    def unsettled(loop):
        v, _, change, doublings = loop
        return jnp.any(change > _RELATIVE * jnp.abs(v)) & (doublings < MAX_DOUBLINGS)

    one_step = gamma * jnp.einsum("sa,sat->st", policy, probability, precision="highest")
    first = jnp.sum(policy * reward, axis=1)
    v, _, change, _ = jax.lax.while_loop(unsettled, double, (first, one_step, jnp.full_like(first, jnp.inf), 0))
    return v, change


def optimal_actions(q: Float[Array | np.ndarray, "S A"], tolerance: float = 1e-5) -> Bool[Array, "S A"]:
    """Which actions are best in each state, or worse by no more than `tolerance` times the state's largest `|q|`."""
    q = jnp.asarray(q)
    slack = tolerance * jnp.max(jnp.abs(q), axis=1, keepdims=True)
    return q >= jnp.max(q, axis=1, keepdims=True) - slack


def greedy_policy(q: Float[Array | np.ndarray, "S A"], tolerance: float = 1e-5) -> Float[Array, "S A"]:
    """The greedy policy's probabilities (equation 4.9): each of the `optimal_actions` alike."""
    best = optimal_actions(q, tolerance).astype(jnp.float32)
    return best / jnp.sum(best, axis=1, keepdims=True)


def _arrays(transitions: Transitions) -> tuple[Float[Array, "S A S"], Float[Array, "S A"]]:
    return jnp.asarray(transitions.probability, jnp.float32), jnp.asarray(transitions.reward, jnp.float32)


def _look_ahead(probability: Array, reward: Array, gamma: float | Array, v: Array) -> Float[Array, "S A"]:
    """`r(s, a) + gamma sum_s' p(s' | s, a) v(s')`."""
    return reward + gamma * jnp.einsum("sat,t->sa", probability, v, precision="highest")


def _require_settled(values: Array, change: Array, gamma: float | Array) -> None:
    if isinstance(values, Tracer):
        return
    if not jnp.max(change) <= 1e-6 * jnp.max(jnp.abs(values)):
        raise TreadleError(
            f"the values did not settle with gamma {float(gamma):g}: somewhere rewards go on for ever, and their sum "
            "has no limit or a distant one. Give a smaller gamma, or a policy under which every episode ends."
        )
