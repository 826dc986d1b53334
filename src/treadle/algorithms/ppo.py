"""Proximal policy optimisation (Schulman et al. 2017, "Proximal policy optimization algorithms")."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from treadle.algorithms.base import Survey, register, require
from treadle.algorithms.policy_gradient import (
    Learner,
    Networks,
    PolicyGradient,
    advantages,
    if_any,
    mean_of,
    standardised,
)
from treadle.distributions import Distribution
from treadle.sharding import split_rows
from treadle.types import Mean, Metrics, Spec, Transition

SMALLEST_KL_COEFFICIENT, LARGEST_KL_COEFFICIENT = 1e-4, 10.0
"""Between these the coefficient of the penalty adapts."""
TOLERANCE = 1.5
"""By which factor the KL divergence may miss its target before the coefficient is halved or doubled."""


class PPOState(NamedTuple):
    """Everything that changes while PPO learns."""

    learner: Learner
    kl_coefficient: Float[Array, ""]


class Remembered(NamedTuple):
    """What a step keeps where the policy is remembered that it was taken with."""

    drawn: Any
    policy: Distribution


class Batch(NamedTuple):
    """`N` steps as the epochs learn from them, with what the policy that acted said of them."""

    obs: Any
    action: Array
    old: Distribution
    old_log_prob: Float[Array, " N"]
    old_value: Float[Array, " N"]
    advantage: Float[Array, " N"]
    target: Float[Array, " N"]
    valid: Bool[Array, " N"] | None


@register("ppo")
class PPO(PolicyGradient):
    """A policy that takes several epochs of gradient steps on each rollout, and is kept near the one that acted.

    With `penalty` "clip", gains of the ratio `r = pi(a|s) / pi_old(a|s)` beyond `1 +- clip` do not count (equation 7):
    `-min(r A, clip(r, 1 - clip, 1 + clip) A)`. With "kl", `-r A + beta KL(pi_old || pi)` where `beta` is doubled
    whenever the divergence after a rollout exceeds 1.5 times its target, and halved below target / 1.5 (equation 8 and
    below). `A` are generalised advantage estimates. The other settings are those that implementations agree on (Huang
    et al. 2022, "The 37 implementation details of PPO").
    """

    survey = Survey("model-free", "values and policy", "step", "on-policy")

    num_envs: int = 4
    """Environments side by side for each seed."""
    rollout_length: int = 128
    """Steps of each environment in a rollout."""
    epochs: int = 4
    """How often each rollout is gone over."""
    num_minibatches: int = 4
    """Parts into which a rollout is shuffled in each epoch, a gradient step for each."""
    learning_rate: float = 2.5e-4
    """Step size of the policy's optimiser."""
    gae_lambda: float = 0.95
    """Decay of the advantage's trace, in [0, 1]."""
    penalty: Literal["clip", "kl"] = "clip"
    """What keeps the policy near the one that acted."""
    clip: float = 0.2
    """How far the ratio may go from 1 and still gain."""
    clip_end: float | None = None
    """The same at the last timestep, approached linearly; constant when not given."""
    kl_target: float = 0.01
    """The divergence that the penalty aims at, in nats."""
    initial_kl_coefficient: float = 0.5
    """What the penalty's coefficient starts with; it stays between 0.0001 and 10."""
    stop_at_kl: float | None = None
    """Leave out a rollout's remaining gradient steps, and the one at hand, once the divergence in its minibatch exceeds
    so many times `kl_target`; `None` goes on."""
    value_coefficient: float = 0.5
    """How much the squared error of the values counts in the loss."""
    value_clip: float | None = None
    """Let values move by no more than this from what they were before the rollout taught them; `None` lets them."""
    normalise_advantages: bool = True
    """Give the advantages of a minibatch mean 0 and deviation 1."""
    remember_policy: bool = False
    """Keep with each step the distribution that its action was drawn from, and take ratios and divergences against
    that: for workers whose rollouts may be of an older policy (`max_staleness`)."""

    @property
    def corrects_staleness(self) -> bool:
        # Another update's drift is not this one's: whoever stops at a divergence would stop before the first step.
        return self.remember_policy and self.stop_at_kl is None

    @property
    def num_steps(self) -> int:
        return self.rollout_length

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        for name in ("rollout_length", "epochs", "num_minibatches"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        steps = self.rollout_length * self.num_envs
        divides = f"a divisor of {steps}, the steps of a rollout (--rollout-length times --num-envs)"
        require(steps % self.num_minibatches == 0, "num_minibatches", self.num_minibatches, divides)
        require(0 <= self.gae_lambda <= 1, "gae_lambda", self.gae_lambda, "between 0 and 1")
        for name in ("clip", "kl_target", "initial_kl_coefficient"):
            require(getattr(self, name) > 0, name, getattr(self, name), "greater than 0")
        end = self.clip_end
        require(end is None or end >= 0, "clip_end", end, "0 or more, or None")
        for name in ("stop_at_kl", "value_clip"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "greater than 0, or None")
        require(self.value_coefficient >= 0, "value_coefficient", self.value_coefficient, "0 or more")

    def init(self, key: Array, spec: Spec) -> PPOState:
        return PPOState(self.start(key, spec), jnp.asarray(self.initial_kl_coefficient, jnp.float32))

    def remembered(self, drawn: Any, distribution: Distribution) -> Any:
        return Remembered(drawn, distribution) if self.remember_policy else drawn

    def update(self, state: PPOState, rollout: Transition, key: Array) -> tuple[PPOState, Metrics]:
        clip = state.learner.schedule.at(self.clip, self.clip_end)
        old = None
        if self.remember_policy:
            drawn, old = rollout.extras
            rollout = rollout._replace(extras=drawn)
        learner, seen = self.observe(state.learner, rollout)
        batch = self.batch(learner.networks, seen, old)

        def gradient_step(carry, rows):
            learner, stopped = carry
            minibatch = split_rows(jax.tree.map(lambda x: x[rows], batch))
            gradients, metrics = self.minibatch_gradients(learner.networks, minibatch, clip, state.kl_coefficient)
            counts = jnp.ones(()) if minibatch.valid is None else jnp.any(minibatch.valid).astype(jnp.float32)
            if self.stop_at_kl is None:
                return (if_any(minibatch.valid, self.descend(learner, gradients), learner), stopped), (metrics, counts)
            stopped |= metrics["kl"] > self.stop_at_kl * self.kl_target
            learner = jax.lax.cond(stopped | (counts == 0), lambda: learner, lambda: self.descend(learner, gradients))
            return (learner, stopped), (metrics, counts * (1.0 - stopped))

        carry = learner, jnp.zeros((), jnp.bool_)
        (learner, _), (steps, weights) = jax.lax.scan(gradient_step, carry, self.minibatches(batch, key))
        metrics: Metrics = {name: Mean(jnp.sum(weights * x), jnp.sum(weights)) for name, x in steps.items()}
        kl_coefficient = state.kl_coefficient
        if self.penalty == "kl":
            kl_coefficient = self.adapted(kl_coefficient, self.divergence(learner.networks, batch))
            metrics["kl_coefficient"] = kl_coefficient
        return PPOState(self.counted(learner, rollout), kl_coefficient), metrics

    def batch(self, networks: Networks, rollout: Transition, old: Distribution | None = None) -> Batch:
        """The rollout `[T, B]` as rows `[T * B]`, with advantages, and with the distributions of the policy that acted:
        the present one's, unless they are given."""
        present, v = jax.vmap(jax.vmap(networks.both))(rollout.obs)
        advantage = advantages(networks, v, rollout, self.gamma, self.gae_lambda)
        acted: Any = present if old is None else old
        log_prob = acted.log_prob(rollout.action)
        batch = Batch(rollout.obs, rollout.action, acted, log_prob, v, advantage, advantage + v, rollout.valid)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

    def minibatches(self, batch: Batch, key: Array) -> Array:
        """The rows of each gradient step `[epochs * num_minibatches, N]`: in each epoch every row once."""
        rows, keys = len(batch.advantage), jax.random.split(key, self.epochs)
        orders = jax.vmap(lambda key: permutation(key, rows))(keys)
        return orders.reshape(self.epochs * self.num_minibatches, -1)

    def minibatch_gradients(
        self, networks: Networks, batch: Batch, clip: Any, kl_coefficient: Any
    ) -> tuple[Networks, Metrics]:
        return jax.grad(self.minibatch_loss, has_aux=True)(networks, batch, clip, kl_coefficient)

    def minibatch_loss(self, networks: Networks, batch: Batch, clip: Any, kl_coefficient: Any) -> tuple[Array, Metrics]:
        """The loss of a minibatch, and what is reported of it."""
        pi, v = jax.vmap(networks.both)(batch.obs)
        log_ratio = pi.log_prob(batch.action) - batch.old_log_prob
        ratio = jnp.exp(log_ratio)
        # Without the penalty an estimate of the divergence will do, which costs less.
        kl = mean_of(batch.old.kl(pi) if self.penalty == "kl" else (ratio - 1.0) - log_ratio, batch.valid)
        advantage = standardised(batch.advantage, batch.valid) if self.normalise_advantages else batch.advantage
        gain = ratio * advantage
        if self.penalty == "clip":
            gain = jnp.minimum(gain, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantage)
        policy_loss = -mean_of(gain, batch.valid)
        value_loss = mean_of(self.value_error(v, batch), batch.valid)
        entropy = mean_of(pi.entropy(), batch.valid)
        loss = policy_loss - self.entropy_coefficient * entropy + self.value_coefficient * value_loss
        if self.penalty == "kl":
            loss += kl_coefficient * kl
        told = {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, "kl": kl}
        clipped = mean_of((jnp.abs(ratio - 1.0) > clip).astype(jnp.float32), batch.valid)
        return loss, {**told, "clipped": clipped} if self.penalty == "clip" else told

    def value_error(self, v: Array, batch: Batch) -> Array:
        """The squared error of each value; where values are clipped, the larger of it and of the clipped value's."""
        error = (batch.target - v) ** 2
        if self.value_clip is None:
            return error
        near = batch.old_value + jnp.clip(v - batch.old_value, -self.value_clip, self.value_clip)
        return jnp.maximum(error, (batch.target - near) ** 2)

    def divergence(self, networks: Networks, batch: Batch) -> Array:
        """KL(pi_old || pi) over a whole rollout."""
        return mean_of(batch.old.kl(jax.vmap(networks.policy)(batch.obs)), batch.valid)

    def adapted(self, coefficient: Array, kl: Array) -> Array:
        """The penalty's coefficient for the next rollout."""
        factor = jnp.where(kl > TOLERANCE * self.kl_target, 2.0, jnp.where(kl < self.kl_target / TOLERANCE, 0.5, 1.0))
        return jnp.clip(factor * coefficient, SMALLEST_KL_COEFFICIENT, LARGEST_KL_COEFFICIENT)


def permutation(key: Array, n: int) -> Int[Array, " n"]:
    """The numbers from 0 to `n - 1` in random order.

    They stand in the lowest of 32 bits, of which the others are random, and all are sorted: in a fifth of the time of
    `jax.random.permutation`. With 4,096 numbers 20 bits are random, so that one pair in a million is not shuffled.
    """
    if n > LARGEST_BY_BITS:
        return jax.random.permutation(key, n)
    low = max(n - 1, 1).bit_length()
    words = (jax.random.bits(key, (n,)) >> low << low) | jnp.arange(n, dtype=jnp.uint32)
    return (jnp.sort(words) & ((1 << low) - 1)).astype(jnp.int32)


LARGEST_BY_BITS = 1 << 16
