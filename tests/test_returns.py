"""The formulas of value learning: by hand, against rlax, and where their gradients go."""

from __future__ import annotations

import warnings
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle.returns import double_q_learning_error, gae, lambda_returns, n_step, q_learning_error, taken, td_error
from treadle.types import Transition

pytestmark = pytest.mark.least_optimised


@pytest.fixture(scope="module")
def rlax() -> ModuleType:
    with warnings.catch_warnings():
        # TensorFlow Probability, which rlax imports, reads names that JAX is about to remove.
        warnings.filterwarnings("ignore", r"jax\.\S+ is deprecated", DeprecationWarning)
        import rlax
    return rlax


@pytest.fixture
def batch():
    """q, action, reward, discount, q_next, q_next_selector for 200 transitions and 5 actions; a third terminated."""
    rng = np.random.default_rng(0)
    q, q_next, selector = rng.normal(0.0, 3.0, (3, 200, 5)).astype(np.float32)
    action = rng.integers(0, 5, 200, np.int32)
    reward = rng.normal(0.0, 1.0, 200).astype(np.float32)
    discount = np.where(rng.random(200) < 1 / 3, 0.0, 0.97).astype(np.float32)
    return q, action, reward, discount, q_next, selector


def test_q_learning_is_that_of_rlax(rlax, batch):
    expected = jax.vmap(rlax.q_learning)(*batch[:5])
    np.testing.assert_allclose(jax.vmap(q_learning_error)(*batch[:5]), expected, atol=2e-6)


def test_double_q_learning_is_that_of_rlax(rlax, batch):
    expected = jax.vmap(rlax.double_q_learning)(*batch)
    errors = jax.vmap(double_q_learning_error)(*batch)
    np.testing.assert_allclose(errors, expected, atol=2e-6)
    assert not np.allclose(errors, jax.vmap(q_learning_error)(*batch[:5]), atol=0.1)


Q, Q_NEXT, SELECTOR = jnp.array([1.0, 4.0, 2.0]), jnp.array([3.0, -1.0, 5.0]), jnp.array([0.0, 7.0, 6.0])


@pytest.mark.parametrize(
    ("discount", "natural", "double"),
    [
        (0.5, 10.0 + 0.5 * 5.0 - 4.0, 10.0 + 0.5 * -1.0 - 4.0),
        (0.0, 10.0 - 4.0, 10.0 - 4.0),  # terminated
    ],
)
def test_golden_values(discount, natural, double):
    """Reward 10, action 1: the target network's best next value is 5; the selector's choice is worth -1 to it."""
    action, reward = jnp.array(1), jnp.array(10.0)
    assert q_learning_error(Q, action, reward, discount, Q_NEXT) == natural
    assert double_q_learning_error(Q, action, reward, discount, Q_NEXT, SELECTOR) == double


def test_the_gradient_goes_through_q_alone():
    action, reward, discount = jnp.array(2), jnp.array(1.0), jnp.array(0.9)
    to_q, to_q_next = jax.grad(q_learning_error, argnums=(0, 4))(Q, action, reward, discount, Q_NEXT)
    np.testing.assert_array_equal(to_q, [0.0, 0.0, -1.0])
    np.testing.assert_array_equal(to_q_next, np.zeros(3))

    gradient = jax.grad(double_q_learning_error, argnums=(0, 4, 5))
    to_q, to_q_next, to_selector = gradient(Q, action, reward, discount, Q_NEXT, SELECTOR)
    np.testing.assert_array_equal(to_q, [0.0, 0.0, -1.0])
    np.testing.assert_array_equal(to_q_next, np.zeros(3))
    np.testing.assert_array_equal(to_selector, np.zeros(3))


def test_one_network_for_all_three_still_learns_from_q_alone():
    """As in DQN without a target network: the same parameters give q and both next values."""

    def error(w):
        return double_q_learning_error(w * Q, jnp.array(0), jnp.array(0.0), jnp.array(0.9), w * Q_NEXT, w * SELECTOR)

    assert jax.grad(error)(2.0) == -Q[0]


def test_taken_is_indexing():
    q = jnp.array([1.5, jnp.nan, -jnp.inf, 2.5, -0.25])
    for action in range(5):
        np.testing.assert_array_equal(taken(q, jnp.array(action)), q[action])
        np.testing.assert_array_equal(jax.grad(taken)(q, jnp.array(action)), np.eye(5)[action])


def test_the_td_error_is_that_of_rlax(rlax, batch):
    q, _, reward, discount, q_next, _ = batch
    expected = jax.vmap(rlax.td_learning)(q[:, 0], reward, discount, q_next[:, 0])
    np.testing.assert_allclose(jax.vmap(td_error)(q[:, 0], reward, discount, q_next[:, 0]), expected, atol=2e-6)
    to_v, to_v_next = jax.grad(td_error, argnums=(0, 3))(1.0, 0.0, 0.9, 2.0)
    assert (to_v, to_v_next) == (-1.0, 0.0)


@pytest.mark.parametrize("trace_decay", [0.0, 0.7, 1.0])
def test_lambda_returns_are_those_of_rlax(rlax, batch, trace_decay):
    """Episodes that terminate need nothing else: their discount is 0."""
    _, _, reward, discount, q_next, _ = batch
    v_next = q_next[:, 0]
    expected = rlax.lambda_returns(reward, discount, v_next, trace_decay)
    returns = lambda_returns(reward, discount, v_next, discount == 0, trace_decay)
    np.testing.assert_allclose(returns, expected, rtol=1e-5, atol=1e-5)
    assert np.count_nonzero(discount == 0) > 50


def test_lambda_returns_of_an_episode_cut_short_by_hand():
    """Gamma and lambda 0.5; the second step is cut by a time limit, the fourth terminates, the fifth goes on.

    Each is worked backwards: what was cut, and what goes on, is completed by the value of the next observation.
    """
    returns = lambda_returns(
        reward=jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]),
        discount=jnp.array([0.5, 0.5, 0.5, 0.0, 0.5]),
        v_next=jnp.array([8.0, 16.0, 32.0, 64.0, 128.0]),
        ended=jnp.array([False, True, False, True, False]),
        trace_decay=0.5,
    )
    cut = 2.0 + 0.5 * 16.0
    expected = [1.0 + 0.5 * (0.5 * 8.0 + 0.5 * cut), cut, 3.0 + 0.5 * (0.5 * 32.0 + 0.5 * 4.0), 4.0, 5.0 + 0.5 * 128.0]
    np.testing.assert_array_equal(returns, expected)


def test_lambda_returns_with_time_limits_are_those_of_each_piece(rlax, batch):
    _, _, reward, discount, q_next, _ = batch
    v_next, truncated = q_next[:, 0], np.arange(len(reward)) % 7 == 2
    ends = np.flatnonzero(truncated) + 1
    pieces = zip(*(np.split(x, ends) for x in (reward, discount, v_next)), strict=True)
    expected = np.concatenate([rlax.lambda_returns(*piece, 0.9) for piece in pieces])
    returns = lambda_returns(reward, discount, v_next, truncated | (discount == 0), 0.9)
    np.testing.assert_allclose(returns, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trace_decay", [0.0, 0.9, 1.0])
def test_advantages_are_those_of_rlax(rlax, batch, trace_decay):
    """Episodes that terminate, in one trajectory: rlax takes the values of all observations in a row."""
    q, _, reward, discount, *_ = batch
    v = np.append(q[:, 0], 3.0).astype(np.float32)
    expected = rlax.truncated_generalized_advantage_estimation(reward, discount, trace_decay, v)
    advantage = gae(reward, discount, jnp.asarray(v[:-1]), jnp.asarray(v[1:]), discount == 0, trace_decay)
    np.testing.assert_allclose(advantage, expected, rtol=1e-4, atol=1e-4)


def test_advantages_through_a_time_limit_and_a_terminal_state_by_hand():
    """Gamma 0.5 and lambda 0.5, so that the trace decays by 0.25. The second step is cut by a time limit, the fourth
    terminates, and the fifth is the rollout's last: it bootstraps from its own successor. No advantage has anything of
    the episode that follows."""
    reward = np.array([1.0, 2.0, 3.0, 4.0, 5.0], np.float32)
    v = np.array([1.0, 10.0, 2.0, 20.0, 3.0], np.float32)
    v_next = np.array([10.0, 16.0, 20.0, 64.0, 128.0], np.float32)
    delta = [1 + 0.5 * 10 - 1, 2 + 0.5 * 16 - 10, 3 + 0.5 * 20 - 2, 4 - 20, 5 + 0.5 * 128 - 3]
    advantage = gae(
        jnp.asarray(reward),
        jnp.array([0.5, 0.5, 0.5, 0.0, 0.5]),
        jnp.asarray(v),
        jnp.asarray(v_next),
        jnp.array([False, True, False, True, False]),
        0.5,
    )
    expected = [delta[0] + 0.25 * delta[1], delta[1], delta[2] + 0.25 * delta[3], delta[3], delta[4]]
    np.testing.assert_array_equal(advantage, expected)


def test_with_a_trace_that_does_not_decay_targets_are_n_step_returns():
    """Lambda 1 and gamma 0.5: rewards up to the end or the cut, and what is then the value of the successor."""
    v = jnp.array([7.0, 7.0, 7.0, 7.0])
    advantage = gae(
        jnp.array([1.0, 2.0, 4.0, 8.0]),
        jnp.full(4, 0.5),
        v,
        jnp.array([0.0, 16.0, 0.0, 32.0]),
        jnp.array([False, True, False, False]),
        1.0,
    )
    np.testing.assert_array_equal(advantage + v, [1 + 0.5 * (2 + 0.5 * 16), 2 + 0.5 * 16, 4 + 0.5 * (8 + 16), 8 + 16])


def _rows(rewards, terminated=(), truncated=()):
    """Consecutive rows: observation i, then i + 1."""
    n = len(rewards)
    flags = [jnp.asarray([i in ends for i in range(n)]) for ends in (terminated, truncated)]
    obs = jnp.arange(n, dtype=jnp.float32)[:, None]
    return Transition(obs, jnp.arange(n), jnp.asarray(rewards, jnp.float32), obs + 1, *flags)


@pytest.mark.parametrize(
    ("terminated", "truncated", "reward", "successor", "discount"),
    [
        ((), (), 1 + 0.5 * 2 + 0.25 * 4, 3, 0.125),
        ((2,), (), 1 + 0.5 * 2 + 0.25 * 4, 3, 0.0),
        ((), (2,), 1 + 0.5 * 2 + 0.25 * 4, 3, 0.125),
        ((1,), (), 1 + 0.5 * 2, 2, 0.0),
        ((), (1,), 1 + 0.5 * 2, 2, 0.25),
        ((0,), (1,), 1, 1, 0.0),
        ((2,), (0,), 1, 1, 0.5),
    ],
)
def test_three_rows_as_one_by_hand(terminated, truncated, reward, successor, discount):
    """Rewards 1, 2, 4 and gamma 0.5: what comes after an end is of another episode, and a time limit still bootstraps,
    with gamma to the number of steps really taken."""
    whole, factor = n_step(_rows([1.0, 2.0, 4.0], terminated, truncated), 0.5)
    assert float(whole.reward) == reward
    assert float(whole.next_obs[0]) == successor
    assert float(factor) == discount
    assert float(whole.obs[0]) == 0 and int(whole.action) == 0


def test_one_row_is_itself():
    rows = _rows([3.0])
    whole, factor = n_step(rows, 0.9)
    np.testing.assert_array_equal(whole.reward, 3.0)
    np.testing.assert_allclose(factor, 0.9)
    np.testing.assert_array_equal(whole.next_obs, rows.next_obs[0])
