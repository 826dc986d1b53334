"""Running statistics by which observations and rewards are normalised: part of a learner's state."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from treadle.types import Transition

EPSILON = 1e-8
CLIP = 10.0
"""Normalised numbers are kept within so many standard deviations."""


class Moments(NamedTuple):
    """Mean and variance of all examples seen, for each number of `shape`."""

    mean: Float[Array, "..."]
    variance: Float[Array, "..."]
    count: Float[Array, ""]

    @classmethod
    def start(cls, shape: tuple[int, ...] = ()) -> Moments:
        """Before the first example: mean 0, variance 1."""
        return cls(jnp.zeros(shape), jnp.ones(shape), jnp.zeros(()))

    def after(self, examples: Float[Array, "N ..."], valid: Bool[Array, " N"] | None = None) -> Moments:
        """With `N` more examples, those that count (Chan, Golub and LeVeque 1983, equation 2.1)."""
        weight = jnp.ones(len(examples)) if valid is None else valid.astype(jnp.float32)
        shaped = weight.reshape(-1, *[1] * self.mean.ndim)
        added = jnp.sum(weight)
        mean = jnp.sum(jnp.where(shaped > 0, examples, 0.0), axis=0) / jnp.maximum(added, 1.0)
        squares = jnp.sum(jnp.where(shaped > 0, (examples - mean) ** 2, 0.0), axis=0)
        count = self.count + added
        total = jnp.maximum(count, 1.0)
        delta = mean - self.mean
        squares = self.variance * self.count + squares + delta**2 * self.count * added / total
        known = count > 0
        return Moments(
            jnp.where(known, self.mean + delta * added / total, self.mean),
            jnp.where(known, squares / total, self.variance),
            count,
        )

    def normalise(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`(x - mean) / std`, clipped to ten standard deviations. Numbers that never changed become 0."""
        return jnp.clip((x - self.mean) * jax.lax.rsqrt(self.variance + EPSILON), -CLIP, CLIP)


class RewardScale(NamedTuple):
    """Rewards divided by the standard deviation of the discounted return so far, whose running value is kept for each
    environment (the scaling of Engstrom et al. 2020, "Implementation matters in deep policy gradients", section 3)."""

    moments: Moments
    returns: Float[Array, " B"]

    @classmethod
    def start(cls, num_envs: int) -> RewardScale:
        return cls(Moments.start(), jnp.zeros(num_envs))

    def after(self, rollout: Transition, gamma: Float[Array, ""] | float) -> RewardScale:
        """With the rewards of a rollout `[T, B]`."""
        ended = rollout.terminated | rollout.truncated
        counts = jnp.ones_like(ended) if rollout.valid is None else rollout.valid

        def step(returns, t):
            reward, ended, counts = t
            now = jnp.where(counts, gamma * returns + reward, returns)
            return jnp.where(counts & ended, 0.0, now), now

        returns, seen = jax.lax.scan(step, self.returns, (rollout.reward, ended, counts))
        valid = None if rollout.valid is None else counts.ravel()
        return RewardScale(self.moments.after(seen.ravel(), valid), returns)

    def scale(self, reward: Float[Array, "..."]) -> Float[Array, "..."]:
        """`reward / std`, clipped to ten; the mean stays, since shifting rewards would change the task."""
        return jnp.clip(reward * jax.lax.rsqrt(self.moments.variance + EPSILON), -CLIP, CLIP)

    def begin_episodes(self) -> RewardScale:
        return self._replace(returns=jnp.zeros_like(self.returns))
