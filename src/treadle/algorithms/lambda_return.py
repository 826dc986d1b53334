"""Prediction at the end of an episode, from its lambda-returns, with a table or linear features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from treadle.algorithms.base import Survey, register, require
from treadle.algorithms.linear import check_episode_length, too_long
from treadle.algorithms.prediction import Prediction
from treadle.episodes import EpisodeBuffer
from treadle.features import LinearFunction
from treadle.returns import lambda_return
from treadle.schedules import Schedule
from treadle.sharding import whole
from treadle.types import Mean, Metrics, Spec, Transition, select


class LambdaReturnState(NamedTuple):
    """The values, the policy whose values they are, the episodes at hand, and how far training is."""

    v: LinearFunction
    target: Callable[[Any], Float[Array, " A"]]
    episodes: EpisodeBuffer
    """Observation and reward of each step."""
    returns: Float[Array, " L"]
    """Room for the returns of one episode."""
    schedule: Schedule


@register("mc-prediction", trace_decay=1.0)
@register("lambda-return")
class LambdaReturn(Prediction):
    """The off-line lambda-return algorithm (Sutton and Barto 2018, section 12.1); with lambda 1 it is every-visit
    constant-alpha Monte Carlo (sections 6.1 and 9.3), registered as `mc-prediction`.

    Nothing is learned during an episode. At its end the lambda-return of every step is computed (equation 12.2), with
    the values of then, which are those of the whole episode; a return that a time limit cut short is completed by the
    value of the last observation. Then, for each step in turn from the first to the last,
    `w += alpha [G(lambda) - v(s, w)] x(s)` (equation 12.4), where `v(s, w)` has learned from the steps before, while
    the returns stay as they were. Of environments whose episodes end together, one learns after the other.
    """

    survey = Survey("model-free", "values", "episode", "on-policy")

    trace_decay: float = 0.9
    """Lambda, in [0, 1]: 0 looks one step ahead, 1 to the end of the episode."""
    max_episode_length: int = 10_000
    """Steps of an episode that there is room for, in each environment."""

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        require(0 <= self.trace_decay <= 1, "trace_decay", self.trace_decay, "between 0 and 1")
        check_episode_length(self.max_episode_length, spec)

    def init(self, key: Array, spec: Spec) -> LambdaReturnState:
        example = (spec.example.obs, spec.example.reward)
        return LambdaReturnState(
            v=self.value_function(spec),
            target=self.target(spec),
            episodes=EpisodeBuffer.init(example, spec.num_envs, self.max_episode_length),
            returns=jnp.zeros(self.max_episode_length),
            schedule=Schedule.start(spec),
        )

    def update(self, state: LambdaReturnState, rollout: Transition, key: Array) -> tuple[LambdaReturnState, Metrics]:
        """Store every step, and learn from the episodes that end with it."""
        rollout = whole(rollout)

        def one_step(state: LambdaReturnState, t: Transition):
            episodes = state.episodes.append((t.obs, t.reward), t.valid)
            ended = t.terminated | t.truncated
            complete = ended if t.valid is None else ended & t.valid
            overflowed = jnp.any(episodes.overflowed)
            state, error = self.learn(state._replace(episodes=episodes), t, complete & ~episodes.overflowed)
            return state._replace(episodes=episodes.clear(complete)), (error, overflowed)

        if len(rollout.reward) == 1:
            new, (error, overflowed) = one_step(state, jax.tree.map(lambda x: x[0], rollout))
        else:
            new, (error, overflowed) = jax.lax.scan(one_step, state, rollout)
        metrics = {
            "error": Mean(jnp.sum(error.total), jnp.sum(error.weight)),
            "episode_too_long": too_long(overflowed, self.name, self.max_episode_length),
        }
        return new._replace(schedule=state.schedule.after(rollout)), metrics

    def learn(
        self, state: LambdaReturnState, t: Transition, complete: Bool[Array, " B"]
    ) -> tuple[LambdaReturnState, Mean]:
        """Learn from the `complete` episodes, whose last steps are `t` `[B, ...]`, of one environment after another.

        Where no episode has ended the loops are over no steps; a `cond` would copy the weights.
        """

        def one_episode(learned, b, steps):
            state, error = learned
            state = self.find_returns(state, jax.tree.map(lambda x: x[b], t), b, steps)
            return self.towards_returns(state, b, steps, error)

        start, lengths = (state, Mean(jnp.zeros(()), jnp.zeros(()))), state.episodes.lengths
        if len(complete) == 1:
            return one_episode(start, 0, jnp.where(complete[0], lengths[0], 0))

        def next_complete(i, learned):
            b = jnp.argmax(number == i + 1)
            return one_episode(learned, b, lengths[b])

        number = jnp.cumsum(complete)
        return jax.lax.fori_loop(0, number[-1], next_complete, start)

    def find_returns(
        self, state: LambdaReturnState, last: Transition, b: Any, steps: Int[Array, ""]
    ) -> LambdaReturnState:
        """The returns of the episode of environment `b`, from its `last` step backwards."""

        def one_step(i, loop):
            returns, v_next, return_next = loop
            (obs, reward), counts = state.episodes.row(b, steps - 1 - i)
            now = lambda_return(reward, self.gamma, v_next, return_next, self.trace_decay)
            v_next, return_next = select(counts, (state.v(obs), now), (v_next, return_next))
            return returns.at[steps - 1 - i].set(return_next), v_next, return_next

        v_last = state.v(last.next_obs) * (1.0 - last.terminated)
        returns, *_ = jax.lax.fori_loop(0, steps, one_step, (state.returns, v_last, v_last))
        return state._replace(returns=returns)

    def towards_returns(
        self, state: LambdaReturnState, b: Any, steps: Int[Array, ""], error: Mean
    ) -> tuple[LambdaReturnState, Mean]:
        """The values after each step's has gone towards its return, and the sum of the errors found."""
        rate = self.rate(state)

        def one_step(k, loop):
            v, error = loop
            (obs, _), counts = state.episodes.row(b, k)
            difference = jnp.where(counts, state.returns[k] - v(obs), 0.0)
            return v.add(obs, rate * difference), Mean(error.total + jnp.abs(difference), error.weight + counts)

        v, error = jax.lax.fori_loop(0, steps, one_step, (state.v, error))
        return state._replace(v=v), error

    def begin_episodes(self, state):
        return state._replace(episodes=state.episodes.clear(jnp.ones_like(state.episodes.lengths, jnp.bool_)))
