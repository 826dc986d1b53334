"""The fused loop counted in episodes or updates, with looks at the learner between: what figures are made of.

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
from treadle.errors import InvalidSetting
from treadle.loops import fused
from treadle.loops.execution import compiler_options, seed_mesh
from treadle.loops.rollout import Actor
from treadle.loops.seeding import purpose, seed_key
from treadle.loops.seeds import padded, sharded
from treadle.registry import as_float32
from treadle.types import Mean, Metrics


class Moment(NamedTuple):
    """What there is to be seen at a look; whatever it does not use costs nothing."""

    algorithm: Algorithm
    environment: Environment
    state: PyTree
    """The algorithm's."""
    metrics: dict[str, Float[Array, ""]]
    """Each the mean over the updates since the look before; NaN where there was nothing to report."""
    visited: Actor
    """Where acting stood after each of these updates `[every, ...]`."""
    key: Array
    """Another at every look, and none that training uses."""


Observe = Callable[[Moment], PyTree]
"""What to keep of a moment: any tree of arrays."""

Unit = Literal["episode", "update"]

BLOCK = 1_024
"""Looks, at most, between two questions whether there were enough."""


class Looks(NamedTuple):
    """What was seen at each of `N` looks (of each of `S` seeds): the episodes that had ended since the look before, the
    sums of their returns and of their lengths, and what `observe` gave."""

    returns: Float[Array, "*S N"]
    lengths: Int[Array, "*S N"]
    ended: Int[Array, "*S N"]
    observed: PyTree


def train_and_look(
    algorithm: Algorithm,
    environment: Environment,
    key: Array,
    count: int,
    observe: Observe,
    unit: Unit,
    every: int = 1,
) -> Looks:
    """One seed up to its `count`-th look: after every so many updates, or after each episode of its one environment.

    Schedules given as fractions run over `count * every` updates; counted in episodes they have no meaning, because the
    number of steps is not known beforehand.
    """
    by_episodes = unit == "episode"
    total = 2**31 - 1 if by_episodes else count * every * algorithm.num_steps * algorithm.num_envs
    start = fused.init(algorithm, environment, key, total)
    one_round = fused.make_round(algorithm, environment)
    block = BLOCK if by_episodes else min(BLOCK, count)

    def rounds_between(learner, keys):
        def visit(learner, key):
            learner, record = one_round(learner, key)
            return learner, (record, learner[1])

        if every > 1:
            return hoist.scan(visit, learner, keys)
        learner, seen = visit(learner, keys[0])
        return learner, jax.tree.map(lambda x: x[None], seen)

    def look(state, seen, number):
        record, visited = seen
        look_key = jax.random.fold_in(purpose(key, "look"), number)
        moment = Moment(algorithm, environment, state, _means(record.metrics), visited, look_key)
        returns, lengths = record.episodes
        return Looks(jnp.sum(returns), jnp.sum(lengths), jnp.sum(lengths > 0), observe(moment))

    def rounds_and_look(carry, keys):
        learner, done, looks = carry
        learner, seen = rounds_between(learner, keys)
        new = look(learner[0], seen, done)
        counts = (new.ended > 0) | (not by_episodes)
        # Rounds at which nothing is to be seen write to a row beyond the last, which is cut off in the end.
        at = jnp.where(counts, jnp.minimum(done, count), count)
        looks = jax.tree.map(lambda rows, row: jax.lax.dynamic_update_index_in_dim(rows, row, at, 0), looks, new)
        return (learner, done + counts, looks), None

    def run_block(loop):
        rounds, carry = loop
        keys = fused.round_keys(start._replace(updates=rounds), block * every).reshape(block, every)
        carry, _ = hoist.scan(rounds_and_look, carry, keys)
        return rounds.add(block * every), carry

    def first_look(key):
        learner, seen = rounds_between((start.algorithm, start.actor), jnp.broadcast_to(key, every))
        return look(learner[0], seen, 0)

    shapes = jax.eval_shape(first_look, key)
    looks = jax.tree.map(lambda x: jnp.zeros((count + 1, *x.shape), x.dtype), shapes)
    first = (start.updates, ((start.algorithm, start.actor), jnp.zeros((), jnp.int32), looks))
    _, (_, _, looks) = jax.lax.while_loop(lambda loop: loop[1][1] < count, run_block, first)
    return jax.tree.map(lambda rows: rows[:count], looks)


def _means(metrics: Metrics) -> dict[str, Float[Array, ""]]:
    """The mean of each metric `[every]`, without those that only stop a run."""
    found = {}
    for name, value in metrics.items():
        if isinstance(value, Mean):
            total, weight = jnp.sum(value.total), jnp.sum(value.weight)
            found[name] = jnp.where(weight > 0, total / jnp.maximum(weight, 1e-9), jnp.nan)
        elif isinstance(value, jax.Array):
            found[name] = jnp.mean(value)
    return found


def look_at_seeds(
    algorithm: Algorithm,
    environment: Environment,
    count: int,
    observe: Observe | None = None,
    unit: Unit = "episode",
    seed: int = 0,
    num_seeds: int = 1,
    every: int = 1,
) -> Looks:
    """The same for many seeds, stacked along a leading axis; settings may be plain numbers.

    Raises `InvalidSetting` for looks after each episode where more than one might end between two of them.
    """
    if unit == "episode" and (every, algorithm.num_steps, algorithm.num_envs) != (1, 1, 1):
        raise InvalidSetting(
            f"looks after each episode were asked for, every {every} rounds of {algorithm.num_steps} steps of "
            f"{algorithm.num_envs} environments: more than one episode may end in between. Count updates instead."
        )
    mesh = seed_mesh(num_seeds)
    keys = jnp.stack([seed_key(seed, i) for i in padded(num_seeds, mesh)])
    run = _compiled(mesh, count, observe or _nothing, unit, every)
    looks = run(as_float32(algorithm.prepared()), as_float32(environment), keys)
    return jax.tree.map(lambda x: x[:num_seeds], looks)


def _nothing(moment: Moment) -> PyTree:
    return ()


@functools.cache
def _compiled(mesh: Any, count: int, observe: Observe, unit: Unit, every: int) -> Any:
    def many(algorithm, environment, keys):
        def one(key):
            return train_and_look(algorithm, environment, key, count, observe, unit, every)

        return jax.lax.map(one, keys)

    return jax.jit(sharded(many, mesh), compiler_options=compiler_options())
