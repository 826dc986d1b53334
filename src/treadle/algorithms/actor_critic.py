"""One-step actor-critic (Sutton and Barto 2018, section 13.5)."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array

from treadle.algorithms.base import Survey, register, require
from treadle.algorithms.policy_gradient import Learner, Networks, PolicyGradient, mean_of
from treadle.returns import td_error
from treadle.types import Metrics, Spec, Transition


@register("actor-critic")
class ActorCritic(PolicyGradient):
    """A policy that follows the TD error of every step, `delta = r + gamma v(s') - v(s)`, while the values learn from
    the same error.

    The loss is `-log pi(a|s) delta - entropy_coefficient H + value_coefficient delta^2`, of which one gradient step is
    taken after each step of all environments. `delta` weighs the policy without a gradient of its own, and the target
    of the values has none. The book's factor `I = gamma^t` is left out: it would all but stop learning late in an
    episode.
    """

    survey = Survey("model-free", "values and policy", "step", "on-policy")

    value_coefficient: float = 0.5
    """How much the squared error of the values counts in the loss."""

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        require(self.value_coefficient >= 0, "value_coefficient", self.value_coefficient, "0 or more")

    def init(self, key: Array, spec: Spec) -> Learner:
        return self.start(key, spec)

    def loss(self, networks: Networks, rollout: Transition) -> tuple[Array, Metrics]:
        pi, delta = jax.vmap(jax.vmap(self.policy_and_error, (None, 0)), (None, 0))(networks, rollout)
        policy_loss = -mean_of(pi.log_prob(rollout.action) * jax.lax.stop_gradient(delta), rollout.valid)
        value_loss = mean_of(delta**2, rollout.valid)
        entropy = mean_of(pi.entropy(), rollout.valid)
        loss = policy_loss - self.entropy_coefficient * entropy + self.value_coefficient * value_loss
        return loss, {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}

    def policy_and_error(self, networks: Networks, t: Transition) -> tuple[Any, Array]:
        """The policy where one transition began, and its TD error."""
        pi, v = networks.both(t.obs)
        return pi, td_error(v, t.reward, self.gamma * (1.0 - t.terminated), networks.value_of(t.next_obs))
