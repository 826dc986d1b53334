"""Training with looks is training: the same randomness, cut at the ends of episodes instead of by a number of steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle.algorithms.dqn import DQN
from treadle.algorithms.q_learning import QLearning
from treadle.environments.maze import Maze
from treadle.errors import InvalidSetting
from treadle.loops import fused, looks
from treadle.loops.looks import look_at_seeds
from treadle.loops.seeding import seed_key
from treadle.registry import as_float32
from treadle.types import Alarm, Mean

pytestmark = pytest.mark.least_optimised

LEARNER = QLearning(learning_rate=0.5, gamma=0.9, epsilon=0.3)


def weights(moment):
    return moment.state.q.weights


@pytest.fixture(scope="module")
def by_steps():
    """Plain training of seed 1, one update at a time: its episodes and its table after every step."""

    def one(state, _):
        state, record = fused.advance(as_float32(LEARNER), Maze(), state, 1)
        return state, (record.episodes.returns[0, 0, 0], record.episodes.lengths[0, 0, 0], state.algorithm.q.weights)

    def run(key):
        return jax.lax.scan(one, fused.init(as_float32(LEARNER), Maze(), key, 2**31 - 1), length=400)[1]

    return jax.device_get(jax.jit(run)(seed_key(0, 1)))


def test_a_look_after_each_episode_sees_what_plain_training_has_then(by_steps):
    returns, lengths, tables = by_steps
    ends = np.flatnonzero(lengths)
    assert len(ends) > 10
    seen = jax.device_get(look_at_seeds(LEARNER, Maze(), 10, weights, num_seeds=3))
    assert seen.returns.shape == (3, 10)
    np.testing.assert_array_equal(seen.returns[1], returns[ends[:10]])
    np.testing.assert_array_equal(seen.lengths[1], lengths[ends[:10]])
    np.testing.assert_allclose(seen.observed[1], tables[ends[:10]], atol=1e-6)
    assert not np.array_equal(seen.lengths[0], seen.lengths[1]), "seeds differ"


def test_looks_go_on_past_the_block_in_which_they_are_counted(by_steps, monkeypatch):
    monkeypatch.setattr(looks, "BLOCK", 16)
    _, lengths, tables = by_steps
    ends = np.flatnonzero(lengths)[:12]
    assert ends[-1] > 32
    run = jax.jit(lambda key: looks.train_and_look(as_float32(LEARNER), Maze(), key, 12, weights, "episode"))
    seen = jax.device_get(run(seed_key(0, 1)))
    np.testing.assert_array_equal(seen.lengths, lengths[ends])
    np.testing.assert_allclose(seen.observed, tables[ends], atol=1e-6)


def test_a_look_after_each_update_sees_every_step(by_steps):
    returns, lengths, tables = by_steps
    seen = jax.device_get(look_at_seeds(LEARNER, Maze(), 50, weights, unit="update", num_seeds=2))
    np.testing.assert_array_equal(seen.lengths[1], lengths[:50])
    np.testing.assert_array_equal(seen.returns[1], returns[:50])
    np.testing.assert_allclose(seen.observed[1], tables[:50], atol=1e-6)


def test_looks_may_be_several_updates_apart_and_see_all_that_happened_between(by_steps):
    """Returns and lengths are sums over the episodes that ended, metrics means, and every state was visited."""
    returns, lengths, tables = by_steps

    def observe(moment):
        return moment.state.q.weights, moment.metrics, moment.visited.obs, jax.random.bits(moment.key)

    seen = jax.device_get(look_at_seeds(LEARNER, Maze(), 30, observe, unit="update", num_seeds=2, every=12))
    spans = np.s_[: 30 * 12]
    table, metrics, visited, bits = seen.observed
    np.testing.assert_array_equal(seen.returns[1], returns[spans].reshape(30, 12).sum(1))
    np.testing.assert_array_equal(seen.lengths[1], lengths[spans].reshape(30, 12).sum(1))
    np.testing.assert_array_equal(seen.ended[1], (lengths[spans] > 0).reshape(30, 12).sum(1))
    assert seen.ended.max() > 1
    np.testing.assert_allclose(table[1], tables[11 : 30 * 12 : 12], atol=1e-6)
    assert len(np.unique(bits)) == bits.size, "a key of its own for every look of every seed"

    each = look_at_seeds(LEARNER, Maze(), 360, lambda m: (m.metrics, m.visited.obs[0]), "update", num_seeds=2)
    each_metrics, each_obs = jax.device_get(each.observed)
    assert metrics.keys() == each_metrics.keys() and len(metrics) > 0
    for name, values in metrics.items():
        np.testing.assert_allclose(values[1], each_metrics[name][1].reshape(30, 12).mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(visited[1].ravel(), each_obs[1].ravel())


def test_a_metric_is_absent_where_nothing_was_reported():
    losses = Mean(jnp.asarray([0.0, 3.0, 5.0]), jnp.asarray([0.0, 1.0, 1.0]))
    alarm = Alarm(jnp.zeros(3, bool), "never")
    found = looks._means({"loss": losses, "max_q": jnp.asarray([1.0, 2.0, 6.0]), "diverged": alarm})
    assert {name: float(value) for name, value in found.items()} == {"loss": 4.0, "max_q": 3.0}
    assert np.isnan(looks._means({"loss": Mean(jnp.zeros(2), jnp.zeros(2))})["loss"])


def test_looks_after_each_episode_need_rounds_of_one_step():
    with pytest.raises(InvalidSetting, match=r"every 2 rounds of 1 steps.*Count updates"):
        look_at_seeds(LEARNER, Maze(), 3, every=2)
    with pytest.raises(InvalidSetting, match="every 1 rounds of 5 steps"):
        look_at_seeds(DQN(train_frequency=5), Maze(), 3)
    with pytest.raises(InvalidSetting, match="of 2 environments"):
        look_at_seeds(QLearning(num_envs=2), Maze(), 3)


def test_looks_after_updates_see_all_environments_and_schedules_count_their_steps():
    """Two environments make two steps an update: after 12 of 12 the step size has come to its end."""
    algorithm = QLearning(num_envs=2, learning_rate=0.5, learning_rate_end=0.0, gamma=0.9, epsilon=0.3)

    def observe(moment):
        return moment.visited.episode_length, moment.algorithm.rate(moment.state)

    lengths, rates = jax.device_get(look_at_seeds(algorithm, Maze(), 3, observe, "update", every=4).observed)
    assert lengths.shape == (1, 3, 4, 2)
    np.testing.assert_allclose(rates[0], [0.5 * 2 / 3, 0.5 / 3, 0.0], atol=1e-6)
