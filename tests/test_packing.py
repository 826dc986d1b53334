"""Packing: a tree as a few buffers, and back again to the last bit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from treadle import hoist, packing
from treadle.packing import SMALL, Packing
from treadle.types import Counter

pytestmark = pytest.mark.least_optimised

SHAPES: dict[str, tuple[type, tuple[int, ...]]] = {
    "number": (np.float32, ()),
    "matrix": (np.float32, (3, 4)),
    "count": (np.int32, (2,)),
    "words": (np.uint32, (5,)),
    "flags": (np.bool_, (2, 3)),
    "image": (np.uint8, (4, 4)),
    "wide": (np.float32, (9, 11)),
    "empty": (np.float32, (0, 3)),
    "no_image": (np.uint8, (0, 2)),
}
NUM_BYTES = 4 * (1 + 12 + 2 + 5 + 99) + 6 + 16
EXAMPLE = {name: np.zeros(shape, dtype) for name, (dtype, shape) in SHAPES.items()}
PACKING = Packing(EXAMPLE)


def _tree(data: bytes) -> dict[str, np.ndarray]:
    """A tree whose every bit is told by `data`."""
    tree, start = {}, 0
    for name, (dtype, shape) in SHAPES.items():
        stop = start + np.dtype(dtype).itemsize * int(np.prod(shape))
        part = np.frombuffer(data[start:stop], np.uint8)
        tree[name] = (part % 2 == 1 if dtype is np.bool_ else part.view(dtype)).reshape(shape)
        start = stop
    return tree


_round_trip = jax.jit(lambda tree: (PACKING.pack(tree), PACKING.unpack(PACKING.pack(tree))))
_unpack = jax.jit(PACKING.unpack)


def _assert_same_bits(given_tree: Any, wanted_tree: Any) -> None:
    assert jax.tree.structure(given_tree) == jax.tree.structure(wanted_tree)
    for leaf, wanted in zip(jax.tree.leaves(given_tree), jax.tree.leaves(wanted_tree), strict=True):
        leaf = np.asarray(leaf)
        assert leaf.dtype == wanted.dtype and leaf.shape == wanted.shape
        assert leaf.tobytes() == wanted.tobytes()


@given(st.binary(min_size=NUM_BYTES, max_size=NUM_BYTES))
@example(np.resize(np.array([0x7FC01234, 0xFFA00001, 0x7F800000, 1, 0x80000000], "<u4"), 200).tobytes())
def test_a_tree_comes_back_to_the_last_bit_and_the_host_packs_alike(data):
    """NaNs with payloads, infinities, denormal numbers and negative zeros included."""
    tree = _tree(data)
    buffers, unpacked = _round_trip(tree)
    _assert_same_bits(unpacked, tree)
    packed_by_host = PACKING.pack_host(jax.tree.leaves(tree))
    _assert_same_bits(packed_by_host, jax.device_get(buffers))
    _assert_same_bits(_unpack(packed_by_host), tree)


def test_small_leaves_share_one_buffer_and_empty_ones_take_none():
    vector, *others = PACKING.pack(EXAMPLE)
    assert vector.dtype == jnp.uint32 and vector.shape == (1 + 12 + 2 + 5 + 6,) == (PACKING.words,)
    assert {other.shape for other in others} == {(4, 4), (9, 11)}


def test_where_small_ends():
    assert len(Packing(np.zeros(SMALL, np.float32)).pack(jnp.zeros(SMALL))) == 1
    assert len(Packing(np.zeros(SMALL + 1, np.float32)).pack(jnp.zeros(SMALL + 1))) == 2
    assert len(Packing(np.zeros(5, np.float32), small=4).pack(jnp.zeros(5))) == 2


def test_keys_stay_keys():
    tree = {"key": jax.random.key(7), "keys": jax.random.split(jax.random.key(8), 3), "rate": jnp.float32(0.5)}
    packing = Packing(tree)
    buffers = jax.jit(packing.pack)(tree)
    assert len(buffers) == 3
    unpacked = packing.unpack(buffers)
    assert unpacked["rate"] == 0.5
    for name in ("key", "keys"):
        assert unpacked[name].dtype == tree[name].dtype
        np.testing.assert_array_equal(jax.random.key_data(unpacked[name]), jax.random.key_data(tree[name]))


@pytest.mark.parametrize("tree", [(), {"nothing": ()}, np.zeros((0,), np.float32)], ids=["unit", "nested", "empty"])
def test_a_tree_without_numbers(tree):
    packing = Packing(tree)
    (vector,) = packing.pack(tree)
    assert vector.shape == (0,)
    _assert_same_bits(packing.unpack((vector,)), tree)
    assert packing.pack_host(jax.tree.leaves(tree))[0].shape == (0,)


def test_shapes_are_all_that_an_example_need_have():
    shapes = {"a": jax.ShapeDtypeStruct((2,), jnp.float32), "b": jax.ShapeDtypeStruct((), jnp.int32)}
    packing = Packing(shapes)
    unpacked = packing.unpack(packing.pack({"a": jnp.array([1.5, -2.0]), "b": jnp.array(-3)}))
    np.testing.assert_array_equal(unpacked["a"], [1.5, -2.0])
    assert unpacked["b"] == -3 and unpacked["b"].dtype == jnp.int32


def test_the_host_packs_views_and_keeps_none_of_them():
    """An environment writes its next observation where the last one was."""
    buffer = np.arange(12, dtype=np.float32).reshape(3, 4)
    flag = np.array([True, False])
    leaves = [buffer.T, buffer[::2, 1:3], flag]
    packing = Packing(leaves)
    expected = [np.array(leaf) for leaf in leaves]
    packed = packing.pack_host(leaves)
    buffer[:], flag[:] = -1.0, False
    _assert_same_bits(packing.unpack(packed), expected)  # pyright: ignore[reportArgumentType]


def test_rows_that_were_packed_one_by_one_are_unpacked_together():
    """As the host loop does with the steps of a rollout."""
    steps = [[np.full((2,), t, np.float32), np.array(t), np.full((3, 30), t, np.uint8)] for t in range(4)]
    steps = [[leaf.astype(np.int32) if leaf.ndim == 0 else leaf for leaf in step] for step in steps]
    packing = Packing(steps[0])
    columns = tuple(np.stack(column) for column in zip(*[packing.pack_host(step) for step in steps], strict=True))
    floats, counts, images = jax.vmap(packing.unpack)(columns)
    np.testing.assert_array_equal(floats, [[0, 0], [1, 1], [2, 2], [3, 3]])
    np.testing.assert_array_equal(counts, [0, 1, 2, 3])
    np.testing.assert_array_equal(images[2], np.full((3, 30), 2))


def test_a_tree_of_another_size_is_refused():
    with pytest.raises(ValueError, match="zip"):
        PACKING.pack(dict(list(EXAMPLE.items())[:-1]))


def test_a_packed_scan_is_the_scan():
    """Counters, numbers, flags, arrays too large to be packed, nothing at all, and random draws."""

    def body(carry, key):
        count, state = carry
        drawn = jax.random.normal(key, (3,))
        state = {**state, "x": state["x"] + drawn, "flag": ~state["flag"], "large": state["large"].at[0].add(drawn[0])}
        return (count.add(2), state), (drawn, state["flag"], state["large"][:70], ())

    state = {"x": jnp.zeros(3), "flag": jnp.array(False), "large": jnp.zeros(100), "none": jnp.zeros((0, 2))}
    start = Counter.zero(), state
    keys = jax.random.split(jax.random.key(0), 5)
    for a, b in zip(
        *map(jax.tree.leaves, (packing.scan(body, start, keys), hoist.scan(body, start, keys))), strict=True
    ):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_packed_scan_leaves_counters_alike_in_all_seeds():
    """Mapped over seeds, a condition on a counter stays a branch."""

    def train(x):
        def body(carry, _):
            count, x = carry
            x = jax.lax.cond(count.passes(2, since=Counter(count.value - 1)), lambda x: x + 1, lambda x: x, x)
            return (count.add(1), x), x

        return packing.scan(body, (Counter.zero(), x), jnp.arange(4))[0][1]

    assert "cond[" in str(jax.make_jaxpr(jax.vmap(train))(jnp.zeros(3)))


@pytest.mark.parametrize(
    ("init", "after"),
    [
        (jnp.zeros(2), jnp.zeros(2, jnp.int32)),
        (jnp.zeros(()), jnp.zeros((1, 1))),
        ({"a": jnp.zeros(2)}, {"b": jnp.zeros(2)}),
    ],
)
def test_a_packed_scan_refuses_a_carry_that_changes_its_form(init, after):
    with pytest.raises(TypeError, match="carry"):
        packing.scan(lambda carry, x: (after, x), init, jnp.arange(3))


def test_a_packed_scan_takes_plain_numbers():
    carry, ys = packing.scan(lambda carry, x: (carry + x, carry), 0.0, jnp.arange(4.0))
    assert carry == 6.0 and ys.tolist() == [0.0, 0.0, 1.0, 3.0]
