"""Advantage actor-critic (Mnih et al. 2016), its workers side by side instead of asynchronous."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array

from treadle import optimise
from treadle.algorithms.base import Survey, register, require
from treadle.algorithms.policy_gradient import Learner, Networks, PolicyGradient, advantages, mean_of, standardised
from treadle.types import Metrics, Spec, Transition


@register("a2c")
class A2C(PolicyGradient):
    """A policy that follows the advantage of what it did: returns of up to `rollout_length` steps, bootstrapped by the
    values, less the values.

    The loss is `-log pi(a|s) A - entropy_coefficient H + value_coefficient (G - v(s))^2`, of which one gradient step is
    taken for each rollout (algorithm S3 of the paper, "Asynchronous methods for deep reinforcement learning"). With a
    `gae_lambda` below 1, `A` is the generalised advantage estimate.
    """

    survey = Survey("model-free", "values and policy", "step", "on-policy")

    num_envs: int = 8
    """Environments side by side for each seed."""
    rollout_length: int = 5
    """Steps of each environment between two gradient steps."""
    learning_rate: float = 7e-4
    """Step size of the policy's optimiser."""
    optimiser: optimise.Optimiser = "rmsprop"
    """Rule of the gradient step."""
    gae_lambda: float = 1.0
    """Decay of the advantage's trace: 1 sums all rewards of the rollout, 0 takes one-step TD errors."""
    value_coefficient: float = 0.5
    """How much the squared error of the values counts in the loss."""
    normalise_advantages: bool = False
    """Give the advantages of a rollout mean 0 and deviation 1."""

    @property
    def num_steps(self) -> int:
        return self.rollout_length

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        require(self.rollout_length >= 1, "rollout_length", self.rollout_length, "at least 1")
        require(0 <= self.gae_lambda <= 1, "gae_lambda", self.gae_lambda, "between 0 and 1")
        require(self.value_coefficient >= 0, "value_coefficient", self.value_coefficient, "0 or more")

    def init(self, key: Array, spec: Spec) -> Learner:
        return self.start(key, spec)

    def loss(self, networks: Networks, rollout: Transition) -> tuple[Array, Metrics]:
        advantage, target, (pi, v) = self.advantages(networks, rollout)
        if self.normalise_advantages:
            advantage = standardised(advantage, rollout.valid)
        policy_loss = -mean_of(pi.log_prob(rollout.action) * advantage, rollout.valid)
        value_loss = mean_of((target - v) ** 2, rollout.valid)
        entropy = mean_of(pi.entropy(), rollout.valid)
        loss = policy_loss - self.entropy_coefficient * entropy + self.value_coefficient * value_loss
        return loss, {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}

    def advantages(self, networks: Networks, rollout: Transition) -> tuple[Array, Array, tuple[Any, Array]]:
        """Advantages and targets of the values `[T, B]`, which carry no gradient, and what they were computed from: the
        policy and the values of the rollout's observations."""
        pi, v = jax.vmap(jax.vmap(networks.both))(rollout.obs)
        advantage = advantages(networks, v, rollout, self.gamma, self.gae_lambda)
        return advantage, jax.lax.stop_gradient(advantage + v), (pi, v)
