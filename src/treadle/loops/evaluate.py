"""Evaluation: greedy episodes with their own randomness, which never change training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from treadle.algorithms.base import Algorithm
from treadle.environments.base import Environment
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.loops.execution import compile_small
from treadle.loops.host import host_spec
from treadle.loops.rollout import make_spec
from treadle.loops.seeding import host_seed, purpose
from treadle.types import Carry, EnvState, Obs, Step, select

STEP_LIMIT = 10_000
"""Where an environment has no time limit, an evaluation episode is cut after this many steps."""


class Evaluation(NamedTuple):
    """Undiscounted, unscaled returns and lengths of the episodes."""

    returns: Float[Array | np.ndarray, " N"]
    lengths: Int[Array | np.ndarray, " N"]
    successes: Bool[Array | np.ndarray, " N"] | None = None
    """Whether each ended in success, in worlds that say so (`is_success`)."""


def evaluate(
    algorithm: Algorithm,
    policy: PyTree,
    environment: Environment | GymnasiumEnvironments,
    episodes: int,
    key: Array,
    each_step: Callable[[GymnasiumEnvironments], None] | None = None,
) -> Evaluation:
    """`episodes` greedy episodes.

    Which environment of a vector plays how many episodes is fixed beforehand: taking whichever finish first would
    favour short episodes. `each_step` is called with host environments before each of their steps.
    """
    key = purpose(key, "evaluate")
    if isinstance(environment, GymnasiumEnvironments):
        return _evaluate_host(algorithm, policy, environment, episodes, key, each_step)
    found = jax.device_get(_evaluate_jax(algorithm, policy, environment, episodes, key))
    return found if hasattr(environment, "is_success") else found._replace(successes=None)


def _evaluate_host(
    algorithm: Algorithm,
    policy: PyTree,
    environments: GymnasiumEnvironments,
    episodes: int,
    key: Array,
    each_step: Callable[[GymnasiumEnvironments], None] | None,
) -> Evaluation:
    num_envs = environments.num_envs
    quota = np.full(num_envs, episodes // num_envs)
    quota[: episodes % num_envs] += 1
    limit = environments.max_episode_steps or STEP_LIMIT
    spec = dataclasses.replace(host_spec(algorithm, environments, 0), num_envs=num_envs)
    fresh = carry = algorithm.init_carry(spec)

    finished: list[list[tuple[float, int]]] = [[] for _ in range(num_envs)]
    obs = environments.reset(host_seed(key))
    returns, lengths, number = np.zeros(num_envs), np.zeros(num_envs, int), 0
    full, cut = quota == 0, np.zeros(num_envs, bool)
    while not full.all():
        if each_step is not None:
            each_step(environments)
        action, carry = _greedy(algorithm, policy, carry, obs, jax.random.fold_in(key, number))
        step = environments.step(np.asarray(action))
        obs, number = step.obs, number + 1
        live = ~cut if step.valid is None else step.valid & ~cut
        returns += np.where(live, step.reward, 0.0)
        lengths += live
        ended = step.terminated | step.truncated
        overlong = live & ~ended & (lengths >= limit)
        for i in np.flatnonzero(live & (ended | overlong)):
            if not full[i]:
                finished[i].append((float(returns[i]), int(lengths[i])))
                full[i] = len(finished[i]) == quota[i]
            returns[i], lengths[i] = 0.0, 0
        restarted = ended if step.valid is None else ended | ~step.valid
        # Only all environments together can be reset, so that one whose episode was cut waits for the others.
        cut = (cut | overlong) & ~ended
        if (cut | full).all() and not full.all():
            obs = environments.reset(host_seed(jax.random.fold_in(purpose(key, "reset"), number)))
            cut, restarted = np.zeros(num_envs, bool), np.ones(num_envs, bool)
        carry = select(jnp.asarray(restarted), fresh, carry)
    flat = [episode for episodes_of_one in finished for episode in episodes_of_one]
    return Evaluation(
        np.asarray([r for r, _ in flat], np.float32),
        np.asarray([n for _, n in flat], np.int32),
    )


@compile_small
def _greedy(algorithm: Algorithm, policy: PyTree, carry: Any, obs: Any, key: Array) -> tuple[Any, Any]:
    action, carry, _ = algorithm.act(policy, carry, obs, key, explore=False)
    return action, carry


class _Play(NamedTuple):
    """Where episodes side by side stand in a JAX world."""

    env_state: EnvState
    obs: Obs
    carry: Carry
    number: Int[Array, ""]


def _begin(algorithm: Algorithm, environment: Environment, episodes: int, key: Array) -> _Play:
    spec = dataclasses.replace(make_spec(algorithm, environment, 0), num_envs=episodes)
    env_state, obs = jax.vmap(environment.reset)(jax.random.split(purpose(key, "reset"), episodes))
    return _Play(env_state, obs, algorithm.init_carry(spec), jnp.zeros((), jnp.int32))


def _greedy_step(
    algorithm: Algorithm, policy: PyTree, environment: Environment, play: _Play, key: Array
) -> tuple[_Play, Step]:
    act_key, step_key = jax.random.split(jax.random.fold_in(key, play.number))
    action, carry, _ = algorithm.act(policy, play.carry, play.obs, act_key, explore=False)
    keys = jax.random.split(step_key, len(jax.tree.leaves(action)[0]))
    env_state, step = jax.vmap(environment.step)(play.env_state, action, keys)
    return _Play(env_state, step.obs, carry, play.number + 1), step


def jax_episodes(
    algorithm: Algorithm, policy: PyTree, environment: Environment, episodes: int, key: Array
) -> Evaluation:
    """All episodes side by side, one in each environment, until the last has ended; compiled into whatever calls it. In
    worlds that do not say what a success is, none is."""
    limit = environment.max_episode_steps or STEP_LIMIT
    is_success = jax.vmap(getattr(environment, "is_success", lambda _: jnp.zeros((), jnp.bool_)))

    def going(loop):
        return jnp.any(loop[1])

    def one_step(loop):
        play, alive, (returns, lengths, successes) = loop
        play, step = _greedy_step(algorithm, policy, environment, play, key)
        returns, lengths = returns + jnp.where(alive, step.reward, 0.0), lengths + alive
        successes = jnp.where(alive, is_success(play.env_state), successes)
        return play, alive & ~step.terminated & (lengths < limit), Evaluation(returns, lengths, successes)

    zeros = jnp.zeros(episodes)
    start = Evaluation(zeros, zeros.astype(jnp.int32), zeros > 0)
    return jax.lax.while_loop(going, one_step, (_begin(algorithm, environment, episodes, key), zeros == 0, start))[2]


_evaluate_jax = compile_small(jax_episodes, static_argnums=3)
_compiled_begin = compile_small(_begin, static_argnums=2)
_compiled_step = compile_small(_greedy_step)


def greedy_episode(
    algorithm: Algorithm, policy: PyTree, environment: Environment, key: Array, at_most: int = STEP_LIMIT
) -> list[EnvState]:
    """The states of a greedy episode in a JAX world, in NumPy, from the first to that in which it ends: the episode
    that `evaluate` plays when it plays one with this key. After `at_most` states it is cut."""
    key = purpose(key, "evaluate")
    limit = min(environment.max_episode_steps or STEP_LIMIT, at_most - 1)
    play = _compiled_begin(algorithm, environment, 1, key)
    states, ended = [play.env_state], False
    while not ended and len(states) <= limit:
        play, step = _compiled_step(algorithm, policy, environment, play, key)
        states.append(play.env_state)
        ended = bool(step.terminated[0])
    return [jax.tree.map(lambda x: x[0], state) for state in jax.device_get(states)]
