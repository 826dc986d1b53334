"""The buffer of episodes at hand, against lists."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle.episodes import EpisodeBuffer

pytestmark = pytest.mark.least_optimised

LENGTH, BATCH, STEPS = 5, 3, 40


@pytest.fixture(scope="module")
def step():
    """A step of all environments, then every row of their episodes, then what is left after clearing."""

    @jax.jit
    def step(buffer, rows, valid, ended):
        buffer = buffer.append(rows, valid)
        found = jax.vmap(lambda b: jax.vmap(lambda k: buffer.row(b, k))(jnp.arange(LENGTH)))(jnp.arange(BATCH))
        return buffer.clear(ended), found, buffer.lengths, buffer.overflowed

    return step


def example() -> Any:
    return {"pixels": jnp.zeros((2, 2), jnp.uint8), "reward": jnp.zeros(()), "place": jnp.zeros((), jnp.int32)}


@pytest.mark.parametrize("masked", [False, True])
def test_it_holds_the_episodes_at_hand_of_every_environment(step, masked):
    """Episodes end at any step, each environment's by itself. Rows that are not valid lie before an episode's first, or
    within one. Where an episode grows longer than the buffer, that is said until it ends."""
    rng = np.random.default_rng(0)
    buffer = EpisodeBuffer.init(example(), BATCH, LENGTH)
    expected: list[list[tuple[Any, bool]]] = [[] for _ in range(BATCH)]
    overflows = 0
    for number in range(STEPS):
        rows = {
            "pixels": jnp.asarray(rng.integers(0, 256, (BATCH, 2, 2)), jnp.uint8),
            "reward": jnp.asarray(rng.normal(size=BATCH), jnp.float32),
            "place": number + 1000 * jnp.arange(BATCH),
        }
        valid = rng.random(BATCH) < 0.7 if masked else np.ones(BATCH, bool)
        ended = (rng.random(BATCH) < 0.25) & valid
        buffer, found, lengths, overflowed = step(buffer, rows, jnp.asarray(valid) if masked else None, ended)
        for b in range(BATCH):
            if valid[b] or expected[b]:
                expected[b].append((jax.tree.map(lambda x, b=b: x[b], rows), bool(valid[b])))
            assert lengths[b] == len(expected[b])
            assert overflowed[b] == (len(expected[b]) > LENGTH)
            overflows += int(overflowed[b])
            for k, (row, counts) in enumerate(expected[b] if not overflowed[b] else []):
                got, got_counts = jax.tree.map(lambda x, b=b, k=k: x[b, k], found)
                assert got_counts == counts
                jax.tree.map(np.testing.assert_array_equal, got, row)
            if ended[b]:
                expected[b].clear()
    assert overflows, "some episode should have been too long"


def test_an_episode_as_long_as_the_buffer_fits(step):
    buffer = EpisodeBuffer.init(example(), BATCH, LENGTH)
    never = jnp.zeros(BATCH, jnp.bool_)
    rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (BATCH, *x.shape)), example())
    for _ in range(LENGTH):
        buffer, _, _, overflowed = step(buffer, rows, None, never)
        assert not overflowed.any()
    *_, overflowed = step(buffer, rows, None, never)
    assert overflowed.all()
