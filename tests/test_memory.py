"""The replay memory is a ring, and remembers exactly what it was given."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from treadle.loops.execution import compiler_options
from treadle.memory import MemoryState, UniformMemory
from treadle.types import Counter, Transition

pytestmark = pytest.mark.least_optimised

FORMS = [
    (1, 1, 1),
    (1, 2, 3),
    (2, 1, 3),
    (3, 2, 2),
    (4, 2, 2),
    (5, 1, 1),
    (5, 3, 2),
    (7, 1, 3),
    (7, 4, 1),
    (8, 5, 3),
    (10, 2, 2),
    (13, 1, 5),
]
"""Capacity, T and B: dividing one another and not, and rollouts that are longer than the memory."""
LONGEST = max(T * B for _, T, B in FORMS)

NOTHING: Any = ()
NUMBER: Any = Transition(jnp.zeros((), jnp.int32), *[NOTHING] * 5)
"""A transition that is nothing but its own number, so that programs for many forms compile in a moment."""


def _numbers(first: int | jax.Array, T: int, B: int, valid: Any = None) -> Any:
    return NUMBER._replace(obs=first + jnp.arange(T * B, dtype=jnp.int32).reshape(T, B), valid=valid)


@jax.jit
def _add_to_all(states: list[MemoryState], first: int, valid: jax.Array | None):
    """A rollout that starts with number `first` to the memory of every form, and what each then holds."""
    result = []
    for (capacity, T, B), state in zip(FORMS, states, strict=True):
        memory = UniformMemory(capacity=capacity, batch_size=1)
        mask = None if valid is None else valid[: T * B].reshape(T, B)
        state = memory.add(state, _numbers(first, T, B, mask))
        result.append((state, memory.items(state, jnp.arange(capacity)).obs))
    return result


@given(st.lists(st.none() | st.lists(st.booleans(), min_size=LONGEST, max_size=LONGEST), min_size=1, max_size=8))
@example([None] * 8)
@example([[False] * LONGEST, None, [True] * LONGEST])
def test_it_holds_the_last_valid_transitions_in_order(masks):
    """Against a list that is cut to its last `capacity` entries. A mask of `None` writes whole blocks."""
    states = [UniformMemory(capacity=capacity, batch_size=1).init(NUMBER) for capacity, _, _ in FORMS]
    expected: list[list[int]] = [[] for _ in FORMS]
    for i, mask in enumerate(masks):
        first = 100 * (i + 1)
        results = _add_to_all(states, first, None if mask is None else np.asarray(mask))
        states = [state for state, _ in results]
        for n, (capacity, T, B) in enumerate(FORMS):
            told = [first + j for j in range(T * B) if mask is None or mask[j]]
            expected[n] = (expected[n] + told)[-capacity:]
            state, stored = jax.device_get(results[n])
            assert state.size.value == len(expected[n])
            oldest = state.position.value if state.size.value == capacity else 0
            held = np.roll(stored, -oldest)[: state.size.value]
            assert held.tolist() == expected[n], (capacity, T, B)
            assert state.position.value == (oldest + state.size.value) % capacity


@pytest.mark.parametrize(("capacity", "T", "B", "adds"), [(7, 2, 2, 1), (7, 2, 2, 3), (5, 4, 3, 1)])
def test_every_stored_transition_can_be_sampled_and_no_other(capacity, T, B, adds):
    memory = UniformMemory(capacity=capacity, batch_size=60 * capacity)
    state, add = memory.init(NUMBER), jax.jit(memory.add)
    for i in range(adds):
        state = add(state, _numbers(100 + T * B * i, T, B))
    last = 100 + T * B * adds
    sample = jax.jit(memory.sample)(state, jax.random.key(capacity))
    assert set(np.asarray(sample.items.obs).tolist()) == set(range(max(100, last - capacity), last))
    np.testing.assert_array_equal(memory.items(state, sample.indices).obs, sample.items.obs)
    np.testing.assert_array_equal(sample.weights, np.ones(60 * capacity, np.float32))
    assert sample.items.valid is None


# Capacities that are no power of two, before and after they are full.
@pytest.mark.parametrize(("capacity", "added"), [(7, 5), (100, 61), (100, 100), (1_000, 1_537)])
def test_sampling_is_uniform_over_what_is_stored(capacity, added):
    memory = UniformMemory(capacity=capacity, batch_size=200 * capacity)
    state = jax.jit(lambda: memory.add(memory.init(NUMBER), _numbers(0, added, 1)))()
    sample, size = jax.jit(memory.sample), min(capacity, added)
    for seed in range(3):
        counts = np.bincount(sample(state, jax.random.key(seed)).indices, minlength=capacity)
        assert not counts[size:].any(), "a slot that was never written"
        assert stats.chisquare(counts[:size]).pvalue > 1e-3


def test_sampling_a_large_memory_favours_no_slot():
    """Of 3 x 2^23 slots a scaled float32, which has 2^23 values, would reach every third only. The transitions have
    no fields, so that nothing need be allocated."""
    memory = UniformMemory(capacity=3 * 2**23, batch_size=96_000)
    empty = UniformMemory(capacity=1, batch_size=1).init(Transition(*[NOTHING] * 6))
    size = Counter(jnp.asarray(memory.capacity, jnp.int32))
    full = MemoryState(empty.words, empty.bytes, Counter.zero(), size, empty.layout)
    indices = np.asarray(jax.jit(memory.sample)(full, jax.random.key(0)).indices)
    assert stats.chisquare(np.bincount(indices % 3, minlength=3)).pvalue > 1e-3
    assert stats.chisquare(np.bincount(indices // 2**18, minlength=96)).pvalue > 1e-3


def test_two_keys_draw_two_samples():
    memory = UniformMemory(capacity=50, batch_size=20)
    state = jax.jit(lambda: memory.add(memory.init(NUMBER), _numbers(0, 50, 1)))()
    sample = jax.jit(memory.sample)
    first, again, other = (sample(state, jax.random.key(seed)).indices.tolist() for seed in (0, 0, 1))
    assert first == again != other


T, B = 3, 2
FIELDS = {"obs": (np.float32, (2,)), "action": (np.int32, ()), "image": (np.uint8, (2, 3)), "flag": (np.uint8, ())}
STRIDE = sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in FIELDS.values())
FULL = UniformMemory(capacity=T * B, batch_size=1)


def _transitions(data: bytes) -> Any:
    """A rollout whose every bit is told by `data`."""
    fields, start = {}, 0
    for name, (dtype, shape) in FIELDS.items():
        stop = start + T * B * np.dtype(dtype).itemsize * int(np.prod(shape))
        fields[name] = np.frombuffer(data[start:stop], dtype).reshape(T, B, *shape)
        start = stop
    bits = fields["flag"]
    extras = {"image": fields["image"], "level": bits, "count": fields["action"].view(np.uint32)}
    return Transition(
        fields["obs"], fields["action"], fields["obs"][..., 0], fields["obs"], bits > 99, bits % 2 == 0, None, extras
    )


@jax.jit
def _through_memory(rollout):
    state = FULL.init(jax.tree.map(lambda x: x[0, 0], rollout))
    return FULL.items(FULL.add(state, rollout), jnp.arange(T * B))


@given(st.binary(min_size=T * B * STRIDE, max_size=T * B * STRIDE))
@example(np.resize(np.array([0x7FC01234, 0xFFA00001, 0x7F800000, 0xFF800000, 1, 0x80000000], "<u4"), 300).tobytes())
def test_what_comes_back_is_what_went_in_to_the_last_bit(data):
    """NaNs with payloads, infinities, denormal numbers and negative zeros included."""
    rollout = _transitions(data[: T * B * STRIDE])
    stored = jax.device_get(_through_memory(rollout))
    assert jax.tree.structure(stored) == jax.tree.structure(rollout)
    for given_leaf, leaf in zip(jax.tree.leaves(rollout), jax.tree.leaves(stored), strict=True):
        assert leaf.dtype == given_leaf.dtype
        assert leaf.shape == (T * B, *given_leaf.shape[2:])
        assert leaf.tobytes() == given_leaf.tobytes()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.int8, jnp.int16, jnp.uint16, jnp.complex64])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=rf"32-bit, bool and uint8 arrays; it was given {jnp.dtype(dtype).name}"):
        UniformMemory(capacity=3, batch_size=1).init(NUMBER._replace(action=jnp.zeros(2, dtype)))


def test_it_works_under_jit_scan_and_vmap():
    memory = UniformMemory(capacity=7, batch_size=5)
    firsts = jnp.arange(0, 60, 6)

    def fill(offset):
        """Ten rollouts of six transitions, of which every fourth number is not valid."""

        def add(state, first):
            rollout = _numbers(offset + first, 3, 2)
            state = memory.add(state, rollout._replace(valid=rollout.obs % 4 != 0))
            return state, memory.sample(state, jax.random.key(first)).items.obs

        return jax.lax.scan(add, memory.init(NUMBER), firsts)

    together, samples = jax.jit(jax.vmap(fill))(jnp.array([100, 201, 302]))
    for n, offset in enumerate((100, 201, 302)):
        alone, sampled = jax.jit(fill)(offset)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x, n=n: x[n], together), alone)
        np.testing.assert_array_equal(samples[n], sampled)
        last = [number for number in range(offset, offset + 60) if number % 4][-7:]
        assert sorted(memory.items(alone, jnp.arange(7)).obs.tolist()) == last


def test_seeds_that_share_their_counters_keep_their_own_transitions():
    memory = UniformMemory(capacity=5, batch_size=4)
    axes = MemoryState(0, 0, None, None, memory.init(NUMBER).layout)  # pyright: ignore[reportArgumentType]

    def add(state, first):
        state = memory.add(state, _numbers(first, 2, 1))
        return state, memory.sample(state, jax.random.key(first)).items.obs

    empty = memory.init(NUMBER)
    state = MemoryState(
        jnp.stack([empty.words] * 2), jnp.stack([empty.bytes] * 2), Counter.zero(), Counter.zero(), empty.layout
    )
    step = jax.jit(jax.vmap(add, in_axes=(axes, 0), out_axes=(axes, 0)))
    for first in (0, 2, 4):
        state, samples = step(state, jnp.array([first, 100 + first]))
    assert state.size.value == 5 and state.position.value == 1
    assert sorted(state.words[0, :, 0].tolist()) == [1, 2, 3, 4, 5]
    assert sorted(state.words[1, :, 0].tolist()) == [101, 102, 103, 104, 105]
    assert (samples[0] < 100).all() and (samples[1] > 100).all()


@pytest.mark.least_optimised(False)
@pytest.mark.parametrize(("steps", "envs", "masked"), [(1, 1, False), (2, 3, False), (2, 3, True)])
def test_a_donated_memory_is_updated_in_place(steps, envs, masked):
    """Nothing in the compiled loop copies the rows: a step must not cost what the memory weighs."""
    memory = UniformMemory(capacity=1_003, batch_size=8)
    valid = jnp.arange(steps * envs).reshape(steps, envs) % 2 == 0 if masked else None
    image: Any = NUMBER._replace(action=jnp.zeros((2, 2), jnp.uint8))
    actions = jnp.ones((steps, envs, 2, 2), jnp.uint8)

    def run(state, keys):
        def step(state, key):
            state = memory.add(state, _numbers(0, steps, envs, valid)._replace(action=actions))
            items = memory.sample(state, key).items
            return state, items.obs.sum() + items.action.sum()

        return jax.lax.scan(step, state, keys)

    def copies(**options) -> list[str]:
        program = jax.jit(run, compiler_options=compiler_options(), **options)
        text = program.lower(memory.init(image), jax.random.split(jax.random.key(0), 20)).compile().as_text()
        return re.findall(r"= ((?:u32\[1003,1\]|u8\[1003,4\])\S*) (?:copy|select)\(", str(text))

    assert copies(donate_argnums=0) == []
    assert len(copies()) == 2, "without donation both arrays are copied once: the test looks for the right thing"
