"""The fused loop and its seeds: pure, exact, and compiled once."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle import DQN, CartPole
from treadle.loops import fused, seeds
from treadle.loops.execution import compiler_options, seed_mesh
from treadle.loops.rollout import collect, make_spec, start
from treadle.loops.seeding import purpose, seed_key
from treadle.loops.seeds import FusedSeeds
from treadle.registry import as_float32

SMALL = DQN(
    capacity=300,
    batch_size=16,
    learning_starts=64,
    target_update_period=50,
    hidden_sizes=(16,),
    initialisation="scaled",
    num_envs=2,
)
CHUNK = 60
"""Updates in one call, the same in most tests, which so share the compiled program. Both branches are taken, and the
target network is moved."""

_compiled_init = jax.jit(fused.init, static_argnums=3)
_compiled_advance = jax.jit(fused.advance, static_argnums=3)
_train = jax.jit(fused.train, static_argnums=3)


def _init(algorithm, key):
    return _compiled_init(algorithm, as_float32(CartPole()), key, 400)


def _advance(algorithm, state, count=CHUNK):
    return _compiled_advance(algorithm, as_float32(CartPole()), state, count)


def _equal(a, b):
    for (path, x), (_, y) in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree_util.tree_leaves_with_path(b), strict=True
    ):
        x, y = (jax.random.key_data(z) if jnp.issubdtype(z.dtype, jax.dtypes.prng_key) else z for z in (x, y))
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def test_a_chunked_run_is_the_run():
    algorithm = as_float32(SMALL)
    state = _init(algorithm, seed_key(3))
    whole, record = _advance(algorithm, state, 3 * CHUNK)
    part, first = _advance(algorithm, state)
    for _ in range(2):
        part, record_of_part = _advance(algorithm, part)
    _equal(whole, part)
    np.testing.assert_array_equal(record.metrics["loss"].total[2 * CHUNK :], record_of_part.metrics["loss"].total)
    np.testing.assert_array_equal(record.episodes.lengths[:CHUNK], first.episodes.lengths)


@pytest.mark.parametrize("layout", ["map", pytest.param("vmap", marks=pytest.mark.least_optimised)])
def test_seeds_over_devices_equal_single_seeds(layout):
    """Three seeds on two devices: the padding shows nowhere."""
    algorithm, world = as_float32(SMALL), as_float32(CartPole())
    trainer = FusedSeeds(algorithm, world, 400, seed=5, num_seeds=3, layout=layout)
    record = trainer.advance(CHUNK)
    assert record.episodes.lengths.shape[0] == 3
    for i in range(3):
        alone, _ = _advance(algorithm, _init(algorithm, seed_key(5, i)))
        np.testing.assert_allclose(trainer.state.algorithm.network.vector[i], alone.algorithm.network.vector, atol=2e-5)
    policies = trainer.policies()
    assert policies.network.vector.shape[0] == 3


def test_restoring_a_state_goes_on_exactly():
    algorithm, world = as_float32(SMALL), as_float32(CartPole())
    through = FusedSeeds(algorithm, world, 400, num_seeds=3)
    through.advance(CHUNK)
    middle = jax.device_get(through.state)
    through.advance(CHUNK)
    resumed = FusedSeeds(algorithm, world, 400, seed=77, num_seeds=3)
    resumed.restore(jax.tree.map(jnp.asarray, middle))
    resumed.advance(CHUNK)
    _equal(through.state, resumed.state)


@pytest.mark.least_optimised
@pytest.mark.parametrize("num_seeds", [3, 4])
def test_whoever_indexes_seeds_makes_no_device_wait_for_another(num_seeds):
    """Indexing what is spread over two devices is a collective operation, which gives up on a busy machine."""

    def devices(tree):
        return {len(x.sharding.device_set) for x in jax.tree.leaves(tree)}

    trainer = FusedSeeds(as_float32(SMALL), as_float32(CartPole()), 400, num_seeds=num_seeds)
    assert devices(trainer._state) == {2}
    assert devices(trainer.policies()) == {1}
    assert devices(trainer.state) == {1 if num_seeds == 3 else 2}, "where nothing is to be cut off, all stays there"
    trainer.restore(trainer.state)
    assert devices(trainer._state) == {2}
    assert jax.tree.leaves(trainer.state)[0].shape[0] == num_seeds


@pytest.mark.least_optimised
def test_a_changed_float_option_compiles_nothing_anew():
    world = as_float32(CartPole())
    compiled = seeds._compiled_advance(seed_mesh(1), "map")
    for i, changes in enumerate(({}, {"learning_rate": 3e-4}, {"gamma": 0.9, "epsilon_end": 0.2, "tau": 0.5})):
        algorithm = as_float32(dataclasses.replace(SMALL, **changes))
        FusedSeeds(algorithm, world, 400).advance(7)
        if i == 0:
            first = compiled._cache_size()
    FusedSeeds(as_float32(SMALL), as_float32(CartPole(gravity=5.0)), 400).advance(7)
    assert compiled._cache_size() == first
    FusedSeeds(as_float32(dataclasses.replace(SMALL, double=True)), world, 400).advance(7)
    assert compiled._cache_size() == first + 1


def test_side_by_side_no_branch_copies_the_replay_memory():
    """Counters stay unbatched, so that `cond` stays a branch, and the memory is neither selected nor branched on."""
    algorithm, world = as_float32(SMALL), as_float32(CartPole())
    trainer = FusedSeeds(algorithm, world, 400, num_seeds=4, layout="vmap")
    states = jax.device_get(trainer.state)

    def advance(states):
        return seeds.side_by_side(lambda state: fused.advance(algorithm, world, state, 20), states)

    compiled = jax.jit(advance, donate_argnums=0, compiler_options=compiler_options()).lower(states).compile()
    text = compiled.as_text() or ""
    words = states.algorithm.memory.words.shape
    memory = f"u32[{','.join(map(str, words))}]"
    assert memory in text, "the test looks for the memory under the wrong shape"
    conditionals = [line for line in text.splitlines() if re.search(r"= .* conditional\(", line)]
    assert conditionals, "learning_starts became a select"
    for line in conditionals:
        assert memory not in line.split(" conditional(")[0]
    assert not [line for line in text.splitlines() if re.search(rf"= {re.escape(memory)}\S* select\(", line)]


@pytest.mark.least_optimised
def test_the_rollout_keeps_the_true_successor_and_both_kinds_of_end():
    """Always pushing right: the pole falls (terminated) where the limit is far, and time is up where it is near."""

    class PushRight:
        num_steps = 30

        def init_carry(self, spec):
            return ()

        def act(self, state, carry, obs, key, *, explore=True):
            return jnp.ones(len(obs), jnp.int32), carry, ()

    world = as_float32(CartPole(max_episode_steps=4))
    spec = dataclasses.replace(make_spec(SMALL, world, 100), num_envs=3)
    actor = start(world, (), 3, purpose(seed_key(0), "reset"))
    _, rollout, episodes = collect(PushRight(), world, spec, None, actor, seed_key(1))  # pyright: ignore
    assert rollout.truncated[3::4].all() and not rollout.terminated.any()
    assert rollout.truncated.sum() == 3 * 7
    np.testing.assert_array_equal(episodes.lengths[3], [4, 4, 4])
    np.testing.assert_array_equal(episodes.returns[3], [4.0, 4.0, 4.0])

    inside = ~np.asarray(rollout.truncated[:-1])
    np.testing.assert_array_equal(rollout.next_obs[:-1][inside], rollout.obs[1:][inside])
    at_end = ~inside
    assert (np.abs(rollout.obs[1:][at_end]) <= 0.05).all(), "the next episode begins near the middle"
    assert (np.abs(rollout.next_obs[:-1][at_end][:, 1]) > 0.5).all(), "the successor is where the cart really went"

    far = as_float32(CartPole())
    _, rollout, _ = collect(PushRight(), far, spec, None, start(far, (), 3, seed_key(0)), seed_key(1))  # pyright: ignore
    assert rollout.terminated.any() and not rollout.truncated.any()


@pytest.mark.least_optimised
def test_a_reset_really_resets_and_seeds_share_no_stream():
    trainer = FusedSeeds(as_float32(SMALL), as_float32(CartPole(max_episode_steps=3)), 400, num_seeds=2)
    first = np.asarray(trainer.state.actor.obs)
    trainer.advance(3)
    second = np.asarray(trainer.state.actor.obs)
    starts = np.concatenate([first.reshape(-1, 4), second.reshape(-1, 4)])
    assert len(np.unique(starts, axis=0)) == len(starts)
    keys = {tuple(jax.random.key_data(seed_key(seed, i)).tolist()) for seed in range(5) for i in range(5)}
    assert len(keys) == 25
    assert not jnp.array_equal(
        jax.random.key_data(purpose(seed_key(0), "train")), jax.random.key_data(purpose(seed_key(0), "evaluate"))
    )


@pytest.mark.least_optimised
def test_jit_equals_eager():
    algorithm = as_float32(dataclasses.replace(SMALL, learning_starts=4, hidden_sizes=(4,)))
    state = _init(algorithm, seed_key(1))
    compiled, _ = _advance(algorithm, state, 4)
    with jax.disable_jit():
        eager, _ = fused.advance(algorithm, as_float32(CartPole()), state, 4)
    np.testing.assert_allclose(eager.algorithm.network.vector, compiled.algorithm.network.vector, atol=1e-6)
    np.testing.assert_array_equal(eager.algorithm.memory.size.value, compiled.algorithm.memory.size.value)


@pytest.mark.least_optimised
def test_vmap_over_seeds_equals_a_loop_over_seeds():
    algorithm, world = as_float32(SMALL), as_float32(CartPole())
    keys = jnp.stack([seed_key(0, i) for i in range(3)])
    together, record = jax.jit(jax.vmap(lambda key: fused.train(algorithm, world, key, 100)))(keys)
    for i, key in enumerate(keys):
        alone, alone_record = _train(algorithm, world, key, 100)
        np.testing.assert_allclose(together.algorithm.network.vector[i], alone.algorithm.network.vector, atol=1e-4)
        np.testing.assert_array_equal(record.episodes.lengths[i], alone_record.episodes.lengths)


@pytest.mark.least_optimised
def test_a_stack_of_algorithms_is_a_sweep():
    world = as_float32(CartPole())
    sweep = [as_float32(dataclasses.replace(SMALL, learning_rate=rate)) for rate in (1e-4, 1e-2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *sweep)
    together = jax.jit(jax.vmap(lambda a: fused.train(a, world, seed_key(0), 100)[0]))(stacked)
    for i, algorithm in enumerate(sweep):
        alone, _ = _train(algorithm, world, seed_key(0), 100)
        np.testing.assert_allclose(together.algorithm.network.vector[i], alone.algorithm.network.vector, atol=1e-4)
    assert not np.allclose(together.algorithm.network.vector[0], together.algorithm.network.vector[1])
