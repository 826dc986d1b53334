"""REINFORCE: the policy gradient from whole returns (Williams 1992)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from treadle.algorithms.base import Survey, register, require
from treadle.algorithms.linear import check_episode_length, too_long
from treadle.algorithms.monte_carlo import each_episode
from treadle.algorithms.policy_gradient import Learner, Networks, PolicyGradient, normalised, standardised
from treadle.episodes import EpisodeBuffer
from treadle.errors import InvalidSetting
from treadle.normalise import EPSILON, Moments
from treadle.returns import discounted_returns
from treadle.sharding import whole
from treadle.spaces import Discrete
from treadle.types import Mean, Metrics, Spec, Transition

CHUNK = 128
"""Steps of an episode whose gradient is taken at once."""


class ReinforceState(NamedTuple):
    """Everything that changes while REINFORCE learns."""

    learner: Learner
    episodes: EpisodeBuffer
    """Observation, what was drawn, and reward of each step of the episodes at hand."""
    gradients: Networks
    """The sum over the episodes that ended since the last gradient step."""
    finished: Int[Array, ""]
    """How many these are."""


class Chunk(NamedTuple):
    """Consecutive steps of one episode."""

    obs: Any
    action: Array
    returns: Float[Array, " N"]
    counts: Bool[Array, " N"]
    """False for rows beyond the episode's end, and for those that must not teach."""


class Losses(NamedTuple):
    """The parts of one episode's loss, each a mean over its steps, or sums of them over episodes."""

    loss: Float[Array, ""]
    value_loss: Float[Array, ""]
    entropy: Float[Array, ""]


@register("reinforce")
class Reinforce(PolicyGradient):
    """A policy that makes what it did more probable, the more so the higher the return that followed (Sutton and Barto
    2018, section 13.3; with a baseline section 13.4).

    The loss of an episode is the mean over its steps of `-log pi(a|s) G - entropy_coefficient H`; with a baseline of
    `-log pi(a|s) (G - v(s)) - entropy_coefficient H + value_coefficient (G - v(s))^2`. The factor gamma^t of the book
    is left out, as is usual.

    Only finished episodes teach. A time limit is no terminal state: with a baseline the return of what it cuts off
    begins with the value of the last observation. Without one nothing can stand for the rewards that would have
    followed, and the return is that of the rewards seen. An episode during which the policy changed, which needs
    several environments, counts as if all of it were the present policy's.
    """

    survey = Survey("model-free", "policy", "episode", "on-policy")
    workers = None

    baseline: bool = False
    """Learn the values of observations by regression on the returns, and subtract them from the returns."""
    normalise_returns: bool = False
    """Give the returns of an episode, less the baseline if there is one, mean 0 and deviation 1 before they weigh its
    steps."""
    episodes_per_update: int = 1
    """Finished episodes whose gradients are averaged into one step; more count where several end at once."""
    value_coefficient: float = 0.5
    """How much the squared error of the baseline counts in the loss."""
    max_episode_length: int = 10_000
    """Steps of an episode that there is room for, in each environment; a longer episode stops the run."""

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        require(self.episodes_per_update >= 1, "episodes_per_update", self.episodes_per_update, "at least 1")
        require(self.value_coefficient >= 0, "value_coefficient", self.value_coefficient, "0 or more")
        check_episode_length(self.max_episode_length, spec)
        if self.value_network is not None and not self.baseline:
            raise InvalidSetting(
                "value_network is a baseline, and baseline was False. Set it, or leave the network out."
            )

    def init(self, key: Array, spec: Spec) -> ReinforceState:
        learner, t = self.start(key, spec, with_values=self.baseline), spec.example
        drawn = t.action if isinstance(spec.action_space, Discrete) else jnp.zeros(t.action.size)
        row = normalised(learner.observations, t.obs), drawn, t.reward
        return ReinforceState(
            learner=learner,
            episodes=EpisodeBuffer.init(row, spec.num_envs, self.max_episode_length),
            gradients=jax.tree.map(jnp.zeros_like, learner.networks),
            finished=jnp.zeros((), jnp.int32),
        )

    def begin_episodes(self, state: ReinforceState) -> ReinforceState:
        state = super().begin_episodes(state)
        return state._replace(episodes=state.episodes.clear(jnp.ones_like(state.episodes.lengths, jnp.bool_)))

    def update(self, state: ReinforceState, rollout: Transition, key: Array) -> tuple[ReinforceState, Metrics]:
        """Store the step, and learn from the episodes that end with it. The rollout is one step long."""
        learner, seen = self.observe(state.learner, rollout)
        t = whole(jax.tree.map(lambda x: x[-1], seen))
        episodes = state.episodes.append((t.obs, t.action, t.reward), t.valid)
        ended = t.ended & (True if t.valid is None else t.valid)
        complete = ended & ~episodes.overflowed

        def one_episode(learned, b, steps):
            return self.add_episode(learner.networks, learned, episodes, b, steps, jax.tree.map(lambda x: x[b], t))

        start = state.gradients, Losses(*jnp.zeros(3))
        gradients, losses = each_episode(one_episode, start, complete, episodes.lengths)
        ends = jnp.sum(complete, dtype=jnp.int32)
        told = {name: Mean(total, ends.astype(jnp.float32)) for name, total in losses._asdict().items()}
        if not self.baseline:
            del told["value_loss"]
        alarm = too_long(episodes.overflowed, self.name, self.max_episode_length)
        state = ReinforceState(learner, episodes.clear(ended), gradients, state.finished + ends)
        state = self.step_if_due(state)
        return state._replace(learner=self.counted(state.learner, rollout)), {**told, "episode_too_long": alarm}

    def step_if_due(self, state: ReinforceState) -> ReinforceState:
        """A gradient step once enough episodes have ended. A loop over one step or none: a `cond` would copy what it
        may change."""

        def one_step(_, loop):
            networks, opt_state, gradients, finished = loop
            mean = jax.tree.map(lambda g: g / finished, gradients)
            learner = self.descend(state.learner._replace(networks=networks, opt_state=opt_state), mean)
            none = jax.tree.map(jnp.zeros_like, gradients)
            return learner.networks, learner.opt_state, none, jnp.zeros_like(finished)

        due = (state.finished >= self.episodes_per_update).astype(jnp.int32)
        loop = state.learner.networks, state.learner.opt_state, state.gradients, state.finished
        networks, opt_state, gradients, finished = jax.lax.fori_loop(0, due, one_step, loop)
        learner = state.learner._replace(networks=networks, opt_state=opt_state)
        return state._replace(learner=learner, gradients=gradients, finished=finished)

    def add_episode(
        self,
        networks: Networks,
        learned: tuple[Networks, Losses],
        episodes: EpisodeBuffer,
        b: Int[Array, ""] | int,
        steps: Int[Array, ""],
        last: Transition,
    ) -> tuple[Networks, Losses]:
        """Gradients and losses with those of the episode of environment `b`, which is `steps` long and ended with
        `last`.

        Chunk by chunk from the end, twice: mean and deviation of all its returns come before the first gradient. To
        keep the returns instead would take an array that every step carries along.
        """
        chunks = (steps + CHUNK - 1) // CHUNK

        def chunk(i, future) -> Chunk:
            step = (chunks - 1 - i) * CHUNK + jnp.arange(CHUNK)
            (obs, action, reward), counts = jax.vmap(episodes.row, (None, 0))(b, jnp.minimum(step, steps - 1))
            counts &= step < steps
            discount = jnp.where(counts, self.gamma, 1.0)
            returns = discounted_returns(jnp.where(counts, reward, 0.0), discount, future)
            return Chunk(obs, action, returns, counts)

        def add_moments(i, loop):
            moments, future = loop
            rows = chunk(i, future)
            return moments.after(self.advantages(networks, rows), rows.counts), rows.returns[0]

        def add_gradients(i, loop):
            gradients, losses, future = loop
            rows = chunk(i, future)
            by, told = jax.grad(self.loss, has_aux=True)(networks, rows, moments)
            gradients, losses = jax.tree.map(jnp.add, (gradients, losses), (by, told))
            return gradients, losses, rows.returns[0]

        future = jnp.zeros(())
        if networks.value is not None:
            future = (1.0 - last.terminated) * networks.value_of(last.next_obs)
        moments, _ = jax.lax.fori_loop(0, chunks, add_moments, (Moments.start(), future))
        gradients, losses, _ = jax.lax.fori_loop(0, chunks, add_gradients, (*learned, future))
        return gradients, losses

    def loss(self, networks: Networks, rows: Chunk, moments: Moments) -> tuple[Array, Losses]:
        """What a chunk adds to the loss of its episode, whose advantages, as many as count, have these `moments`."""

        def mean(values: Array) -> Array:
            return jnp.sum(jnp.where(rows.counts, values, 0.0)) / moments.count

        pi, v = jax.vmap(networks.both)(rows.obs)
        error = rows.returns if v is None else rows.returns - v
        advantage = jax.lax.stop_gradient(error)
        if self.normalise_returns:
            scaled = (advantage - moments.mean) / (jnp.sqrt(moments.variance) + EPSILON)
            advantage = jnp.where(moments.count > 1, scaled, advantage)
        entropy = mean(pi.entropy())
        loss = -mean(pi.log_prob(rows.action) * advantage) - self.entropy_coefficient * entropy
        value_loss = jnp.zeros(())
        if v is not None:
            value_loss = mean(error**2)
            loss += self.value_coefficient * value_loss
        return loss, Losses(loss, value_loss, entropy)

    def advantages(self, networks: Networks, rows: Chunk) -> Float[Array, " N"]:
        """Returns, less the values where they are learned."""
        return rows.returns if networks.value is None else rows.returns - jax.vmap(networks.value_of)(rows.obs)


def normalised_returns(
    reward: Float[Array, " T"], gamma: Float[Array, ""] | float, bootstrap: Float[Array, ""] | float = 0.0
) -> Float[Array, " T"]:
    """What weighs each step of one whole episode where returns are normalised: its discounted return, less their mean,
    over their deviation. `bootstrap` is the value of what follows the last step."""
    return standardised(discounted_returns(reward, jnp.full(len(reward), gamma), bootstrap))
