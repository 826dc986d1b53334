"""What the tests of worlds that have a twin in Gymnasium share."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import gymnasium
import jax


@functools.partial(jax.jit, static_argnums=0)
def play(state_type, world, starts, actions):
    """Each row of actions from its start, without resets: the states, and what the steps answered."""

    def one_step(state, action):
        state, answer = world.step(state, action, jax.random.key(0))
        return state, (state, answer)

    def one(start, sequence):
        return jax.lax.scan(one_step, state_type(*start), sequence)[1]

    return jax.vmap(one)(starts, actions)


def physics(name: str) -> Iterator[Any]:
    """Gymnasium's environment without its wrappers, closed afterwards."""
    env: Any = gymnasium.make(name).unwrapped
    env.reset(seed=0)
    yield env
    env.close()
