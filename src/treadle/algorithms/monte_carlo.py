"""Monte Carlo control: learning from whole returns, with a table or linear features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from treadle.algorithms.base import Survey, register
from treadle.algorithms.linear import LinearControl, check_episode_length, only, row, too_long
from treadle.episodes import EpisodeBuffer
from treadle.errors import UnsupportedSpace
from treadle.features import LinearFunction, Table
from treadle.returns import taken
from treadle.schedules import Schedule
from treadle.sharding import whole
from treadle.types import Mean, Metrics, Spec, Transition

C = TypeVar("C")


class MonteCarloState(NamedTuple):
    """The values, the episodes at hand, and how far training is."""

    q: LinearFunction
    count: LinearFunction | None
    """How many returns each value is the average of."""
    first: Int[Array, "n A"] | None
    """Room for the step at which an episode first visited each state and action."""
    episodes: EpisodeBuffer
    """Observation, action and reward of each step."""
    schedule: Schedule


@register("monte-carlo")
class MonteCarlo(LinearControl):
    """Learn the values of the policy that acts from the returns that it had (Sutton and Barto 2018, section 5.4; with
    a constant step size equation 6.1; with features the gradient form of section 9.3).

    At an episode's end, from its last step backwards: `G = r + gamma G` and `Q(s, a) += alpha [G - Q(s, a)]`. A time
    limit is no terminal state: there `G` begins with the present value of the last observation. Of environments whose
    episodes end together, one learns after the other.
    """

    survey = Survey("model-free", "values", "episode", "on-policy")

    visits: Literal["first", "every"] = "first"
    """Whether an episode counts for a state and action with the return after its first visit there, or with those after
    each. First visits need a table."""
    average: bool = False
    """Whether a value is the average of all its returns, instead of moving by the learning rate towards each. Needs a
    table."""
    max_episode_length: int = 10_000
    """Steps of an episode that there is room for, in each environment; a longer episode stops the run."""

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        check_episode_length(self.max_episode_length, spec)
        if spec is None or isinstance(self.feature_map(spec.observation_space), Table):
            return
        for is_set, what, instead in (
            (self.visits == "first", "first visits", "--visits every"),
            (self.average, "averages", "a constant step size (--no-average)"),
        ):
            if is_set:
                raise UnsupportedSpace(
                    f"{self.name} was asked for {what}, which need visits that can be counted, those of a table's "
                    f"states. With features, use {instead}."
                )

    def columns(self, spec: Spec) -> int:
        return super().columns(spec) * (1 + self.average + (self.visits == "first"))

    def init(self, key: Array, spec: Spec) -> MonteCarloState:
        q, t = self.q_function(spec), spec.example
        return MonteCarloState(
            q=q,
            count=LinearFunction(weights=jnp.zeros_like(q.weights), features=q.features) if self.average else None,
            first=jnp.zeros(q.weights.shape, jnp.int32) if self.visits == "first" else None,
            episodes=EpisodeBuffer.init((t.obs, t.action, t.reward), spec.num_envs, self.max_episode_length),
            schedule=Schedule.start(spec),
        )

    def begin_episodes(self, state: MonteCarloState) -> MonteCarloState:
        return state._replace(episodes=state.episodes.clear(jnp.ones_like(state.episodes.lengths, jnp.bool_)))

    def update(self, state: MonteCarloState, rollout: Transition, key: Array) -> tuple[MonteCarloState, Metrics]:
        """Store the step, and learn from the episodes that end with it. The rollout is one step long."""
        t = whole(jax.tree.map(lambda x: x[-1], rollout))
        episodes = state.episodes.append((t.obs, t.action, t.reward), t.valid)
        ended = (t.terminated | t.truncated) & (True if t.valid is None else t.valid)

        def one_episode(learned, b, steps):
            return self.learn(state, learned, episodes, b, steps, jax.tree.map(lambda x: x[b], t))

        start = state.q, state.count, state.first, Mean(jnp.zeros(()), jnp.zeros(()))
        q, count, first, error = each_episode(one_episode, start, ended & ~episodes.overflowed, episodes.lengths)
        alarm = too_long(episodes.overflowed, self.name, self.max_episode_length)
        state = MonteCarloState(q, count, first, episodes.clear(ended), state.schedule.after(rollout))
        return state, {"error": error, "episode_too_long": alarm}

    def learn(
        self, state: MonteCarloState, learned: Any, episodes: EpisodeBuffer, b: Any, steps: Array, last: Transition
    ) -> Any:
        """From the returns of the episode of environment `b`, from its `last` step backwards."""
        q, count, first, error = learned
        if first is not None:
            first = first_visits(first, q, episodes, b, steps)
        rate = self.rate(state)

        def one_step(back, loop):
            q, count, future, error = loop
            (obs, action, reward), counts = episodes.row(b, steps - 1 - back)
            future = jnp.where(counts, reward + self.gamma * future, future)
            values, step = q(obs), rate
            difference = future - taken(values, action)
            if first is not None:
                counts &= first[row(q, obs), action] == steps - 1 - back
            if count is not None:
                count = count.add(obs, only(action, counts.astype(jnp.float32), len(values)))
                step = 1.0 / jnp.maximum(taken(count(obs), action), 1.0)
            q = q.add(obs, only(action, jnp.where(counts, step * difference, 0.0), len(values)))
            error = Mean(error.total + jnp.where(counts, jnp.abs(difference), 0.0), error.weight + counts)
            return q, count, future, error

        bootstrap = (1.0 - last.terminated) * self.expectation(state, q(last.next_obs))
        q, count, _, error = jax.lax.fori_loop(0, steps, one_step, (q, count, bootstrap, error))
        return q, count, first, error


def first_visits(
    first: Int[Array, "n A"], q: LinearFunction, episodes: EpisodeBuffer, b: Any, steps: Int[Array, ""]
) -> Int[Array, "n A"]:
    """`first` with the step at which each state and action of an episode was first visited. From the last step
    backwards, so that what is written last is the first visit, and nothing need be cleared."""

    def one_step(back, first):
        (obs, action, _), counts = episodes.row(b, steps - 1 - back)
        beyond = first.shape[1]
        return first.at[row(q, obs), jnp.where(counts, action, beyond)].set(steps - 1 - back, mode="drop")

    return jax.lax.fori_loop(0, steps, one_step, first)


def each_episode(
    learn: Callable[[C, Any, Array], C], learned: C, complete: Bool[Array, " B"], lengths: Int[Array, " B"]
) -> C:
    """What was learned after `learn(learned, b, steps)` for each environment `b` whose episode is `complete`.

    Where none is, the loops are over no steps; a `cond` would copy the table.
    """
    if len(complete) == 1:
        return learn(learned, 0, jnp.where(complete[0], lengths[0], 0))
    number = jnp.cumsum(complete)

    def next_complete(i, learned):
        b = jnp.argmax(number == i + 1)
        return learn(learned, b, lengths[b])

    return jax.lax.fori_loop(0, number[-1], next_complete, learned)
