"""Q-learning (Watkins 1989; Watkins and Dayan 1992), with a table or linear features."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array

from treadle.algorithms.base import Survey, register
from treadle.algorithms.linear import LinearControl, only
from treadle.features import LinearFunction
from treadle.returns import q_learning_error
from treadle.schedules import Schedule
from treadle.types import Metrics, Spec, Transition


class QLearningState(NamedTuple):
    """The values, and how far training is."""

    q: LinearFunction
    schedule: Schedule


@register("q-learning")
class QLearning(LinearControl):
    """Learn the values of the greedy policy while following another (Sutton and Barto 2018, section 6.5).

    `Q(s, a) += alpha [r + gamma (1 - terminated) max_a' Q(s', a') - Q(s, a)]`
    """

    survey = Survey("model-free", "values", "step", "off-policy")

    def init(self, key: Array, spec: Spec) -> QLearningState:
        return QLearningState(self.q_function(spec), Schedule.start(spec))

    def update(self, state: QLearningState, rollout: Transition, key: Array) -> tuple[QLearningState, Metrics]:
        """Learn from every row of the rollout in turn."""
        rate = self.rate(state)

        def learn(q: LinearFunction, _, t: Transition):
            discount = self.gamma * (1.0 - t.terminated)
            values = q(t.obs)
            td_error = q_learning_error(values, t.action, t.reward, discount, q(t.next_obs))
            return q.add(t.obs, only(t.action, rate * td_error, len(values))), td_error

        q, metrics = self.each_row(learn, state.q, rollout)
        return QLearningState(q, state.schedule.after(rollout)), metrics
