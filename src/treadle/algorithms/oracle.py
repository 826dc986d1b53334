"""Regression on known values: what features can express, apart from how values are learned from rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from treadle import exact
from treadle.algorithms.base import Survey, register
from treadle.algorithms.linear import Linear, LinearControl, only
from treadle.algorithms.prediction import Prediction
from treadle.errors import InvalidSetting, UnsupportedSpace
from treadle.features import LinearFunction, Table
from treadle.returns import taken
from treadle.schedules import Schedule
from treadle.spaces import Discrete
from treadle.types import Metrics, Spec, Transition


class OracleState(NamedTuple):
    """The values as they are learned and as they are known, and how far training is."""

    q: LinearFunction
    known: LinearFunction
    schedule: Schedule


@register("oracle")
class Oracle(LinearControl):
    """Learn the optimal action values from an oracle that knows them, where it acts.

    `w_a += alpha [q*(s, a) - q(s, a, w)] x(s)`: stochastic gradient descent towards the values themselves (Sutton and
    Barto 2018, equation 9.5). Where they are not given they are found by value iteration, once.
    """

    survey = Survey("model-based", "values", "step", "off-policy")

    values: Array | None = None
    """The known values `[S, A]` of a world with `S` discrete observations; those of value iteration when not given, in
    worlds that are small enough to have a table."""

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        if spec is not None:
            _check_known(self, self.values, spec, _columns(spec))

    def init(self, key: Array, spec: Spec) -> OracleState:
        def optimal(transitions: exact.Transitions):
            return exact.value_iteration(transitions, self.gamma)

        known = _known(self.values, spec, _columns(spec), optimal)
        return OracleState(self.q_function(spec), known, Schedule.start(spec))

    def update(self, state: OracleState, rollout: Transition, key: Array) -> tuple[OracleState, Metrics]:
        """Learn from every row of the rollout in turn."""
        rate = self.rate(state)

        def learn(q: LinearFunction, _, t: Transition):
            values = q(t.obs)
            error = taken(state.known(t.obs) - values, t.action)
            return q.add(t.obs, only(t.action, rate * error, len(values))), error

        q, metrics = self.each_row(learn, state.q, rollout)
        return state._replace(q=q, schedule=state.schedule.after(rollout)), {"error": metrics["td_error"]}


class OraclePredictionState(NamedTuple):
    """The values as they are learned and as they are known, the policy whose values they are, and how far training
    is."""

    v: LinearFunction
    known: LinearFunction
    target: Callable[[Any], Float[Array, " A"]]
    schedule: Schedule


@register("oracle-prediction")
class OraclePrediction(Prediction):
    """Learn the values of a policy from an oracle that knows them, where that policy goes.

    `w += alpha [v(s) - v(s, w)] x(s)` (Sutton and Barto 2018, equation 9.5). Where the values are not given they are
    found by policy evaluation, once.
    """

    survey = Survey("model-based", "values", "step", "on-policy")

    values: Array | None = None
    """The known values `[S]` of a world with `S` discrete observations; those of policy evaluation when not given, in
    worlds that are small enough to have a table."""

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        if spec is not None:
            _check_known(self, self.values, spec, ())

    def init(self, key: Array, spec: Spec) -> OraclePredictionState:
        target = self.target(spec)

        def of_the_policy(transitions: exact.Transitions):
            states = _table(spec).start + jnp.arange(len(transitions.reward))
            return exact.policy_evaluation(transitions, jax.vmap(target)(states), self.gamma).v

        known = _known(self.values, spec, (), of_the_policy)
        return OraclePredictionState(self.value_function(spec), known, target, Schedule.start(spec))

    def update(
        self, state: OraclePredictionState, rollout: Transition, key: Array
    ) -> tuple[OraclePredictionState, Metrics]:
        """Learn from every row of the rollout in turn."""
        rate = self.rate(state)

        def learn(v: LinearFunction, _, t: Transition):
            error = state.known(t.obs) - v(t.obs)
            return v.add(t.obs, rate * error), error

        v, metrics = self.each_row(learn, state.v, rollout)
        return state._replace(v=v, schedule=state.schedule.after(rollout)), {"error": metrics["td_error"]}


def _columns(spec: Spec) -> tuple[int, ...]:
    assert isinstance(spec.action_space, Discrete)
    return (spec.action_space.n,)


def _table(spec: Spec) -> Table:
    """The places of the known values."""
    assert isinstance(spec.observation_space, Discrete)
    return Table(size=spec.observation_space.n, start=spec.observation_space.start)


def _known(
    values: Any, spec: Spec, columns: tuple[int, ...], solve: Callable[[exact.Transitions], Array]
) -> LinearFunction:
    """The values that are given or solved for. Zeros where neither can be: an agent that was loaded from its file only
    acts."""
    table = _table(spec)
    if values is None and spec.transitions is None:
        values = jnp.zeros((table.size, *columns))
    elif values is None:
        values = solve(spec.transitions())  # pyright: ignore[reportOptionalCall]
    return LinearFunction(weights=jnp.asarray(values, jnp.float32), features=table)


def _check_known(algorithm: Linear, values: Any, spec: Spec, columns: tuple[int, ...]) -> None:
    """Raise `UnsupportedSpace` where values are not given nor to be found, `InvalidSetting` where they do not fit."""
    space = spec.observation_space
    if not isinstance(space, Discrete):
        raise UnsupportedSpace(
            f"{algorithm.name} looks the known value of each observation up, so that observations must be discrete; "
            f"this environment's are {space}."
        )
    wanted = (space.n, *columns)
    if values is not None:
        given = np.shape(values)
        if given != wanted:
            raise InvalidSetting(
                f"values was given with shape {given}; it must be {wanted}, the value of each state"
                f"{' and action' if columns else ''}."
            )
    elif spec.transitions is None:
        raise UnsupportedSpace(
            f"{algorithm.name} learns known values, and this environment has no table of transitions to find them "
            f"from. Give them: values=..., an array of shape {wanted}."
        )
    elif (states := len(spec.transitions().reward)) != space.n:
        raise UnsupportedSpace(
            f"this environment's table has {states} states and its observations are {space}, so that values cannot be "
            f"looked up. Give them: values=..., an array of shape {wanted}."
        )
