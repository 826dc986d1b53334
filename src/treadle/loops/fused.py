"""The fused loop: environment, action and update compiled into one `scan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from treadle import hoist, packing
from treadle.algorithms.base import Algorithm
from treadle.environments.base import Environment
from treadle.environments.wrappers import Wrapped, learning_reward
from treadle.loops.execution import SMALL_LOOP
from treadle.loops.rollout import Actor, Episodes, collect, make_spec, start, with_alarm
from treadle.loops.seeding import purpose
from treadle.types import Counter, Metrics, Step, Transition

LONG_ROUND = 32
"""Steps of a rollout from which on it does not matter how many buffers a round has."""


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
    data: Transition | None = None
    """The transitions `[N, T, B, ...]` with the environment's own rewards, where they are kept."""


def init(algorithm: Algorithm, environment: Environment, key: Array, total_timesteps: int) -> TrainState:
    """The state of one seed before its first step."""
    spec = make_spec(algorithm, environment, total_timesteps)
    actor = start(environment, algorithm.init_carry(spec), spec.num_envs, purpose(key, "reset"))
    state = algorithm.init(purpose(key, "init"), spec)
    return TrainState(state, actor, Counter.zero(), key)


def advance(
    algorithm: Algorithm, environment: Environment, state: TrainState, num_updates: int, keep_data: bool = False
) -> tuple[TrainState, Record]:
    """`num_updates` rounds of rollout and update. Pure: splitting it into chunks changes nothing.

    The randomness of a round follows from the seed's key and the round's number alone.
    """
    one_round = make_round(algorithm, environment, keep_data)
    keys = round_keys(state, num_updates)
    carry = state.algorithm, state.actor
    (algorithm_state, actor), record = _scan_for(algorithm, carry)(one_round, carry, keys)
    return TrainState(algorithm_state, actor, state.updates.add(num_updates), state.key), record


def _scan_for(algorithm: Algorithm, carry: PyTree) -> Callable[..., Any]:
    """The `scan` that is faster: with few buffers, unless rounds are long or the loop so small that it is one function,
    in which buffers cost nothing and laying them side by side does."""
    size = sum(x.nbytes for x in jax.tree.leaves(carry) if not hoist.is_key(x))
    return packing.scan if algorithm.num_steps < LONG_ROUND and size > SMALL_LOOP else hoist.scan


def make_round(
    algorithm: Algorithm, environment: Environment, keep_data: bool = False
) -> Callable[..., tuple[tuple[PyTree, Actor], Record]]:
    """One round of rollout and update, as the body of a scan: `((algorithm_state, actor), key)` to the next pair and
    what was reported, the transitions among it if they are kept."""
    spec = make_spec(algorithm, environment, 0)
    acted_in = _with_own_rewards(environment) if keep_data else environment

    def one_round(carry, key):
        algorithm_state, actor = carry
        rollout_key, update_key = jax.random.split(key)
        actor, rollout, episodes = collect(algorithm, acted_in, spec, algorithm_state, actor, rollout_key)
        data = rollout._replace(extras=()) if keep_data else None
        if acted_in is not environment:
            step = Step(rollout.next_obs, rollout.reward, rollout.terminated)
            rollout = rollout._replace(reward=learning_reward(environment, step))
        algorithm_state, metrics = algorithm.update(algorithm_state, rollout, update_key)
        return (algorithm_state, actor), Record(with_alarm(metrics, rollout), episodes, data)

    return one_round


def _with_own_rewards(environment: Environment) -> Environment:
    """The same world, in which learning would see the world's own rewards."""
    return dataclasses.replace(environment, changes_rewards=False) if isinstance(environment, Wrapped) else environment


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
