"""Dyna-Q (Sutton 1990): Q-learning from experience, and from what a model of the world remembers of it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from treadle.algorithms.base import Survey, register, require
from treadle.algorithms.linear import LinearControl, only, row
from treadle.errors import UnsupportedSpace
from treadle.features import LinearFunction, Table
from treadle.returns import q_learning_error
from treadle.schedules import Schedule
from treadle.types import Metrics, Spec, Transition


class Outcome(NamedTuple):
    """What followed an action, or every state and action `[S, A]`."""

    reward: Float[Array, "..."]
    next_obs: Int[Array, "..."]
    terminated: Bool[Array, "..."]


class Model(NamedTuple):
    """The last outcome of every state and action, and lists of what was seen, so that drawing of it takes the same time
    whatever their number."""

    outcome: Outcome
    actions: Int[Array, "S A"]
    """Of each state, the actions taken in it, in the order in which they were first; -1 beyond."""
    obs: Int[Array, " S"]
    """The observations of the states in which an action was taken, likewise."""
    num_states: Int[Array, ""]
    """How many they are."""

    @classmethod
    def empty(cls, spec: Spec, states: int, actions: int) -> Model:
        t = spec.example
        zeros = [jnp.zeros((states, actions), x.dtype) for x in (t.reward, t.next_obs, t.terminated)]
        unseen = jnp.full((states, actions), -1, jnp.int32)
        return cls(Outcome(*zeros), unseen, jnp.zeros(states, t.obs.dtype), jnp.zeros((), jnp.int32))

    def after(self, state: Int[Array, ""], t: Transition) -> Model:
        """With what followed an action in a state, given by its row."""
        known = self.actions[state]
        count, is_new = jnp.sum(known >= 0), jnp.all(known != t.action)
        listed = jnp.where((jnp.arange(len(known)) == count) & is_new, t.action, known)
        outcome = jax.tree.map(
            lambda table, x: table.at[state, t.action].set(x, mode="promise_in_bounds"),
            self.outcome,
            Outcome(t.reward, t.next_obs, t.terminated),
        )
        # Written also where the state is not new, beyond the end of the list: the next new one takes the place.
        obs = self.obs.at[self.num_states].set(t.obs, mode="drop")
        actions = self.actions.at[state].set(listed, mode="promise_in_bounds")
        return Model(outcome, actions, obs, self.num_states + (count == 0))

    def draw(self, uniform: Float[Array, "2"], q: LinearFunction) -> tuple[Array, Array, Outcome]:
        """A random state seen before, by its observation, a random action taken in it before, and its outcome."""
        obs = self.obs[(uniform[0] * self.num_states).astype(jnp.int32)]
        state = row(q, obs)
        known = self.actions[state]
        action = known[(uniform[1] * jnp.sum(known >= 0)).astype(jnp.int32)]
        return obs, action, jax.tree.map(lambda table: table[state, action], self.outcome)


class DynaQState(NamedTuple):
    """The values, the model, and how far training is."""

    q: LinearFunction
    model: Model
    schedule: Schedule


@register("dyna-q")
class DynaQ(LinearControl):
    """Q-learning that also learns from a model of the world (Sutton and Barto 2018, section 8.2).

    After each step, `planning_steps` updates more: each from a state seen before and an action taken in it before, both
    drawn at random, and the outcome that the model remembers. The model takes the world to be deterministic.
    """

    survey = Survey("model-based", "values", "step", "off-policy")

    planning_steps: int = 5
    """Updates from the model for each step in the world; 0 is Q-learning."""

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        require(self.planning_steps >= 0, "planning_steps", self.planning_steps, "0 or more")
        if spec is not None and not isinstance(self.feature_map(spec.observation_space), Table):
            raise UnsupportedSpace(
                f"{self.name} remembers what follows each state, and so needs a table; it was given other features. "
                "Leave --features out, or use q-learning."
            )

    def columns(self, spec: Spec) -> int:
        return super().columns(spec) * 5

    def init(self, key: Array, spec: Spec) -> DynaQState:
        q = self.q_function(spec)
        return DynaQState(q, Model.empty(spec, *q.weights.shape), Schedule.start(spec))

    def update(self, state: DynaQState, rollout: Transition, key: Array) -> tuple[DynaQState, Metrics]:
        """Learn from every environment in turn, each time directly, as a model, and from it. The rollout is one step
        long."""
        rate = self.rate(state)
        draws = jax.random.uniform(key, (rollout.reward.shape[1], self.planning_steps, 2))

        def q_learning(q: LinearFunction, obs, action, outcome: Outcome):
            values, discount = q(obs), self.gamma * (1.0 - outcome.terminated)
            td_error = q_learning_error(values, action, outcome.reward, discount, q(outcome.next_obs))
            return q.add(obs, only(action, rate * td_error, len(values))), td_error

        def learn(learned: tuple[LinearFunction, Model], b, t: Transition):
            q, model = learned
            q, td_error = q_learning(q, t.obs, t.action, Outcome(t.reward, t.next_obs, t.terminated))
            model = model.after(row(q, t.obs), t)
            q, _ = jax.lax.scan(lambda q, uniform: (q_learning(q, *model.draw(uniform, q))[0], None), q, draws[b])
            return (q, model), td_error

        (q, model), metrics = self.each_row(learn, (state.q, state.model), rollout)
        return DynaQState(q, model, state.schedule.after(rollout)), metrics
