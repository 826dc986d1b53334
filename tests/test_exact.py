"""Exact solutions: values worked by hand, tables against the worlds that they stand for, and brute force."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle import exact, registry
from treadle.environments.baird import Baird
from treadle.environments.cliff_walking import CliffWalking
from treadle.environments.dyna_maze import DynaMaze
from treadle.environments.maze import Maze
from treadle.environments.random_walk import RandomWalk
from treadle.environments.treasure_line import TreasureLine
from treadle.errors import TreadleError
from treadle.exact import Transitions
from treadle.registry import as_float32

pytestmark = pytest.mark.least_optimised


def always(action: int, transitions: Transitions) -> np.ndarray:
    """The policy that takes one action everywhere."""
    return np.eye(transitions.reward.shape[1], dtype=np.float32)[np.full(len(transitions.start), action)]


def uniform(transitions: Transitions) -> np.ndarray:
    return np.full(transitions.reward.shape, 1 / transitions.reward.shape[1], np.float32)


def path(transitions: Transitions, q: Any) -> list[int]:
    """The states that the best actions lead through in a deterministic world, until the episode ends."""
    state, states = int(np.argmax(transitions.start)), []
    while len(states) < 100:
        states.append(state)
        row = transitions.probability[state, int(np.argmax(q[state]))]
        if row.sum() == 0:
            return states
        state = int(np.argmax(row))
    raise AssertionError(f"the best actions lead nowhere: {states}")


def random_world(seed: int, states: int = 4, actions: int = 2) -> Transitions:
    """Dense random probabilities; each step ends the episode with probability 0.1 or more."""
    rng = np.random.default_rng(seed)
    probability = rng.dirichlet(np.ones(states), (states, actions)) * rng.uniform(0.5, 0.9, (states, actions, 1))
    reward = rng.normal(size=(states, actions))
    start = np.full(states, 1 / states)
    return Transitions(probability.astype(np.float32), reward.astype(np.float32), start.astype(np.float32))


def solved(transitions: Transitions, policy: np.ndarray, gamma: float) -> np.ndarray:
    """`v` by linear algebra in double precision."""
    probability = np.einsum("sa,sat->st", policy, transitions.probability.astype(np.float64))
    return np.linalg.solve(np.eye(len(policy)) - gamma * probability, (policy * transitions.reward).sum(1))


# Values by hand


def test_the_treasure_is_worth_gamma_to_the_steps_before_it():
    q = exact.value_iteration(TreasureLine().transitions(), 0.9)
    v = [0.9**4, 0.9**3, 0.9**2, 0.9, 1]
    np.testing.assert_allclose(q[:5, 1], v, rtol=1e-6)
    np.testing.assert_allclose(q[:5, 0], 0.9 * np.array([v[0], *v[:4]]), rtol=1e-6)
    np.testing.assert_array_equal(q[5], 0)


def test_the_random_walk_is_worth_sixths():
    np.testing.assert_allclose(RandomWalk().true_values(), [0, *(np.arange(1, 6) / 6), 0], atol=1e-6)


def test_the_random_walk_of_19_states_is_worth_tenths():
    world = registry.environments.make("RandomWalk19")
    np.testing.assert_allclose(world.true_values(), [0, *(np.arange(-9, 10) / 10), 0], atol=2e-6)
    inside = jax.jit(lambda world, gamma: world.true_values(gamma))(as_float32(world), 1.0)
    np.testing.assert_allclose(inside, world.true_values(), atol=2e-6)


def test_a_step_that_is_repeated_by_chance_is_a_geometric_series():
    """Reward 3, and again with probability 1/2: 3 / (1 - gamma / 2)."""
    again = Transitions(np.full((1, 1, 1), 0.5, np.float32), np.full((1, 1), 3, np.float32), np.ones(1, np.float32))
    for gamma in (0.0, 0.9, 1.0):
        values = exact.policy_evaluation(again, np.ones((1, 1)), gamma)
        np.testing.assert_allclose(values.v, [3 / (1 - gamma / 2)], rtol=1e-6)
        np.testing.assert_allclose(values.q, [[3 / (1 - gamma / 2)]], rtol=1e-6)
        np.testing.assert_allclose(exact.value_iteration(again, gamma), values.q, rtol=1e-5)


def test_the_best_path_runs_along_the_cliff():
    transitions = CliffWalking().transitions()
    q = exact.value_iteration(transitions, 1.0)
    assert path(transitions, q) == [36, *range(24, 36)]
    assert q[36].tolist() == [-13, -113, -14, -14], "up, over the cliff and back, and two moves that stay"
    assert q[25].tolist() == [-13, -11, -113, -13]


def test_the_dyna_maze_is_fourteen_steps_long():
    transitions = DynaMaze().transitions()
    q = exact.value_iteration(transitions, 0.95)
    assert len(path(transitions, q)) == 14
    np.testing.assert_allclose(np.max(q[18]), 0.95**13, rtol=1e-6)


def test_every_value_of_bairds_world_is_zero():
    transitions = Baird().transitions()
    np.testing.assert_array_equal(exact.value_iteration(transitions, 0.99), 0)
    np.testing.assert_array_equal(exact.policy_evaluation(transitions, always(1, transitions), 1.0).v, 0)


# Against other ways to the same


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_values_of_a_policy_are_those_of_linear_algebra(seed, gamma):
    world = random_world(seed)
    policy = np.random.default_rng(seed).dirichlet(np.ones(2), 4)
    v, q = exact.policy_evaluation(world, jnp.asarray(policy), gamma)
    np.testing.assert_allclose(v, solved(world, policy, gamma), atol=1e-5)
    np.testing.assert_allclose((policy * q).sum(1), v, atol=1e-5)


def test_long_episodes_without_discount_are_evaluated_to_rounding():
    """At random it takes some thousand steps to leave the cliff for good, each of them worth -13 on average."""
    transitions = CliffWalking().transitions()
    expected = solved(transitions, uniform(transitions), 1.0)
    assert expected.min() < -60_000
    np.testing.assert_allclose(exact.policy_evaluation(transitions, uniform(transitions), 1.0).v, expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_value_iteration_finds_the_best_of_all_policies(seed):
    world = random_world(seed)
    policies = [np.eye(2)[list(actions)] for actions in itertools.product(range(2), repeat=4)]
    best = np.max([solved(world, policy, 0.9) for policy in policies], axis=0)
    q = exact.value_iteration(world, 0.9)
    np.testing.assert_allclose(np.max(q, axis=1), best, atol=1e-5)
    greedy = exact.policy_evaluation(world, exact.greedy_policy(q), 0.9)
    np.testing.assert_allclose(greedy.v, best, atol=1e-5)
    np.testing.assert_allclose(greedy.q, q, atol=1e-5)


def test_solutions_inside_jit_with_a_traced_gamma_are_the_same():
    @jax.jit
    def solve(gamma):
        transitions = Maze().transitions()
        q = exact.value_iteration(transitions, gamma)
        return q, exact.policy_evaluation(transitions, exact.greedy_policy(q), gamma)

    gammas = jnp.array([0.5, 0.9])
    q, values = jax.vmap(solve)(gammas)
    for i, gamma in enumerate(gammas):
        expected = exact.value_iteration(Maze().transitions(), float(gamma))
        np.testing.assert_allclose(q[i], expected, rtol=1e-6)
        np.testing.assert_allclose(values.q[i], expected, rtol=1e-6)
        assert np.argmax(exact.greedy_policy(q[i])[3]) == 1, "from the top right corner, down"


# Best actions


def test_actions_that_tie_are_all_best():
    q = jnp.array([[1.0, 1.0, 0.9], [0.0, 0.0, 0.0], [-2.0, -2.00001, -3.0], [1e-6, 2e-6, 0.0]])
    expected = [[True, True, False], [True, True, True], [True, True, False], [False, True, False]]
    assert exact.optimal_actions(q).tolist() == expected
    np.testing.assert_allclose(exact.greedy_policy(q)[:2], [[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-6)
    assert exact.optimal_actions(q, tolerance=0.2)[0].all()
    assert exact.optimal_actions(q, tolerance=0.0)[2].tolist() == [True, False, False]


# Tables


TABULATED = [name for name in registry.environments.names() if hasattr(registry.environments.make(name), "transitions")]
SAMPLES = 1000


@jax.jit
def sampled(world: Any, states: jax.Array, actions: jax.Array, keys: jax.Array) -> Any:
    """First states, and for each state and action what follows: the state, the reward, whether it is the end."""

    def outcome(state, action, key):
        after, step = world.step(state, action, key)
        return after, step.reward, step.terminated

    by_key = jax.vmap(outcome, (None, None, 0))
    return jax.vmap(world.reset)(keys)[0], jax.vmap(jax.vmap(by_key, (None, 0, None)), (0, None, None))(
        states, actions, keys
    )


@pytest.mark.parametrize("name", TABULATED)
def test_a_table_says_what_happens(name):
    """Frequencies within 5 standard deviations of the table, of which the largest is sqrt(1/4 / samples)."""
    world = registry.environments.make(name)
    probability, reward, start = world.transitions()
    states, actions = len(start), world.action_space.n
    assert probability.shape == (states, actions, states) and reward.shape == (states, actions)
    assert probability.dtype == reward.dtype == start.dtype == np.float32

    keys = jax.random.split(jax.random.key(0), SAMPLES)
    first, (after, rewards, ended) = sampled(world, jnp.arange(states), jnp.arange(actions), keys)
    tolerance = 5 * np.sqrt(0.25 / SAMPLES) if np.any((probability > 0) & (probability < 1)) else 1e-6
    np.testing.assert_allclose(np.bincount(first, minlength=states) / SAMPLES, start, atol=tolerance)
    np.testing.assert_allclose(start.sum(), 1, rtol=1e-6)

    acting = start > 0
    while True:
        wider = acting | (probability[acting].sum((0, 1)) > 0)
        if (wider == acting).all():
            break
        acting = wider
    goes_on = (np.asarray(after)[..., None] == np.arange(states)) & ~np.asarray(ended)[..., None]
    np.testing.assert_allclose(goes_on.mean(2)[acting], probability[acting], atol=tolerance)
    np.testing.assert_allclose(np.mean(rewards, axis=2)[acting], reward[acting], atol=tolerance)
    assert not probability[~acting].any() and not reward[~acting].any(), "where no action is ever taken, rows are zero"


def test_cells_that_no_episode_reaches_have_empty_rows():
    transitions = CliffWalking().transitions()
    assert np.flatnonzero(~transitions.probability.any((1, 2))).tolist() == list(range(37, 48))
    walls = [7, 11, 16, 20, 25, 29, 41]
    assert np.flatnonzero(~DynaMaze().transitions().probability.any((1, 2))).tolist() == sorted([8, *walls])


# Mistakes


def test_values_without_a_limit_are_refused():
    transitions = CliffWalking().transitions()
    with pytest.raises(TreadleError, match=r"did not settle with gamma 1: .* gamma"):
        exact.policy_evaluation(transitions, always(0, transitions), 1.0)
    endless = Transitions(np.ones((1, 1, 1), np.float32), np.ones((1, 1), np.float32), np.ones(1, np.float32))
    with pytest.raises(TreadleError, match="did not settle"):
        exact.value_iteration(endless, 1.0)


def test_going_on_for_ever_for_nothing_is_worth_nothing():
    transitions = DynaMaze().transitions()
    np.testing.assert_array_equal(exact.policy_evaluation(transitions, always(3, transitions), 1.0).v, 0)


def test_a_world_of_chance_is_not_tabulated_by_stepping_it():
    with pytest.raises(TreadleError, match=r"Baird is random: .* by hand"):
        exact.tabulate(Baird(), 7)
