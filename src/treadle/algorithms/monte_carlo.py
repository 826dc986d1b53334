"""Monte Carlo control: learning from whole returns, with a table or linear features."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from treadle.algorithms.base import Survey, register, require
from treadle.algorithms.linear import LinearControl, Schedule, only, row
from treadle.errors import InvalidSetting, UnsupportedSpace
from treadle.features import LinearFunction, Table
from treadle.returns import taken
from treadle.types import Alarm, Mean, Metrics, Obs, Spec, Transition


class Episode(NamedTuple):
    """What each of `B` environments has been through in the episode at hand, of at most `L` steps."""

    obs: Obs
    """`[B, L, ...]`"""
    action: Int[Array, "B L"]
    reward: Float[Array, "B L"]
    length: Int[Array, " B"]
    """Steps so far."""
    next_obs: Obs
    """Where it goes on, `[B, ...]`."""

    @classmethod
    def none(cls, spec: Spec, max_length: int) -> Episode:
        def empty(example, *lengths):
            return jnp.zeros((spec.num_envs, *lengths, *example.shape), example.dtype)

        t = spec.example
        steps = [empty(x, max_length) for x in (t.obs, t.action, t.reward)]
        return cls(*steps, jnp.zeros(spec.num_envs, jnp.int32), empty(t.next_obs))

    def with_step(self, b: Any, t: Transition) -> Episode:
        """With one step more in environment `b`, the first one where another episode has begun. Beyond the longest
        episode there is no room."""
        i = jnp.where(jnp.all(self.next_obs[b] == t.obs), self.length[b], 0)

        def put(buffer, value):
            return buffer.at[b, i].set(value, mode="drop")

        steps = put(self.obs, t.obs), put(self.action, t.action), put(self.reward, t.reward)
        return Episode(*steps, self.length.at[b].set(i + 1), self.next_obs.at[b].set(t.next_obs))

    def without_steps(self, b: Any, has_ended: Bool[Array, ""]) -> Episode:
        """With nothing of environment `b` if its episode has ended."""
        return self._replace(length=self.length.at[b].set(jnp.where(has_ended, 0, self.length[b])))

    def step(self, b: Any, i: Int[Array, ""]) -> tuple[Obs, Int[Array, ""], Float[Array, ""]]:
        """Observation, action and reward of step `i` of environment `b`."""
        return self.obs[b, i], self.action[b, i], self.reward[b, i]


class Learned(NamedTuple):
    """The values, and what the methods need that learn them."""

    q: LinearFunction
    count: LinearFunction | None
    """How many returns each value is the average of."""
    first: Int[Array, "n A"] | None
    """The step at which an episode first visited each state and action: filled in when it has ended, and kept because
    to make it anew would take longer."""


class MonteCarloState(NamedTuple):
    """What was learned, what the episodes at hand hold, and how far training is."""

    learned: Learned
    episode: Episode
    schedule: Schedule

    @property
    def q(self) -> LinearFunction:
        return self.learned.q


@register("monte-carlo")
class MonteCarlo(LinearControl):
    """Learn the values of the policy that acts from the returns that it had (Sutton and Barto 2018, section 5.4; with
    a constant step size equation 6.1; with features the gradient form of section 9.3).

    At an episode's end, from its last step backwards: `G <- r + gamma G` and `Q(s, a) += alpha [G - Q(s, a)]`. A time
    limit is no terminal state: there `G` begins with the present value of the last observation.
    """

    survey = Survey("model-free", "values", "episode", "on-policy")

    visits: Literal["first", "every"] = "first"
    """Whether an episode counts for a state and action with the return after its first visit there, or with those after
    each. First visits need a table."""
    average: bool = False
    """Whether a value is the average of all its returns, instead of moving by the learning rate towards each. Needs a
    table."""
    max_episode_length: int = 10_000
    """Longest episode that can be remembered, in steps; a longer one stops the run."""

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        require(self.max_episode_length >= 1, "max_episode_length", self.max_episode_length, "at least 1")
        if spec is None:
            return
        limit = spec.max_episode_steps
        if limit is not None and limit > self.max_episode_length:
            raise InvalidSetting(
                f"max_episode_length (--max-episode-length) was {self.max_episode_length:,}, but an episode of this "
                f"environment may take {limit:,} steps, and {self.name} must remember them all. Set it to {limit}."
            )
        if isinstance(self.feature_map(spec.observation_space), Table):
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
        q = self.q_function(spec)
        count = LinearFunction(weights=jnp.zeros_like(q.weights), features=q.features) if self.average else None
        first = jnp.zeros(q.weights.shape, jnp.int32) if self.visits == "first" else None
        return MonteCarloState(
            Learned(q, count, first), Episode.none(spec, self.max_episode_length), Schedule.start(spec)
        )

    def update(self, state: MonteCarloState, rollout: Transition, key: Array) -> tuple[MonteCarloState, Metrics]:
        """Remember every row of the rollout in turn, and learn where an episode ends."""

        def learn(before: tuple[Learned, Episode, Array], b, t: Transition):
            learned, episode, overflow = before
            episode = episode.with_step(b, t)
            overflow |= episode.length[b] > self.max_episode_length
            has_ended = t.terminated | t.truncated
            learned, error = self.learn_episode(state, learned, episode, b, t, has_ended)
            return (learned, episode.without_steps(b, has_ended), overflow), error

        start = (state.learned, state.episode, jnp.zeros((), jnp.bool_))
        (learned, episode, overflow), metrics = self.each_row(learn, start, rollout)
        sentence = (
            f"an episode was longer than the {self.max_episode_length:,} steps that {self.name} can remember. Set "
            "--max-episode-length higher, or give the environment a time limit."
        )
        state = MonteCarloState(learned, episode, state.schedule.after(rollout))
        return state, {"monte_carlo_error": metrics["td_error"], "overflow": Alarm(overflow, sentence)}

    def learn_episode(
        self, state: MonteCarloState, learned: Learned, episode: Episode, b: Any, last: Transition, has_ended: Array
    ) -> tuple[Learned, Mean]:
        """Learn from the returns of the episode of environment `b` if it `has_ended` with the `last` transition.

        If not, the loops take no step and cost little: a `cond` would copy the table that it returns.
        """
        length = jnp.where(has_ended, episode.length[b], 0)
        q, count, first = learned
        if first is not None:
            first = first_visits(first, q, episode, b, length)
        rate = self.rate(state)
        bootstrap = (1.0 - last.terminated) * self.expectation(state, q(last.next_obs))

        def one_step(back, loop: tuple[LinearFunction, LinearFunction | None, Array, Mean]):
            q, count, future, error = loop
            i = length - 1 - back
            obs, action, reward = episode.step(b, i)
            future = reward + self.gamma * future
            values = q(obs)
            difference = future - taken(values, action)
            counts, step = 1.0, rate
            if first is not None:
                counts = (first[row(q, obs), action] == i).astype(jnp.float32)
            if count is not None:
                count = count.add(obs, only(action, counts, len(values)))
                step = 1.0 / jnp.maximum(taken(count(obs), action), 1.0)
            q = q.add(obs, only(action, counts * step * difference, len(values)))
            return q, count, future, Mean(error.total + counts * jnp.abs(difference), error.weight + counts)

        start = (q, count, bootstrap, Mean(jnp.zeros(()), jnp.zeros(())))
        q, count, _, error = jax.lax.fori_loop(0, length, one_step, start)
        return Learned(q, count, first), error


def first_visits(
    first: Int[Array, "n A"], q: LinearFunction, episode: Episode, b: Any, length: Int[Array, ""]
) -> Int[Array, "n A"]:
    """`first` with the step at which each state and action of an episode was first visited: going backwards, what is
    written last is the first visit."""

    def one_step(back, first):
        i = length - 1 - back
        obs, action, _ = episode.step(b, i)
        return first.at[row(q, obs), action].set(i, mode="promise_in_bounds")

    return jax.lax.fori_loop(0, length, one_step, first)
