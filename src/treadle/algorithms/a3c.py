"""Asynchronous advantage actor-critic (Mnih et al. 2016, "Asynchronous methods for deep reinforcement learning")."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from treadle.algorithms.a2c import A2C
from treadle.algorithms.base import Survey, register
from treadle.algorithms.policy_gradient import Learner, Networks, if_any, over
from treadle.errors import InvalidSetting
from treadle.types import Metrics, Spec, Transition


class Push(NamedTuple):
    """What a worker pushes to the shared parameters."""

    gradients: Networks
    steps: Int[Array, ""]
    """Of the rollout, those that count."""


@register("a3c")
class A3C(A2C):
    """A2C whose workers wait for nobody (algorithm S3 of the paper).

    Each worker has environments of its own. It takes a snapshot of the shared parameters, acts for `rollout_length`
    steps, computes the gradients of the loss by the snapshot and pushes them. They are applied at once to the shared
    parameters, which others may have changed since, with one optimiser for all: with `rmsprop` that is the paper's
    RMSProp with shared statistics.
    """

    survey = Survey("model-free", "values and policy", "step", "on-policy")
    workers = "gradients"

    num_envs: int = 1
    """Environments of each worker."""
    learning_rate: float = 1e-4
    """Step size of the policy's optimiser."""
    entropy_coefficient: float = 0.01
    """How much the policy's entropy counts in the loss, which keeps it from becoming certain too early."""
    std: Literal["parameter", "network"] = "network"
    """Deviation of continuous actions: a `parameter` for each number, or from the `network` by softplus, with means by
    tanh; without a bonus for entropy it collapses."""

    def check(self, spec: Spec | None = None) -> None:
        super().check(spec)
        for name in ("normalise_observations", "normalise_rewards"):
            if getattr(self, name):
                raise InvalidSetting(
                    f"{name} (--{name.replace('_', '-')}) keeps statistics of every step in turn, and the workers of "
                    "a3c push gradients only. Leave it out, or take a2c."
                )

    def shared(self, state: Learner) -> Learner:
        return state._replace(opt_state=())

    def gradients(self, state: Learner, rollout: Transition, key: Array) -> tuple[Push, Metrics]:
        _, seen = self.observe(state, rollout)
        gradients, metrics = jax.grad(self.loss, has_aux=True)(state.networks, seen)
        metrics = {name: over(x, rollout.valid) for name, x in metrics.items()}
        return Push(gradients, jnp.asarray(rollout.count, jnp.int32)), metrics

    def apply(self, state: Learner, gradients: Push) -> Learner:
        learned = if_any(gradients.steps > 0, self.descend(state, gradients.gradients), state)
        return learned._replace(schedule=state.schedule.plus(gradients.steps))

    def update(self, state: Learner, rollout: Transition, key: Array) -> tuple[Learner, Metrics]:
        push, metrics = self.gradients(state, rollout, key)
        return self.apply(state, push), metrics
