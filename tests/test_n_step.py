"""n-step returns in DQN's memory: what is stored, against a reading of the stream step by step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from treadle import DQN, CartPole
from treadle.loops.seeds import FusedSeeds
from treadle.registry import as_float32
from treadle.spaces import Box, Discrete
from treadle.types import Transition, space_spec

pytestmark = pytest.mark.least_optimised

GAMMA = 0.5
LENGTH, ENVS = 60, 2
PLAIN = DQN(gamma=GAMMA, num_envs=ENVS, batch_size=1, learning_starts=1_000, hidden_sizes=())


def stream(seed: int) -> Transition:
    """Rows `[60, 2]` with ends of both kinds; an observation is the number of its step, and one more after an end than
    the row before had as its successor."""
    rng = np.random.default_rng(seed)
    ends = rng.choice(3, size=(LENGTH, ENVS), p=[0.7, 0.15, 0.15])
    obs = np.arange(LENGTH)[:, None] + 1_000.0 * np.arange(ENVS)
    rows: dict[str, Any] = {
        "obs": np.float32(obs[..., None]),
        "action": np.int32(rng.integers(2, size=obs.shape)),
        "reward": np.float32(rng.integers(1, 9, size=obs.shape)),
        "next_obs": np.float32(obs[..., None] + 0.5),
        "terminated": ends == 1,
        "truncated": ends == 2,
        "extras": np.zeros(obs.shape, np.float32),
    }
    return Transition(**rows)


def expected(rows: Transition, n: int, begins: tuple[int, ...] = ()) -> list[tuple[float, ...]]:
    """Observation, return, successor and discount of what should be stored, in order. At the steps in `begins` other
    episodes began without an end of those before: what waited for more rows is never stored."""
    found = []
    for last in range(LENGTH):
        for env in range(ENVS):
            t = last - n + 1
            if t < 0 or any(t < begin <= last for begin in begins):
                continue
            total, factor, at = 0.0, 1.0, t
            for at in range(t, t + n):
                total += factor * float(rows.reward[at, env])
                factor *= 0.0 if rows.terminated[at, env] else GAMMA
                if rows.terminated[at, env] or rows.truncated[at, env]:
                    break
            found.append((float(rows.obs[t, env, 0]), total, float(rows.next_obs[at, env, 0]), factor))
    return found


def stored(algorithm: DQN, rows: Transition, begins: tuple[int, ...] = ()) -> list[tuple[float, ...]]:
    """The same from the memory after the stream was given in rollouts, oldest first."""
    spec = space_spec(Box(-1.0, 1.0, (1,)), Discrete(2), ENVS, 1_000)
    state = jax.jit(lambda key: algorithm.init(key, spec))(jax.random.key(0))
    update = jax.jit(algorithm.update)
    for start in range(0, LENGTH, algorithm.num_steps):
        if start in begins:
            state = algorithm.begin_episodes(state)
        rollout = jax.tree.map(lambda x, at=start: x[at : at + algorithm.num_steps], rows)
        state, _ = update(state, rollout, jax.random.key(start))
    memory, size = state.memory, int(state.memory.size.value)
    first = int(memory.position.value) if size == algorithm.capacity else 0
    items = jax.device_get(jax.jit(algorithm.memory.items)(memory, (first + np.arange(size)) % algorithm.capacity))
    columns = (items.obs[:, 0], items.reward, items.next_obs[:, 0], items.extras)
    return [tuple(map(float, row)) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize(("n", "T"), [(2, 1), (3, 4), (5, 3)])
def test_what_is_stored_is_what_the_stream_says(n, T):
    algorithm = as_float32(dataclasses.replace(PLAIN, n_step=n, train_frequency=T, capacity=500))
    assert stored(algorithm, stream(n)) == expected(stream(n), n)


def test_no_return_crosses_the_write_head():
    """The memory holds the last 17 returns, each whole, however often its end was passed."""
    algorithm = as_float32(dataclasses.replace(PLAIN, n_step=3, train_frequency=4, capacity=17))
    assert stored(algorithm, stream(0)) == expected(stream(0), 3)[-17:]


def test_no_return_reaches_from_episodes_that_were_cut_off_into_those_that_begin():
    algorithm = as_float32(dataclasses.replace(PLAIN, n_step=3, train_frequency=4, capacity=500))
    assert stored(algorithm, stream(1), (20, 40)) == expected(stream(1), 3, (20, 40))
    assert expected(stream(1), 3, (20, 40)) != expected(stream(1), 3)


@pytest.mark.slow
def test_seeds_side_by_side_are_seeds_in_turn():
    """What waits for more rows is the same in all seeds, so that memory's counters are theirs in common."""
    algorithm = as_float32(
        DQN(n_step=3, prioritized=True, learning_starts=4, batch_size=4, capacity=7, hidden_sizes=())
    )
    both = [
        FusedSeeds(algorithm, as_float32(CartPole()), 400, num_seeds=3, layout=layout) for layout in ("map", "vmap")
    ]
    for trainer in both:
        trainer.advance(20)
    first, second = (trainer.state.algorithm for trainer in both)
    np.testing.assert_array_equal(first.memory.ring.position.value, second.memory.ring.position.value)
    np.testing.assert_allclose(first.network.vector, second.network.vector, atol=1e-5)
