"""Replay memory as pure functions over an explicit state.

A transition is packed into one row of 32-bit words (and one of bytes for images), so that adding is one block write
and sampling one gather, however many fields a transition has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8, UInt32

from treadle.registry import as_tree
from treadle.types import Counter, Transition


class Sample(NamedTuple):
    """`N` remembered transitions, where they lie, and their importance weights."""

    items: Transition
    indices: Int[Array, " N"]
    weights: Float[Array, " N"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MemoryState:
    """The rows, where the next one goes, and how many are filled."""

    words: UInt32[Array, "capacity w"]
    bytes: UInt8[Array, "capacity b"]
    position: Counter
    size: Counter
    layout: Layout = field(metadata={"static": True})


S = TypeVar("S")


class Memory(Protocol[S]):
    """What an algorithm asks of its memory. `update_priorities` is given the TD error `[N]` of each sampled item."""

    def init(self, example: Transition) -> S: ...

    def add(self, state: S, rollout: Transition) -> S: ...

    def sample(self, state: S, key: Array) -> Sample: ...

    def update_priorities(self, state: S, indices: Array, td_errors: Array) -> S: ...


@as_tree
class UniformMemory:
    """A ring of the last `capacity` transitions, each equally likely to be sampled (Lin 1992)."""

    capacity: int
    batch_size: int

    def init(self, example: Transition) -> MemoryState:
        """An empty memory for transitions like `example` (one transition, no batch axes)."""
        layout = Layout.of(example._replace(valid=None))
        return MemoryState(
            words=jnp.zeros((self.capacity, layout.num_words), jnp.uint32),
            bytes=jnp.zeros((self.capacity, layout.num_bytes), jnp.uint8),
            position=Counter.zero(),
            size=Counter.zero(),
            layout=layout,
        )

    def add(self, state: MemoryState, rollout: Transition) -> MemoryState:
        """Append the valid transitions of a rollout `[T, B, ...]` in order of time, over the oldest ones.

        Neither `T`, `B` nor their product need divide the capacity; of a rollout longer than the memory the last
        `capacity` transitions stay.
        """
        slots, added = self.slots(state, rollout)
        words, bytes_ = state.layout.pack(rollout._replace(valid=None), batch_ndim=2)
        contiguous = rollout.valid is None
        return MemoryState(
            words=_write(state.words, words[-len(slots) :], slots, contiguous),
            bytes=_write(state.bytes, bytes_[-len(slots) :], slots, contiguous),
            position=Counter((state.position.value + added) % self.capacity),
            size=Counter(jnp.minimum(state.size.value + added, self.capacity)),
            layout=state.layout,
        )

    def slots(self, state: MemoryState, rollout: Transition) -> tuple[Int[Array, " n"], Int[Array, ""]]:
        """Where `add` puts the last `n` transitions of a rollout, `capacity` or more for those that it leaves out, and
        how many it adds."""
        count, position = math.prod(jnp.shape(jax.tree.leaves(rollout)[0])[:2]), state.position.value
        if rollout.valid is None:
            count = min(count, self.capacity)
            return (position + jnp.arange(count)) % self.capacity, jnp.asarray(count, jnp.int32)
        valid = rollout.valid.reshape(-1)
        added = jnp.sum(valid, dtype=jnp.int32)
        order = jnp.cumsum(valid) - 1
        kept = valid & (order >= added - self.capacity)
        return jnp.where(kept, (position + order) % self.capacity, self.capacity + jnp.arange(count)), added

    def sample(self, state: MemoryState, key: Array) -> Sample:
        """`batch_size` transitions drawn with replacement, weights 1.

        The remainder of 32 random bits favours no slot by more than size / 2^32; a scaled float32 would leave slots
        of large memories up to 10% apart.
        """
        bits = jax.random.bits(key, (self.batch_size,))
        size = jnp.maximum(state.size.value, 1).astype(jnp.uint32)
        indices = (bits % size).astype(jnp.int32)
        return Sample(self.items(state, indices), indices, jnp.ones(self.batch_size))

    def items(self, state: MemoryState, indices: Int[Array, " N"]) -> Transition:
        """The transitions at `indices`, which must lie within the capacity."""
        words = state.words.at[indices].get(mode="promise_in_bounds")
        bytes_ = state.bytes.at[indices].get(mode="promise_in_bounds")
        return state.layout.unpack(words, bytes_)

    def update_priorities(self, state: MemoryState, indices: Array, td_errors: Array) -> MemoryState:
        """Nothing: every transition stays equally likely."""
        return state


def _write(rows: Array, new: Array, indices: Array, contiguous: bool) -> Array:
    if rows.shape[1] == 0:
        return rows
    if len(new) == 1 and contiguous:
        return jax.lax.dynamic_update_slice(rows, new, (indices[0], 0))
    if contiguous:
        return rows.at[indices].set(new, mode="promise_in_bounds", unique_indices=True)
    return rows.at[indices].set(new, mode="drop", unique_indices=True)


class _Leaf(NamedTuple):
    shape: tuple[int, ...]
    dtype: str
    is_bytes: bool
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """Where each leaf of a transition lies in its row: uint8 among the bytes, all else among the words."""

    treedef: Any
    leaves: tuple[_Leaf, ...]
    num_words: int
    num_bytes: int

    @classmethod
    def of(cls, example: PyTree) -> Layout:
        """The layout for transitions like `example`. Raises `TypeError` for dtypes of 16 or 64 bits."""
        leaves, treedef = jax.tree.flatten(example)
        places, counts = [], {True: 0, False: 0}
        for leaf in leaves:
            dtype = jnp.asarray(leaf).dtype
            is_bytes = dtype == jnp.uint8
            if not is_bytes and dtype.itemsize != 4 and dtype != jnp.bool_:
                raise TypeError(f"replay memory holds 32-bit, bool and uint8 arrays; it was given {dtype}.")
            start = counts[is_bytes]
            counts[is_bytes] = start + math.prod(jnp.shape(leaf))
            places.append(_Leaf(jnp.shape(leaf), dtype.name, is_bytes, start, counts[is_bytes]))
        return cls(treedef, tuple(places), counts[False], counts[True])

    def pack(self, items: PyTree, batch_ndim: int) -> tuple[Array, Array]:
        """Rows `[N, w]` and `[N, b]` for items with `batch_ndim` leading axes, which become one."""
        columns: dict[bool, list[Array]] = {True: [], False: []}
        count = 0
        for leaf, place in zip(jax.tree.leaves(items), self.leaves, strict=True):
            count = math.prod(jnp.shape(leaf)[:batch_ndim])
            column = jnp.reshape(leaf, (count, -1))
            columns[place.is_bytes].append(column if place.is_bytes else to_words(column))
        words = jnp.concatenate(columns[False], axis=1) if columns[False] else jnp.zeros((count, 0), jnp.uint32)
        bytes_ = jnp.concatenate(columns[True], axis=1) if columns[True] else jnp.zeros((count, 0), jnp.uint8)
        return words, bytes_

    def unpack(self, words: Array, bytes_: Array) -> Any:
        """Items `[N, ...]` of rows `[N, w]` and `[N, b]`."""
        leaves = []
        for place in self.leaves:
            column = (bytes_ if place.is_bytes else words)[:, place.start : place.stop]
            column = column if place.is_bytes else from_words(column, np.dtype(place.dtype))
            leaves.append(column.reshape(len(words), *place.shape))
        return jax.tree.unflatten(self.treedef, leaves)


def to_words(column: Array) -> Array:
    """32-bit words that hold an array of 32-bit numbers or bools, bit for bit, in its shape."""
    if column.dtype == jnp.bool_:
        return column.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(column, jnp.uint32)


def from_words(column: Array, dtype: Any) -> Array:
    """The inverse of `to_words`."""
    if dtype == jnp.bool_:
        return column.astype(jnp.bool_)
    return jax.lax.bitcast_convert_type(column, dtype)
