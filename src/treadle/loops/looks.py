"""The fused loop counted in episodes or updates, with a look at the learner after each: what figures are made of.

The rounds are those of `fused.advance`, with the same randomness. Looks are compiled into the loop: they cost
no round trip.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from treadle import hoist
from treadle.algorithms.base import Algorithm
from treadle.environments.base import Environment
from treadle.loops import fused
from treadle.loops.execution import compiler_options, seed_mesh
from treadle.loops.seeding import seed_key
from treadle.loops.seeds import padded, sharded
from treadle.registry import as_float32

Observe = Callable[[PyTree], PyTree]
"""What to keep of an algorithm's state at a look: any tree of arrays."""

Unit = Literal["episode", "update"]

BLOCK = 1_024
"""Rounds that are run between two questions whether there were enough."""


class Looks(NamedTuple):
    """What was seen at each of `N` looks (of each of `S` seeds): return and length of the episode that had just ended,
    0 where none had, and what `observe` gave."""

    returns: Float[Array, "*S N"]
    lengths: Int[Array, "*S N"]
    observed: PyTree


def train_and_look(
    algorithm: Algorithm, environment: Environment, key: Array, count: int, observe: Observe, unit: Unit
) -> Looks:
    """One seed for `count` episodes or updates, with a look after each. `num_envs` must be 1.

    Schedules given as fractions run over `count` updates; counted in episodes they have no meaning, because the number
    of steps is not known beforehand.
    """
    total = count * algorithm.num_steps if unit == "update" else 2**31 - 1
    start = fused.init(algorithm, environment, key, total)
    one_round = fused.make_round(algorithm, environment)

    def look(state, record):
        return Looks(jnp.sum(record.episodes.returns), jnp.sum(record.episodes.lengths), observe(state))

    def round_and_look(carry, key):
        learner, done, looks = carry
        learner, record = one_round(learner, key)
        new = look(learner[0], record)
        counts = (new.lengths > 0) | (unit == "update")
        # Rounds at which nothing is to be seen write to a row beyond the last, which is cut off in the end.
        at = jnp.where(counts, jnp.minimum(done, count), count)
        looks = jax.tree.map(lambda rows, row: jax.lax.dynamic_update_index_in_dim(rows, row, at, 0), looks, new)
        return (learner, done + counts, looks), None

    def block(loop):
        rounds, carry = loop
        keys = fused.round_keys(start._replace(updates=rounds), BLOCK)
        carry, _ = hoist.scan(round_and_look, carry, keys)
        return rounds.add(BLOCK), carry

    record = jax.eval_shape(lambda key: one_round((start.algorithm, start.actor), key)[1], key)
    shapes = jax.eval_shape(look, start.algorithm, record)
    looks = jax.tree.map(lambda x: jnp.zeros((count + 1, *x.shape), x.dtype), shapes)
    first = (start.updates, ((start.algorithm, start.actor), jnp.zeros((), jnp.int32), looks))
    _, (_, _, looks) = jax.lax.while_loop(lambda loop: loop[1][1] < count, block, first)
    return jax.tree.map(lambda rows: rows[:count], looks)


def look_at_seeds(
    algorithm: Algorithm,
    environment: Environment,
    count: int,
    observe: Observe | None = None,
    unit: Unit = "episode",
    seed: int = 0,
    num_seeds: int = 1,
) -> Looks:
    """The same for many seeds, stacked along a leading axis; settings may be plain numbers."""
    mesh = seed_mesh(num_seeds)
    keys = jnp.stack([seed_key(seed, i) for i in padded(num_seeds, mesh)])
    run = _compiled(mesh, count, observe or _nothing, unit)
    looks = run(as_float32(algorithm.prepared()), as_float32(environment), keys)
    return jax.tree.map(lambda x: x[:num_seeds], looks)


def _nothing(state: PyTree) -> PyTree:
    return ()


@functools.cache
def _compiled(mesh: Any, count: int, observe: Observe, unit: Unit) -> Any:
    def many(algorithm, environment, keys):
        return jax.lax.map(lambda key: train_and_look(algorithm, environment, key, count, observe, unit), keys)

    return jax.jit(sharded(many, mesh), compiler_options=compiler_options())
