"""Training with looks is training: the same randomness, cut at the ends of episodes instead of by a number of steps."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from treadle.algorithms.q_learning import QLearning
from treadle.environments.maze import Maze
from treadle.loops import fused, looks
from treadle.loops.looks import look_at_seeds
from treadle.loops.seeding import seed_key
from treadle.registry import as_float32

LEARNER = QLearning(learning_rate=0.5, gamma=0.9, epsilon=0.3)


def weights(state):
    return state.q.weights


@pytest.fixture(scope="module")
def by_steps():
    """Plain training of seed 1, one update at a time: its episodes and its table after every step."""

    def one(state, _):
        state, record = fused.advance(as_float32(LEARNER), Maze(), state, 1)
        return state, (record.episodes.returns[0, 0, 0], record.episodes.lengths[0, 0, 0], weights(state.algorithm))

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
