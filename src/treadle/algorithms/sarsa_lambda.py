"""Sarsa(lambda): Sarsa with eligibility traces (Rummery and Niranjan 1994), with a table or linear features."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from treadle import features
from treadle.algorithms.base import register, require
from treadle.algorithms.linear import only
from treadle.algorithms.sarsa import Pending, Sarsa, sarsa_error
from treadle.errors import UnsupportedSpace
from treadle.features import LinearFunction, Table, TileCoding
from treadle.schedules import Schedule
from treadle.sharding import whole
from treadle.types import Metrics, Spec, Transition


class SarsaLambdaState(NamedTuple):
    """The values, how much of the next error each weight will take for what was done in the episode at hand, the
    actions chosen already, and how far training is."""

    q: LinearFunction
    traces: Float[Array, "B n A"]
    pending: Pending
    schedule: Schedule


@register("sarsa-lambda")
class SarsaLambda(Sarsa):
    """Sarsa whose errors also reach the states and actions before (Sutton and Barto 2018, section 12.7; for a table
    section 7.5 of their first edition).

    `e = gamma lambda e`, then `e` is raised for `(s, a)`, and `Q += alpha delta e` everywhere, with Sarsa's error
    `delta`. Each environment has a trace of its own, which begins at 0 with each of its episodes.
    """

    trace_decay: float = 0.9
    """Lambda: what is left of a trace after a step, besides gamma; in [0, 1]. 0 is Sarsa, 1 close to Monte Carlo."""
    trace: Literal["accumulating", "replacing"] = "replacing"
    """What a visit does to a state's trace: add 1 for the action; or set it to 1 for the action and to 0 for the others
    (Singh and Sutton 1996), which needs a table or tile coding."""

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        require(0 <= self.trace_decay <= 1, "trace_decay", self.trace_decay, "between 0 and 1")
        if spec is None or self.trace == "accumulating":
            return
        if not isinstance(self.feature_map(spec.observation_space), Table | TileCoding):
            raise UnsupportedSpace(
                f"{self.name} was asked for replacing traces, which are for features that are either 0 or 1, as in a "
                "table or a tile coding. With other features use --trace accumulating."
            )

    def columns(self, spec: Spec) -> int:
        return super().columns(spec) * (1 + self.num_envs)

    def init(self, key: Array, spec: Spec) -> SarsaLambdaState:
        q = self.q_function(spec)
        traces = jnp.zeros((spec.num_envs, *q.weights.shape))
        return SarsaLambdaState(q, traces, Pending.none(spec), Schedule.start(spec))

    def update(self, state: SarsaLambdaState, rollout: Transition, key: Array) -> tuple[SarsaLambdaState, Metrics]:
        """Choose the next actions, then learn from every environment in turn. The rollout is one step long."""
        rate = self.rate(state)
        next_action = whole(self.explore(state, jax.vmap(state.q)(rollout.next_obs[-1]), key))
        goes_on = whole(state.pending.is_due(rollout.obs[-1]))

        def learn(learned: tuple[LinearFunction, Array], b, t: Transition):
            q, traces = learned
            error = sarsa_error(q, t, self.gamma, next_action[b])
            trace = self.visit(self.gamma * self.trace_decay * goes_on[b] * traces[b], q, t)
            q = LinearFunction(weights=q.weights + rate * error * trace, features=q.features)
            return (q, traces.at[b].set(trace)), error

        (q, traces), metrics = self.each_row(learn, (state.q, state.traces), rollout)
        pending = Pending.after(rollout, next_action)
        return SarsaLambdaState(q, traces, pending, state.schedule.after(rollout)), metrics

    def visit(self, trace: Float[Array, "n A"], q: LinearFunction, t: Transition) -> Float[Array, "n A"]:
        """The trace raised for what was done."""
        active, visited = q.features(t.obs), only(t.action, 1.0, trace.shape[1])
        if self.trace == "accumulating":
            return features.add(trace, active, visited, dense=True)
        if isinstance(q.features, Table):  # a comparison with every place fuses with what else is done there
            return jnp.where((jnp.arange(len(trace)) == active.indices)[:, None], visited, trace)
        return trace.at[active.indices].set(visited, mode="promise_in_bounds", unique_indices=True)
