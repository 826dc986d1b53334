"""Distributions over actions. Parameters may have any leading axes; the last one is the action's own."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from treadle.returns import taken


class Categorical(NamedTuple):
    """One of `A` actions, by unnormalised log-probabilities."""

    logits: Float[Array, "... A"]

    @property
    def log_probs(self) -> Float[Array, "... A"]:
        """Of every action."""
        return jax.nn.log_softmax(self.logits)

    def sample(self, key: Array) -> Int[Array, "..."]:
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> Int[Array, "..."]:
        """The most probable action."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_prob(self, action: Int[Array, "..."]) -> Float[Array, "..."]:
        return taken(self.log_probs, action)

    def entropy(self) -> Float[Array, "..."]:
        """In nats. An action of probability 0 adds nothing."""
        log_probs = self.log_probs
        return -jnp.sum(_weighted(log_probs, log_probs), axis=-1)

    def kl(self, other: Categorical) -> Float[Array, "..."]:
        """KL(self || other), in nats."""
        ours, theirs = self.log_probs, other.log_probs
        return jnp.sum(_weighted(ours, ours - theirs), axis=-1)


class Gaussian(NamedTuple):
    """Independent normal numbers."""

    mean: Float[Array, "... n"]
    std: Float[Array, "... n"]

    def sample(self, key: Array) -> Float[Array, "... n"]:
        return self.mean + self.std * jax.random.normal(key, self.mean.shape)

    def mode(self) -> Float[Array, "... n"]:
        return self.mean

    def log_prob(self, action: Float[Array, "... n"]) -> Float[Array, "..."]:
        """The logarithm of the density of all `n` numbers together."""
        z = (action - self.mean) / self.std
        return -jnp.sum(0.5 * z**2 + jnp.log(self.std) + 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> Float[Array, "..."]:
        """Differential, in nats."""
        per_number = jnp.broadcast_to(jnp.log(self.std) + 0.5 * math.log(2 * math.pi * math.e), self.mean.shape)
        return jnp.sum(per_number, axis=-1)

    def kl(self, other: Gaussian) -> Float[Array, "..."]:
        """KL(self || other), in nats."""
        variances = (self.std**2 + (self.mean - other.mean) ** 2) / (2 * other.std**2)
        return jnp.sum(jnp.log(other.std) - jnp.log(self.std) + variances - 0.5, axis=-1)


Distribution = Categorical | Gaussian


def _weighted(log_probs: Array, values: Array) -> Array:
    """`p * values`, 0 where `p` is."""
    probable = log_probs > -jnp.inf
    return jnp.where(probable, jnp.exp(log_probs) * jnp.where(probable, values, 0.0), 0.0)
