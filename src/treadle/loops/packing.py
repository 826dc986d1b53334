"""Few buffers instead of many: a compiled call is dispatched faster the fewer arrays it takes and gives."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from treadle.hoist import is_key
from treadle.memory import from_words, to_words

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
        leaves, self._treedef = jax.tree.flatten(example)
        self._places: list[_Place] = []
        self.words = 0
        for leaf in leaves:
            shape, dtype = tuple(leaf.shape), leaf.dtype
            packable = dtype == jnp.bool_ or (not is_key(leaf) and dtype.itemsize == 4)
            fits = packable and math.prod(shape) <= small
            self._places.append(_Place(shape, dtype, self.words if fits else None))
            self.words += math.prod(shape) if fits else 0

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
