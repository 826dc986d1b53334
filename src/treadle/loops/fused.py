"""The fused loop: environment, action and update compiled into one `scan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from treadle import hoist
from treadle.algorithms.base import Algorithm
from treadle.environments.base import Environment
from treadle.loops.rollout import Actor, Episodes, collect, make_spec, start
from treadle.loops.seeding import purpose
from treadle.types import Counter, Metrics


class TrainState(NamedTuple):
    """Everything that a run of one seed is: a checkpoint is this tree."""

    algorithm: PyTree
    actor: Actor
    updates: Counter
    key: Array


class Record(NamedTuple):
    """What `N` updates reported: metrics `[N]` each, and the episodes that ended `[N, T, B]`."""

    metrics: Metrics
    episodes: Episodes


def init(algorithm: Algorithm, environment: Environment, key: Array, total_timesteps: int) -> TrainState:
    """The state of one seed before its first step."""
    spec = make_spec(algorithm, environment, total_timesteps)
    actor = start(environment, algorithm.init_carry(spec), spec.num_envs, purpose(key, "reset"))
    state = algorithm.init(purpose(key, "init"), spec)
    return TrainState(state, actor, Counter.zero(), key)


def advance(
    algorithm: Algorithm, environment: Environment, state: TrainState, num_updates: int
) -> tuple[TrainState, Record]:
    """`num_updates` rounds of rollout and update. Pure: splitting it into chunks changes nothing.

    The randomness of a round follows from the seed's key and the round's number alone.
    """
    one_round = make_round(algorithm, environment)
    keys = round_keys(state, num_updates)
    (algorithm_state, actor), record = hoist.scan(one_round, (state.algorithm, state.actor), keys)
    return TrainState(algorithm_state, actor, state.updates.add(num_updates), state.key), record


def make_round(algorithm: Algorithm, environment: Environment) -> Callable[..., tuple[tuple[PyTree, Actor], Record]]:
    """One round of rollout and update, as the body of a scan: `((algorithm_state, actor), key)` to the next pair and
    what was reported."""
    spec = make_spec(algorithm, environment, 0)

    def one_round(carry, key):
        algorithm_state, actor = carry
        rollout_key, update_key = jax.random.split(key)
        actor, rollout, episodes = collect(algorithm, environment, spec, algorithm_state, actor, rollout_key)
        algorithm_state, metrics = algorithm.update(algorithm_state, rollout, update_key)
        return (algorithm_state, actor), Record(metrics, episodes)

    return one_round


def round_keys(state: TrainState, num_updates: int) -> Array:
    """The keys `[N]` of the next rounds."""
    rounds = state.updates.value + jnp.arange(num_updates)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(purpose(state.key, "train"), rounds)


def train(algorithm: Algorithm, environment: Environment, key: Array, num_updates: int) -> tuple[TrainState, Record]:
    """A whole training as a pure function, to be `jit`ted and `vmap`ped as you like.

    `num_updates` rounds take `num_updates * num_steps * num_envs` environment steps, over which schedules given as
    fractions are laid out. Over keys it is many seeds; over a stack of algorithms
    (`jax.tree.map(lambda *x: jnp.stack(x), *algorithms)`) it is a sweep.
    """
    total_timesteps = num_updates * algorithm.num_steps * algorithm.num_envs
    return advance(algorithm, environment, init(algorithm, environment, key, total_timesteps), num_updates)
