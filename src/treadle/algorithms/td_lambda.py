"""Temporal-difference prediction (Sutton 1988), with a table or linear features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from treadle import features
from treadle.algorithms.base import Survey, register, require
from treadle.algorithms.prediction import FixedPolicy, Prediction
from treadle.features import LinearFunction
from treadle.returns import taken
from treadle.schedules import Schedule
from treadle.types import Metrics, Spec, Transition


class TDState(NamedTuple):
    """The values, the policy whose values they are, and how far training is."""

    v: LinearFunction
    target: Callable[[Any], Float[Array, " A"]]
    schedule: Schedule


@register("td-0")
class TD0(Prediction):
    """Learn the values of a policy from one step to the next (Sutton and Barto 2018, sections 6.1, 9.3 and 11.1).

    `w += alpha rho [r + gamma (1 - terminated) v(s', w) - v(s, w)] x(s)`, where `x` are the features and `rho` is the
    importance sampling ratio `pi(a|s) / b(a|s)` of the target policy `pi` to the behaviour `b`; 1 where they are the
    same.
    """

    survey = Survey("model-free", "values", "step", "off-policy")

    behaviour: tuple[float, ...] | None = None
    """Probability of each action under the policy that acts instead of the target policy, the same in every state."""

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        self.check_probabilities("behaviour", spec)
        if self.behaviour is None:
            return
        target = self.target_policy or (1.0,) * len(self.behaviour)
        covers = all(b > 0 or p == 0 for p, b in zip(target, self.behaviour, strict=False))
        require(covers, "behaviour", self.behaviour, "greater than 0 for every action that the target policy takes")

    def init(self, key: Array, spec: Spec) -> TDState:
        return TDState(self.value_function(spec), self.target(spec), Schedule.start(spec))

    def acting(self, state) -> Callable[[Any], Float[Array, " A"]]:
        return state.target if self.behaviour is None else FixedPolicy(probabilities=self.behaviour)

    def ratio(self, state, t: Transition) -> Float[Array, ""]:
        """rho = pi(a|s) / b(a|s)   (equation 11.1)."""
        if self.behaviour is None:
            return jnp.ones(())
        return taken(state.target(t.obs), t.action) / taken(self.acting(state)(t.obs), t.action)

    def update(self, state: TDState, rollout: Transition, key: Array) -> tuple[TDState, Metrics]:
        """Learn from every row of the rollout in turn."""
        rate = self.rate(state)

        def learn(v: LinearFunction, _, t: Transition):
            error = self.td_error(v, t)
            return v.add(t.obs, rate * self.ratio(state, t) * error), error

        v, metrics = self.each_row(learn, state.v, rollout)
        return TDState(v, state.target, state.schedule.after(rollout)), metrics


class TDLambdaState(NamedTuple):
    """The values, how much of the next error each weight will take for what was seen in the episode at hand, the
    policy whose values they are, and how far training is."""

    v: LinearFunction
    traces: Float[Array, "B n"]
    target: Callable[[Any], Float[Array, " A"]]
    schedule: Schedule


@register("td-lambda")
class TDLambda(TD0):
    """TD(0) whose errors also reach the states before, by accumulating traces (Sutton and Barto 2018, section 12.2,
    and 12.9 for `rho`).

    `z = rho (gamma lambda z + x(s))` (equations 12.5 and 12.25), and `w += alpha delta z` (equation 12.7) with the TD
    error `delta`. Each environment has a trace of its own, which begins at 0 with each of its episodes.
    """

    trace_decay: float = 0.9
    """Lambda: what is left of a trace after a step, besides gamma; in [0, 1]. 0 is TD(0), 1 close to Monte Carlo."""

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        require(0 <= self.trace_decay <= 1, "trace_decay", self.trace_decay, "between 0 and 1")

    def columns(self, spec: Spec) -> int:
        return 1 + self.num_envs

    def init(self, key: Array, spec: Spec) -> TDLambdaState:
        v = self.value_function(spec)
        return TDLambdaState(v, jnp.zeros((spec.num_envs, len(v.weights))), self.target(spec), Schedule.start(spec))

    def update(self, state: TDLambdaState, rollout: Transition, key: Array) -> tuple[TDLambdaState, Metrics]:
        """Learn from every row of the rollout in turn."""
        rate = self.rate(state)

        def learn(learned, b, t: Transition):
            v, traces = learned
            error, rho = self.td_error(v, t), self.ratio(state, t)
            decayed = rho * self.gamma * self.trace_decay * traces[b]
            trace = features.add(decayed, v.features(t.obs), rho, dense=True)
            v = LinearFunction(weights=v.weights + rate * error * trace, features=v.features)
            return (v, traces.at[b].set(jnp.where(t.terminated | t.truncated, 0.0, trace))), error

        (v, traces), metrics = self.each_row(learn, (state.v, state.traces), rollout)
        return TDLambdaState(v, traces, state.target, state.schedule.after(rollout)), metrics

    def begin_episodes(self, state):
        return state._replace(traces=jnp.zeros_like(state.traces))
