"""What a learner says of an observation to whoever watches it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle import DDPG, DQN, PPO, registry
from treadle.algorithms.q_learning import QLearning
from treadle.algorithms.reinforce import Reinforce
from treadle.algorithms.td_lambda import TD0
from treadle.loops.rollout import make_spec
from treadle.registry import as_float32

pytestmark = pytest.mark.least_optimised


def inspected(algorithm: Any, name: str) -> tuple[Any, Any, Any]:
    """The state of a fresh learner, its first observation, and what it says of it."""
    algorithm, world = as_float32(algorithm), as_float32(registry.environments.make(name))
    state = algorithm.init(jax.random.key(0), make_spec(algorithm, world, 100))
    _, obs = world.reset(jax.random.key(1))
    return state, obs, jax.device_get(algorithm.inspect(state, obs))


def test_methods_of_values_tell_those_of_every_action():
    state, obs, found = inspected(DQN(hidden_sizes=(8,)), "CartPole-v1")
    assert list(found) == ["q_values"]
    np.testing.assert_allclose(found["q_values"], state.network(obs))
    state, obs, found = inspected(QLearning(initial_value=0.5), "Maze")
    np.testing.assert_array_equal(found["q_values"], [0.5] * 4)


def test_methods_of_prediction_tell_the_value_and_the_policy_it_is_of():
    _, _, found = inspected(TD0(target_policy=(0.25, 0.75), initial_value=2.0), "RandomWalk")
    assert found["value"] == 2.0
    np.testing.assert_allclose(found["probabilities"], [0.25, 0.75])


def test_methods_of_policies_tell_probabilities_and_the_value_if_they_have_one():
    _, _, found = inspected(PPO(hidden_sizes=(8,)), "CartPole-v1")
    assert sorted(found) == ["probabilities", "value"]
    np.testing.assert_allclose(found["probabilities"].sum(), 1.0, rtol=1e-6)
    assert np.shape(found["value"]) == ()
    _, _, found = inspected(Reinforce(hidden_sizes=(8,)), "CartPole-v1")
    assert list(found) == ["probabilities"]


def test_continuous_actions_are_told_in_their_own_units():
    """A deviation of 1 is half of the width of [-2, 2]."""
    state, obs, found = inspected(PPO(hidden_sizes=(8,)), "Pendulum-v1")
    np.testing.assert_allclose(found["std"], [2.0], rtol=1e-6)
    np.testing.assert_allclose(found["mean"], 2.0 * state.learner.networks.policy(obs).mean, atol=1e-6)


def test_of_a_deterministic_policy_the_value_is_that_of_its_action():
    algorithm: Any = DDPG(hidden_sizes=(8,), normalise_observations=True)
    state, obs, found = inspected(algorithm, "Pendulum-v1")
    state = state._replace(observations=state.observations.after(jnp.full((9, 3), 5.0), None))
    found = algorithm.inspect(state, obs)
    networks, seen = state.learned.networks, state.observations.normalise(obs)
    np.testing.assert_allclose(found["mean"], 2.0 * networks.policy(seen), rtol=1e-5)
    np.testing.assert_allclose(found["value"], networks.value(seen, networks.policy(seen)), rtol=1e-5)
