"""Acting in a JAX world: the rollout `[T, B, ...]` that every algorithm learns from."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from treadle import hoist
from treadle.algorithms.base import Algorithm
from treadle.environments.base import Environment
from treadle.environments.wrappers import learning_reward
from treadle.networks import unraveled
from treadle.types import Alarm, Carry, EnvState, Metrics, Obs, Spec, Transition, select


class Actor(NamedTuple):
    """Where acting stands: `B` environments in the middle of their episodes."""

    carry: Carry
    env_state: EnvState
    obs: Obs
    episode_return: Float[Array, " B"]
    episode_length: Int[Array, " B"]


class Episodes(NamedTuple):
    """What ended during a rollout: undiscounted return and length where an episode ended, length 0 elsewhere."""

    returns: Float[Array | np.ndarray, "T B"]
    lengths: Int[Array | np.ndarray, "T B"]


def make_spec(algorithm: Algorithm, environment: Environment, total_timesteps: int) -> Spec:
    """What the algorithm may know of a JAX world. The example transition has the world's own shapes and dtypes."""

    def example(key):
        env_state, obs = environment.reset(key)
        action = environment.action_space.sample(key)
        _, step = environment.step(env_state, action, key)
        reward = learning_reward(environment, step)
        return Transition(obs, action, reward, step.obs, step.terminated, step.terminated)

    shapes = jax.eval_shape(example, jax.random.key(0))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return Spec(
        environment.observation_space,
        environment.action_space,
        algorithm.num_envs,
        total_timesteps,
        zeros,
        environment.max_episode_steps,
        getattr(environment, "transitions", None),
    )


def start(environment: Environment, carry: Carry, num_envs: int, key: Array) -> Actor:
    """`num_envs` environments at the start of their first episodes."""
    env_state, obs = jax.vmap(environment.reset)(jax.random.split(key, num_envs))
    return Actor(carry, env_state, obs, jnp.zeros(num_envs), jnp.zeros(num_envs, jnp.int32))


def collect(
    algorithm: Algorithm, environment: Environment, spec: Spec, state: PyTree, actor: Actor, key: Array
) -> tuple[Actor, Transition, Episodes]:
    """`algorithm.num_steps` steps of each environment under the current policy.

    Environments that end are reset at once; the transition keeps the true successor. Acting's carry is cleared at an
    episode's end. Returns are counted from the environment's own reward, also where learning sees another.
    """
    fresh_carry = algorithm.init_carry(spec)
    acting = unraveled(state)

    def one_step(actor: Actor, key: Array) -> tuple[Actor, tuple[Transition, Episodes]]:
        act_key, step_key, reset_key = jax.random.split(key, 3)
        action, carry, extras = algorithm.act(acting, actor.carry, actor.obs, act_key)
        env_state, step = jax.vmap(environment.step)(actor.env_state, action, jax.random.split(step_key, spec.num_envs))
        length = actor.episode_length + 1
        terminated = step.terminated
        truncated = _time_limit(environment, length) & ~terminated
        ended = terminated | truncated

        episode_return = actor.episode_return + step.reward
        reward = learning_reward(environment, step)
        transition = Transition(actor.obs, action, reward, step.obs, terminated, truncated, None, extras)
        episodes = Episodes(jnp.where(ended, episode_return, 0.0), jnp.where(ended, length, 0))

        first_state, first_obs = jax.vmap(environment.reset)(jax.random.split(reset_key, spec.num_envs))
        actor = Actor(
            carry=select(ended, fresh_carry, carry),
            env_state=select(ended, first_state, env_state),
            obs=select(ended, first_obs, step.obs),
            episode_return=jnp.where(ended, 0.0, episode_return),
            episode_length=jnp.where(ended, 0, length),
        )
        return actor, (transition, episodes)

    keys = jax.random.split(key, algorithm.num_steps)
    actor, (rollout, episodes) = hoist.scan(one_step, actor, keys)
    return actor, rollout, episodes


def with_alarm(metrics: Metrics, rollout: Transition) -> Metrics:
    """The metrics of an update, and an alarm where the environment gave what is no number, unless it was given such an
    action itself: then it is the learner that has gone astray."""
    bad = ~jnp.isfinite(rollout.reward)
    for x in _floats(rollout.next_obs):
        bad |= jnp.isnan(x).any(axis=tuple(range(2, x.ndim)))
    for x in _floats(rollout.action):
        bad &= jnp.isfinite(x).all(axis=tuple(range(2, x.ndim)))
    raised = jnp.any(bad if rollout.valid is None else bad & rollout.valid)
    return {**metrics, "environment_not_finite": Alarm(raised, NOT_FINITE)}


def _floats(tree: PyTree) -> list[Array]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


NOT_FINITE = (
    "the environment returned an observation that is NaN, or a reward that is NaN or infinite. Look in it for a "
    "division by zero or a state that has run away."
)


def _time_limit(environment: Environment, length: Int[Array, " B"]) -> Any:
    if environment.max_episode_steps is None:
        return jnp.zeros_like(length, jnp.bool_)
    return length >= environment.max_episode_steps
