"""Sarsa (Rummery and Niranjan 1994), with a table or linear features."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from treadle.algorithms.base import Survey, register
from treadle.algorithms.linear import LinearControl, only
from treadle.features import LinearFunction
from treadle.returns import taken, td_error
from treadle.schedules import Schedule
from treadle.sharding import whole
from treadle.types import Metrics, Obs, Spec, Transition


class Pending(NamedTuple):
    """The next action of each environment: it was chosen for the update's target, and will really be taken."""

    obs: Obs
    """Where it is to be taken, `[B, ...]`."""
    action: Int[Array, " B"]
    waiting: Bool[Array, " B"]
    """False where there is none, because no episode goes on."""

    @classmethod
    def none(cls, spec: Spec) -> Pending:
        obs = jnp.broadcast_to(spec.example.obs, (spec.num_envs, *spec.example.obs.shape))
        return cls(obs, jnp.zeros(spec.num_envs, jnp.int32), jnp.zeros(spec.num_envs, jnp.bool_))

    @classmethod
    def after(cls, rollout: Transition, action: Int[Array, " B"]) -> Pending:
        """The actions chosen at the end of a rollout; none is carried over an episode's end."""
        waiting = ~(rollout.terminated[-1] | rollout.truncated[-1])
        if rollout.valid is not None:
            waiting &= rollout.valid[-1]
        return cls(rollout.next_obs[-1], action, waiting)

    def dropped(self) -> Pending:
        """None, because other episodes begin."""
        return self._replace(waiting=jnp.zeros_like(self.waiting))

    def is_due(self, obs: Obs) -> Bool[Array, " B"]:
        """Whether the pending action was chosen for `obs`: whether the episode goes on there."""
        is_there = jnp.all((self.obs == obs).reshape(len(self.action), -1), axis=-1)
        return self.waiting & is_there

    def instead_of(self, drawn: Int[Array, " B"], obs: Obs) -> Int[Array, " B"]:
        """What is taken in `obs`: the pending action if it is due, else the one just drawn."""
        return jnp.where(self.is_due(obs), self.action, drawn)


def sarsa_error(
    q: LinearFunction, t: Transition, gamma: Float[Array, ""] | float, next_action: Int[Array, ""]
) -> Float[Array, ""]:
    """r + gamma (1 - terminated) Q(s', a') - Q(s, a)   (equation 6.7); a time limit does not stop the bootstrap."""
    discount = gamma * (1.0 - t.terminated)
    return td_error(taken(q(t.obs), t.action), t.reward, discount, taken(q(t.next_obs), next_action))


class SarsaState(NamedTuple):
    """The values, the actions chosen already, and how far training is."""

    q: LinearFunction
    pending: Pending
    schedule: Schedule


@register("sarsa")
class Sarsa(LinearControl):
    """Learn the values of the policy that acts (Sutton and Barto 2018, section 6.4; with features the semi-gradient
    form of section 10.1).

    `Q(s, a) += alpha [r + gamma (1 - terminated) Q(s', a') - Q(s, a)]`, where `a'` is the action that is taken next,
    or would have been where a time limit cut the episode.
    """

    survey = Survey("model-free", "values", "step", "on-policy")

    def init(self, key: Array, spec: Spec) -> SarsaState:
        return SarsaState(self.q_function(spec), Pending.none(spec), Schedule.start(spec))

    def begin_episodes(self, state: SarsaState) -> SarsaState:
        return state._replace(pending=state.pending.dropped())

    def act(self, state, carry, obs, key, *, explore: bool = True):
        action, carry, extras = super().act(state, carry, obs, key, explore=explore)
        return state.pending.instead_of(action, obs) if explore else action, carry, extras

    def update(self, state: SarsaState, rollout: Transition, key: Array) -> tuple[SarsaState, Metrics]:
        """Choose the next actions, then learn from every environment in turn. The rollout is one step long."""
        rate = self.rate(state)
        next_action = whole(self.explore(state, jax.vmap(state.q)(rollout.next_obs[-1]), key))

        def learn(q: LinearFunction, b, t: Transition):
            error = sarsa_error(q, t, self.gamma, next_action[b])
            return q.add(t.obs, only(t.action, rate * error, q.weights.shape[1])), error

        q, metrics = self.each_row(learn, state.q, rollout)
        return SarsaState(q, Pending.after(rollout, next_action), state.schedule.after(rollout)), metrics
