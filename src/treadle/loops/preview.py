"""The steps that a training is about to take, for whoever watches: the loops keep only where acting stands between two
updates, and there an episode that ended has already given way to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, PyTree

from treadle.algorithms.base import Algorithm
from treadle.environments.base import Environment
from treadle.loops.execution import compile_small
from treadle.loops.fused import TrainState, round_keys
from treadle.loops.rollout import collect, make_spec
from treadle.types import Action, Carry, EnvState, Obs, Step


class Preview(NamedTuple):
    """`T` steps of one environment: the states that they lead to, also where they end an episode."""

    states: EnvState
    rewards: Float[Array, " T"]
    ended: Bool[Array, " T"]


@compile_small
def next_round(algorithm: Algorithm, environment: Environment, states: TrainState) -> Preview:
    """The steps of the first seed's first environment in the round that comes next, from the stacked states of all
    seeds. The randomness is that of the round."""
    state = jax.tree.map(lambda x: x[0], states)
    rollout_key, _ = jax.random.split(round_keys(state, 1)[0])
    actor = state.actor._replace(obs=(state.actor.obs, state.actor.env_state))
    actors: Any = _Actors(algorithm)
    world: Any = _World(environment)
    spec = make_spec(algorithm, environment, 0)
    _, rollout, _ = collect(actors, world, spec, state.algorithm, actor, rollout_key)
    ended = rollout.terminated | rollout.truncated
    successors = rollout.next_obs[1]
    return jax.tree.map(lambda x: x[:, 0], Preview(successors, rollout.reward, ended))


class _World:
    """A world whose observation brings its state along."""

    def __init__(self, environment: Environment):
        self._environment, self.max_episode_steps = environment, environment.max_episode_steps

    def reset(self, key: Array) -> tuple[EnvState, tuple[Obs, EnvState]]:
        state, obs = self._environment.reset(key)
        return state, (obs, state)

    def step(self, state: EnvState, action: Action, key: Array) -> tuple[EnvState, Step]:
        state, step = self._environment.step(state, action, key)
        return state, step._replace(obs=(step.obs, state))


class _Actors:
    """An algorithm that acts there, and looks at the observation alone."""

    def __init__(self, algorithm: Algorithm):
        self._algorithm, self.num_steps, self.init_carry = algorithm, algorithm.num_steps, algorithm.init_carry

    def act(self, state: PyTree, carry: Carry, obs: tuple[Obs, EnvState], key: Array) -> tuple[Action, Carry, tuple]:
        action, carry, _ = self._algorithm.act(state, carry, obs[0], key)
        return action, carry, ()
