"""The probe worlds really have the values that other tests expect algorithms to find."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import PROBES, Probe, shared
from treadle.environments.base import Environment

GAMMA = 0.7


@jax.jit
def _episodes(world, keys):
    """Episodes of 8 random steps, going on past their end: observations, actions, steps, and whether it had not yet
    come."""

    def episode(key):
        state, obs = world.reset(key)

        def one(carry, key):
            state, obs, alive = carry
            action = jax.random.randint(key, (), 0, 2)
            state, step = world.step(state, action, key)
            return (state, step.obs, alive & ~step.terminated), (obs, action, step, alive)

        return jax.lax.scan(one, (state, obs, jnp.array(True)), jax.random.split(key, 8))[1]

    return jax.vmap(episode)(keys)


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.name)
def test_the_known_values_solve_the_bellman_equation_on_every_transition(probe: Probe):
    world = shared(probe)
    assert isinstance(world, Environment) and isinstance(probe.environment, Environment)
    obs, action, step, alive = _episodes(world, jax.random.split(jax.random.key(0), 64))
    known_obs, values = probe.values(GAMMA)

    def lookup(obs):
        matches = np.all(np.asarray(obs)[..., None, :] == known_obs, axis=-1)
        return matches.any(-1), values[matches.argmax(-1)]

    seen, q = lookup(obs)
    next_seen, q_next = lookup(step.obs)
    alive, terminated = np.asarray(alive), np.asarray(step.terminated)
    assert seen[alive].all(), "a value for every observation in which an action is taken"
    assert next_seen[alive & ~terminated].all()
    for row in known_obs:
        assert np.all(np.asarray(obs)[alive] == row, axis=-1).any(), f"{row} never occurs"

    target = np.asarray(step.reward) + GAMMA * np.where(terminated, 0.0, q_next.max(-1))
    chosen = np.take_along_axis(q, np.asarray(action)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(chosen[alive], target[alive], rtol=1e-6)
    assert set(np.asarray(action)[alive]) == {0, 1}


def test_truncated_and_terminated_twins_differ_in_nothing_but_the_flag():
    endless, finite = (p.environment for p in PROBES if p.name.startswith("truncation"))
    state, obs = endless.reset(jax.random.key(0))
    other_state, other_obs = finite.reset(jax.random.key(0))
    np.testing.assert_array_equal(obs, other_obs)
    flags = []
    for _ in range(endless.max_episode_steps):
        state, step = endless.step(state, jnp.array(0), jax.random.key(0))
        other_state, other = finite.step(other_state, jnp.array(0), jax.random.key(0))
        np.testing.assert_array_equal(step.obs, other.obs)
        np.testing.assert_array_equal(step.reward, other.reward)
        flags.append((bool(step.terminated), bool(other.terminated)))
    assert flags == [(False, False), (False, False), (False, True)]
