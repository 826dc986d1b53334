"""Prioritized replay draws by priority, weighs by how often, and never draws what is not there."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from treadle import hoist
from treadle.loops.execution import compiler_options
from treadle.memory import MemoryState
from treadle.prioritized import Nodes, PrioritizedMemory, PrioritizedState, Tree
from treadle.types import Counter, Transition

pytestmark = pytest.mark.least_optimised

NOTHING: Any = ()
NUMBER: Any = Transition(jnp.zeros((), jnp.int32), *[NOTHING] * 5)
"""A transition that is nothing but its own number, so that programs for many forms compile in a moment."""

LINEAR: Any = {"alpha": 1.0, "beta": 1.0, "priority_offset": 0.0}
"""With these a priority is the absolute TD error."""


def _numbers(first: Any, T: int, B: int = 1, valid: Any = None) -> Any:
    return NUMBER._replace(obs=first + jnp.arange(T * B, dtype=jnp.int32).reshape(T, B), valid=valid)


@functools.partial(jax.jit, static_argnames=("memory", "added"))
def _filled(memory: PrioritizedMemory, priorities: jax.Array, added: int | None = None) -> PrioritizedState:
    """A memory to which `added` transitions were added (as many as there are priorities, unless told), with these
    priorities in its first slots."""
    state = memory.add(memory.init(NUMBER), _numbers(0, added or len(priorities)))
    return memory.update_priorities(state, jnp.arange(len(priorities)), priorities)


@functools.partial(jax.jit, static_argnames=("memory", "samples"))
def _draw(memory: PrioritizedMemory, state: PrioritizedState, key: jax.Array, samples: int) -> jax.Array:
    """The slots of many samples, one after the other."""
    return jax.vmap(lambda key: memory.sample(state, key).indices)(jax.random.split(key, samples)).reshape(-1)


# The sum tree


@functools.partial(jax.jit, static_argnums=(0, 1))
def _tree_of(capacity: int, fan_out: int, leaves: jax.Array) -> Nodes:
    tree = Tree(capacity, fan_out)
    return tree.write(tree.init(0.0), jnp.arange(len(leaves)), leaves, jnp.sum)


@pytest.mark.parametrize("fan_out", [2, 3, 8])
def test_the_worked_example(fan_out):
    """The leaves before that of 12 sum to 13, with it to 25: 24 lands on it. With 2 children it is the tree of the
    drawing: 24 < 29, then 24 - 13 < 16, then 11 < 12."""
    nodes = _tree_of(8, fan_out, jnp.array([3.0, 10, 12, 4, 1, 2, 8, 2]))
    assert nodes.root == 42
    if fan_out == 2:
        assert nodes.values[8:16].tolist() == [13, 16, 3, 10, 29, 13, 42, 0]
    values = jnp.array([24.0, 0, 2.999, 3, 12.999, 13, 25, 29, 30, 41.999])
    leaves, held = Tree(8, fan_out).find(nodes, values)
    assert leaves.tolist() == [2, 0, 0, 1, 1, 2, 3, 4, 5, 7]
    assert held.tolist() == [12, 3, 3, 10, 10, 12, 4, 1, 2, 2]


def test_a_value_that_rounding_puts_past_the_end_lands_on_the_last_leaf_that_is_not_zero():
    nodes = _tree_of(100, 8, jnp.zeros(100).at[jnp.array([3, 5, 40])].set(jnp.array([0.1, 0.2, 0.3])))
    values = jnp.array([nodes.root, np.nextafter(nodes.root, np.float32(1)), 0.3, -0.0, -1.0])
    assert Tree(100).find(nodes, values)[0].tolist() == [40, 40, 40, 3, 3]


def test_what_float32_cuts_off_from_a_value_counts():
    """A million leaves of 1: of 900,000 and a quarter float32 holds every sixteenth only, so 899,999.99 rounds to
    900,000, where the next leaf begins."""
    tree = Tree(1_000_003)
    nodes = _tree_of(1_000_003, 8, jnp.ones(1_000_003))
    exact = np.array([899_999.99, 900_000.01, 12_345.9999, 12_346.0001, 1_000_002.99])
    values = exact.astype(np.float32)
    remainders = (exact - values).astype(np.float32)
    assert tree.find(nodes, jnp.asarray(values))[0][0] == 900_000
    assert tree.find(nodes, jnp.asarray(values), jnp.asarray(remainders))[0].tolist() == np.floor(exact).tolist()


class Form(NamedTuple):
    capacity: int
    fan_out: int


FORMS = [Form(1, 8), Form(2, 2), Form(7, 2), Form(8, 8), Form(9, 8), Form(65, 8), Form(13, 3), Form(100, 10)]
WRITES = 6


@jax.jit
def _write_to_all(sums: list[Nodes], least: list[Nodes], leaves: Any, values: jax.Array):
    result = []
    for form, total, low, where in zip(FORMS, sums, least, leaves, strict=True):
        tree = Tree(*form)
        result.append((tree.write(total, where, values, jnp.sum), tree.write(low, where, values, jnp.min)))
    return [a for a, _ in result], [b for _, b in result]


@jax.jit
def _find_in_all(sums: list[Nodes], fractions: jax.Array):
    return [Tree(*form).find(nodes, fractions * nodes.root) for form, nodes in zip(FORMS, sums, strict=True)]


FRACTIONS = np.linspace(0, 1, 23, endpoint=False, dtype=np.float32)
write = st.tuples(st.integers(0, 200), st.floats(0, 100, width=32).map(lambda x: x if x > 1e-3 else 0.0))


@given(st.lists(st.lists(write, min_size=WRITES, max_size=WRITES), min_size=1, max_size=8))
@example([[(0, 0.0)] * WRITES])
def test_it_agrees_with_an_array_and_its_running_sums(rounds):
    """Leaves past the capacity are left out. Of a leaf that is written twice in one go either value may stay, so the
    second is not written here."""
    sums = [Tree(*form).init(0.0) for form in FORMS]
    least = [Tree(*form).init(np.inf) for form in FORMS]
    expected = [np.zeros(form.capacity) for form in FORMS]
    lows = [np.full(form.capacity, np.inf) for form in FORMS]
    for writes in rounds:
        values = np.array([value for _, value in writes], np.float32)
        where = []
        for form, array, low in zip(FORMS, expected, lows, strict=True):
            leaves = np.array([leaf % (form.capacity + 3) for leaf, _ in writes], np.int32)
            _, firsts = np.unique(leaves, return_index=True)
            leaves = np.where(np.isin(np.arange(WRITES), firsts), leaves, form.capacity)
            for leaf, value in zip(leaves, values, strict=True):
                if leaf < form.capacity:
                    array[leaf] = low[leaf] = value
            where.append(leaves)
        sums, least = _write_to_all(sums, least, where, values)

    for form, nodes, low, array, lowest, found in zip(
        FORMS, sums, least, expected, lows, _find_in_all(sums, jnp.asarray(FRACTIONS)), strict=True
    ):
        np.testing.assert_array_equal(nodes.values[: form.capacity], array.astype(np.float32))
        np.testing.assert_allclose(nodes.root, array.sum(), rtol=1e-6)
        assert low.root == np.float32(lowest.min())
        leaves, held = np.asarray(found[0]), np.asarray(found[1])
        np.testing.assert_array_equal(held, array[leaves].astype(np.float32))
        ends = np.cumsum(array)
        values, slack = FRACTIONS * array.sum(), 1e-5 * array.sum()
        assert (ends[leaves] - array[leaves] <= values + slack).all() and (values <= ends[leaves] + slack).all()
        assert (held > 0).all() or array.sum() == 0


def test_a_hundred_thousand_updates_leave_no_drift():
    """Every node is still the sum of its children, and the root that of the leaves, as exactly as float32 can tell."""
    tree = Tree(1_003)

    @jax.jit
    def run(nodes, key):
        def step(nodes, key):
            place_key, value_key = jax.random.split(key)
            places = jax.random.randint(place_key, (64,), 0, tree.capacity)
            return tree.write(nodes, places, 10.0 ** jax.random.uniform(value_key, (64,), minval=-6, maxval=3), jnp.sum)

        return jax.lax.scan(lambda nodes, key: (step(nodes, key), None), nodes, jax.random.split(key, 1_600))[0]

    nodes = run(tree.init(0.0), jax.random.key(0))
    leaves = np.asarray(nodes.values[: tree.capacity], np.float64)
    assert (leaves > 0).all()
    np.testing.assert_allclose(nodes.root, leaves.sum(), rtol=1e-6)
    again = _tree_of(tree.capacity, tree.fan_out, nodes.values[: tree.capacity])
    np.testing.assert_allclose(nodes.values, again.values, rtol=1e-6)


# How often


# Capacities that are no power of two; before the memory is full, when it just is, and after it went round.
@pytest.mark.parametrize(("capacity", "added"), [(7, 5), (100, 61), (100, 100), (77, 180), (1_000, 1_537)])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_frequencies_follow_the_priorities(capacity, added, batch_size):
    """Alpha once: a transition with priority p is drawn in proportion to p^0.6, not to p^0.36."""
    size = min(capacity, added)
    priorities = np.random.default_rng(capacity).uniform(0.05, 3, size).astype(np.float32)
    memory = PrioritizedMemory(capacity=capacity, batch_size=batch_size, alpha=0.6, priority_offset=0.0)
    state = _filled(memory, jnp.asarray(priorities), added=added)
    draws = 250 * size
    counts = np.bincount(_draw(memory, state, jax.random.key(7), -(-draws // batch_size)), minlength=capacity)
    assert not counts[size:].any(), "a slot that was never written"
    powers = priorities.astype(np.float64) ** 0.6
    assert stats.chisquare(counts[:size], counts.sum() * powers / powers.sum()).pvalue > 1e-3
    twice = powers**0.6
    if size > 20:
        assert stats.chisquare(counts[:size], counts.sum() * twice / twice.sum()).pvalue < 1e-3


def test_a_sample_takes_one_from_each_of_as_many_equal_slices():
    priorities = np.random.default_rng(0).uniform(0, 1, 50).astype(np.float32) ** 3
    memory = PrioritizedMemory(capacity=61, batch_size=20, **LINEAR)
    drawn = np.asarray(_draw(memory, _filled(memory, jnp.asarray(priorities)), jax.random.key(0), 200)).reshape(200, 20)
    ends = np.cumsum(priorities, dtype=np.float64)
    width = ends[-1] / 20
    begins, slices = ends - priorities, np.arange(20)
    assert (begins[drawn] <= (slices + 1) * width + 1e-5).all() and (ends[drawn] >= slices * width - 1e-5).all()


def test_as_many_slices_as_equal_priorities_draw_each_transition_once():
    memory = PrioritizedMemory(capacity=13, batch_size=9)
    state = jax.jit(lambda: memory.add(memory.init(NUMBER), _numbers(0, 9)))()
    assert _draw(memory, state, jax.random.key(0), 50).tolist() == list(range(9)) * 50


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e30])
def test_a_priority_of_zero_and_a_slot_that_was_never_written_are_not_drawn(scale):
    """Down to the least numbers that float32 holds with all its digits, and with priorities that are lost in the sum
    of others."""
    rng = np.random.default_rng(1)
    priorities = (scale * rng.uniform(2, 9, 70)).astype(np.float32)
    priorities[rng.permutation(70)[:50]] = 0
    priorities[33] = np.float32(1.2e-38)
    memory = PrioritizedMemory(capacity=101, batch_size=64, **LINEAR)
    drawn = _draw(memory, _filled(memory, jnp.asarray(priorities)), jax.random.key(3), 2_000)
    assert set(np.asarray(drawn).tolist()) <= set(np.flatnonzero(priorities).tolist())


def test_without_alpha_all_are_equally_likely_whatever_their_errors():
    memory = PrioritizedMemory(capacity=5, batch_size=5, alpha=0.0)
    state = _filled(memory, jnp.array([0.0, 0.1, 5.0, 100.0, 0.3]))
    assert memory.sample(state, jax.random.key(0)).indices.tolist() == [0, 1, 2, 3, 4]


def test_where_every_priority_is_zero_the_weights_are_still_numbers():
    memory = PrioritizedMemory(capacity=5, batch_size=3, weights_over="memory", **LINEAR)
    for state in (_filled(memory, jnp.zeros(4)), memory.init(NUMBER)):
        sample = memory.sample(state, jax.random.key(0))
        assert sample.indices.tolist() == [0, 0, 0] and sample.weights.tolist() == [1, 1, 1]


# How much


@pytest.mark.parametrize("capacity", [6, 4])
def test_weights_by_hand(capacity):
    """Priorities 1, 4, 2, 8 are drawn with probabilities 1/15, 4/15, 2/15, 8/15. N = 4, whether or not there is room
    for more. With beta 0.5 the weights (4 P)^-0.5 are 1.936, 0.968, 1.369, 0.685: over the first, which is the
    greatest, 1, 0.5, 0.707, 0.354. The unwritten slots, which would have a weight without bound, do not count."""
    memory = PrioritizedMemory(capacity=capacity, batch_size=64, weights_over="memory", **LINEAR | {"beta": 0.5})
    state = _filled(memory, jnp.array([1.0, 4, 2, 8]))
    sample = memory.sample(state, jax.random.key(0))
    of_slot = np.array([1, 0.5, 0.70711, 0.35355])
    assert set(sample.indices.tolist()) == {0, 1, 2, 3}
    np.testing.assert_allclose(sample.weights, of_slot[sample.indices], rtol=1e-5)
    np.testing.assert_array_equal(sample.items.obs, sample.indices)


def test_weights_over_the_batch_and_over_the_memory():
    """Three draws are one from each third of 1 + 4 + 2 + 8 = 15. The first third ends with the slot of 4, so it is
    slot 0 or 1; the last one holds slot 3 alone."""
    seen = set()
    for seed in range(20):
        samples = []
        for over in ("batch", "memory"):
            memory = PrioritizedMemory(capacity=5, batch_size=3, weights_over=over, **LINEAR)
            state = _filled(memory, jnp.array([1.0, 4, 2, 8]))
            samples.append(memory.sample(state, jax.random.key(seed)))
        batch, whole = samples
        priorities = np.array([1.0, 4, 2, 8])[batch.indices]
        np.testing.assert_array_equal(batch.indices, whole.indices)
        np.testing.assert_allclose(batch.weights, priorities.min() / priorities, rtol=1e-5)
        np.testing.assert_allclose(whole.weights, 1 / priorities, rtol=1e-5)
        seen.add(int(batch.indices[0]))
    assert seen == {0, 1}, "the sample without slot 0, in which the two differ, did occur"


def test_weights_over_the_memory_forget_what_was_overwritten():
    memory = PrioritizedMemory(capacity=3, batch_size=3, weights_over="memory", **LINEAR)
    state = _filled(memory, jnp.array([0.125, 1.0, 0.5]))
    assert state.least is not None and state.least.root == 0.125
    state = memory.add(state, _numbers(3, 1))
    assert state.least is not None and state.least.root == 0.5
    state = memory.update_priorities(state, jnp.array([2]), jnp.array([0.0]))
    assert state.least is not None and state.least.root == 1.0, "what is never drawn has no weight"


def test_beta_scales_the_weights_and_can_be_replaced_without_compiling_anew():
    state = _filled(PrioritizedMemory(capacity=4, batch_size=16, **LINEAR), jnp.array([1.0, 4, 4, 4]))
    compiled = []

    @jax.jit
    def weights(memory, beta):
        compiled.append(beta)
        return dataclasses.replace(memory, beta=beta).sample(state, jax.random.key(0)).weights

    memory = PrioritizedMemory(capacity=4, batch_size=16)
    for beta, least in ((0.0, 1.0), (0.4, 0.25**0.4), (1.0, 0.25)):
        np.testing.assert_allclose(jnp.min(weights(memory, beta)), least, rtol=1e-5)
    assert len(compiled) == 1


# Priorities


def test_a_priority_is_the_clipped_error_and_an_offset_to_the_power_of_alpha():
    memory = PrioritizedMemory(capacity=4, batch_size=1, alpha=0.6, priority_offset=0.01, error_clip=1.0)
    state = _filled(memory, jnp.array([0.0, -0.5, 1.0, 70.0]))
    expected = [0.01**0.6, 0.51**0.6, 1.01**0.6, 1.01**0.6]
    np.testing.assert_allclose(state.sums.values[:4], expected, rtol=1e-5)
    np.testing.assert_allclose(state.sums.root, sum(expected), rtol=1e-5)


def test_new_transitions_have_the_highest_priority_so_far():
    """1 at first; then the highest that any transition has had, though it be overwritten."""
    memory = PrioritizedMemory(capacity=3, batch_size=2, **LINEAR)
    state = memory.add(memory.init(NUMBER), _numbers(0, 2))
    assert state.sums.values[:4].tolist() == [1, 1, 0, 0]
    state = memory.update_priorities(state, jnp.array([1, 0]), jnp.array([-7.0, 0.25]))
    state = memory.add(state, _numbers(2, 3))
    assert state.sums.values[:4].tolist() == pytest.approx([7, 7, 7, 0])
    state = memory.update_priorities(state, jnp.array([0, 1, 2]), jnp.array([2.0, 2, 2]))
    state = memory.add(state, _numbers(5, 1))
    assert state.sums.values[:4].tolist() == pytest.approx([2, 2, 7, 0])
    assert float(state.sums.root) == pytest.approx(11)
    state = memory.update_priorities(state, jnp.array([3, 1]), jnp.array([99.0, 3.0]))
    assert float(state.highest) == pytest.approx(7), "slot 3 does not exist"
    assert state.sums.values[:4].tolist() == pytest.approx([2, 3, 7, 0])


def test_with_clipped_errors_new_transitions_have_the_highest_priority_there_can_be():
    memory = PrioritizedMemory(capacity=3, batch_size=2, error_clip=0.5)
    state = memory.add(memory.init(NUMBER), _numbers(0, 1))
    np.testing.assert_allclose(state.sums.values[0], 0.51**0.6, rtol=1e-5)


# In the ring

RINGS = [(1, 1, 1), (3, 2, 2), (5, 3, 2), (7, 4, 1), (8, 5, 3)]
"""Capacity, T and B: dividing one another and not, and rollouts that are longer than the memory."""
LONGEST = max(T * B for _, T, B in RINGS)


def _ring(capacity: int) -> PrioritizedMemory:
    return PrioritizedMemory(capacity=capacity, batch_size=4, weights_over="memory", **LINEAR)


@jax.jit
def _add_sample_update(states: list[PrioritizedState], first: int, valid: Any, key: jax.Array, td_errors: jax.Array):
    result = []
    for (capacity, T, B), state in zip(RINGS, states, strict=True):
        mask = None if valid is None else valid[: T * B].reshape(T, B)
        state = _ring(capacity).add(state, _numbers(first, T, B, mask))
        sample = _ring(capacity).sample(state, key)
        result.append((_ring(capacity).update_priorities(state, sample.indices, td_errors), sample))
    return result


masks = st.none() | st.lists(st.booleans(), min_size=LONGEST, max_size=LONGEST)
errors = st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0]), min_size=4, max_size=4)


@given(st.lists(st.tuples(masks, errors), min_size=1, max_size=8))
@example([(None, [0.5] * 4)] * 6)
@example([([False] * LONGEST, [2.0] * 4), ([True] * LONGEST, [3.0] * 4)])
def test_priorities_go_round_with_their_transitions(rounds):
    """Against a list of (number, priority) that is cut to its last `capacity` entries."""
    states = [_ring(capacity).init(NUMBER) for capacity, _, _ in RINGS]
    expected: list[list[list[float]]] = [[] for _ in RINGS]
    highest = [1.0] * len(RINGS)
    for i, (mask, td_errors) in enumerate(rounds):
        first, valid = 100 * (i + 1), None if mask is None else np.asarray(mask)
        results = _add_sample_update(states, first, valid, jax.random.key(i), jnp.asarray(td_errors))
        states = [state for state, _ in results]
        for n, (capacity, T, B) in enumerate(RINGS):
            told = [[first + j, highest[n]] for j in range(T * B) if mask is None or mask[j]]
            expected[n] = (expected[n] + told)[-capacity:]
            state, sample = jax.device_get(results[n])
            if expected[n]:
                by_number = {entry[0]: entry for entry in expected[n]}
                least = min(entry[1] for entry in expected[n])
                drawn = [by_number[number] for number in sample.items.obs.tolist()]
                np.testing.assert_allclose(sample.weights, [least / entry[1] for entry in drawn], rtol=1e-5)
                for entry, slot in zip(drawn, sample.indices, strict=True):
                    entry[1] = float(state.sums.values[slot])
                    assert np.isclose(td_errors, entry[1]).any()
                highest[n] = max(highest[n], *td_errors)
            numbers, priorities = state.ring.words[:, 0].tolist(), state.sums.values[:capacity].tolist()
            held = {number: p for number, p in zip(numbers, priorities, strict=True) if p > 0}
            assert held == pytest.approx({entry[0]: entry[1] for entry in expected[n]})
            assert state.highest == pytest.approx(highest[n])


def _run(memory: PrioritizedMemory, state: PrioritizedState, key: jax.Array, offset: int | jax.Array = 0):
    """A few rounds of adding, sampling and updating."""

    def step(state, x):
        number, key = x
        sample_key, error_key = jax.random.split(key)
        state = memory.add(state, _numbers(offset + number, 2, 2))
        sample = memory.sample(state, sample_key)
        errors = jax.random.normal(error_key, sample.indices.shape)
        return memory.update_priorities(state, sample.indices, errors), sample

    return hoist.scan(step, state, (jnp.arange(0, 40, 4), jax.random.split(key, 10)))


MEMORY = PrioritizedMemory(capacity=13, batch_size=5, weights_over="memory")


def _assert_close(a: Any, b: Any) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5), a, b)


@pytest.mark.slow
def test_compiled_equals_eager():
    key = jax.random.key(0)
    with jax.disable_jit():
        eager = _run(MEMORY, MEMORY.init(NUMBER), key)
    _assert_close(jax.jit(_run)(MEMORY, MEMORY.init(NUMBER), key), eager)


def test_seeds_side_by_side_equal_seeds_in_turn():
    keys, offsets = jax.random.split(jax.random.key(1), 3), jnp.array([100, 200, 300])

    def fill(key, offset):
        return _run(MEMORY, MEMORY.init(NUMBER), key, offset)

    together = jax.jit(jax.vmap(fill))(keys, offsets)
    alone = jax.jit(fill)
    for n in range(3):
        _assert_close(jax.tree.map(lambda x, n=n: x[n], together), alone(keys[n], offsets[n]))


def test_seeds_share_their_counters_but_not_their_priorities():
    state = MEMORY.init(NUMBER)
    ring = MemoryState(0, 0, None, None, state.ring.layout)  # pyright: ignore[reportArgumentType]
    axes = PrioritizedState(ring, 0, 0, 0)  # pyright: ignore[reportArgumentType]
    states = jax.tree.map(lambda x: jnp.stack([x] * 2), state)
    shared = dataclasses.replace(states.ring, position=Counter.zero(), size=Counter.zero())
    states = dataclasses.replace(states, ring=shared)

    def step(state, key):
        state = MEMORY.add(state, _numbers(0, 2, 2))
        return MEMORY.update_priorities(state, jnp.arange(4), jax.random.normal(key, (4,)))

    step = jax.jit(jax.vmap(step, in_axes=(axes, 0), out_axes=axes))
    states = step(states, jax.random.split(jax.random.key(0), 2))
    assert states.ring.size.value == 4 and states.ring.position.value == 4
    assert (states.sums.values[0, :4] != states.sums.values[1, :4]).all()


@pytest.mark.least_optimised(False)
@pytest.mark.parametrize("over", ["batch", "memory"])
@pytest.mark.parametrize("in_a_branch", [False, True])
def test_a_donated_memory_is_updated_in_place(over, in_a_branch):
    """Nothing in the compiled loop copies rows or trees, be the update in a branch or not, and whether or not the new
    errors depend on the weights: a step must not cost what the memory weighs."""
    memory = PrioritizedMemory(capacity=1_003, batch_size=8, weights_over=over)
    count = len(memory.init(NUMBER).sums.values)

    def learn(state, key):
        sample = memory.sample(state, key)
        state = memory.update_priorities(state, sample.indices, jax.random.normal(key, (8,)))
        return state, sample.items.obs.sum() + sample.weights.sum()

    def run(state, keys):
        def step(state, key):
            state = memory.add(state, _numbers(0, 1))
            if not in_a_branch:
                return learn(state, key)
            return jax.lax.cond(state.ring.size.value > 9, learn, lambda state, _: (state, 0.0), state, key)

        return jax.lax.scan(step, state, keys)

    def copies(**options) -> list[str]:
        program = jax.jit(run, compiler_options=compiler_options(), **options)
        text = program.lower(memory.init(NUMBER), jax.random.split(jax.random.key(0), 20)).compile().as_text()
        return re.findall(rf"= ((?:u32\[1003,1\]|f32\[{count}\])\S*) (?:copy|select)\(", str(text))

    assert copies(donate_argnums=0) == []
    assert copies(), "without donation the arrays are copied once: the test looks for the right thing"
