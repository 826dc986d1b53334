"""Few buffers instead of many.

A compiled call is dispatched faster the fewer arrays it takes and gives. A compiled loop runs faster the fewer it
carries along: each that a step changes is copied first, and where many operations are ready at once, XLA hands some of
them to another thread, which takes a CPU longer to wake than all of them take to run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from treadle import hoist
from treadle.memory import from_words, to_words
from treadle.types import Counter

C = TypeVar("C")

SMALL = 64
"""Arrays of up to this many elements are laid side by side in one vector."""


class _Place(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any
    start: int | None
    """Where it begins in the common vector; `None` for an array that stays on its own."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Packing:
    """A tree as one vector of 32-bit words for its small leaves, and its other leaves as they are.

    Works on the shapes of `example`. `pack` and `unpack` are for use inside compiled programs, `pack_host` is for
    NumPy arrays outside of them.
    """

    def __init__(self, example: PyTree, small: int = SMALL):
        self.example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), example)
        leaves, self._treedef = jax.tree.flatten(example)
        self._places: list[_Place] = []
        self.words = 0
        for leaf in leaves:
            shape, dtype = tuple(leaf.shape), leaf.dtype
            packable = dtype == jnp.bool_ or (not hoist.is_key(leaf) and dtype.itemsize == 4)
            fits = packable and math.prod(shape) <= small
            self._places.append(_Place(shape, dtype, self.words if fits else None))
            self.words += math.prod(shape) if fits else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves that are numbers."""
        sizes = (4 if place.start is not None else _itemsize(place.dtype) for place in self._places)
        return sum(place.size * size for place, size in zip(self._places, sizes, strict=True))

    def pack(self, tree: PyTree) -> tuple[Array, ...]:
        """The common vector, then the leaves that stay on their own."""
        parts, others = [jnp.zeros(0, jnp.uint32)], []
        for leaf, place in zip(jax.tree.leaves(tree), self._places, strict=True):
            if place.start is not None:
                parts.append(to_words(jnp.ravel(leaf)))
            elif place.size:
                others.append(leaf)
        return (jnp.concatenate(parts), *others)

    def unpack(self, buffers: tuple[Array, ...]) -> Any:
        """The inverse of `pack`."""
        vector, others = buffers[0], iter(buffers[1:])
        leaves = []
        for place in self._places:
            if place.start is not None:
                words = vector[place.start : place.start + place.size]
                leaves.append(from_words(words, place.dtype).reshape(place.shape))
            elif place.size:
                leaves.append(next(others))
            else:
                leaves.append(jnp.zeros(place.shape, place.dtype))
        return jax.tree.unflatten(self._treedef, leaves)

    def pack_host(self, leaves: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The same for NumPy leaves in the tree's order, into memory that nobody else holds."""
        vector, others = np.empty(self.words, np.uint32), []
        for leaf, place in zip(leaves, self._places, strict=True):
            if place.start is None:
                if place.size:
                    others.append(leaf)
                continue
            flat = leaf.reshape(-1)
            vector[place.start : place.start + place.size] = flat if place.dtype == np.bool_ else flat.view(np.uint32)
        return (vector, *others)


def _itemsize(dtype: Any) -> int:
    return 0 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize


def scan(body: Callable[[C, Any], tuple[C, Any]], init: C, xs: PyTree) -> tuple[C, Any]:
    """`hoist.scan(body, init, xs)` with what is small of the carry, and of what each step gives, in one buffer each.

    Counters have a buffer of their own, since they may be alike where all else is batched. Refuses what `hoist.scan`
    refuses, such as a carry that changes its form.
    """
    init = jax.tree.map(jnp.asarray, init)
    leaves, tree = jax.tree.flatten(init, is_leaf=_is_counter)
    counters, others = _apart(leaves)
    carried = Packing(counters), Packing(others)
    given: list[Packing] = []

    def pack(carry: C) -> tuple[Any, Any]:
        counters, others = _apart(jax.tree.leaves(carry, is_leaf=_is_counter))
        return carried[0].pack(counters), carried[1].pack(others)

    def unpack(buffers: tuple[Any, Any]) -> C:
        counters, others = (iter(p.unpack(b)) for p, b in zip(carried, buffers, strict=True))
        return jax.tree.unflatten(tree, [next(counters) if _is_counter(x) else next(others) for x in leaves])

    def packed_body(buffers: tuple[Any, Any], x: Any) -> tuple[tuple[Any, Any], Any]:
        carry, y = body(unpack(buffers), x)
        if _form(carry) != _form(init):
            raise _AnotherForm
        given.append(Packing(y))
        return pack(carry), given[-1].pack(y)

    try:
        buffers, ys = hoist.scan(packed_body, pack(init), xs)
    except _AnotherForm:
        return hoist.scan(body, init, xs)
    return unpack(buffers), jax.vmap(given[-1].unpack)(ys)


class _AnotherForm(Exception):
    """A body returned another carry than it took."""


def _form(tree: PyTree) -> Any:
    """Structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(x.shape, x.dtype) for x in map(jnp.asarray, leaves)]


def _is_counter(x: Any) -> bool:
    return isinstance(x, Counter)


def _apart(leaves: list[Any]) -> tuple[list[Any], list[Any]]:
    """The counters, and the others."""
    return [x for x in leaves if _is_counter(x)], [x for x in leaves if not _is_counter(x)]
