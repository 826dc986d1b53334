"""How settings change while training goes on, by environment steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from treadle.types import Counter, Spec, Transition


def linear(start: float | Array, end: float | Array, steps: float | Array, step: Int[Array, ""]) -> Float[Array, ""]:
    """From `start` to `end` in `steps` steps, then `end`. With `steps` 0 it is `end` from the first step on."""
    progress = jnp.where(steps > 0, step / jnp.maximum(steps, 1e-9), 1.0)
    return start + (end - start) * jnp.clip(progress, 0.0, 1.0)


def exponential(
    start: float | Array, end: float | Array, scale: float | Array, step: Int[Array, ""]
) -> Float[Array, ""]:
    """end + (start - end) exp(-step / scale): `scale` steps bring it to 37% of the way up from `end`."""
    return end + (start - end) * jnp.exp(-step / scale)


class Schedule(NamedTuple):
    """How far training is. What changes over it is laid out over `total_timesteps` steps, once."""

    step: Counter
    """Environment steps so far, over all environments."""
    total_timesteps: Int[Array, ""]

    @classmethod
    def start(cls, spec: Spec) -> Schedule:
        return cls(Counter.zero(), jnp.asarray(spec.total_timesteps, jnp.int32))

    def after(self, rollout: Transition) -> Schedule:
        """The schedule once the steps of a rollout, those that count, are taken."""
        return self.plus(rollout.count)

    def plus(self, steps: int | Array) -> Schedule:
        """The schedule so many steps later."""
        return self._replace(step=self.step.add(steps))

    def at(self, start: Any, end: Any) -> Any:
        """The value that goes from `start` at the first step to `end` at the last, in a straight line; `start`
        throughout where `end` is `None`."""
        return start if end is None else linear(start, end, self.total_timesteps, self.step.value)
