"""A policy and values with a parameter or two each, and four steps, so that gradients can be worked by hand."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from treadle.distributions import Categorical
from treadle.spaces import Box, Discrete
from treadle.types import Transition, space_spec


class TablePolicy(eqx.Module):
    """Logits of two actions, the same for every observation."""

    logits: jax.Array

    def __call__(self, obs):
        return Categorical(self.logits + 0.0 * obs[0])


class LinearValue(eqx.Module):
    """v(obs) = slope * obs."""

    slope: jax.Array

    def __call__(self, obs):
        return self.slope[0] * obs[0]


SPEC = space_spec(Box(-100.0, 100.0, (1,)), Discrete(2), num_envs=1, total_timesteps=1_000)


def column(values, dtype=jnp.float32):
    return jnp.asarray(values, dtype)[:, None]


ROLLOUT = Transition(
    obs=column([[1.0], [2.0], [3.0], [4.0]]),
    action=column([0, 1, 1, 0], jnp.int32),
    reward=column([1.0, 2.0, 3.0, 4.0]),
    next_obs=column([[2.0], [9.0], [4.0], [5.0]]),
    terminated=column([0, 0, 0, 0], jnp.bool_),
    truncated=column([0, 1, 0, 0], jnp.bool_),
)
"""Four steps of one environment; the second is cut by a time limit at observation 9."""
