"""Features, and the functions that are linear in them.

A feature map turns one observation into the features that are not zero: where they are, and how large. A table is the
simplest: of as many features as there are states, one is active. Sutton and Barto (2018), section 9.5.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from treadle.registry import as_tree


class Active(NamedTuple):
    """The `k` features that are not zero, and their values; `None` where all are 1."""

    indices: Int[Array, " k"] | None
    """Where they are among all `n`, all different; `None` where all features are given, one after the other."""
    values: Float[Array, " k"] | None = None


class FeatureMap(Protocol):
    """From one observation to its active features. `size` is the number `n` of all."""

    @property
    def size(self) -> int: ...

    def __call__(self, obs: Array) -> Active: ...


@as_tree
class Table:
    """One feature for each of `size` states, which are counted from `start`."""

    size: int
    start: int = 0

    def __call__(self, obs: Int[Array, ""]) -> Active:
        return Active((obs - self.start)[None])


@as_tree
class Polynomial:
    """All products of powers up to `degree` of the observation's numbers, each scaled to [0, 1] between its bounds
    (section 9.5.1, equation 9.17): `(degree + 1)^d` features for `d` numbers, the last one's power changing fastest."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    degree: int

    @property
    def size(self) -> int:
        return (self.degree + 1) ** len(self.low)

    def __call__(self, obs: Float[Array, "..."]) -> Active:
        values = jnp.ones(1)
        for number in _scaled(obs, self.low, self.high):
            powers = [jnp.ones(())]
            for _ in range(self.degree):
                powers.append(powers[-1] * number)
            values = jnp.outer(values, jnp.stack(powers)).ravel()
        return Active(None, values)


@as_tree
class TileCoding:
    """`tilings` grids over the space between the bounds, `tiles` wide in each dimension, each displaced by another
    part of a tile; one tile of each is active (section 9.5.4).

    From one tiling to the next a dimension is displaced by 1, 3, 5 ... parts (Miller and Glanz 1996), of those numbers
    that share no factor with `tilings`, so that no two tilings agree in any dimension. A grid has one tile more in each
    dimension, so that it covers the space wherever it lies. What is outside the bounds counts to the border, and the
    border to the last tile within.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    tilings: int
    tiles: int

    @property
    def size(self) -> int:
        return self.tilings * (self.tiles + 1) ** len(self.low)

    def __call__(self, obs: Float[Array, "..."]) -> Active:
        odd = (i for i in itertools.count(1, 2) if math.gcd(i, self.tilings) == 1)
        positions = _scaled(obs, self.low, self.high) * self.tiles
        # A sum over the dimensions rather than a product of integer matrices, which a CPU does not fuse: a third of
        # the time.
        index, stride = jnp.zeros(self.tilings, jnp.int32), 1
        for position, step in zip(positions, odd, strict=False):
            parts = np.arange(self.tilings) * step % self.tilings
            tile = jnp.floor(position + (parts / self.tilings).astype(np.float32)).astype(jnp.int32)
            index += stride * jnp.clip(tile, 0, np.where(parts > 0, self.tiles, self.tiles - 1))
            stride *= self.tiles + 1
        return Active(index + np.arange(self.tilings) * stride)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Own:
    """A callable of the user's own as a tree: its arrays are leaves, all else is part of the program."""

    arrays: tuple[Array, ...]
    treedef: Any = field(metadata={"static": True})
    others: tuple[Any, ...] = field(metadata={"static": True})
    """Its leaves, `None` in place of arrays."""

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Own:
        """One that is such a tree already is returned as it is."""
        if isinstance(function, Own):
            return function
        leaves, treedef = jax.tree.flatten(function)
        is_array = [eqx.is_array(x) or isinstance(x, np.ndarray) for x in leaves]
        arrays = tuple(jnp.asarray(x) for x, a in zip(leaves, is_array, strict=True) if a)
        return cls(arrays, treedef, tuple(None if a else x for x, a in zip(leaves, is_array, strict=True)))

    def __call__(self, *args: Any) -> Any:
        arrays = iter(self.arrays)
        leaves = [next(arrays) if other is None else other for other in self.others]
        return jax.tree.unflatten(self.treedef, leaves)(*args)


@as_tree
class Encoder:
    """A function of the user's own from an observation to `size` features; the observation's numbers themselves
    where there is none."""

    size: int
    function: Callable[..., Any] | None = None

    def __call__(self, obs: Array) -> Active:
        values = obs if self.function is None else self.function(obs)
        return Active(None, jnp.ravel(values).astype(jnp.float32))


def _scaled(obs: Array, low: tuple[float, ...], high: tuple[float, ...]) -> Float[Array, " d"]:
    """The numbers of an observation from their bounds to [0, 1]."""
    span = np.subtract(high, low)
    return jnp.clip(
        (jnp.ravel(obs).astype(jnp.float32) - np.asarray(low, np.float32)) / np.asarray(span, np.float32), 0.0, 1.0
    )


@as_tree
class LinearFunction:
    """The weighted sum of an observation's features, for each column of the weights `[n, ...]`."""

    weights: Float[Array, "n ..."]
    features: FeatureMap

    def __call__(self, obs: Array) -> Float[Array, "..."]:
        """Its value `[...]` for one observation."""
        indices, values = self.features(obs)
        rows = self.weights if indices is None else self.weights.at[indices].get(mode="promise_in_bounds")
        if values is None:
            return rows[0] if len(rows) == 1 else rows.sum(0)
        return jnp.tensordot(values, rows, 1)

    def add(self, obs: Array, amount: Float[Array, "..."]) -> LinearFunction:
        """The function after `amount` `[...]` times the features of `obs` was added to its weights: a semi-gradient
        step, because the gradient of a linear function is its features."""
        return LinearFunction(weights=add(self.weights, self.features(obs), amount), features=self.features)


def add(
    weights: Float[Array, "n ..."], active: Active, amount: Float[Array, "..."], dense: bool = False
) -> Float[Array, "n ..."]:
    """`weights` with `amount` `[...]` times each active feature added.

    `dense` says that all weights are computed anew anyway, as traces are in every step. A table is then better compared
    with every place, which fuses with that work, than written to in one place, which is a pass of its own.
    """
    indices, values = active
    if indices is not None and values is None and len(indices) == 1:
        if not dense:
            row = jax.lax.dynamic_index_in_dim(weights, indices[0], keepdims=True)
            return jax.lax.dynamic_update_slice_in_dim(weights, row + amount, indices[0], 0)
        indices, values = None, (jnp.arange(len(weights)) == indices[0]).astype(jnp.float32)
    amount = jnp.broadcast_to(amount, weights.shape[1:])
    if indices is None:
        return weights + (amount if values is None else jnp.tensordot(values, amount, 0))
    if jax.default_backend() == "cpu":
        return _add_in_turn(weights, indices, values, amount)
    amounts = jnp.tensordot(jnp.ones(len(indices)) if values is None else values, amount, 0)
    return weights.at[indices].add(amounts, mode="promise_in_bounds", unique_indices=True)


def _add_in_turn(
    weights: Float[Array, "n ..."],
    indices: Int[Array, " k"],
    values: Float[Array, " k"] | None,
    amount: Float[Array, "..."],
) -> Float[Array, "n ..."]:
    """A scatter as a loop. On a CPU XLA makes a loop of every scatter anyway, but only such a one can it compile into a
    single function with the loop around it, if that is small: then it takes a quarter of the time."""

    def one(i, weights):
        row = jax.lax.dynamic_index_in_dim(weights, indices[i], keepdims=True)
        more = amount if values is None else values[i] * amount
        return jax.lax.dynamic_update_slice_in_dim(weights, row + more, indices[i], 0)

    return jax.lax.fori_loop(0, len(indices), one, weights)
