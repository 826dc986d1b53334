"""Expected Sarsa (van Seijen et al. 2009), with a table or linear features."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array

from treadle.algorithms.base import Survey, register
from treadle.algorithms.linear import LinearControl, only
from treadle.features import LinearFunction
from treadle.returns import taken, td_error
from treadle.schedules import Schedule
from treadle.types import Metrics, Spec, Transition


class ExpectedSarsaState(NamedTuple):
    """The values, and how far training is."""

    q: LinearFunction
    schedule: Schedule


@register("expected-sarsa")
class ExpectedSarsa(LinearControl):
    """Learn the values of the policy that acts, without the noise of its next action (Sutton and Barto 2018,
    section 6.6).

    `Q(s, a) += alpha [r + gamma (1 - terminated) sum_a' pi(a'|s') Q(s', a') - Q(s, a)]`
    """

    survey = Survey("model-free", "values", "step", "on-policy")

    def init(self, key: Array, spec: Spec) -> ExpectedSarsaState:
        return ExpectedSarsaState(self.q_function(spec), Schedule.start(spec))

    def update(self, state: ExpectedSarsaState, rollout: Transition, key: Array) -> tuple[ExpectedSarsaState, Metrics]:
        """Learn from every row of the rollout in turn."""
        rate = self.rate(state)

        def learn(q: LinearFunction, _, t: Transition):
            discount = self.gamma * (1.0 - t.terminated)
            values, following = q(t.obs), self.expectation(state, q(t.next_obs))
            error = td_error(taken(values, t.action), t.reward, discount, following)
            return q.add(t.obs, only(t.action, rate * error, len(values))), error

        q, metrics = self.each_row(learn, state.q, rollout)
        return ExpectedSarsaState(q, state.schedule.after(rollout)), metrics
