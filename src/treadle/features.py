"""Features, and the functions that are linear in them.

A feature map turns one observation into the features that are not zero: where they are, and how large. A table is the
simplest: of as many features as there are states, one is active. Sutton and Barto (2018), section 9.5.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from treadle.registry import as_tree


class Active(NamedTuple):
    """The `k` features that are not zero: their places, all different, and their values; `None` where all are 1."""

    indices: Int[Array, " k"]
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
    (section 9.5.1, equation 9.17): `(degree + 1)^d` features for `d` numbers."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    degree: int

    @property
    def size(self) -> int:
        return (self.degree + 1) ** len(self.low)

    def __call__(self, obs: Float[Array, "..."]) -> Active:
        exponents = np.array(list(itertools.product(range(self.degree + 1), repeat=len(self.low))))
        powers = _scaled(obs, self.low, self.high)[:, None] ** np.arange(self.degree + 1)
        values = jnp.prod(powers[np.arange(len(self.low)), exponents], axis=1)
        return Active(jnp.arange(self.size), values)


@as_tree
class TileCoding:
    """`tilings` grids over the space between the bounds, `tiles` wide in each dimension, each displaced by another
    part of a tile; one tile of each is active (section 9.5.4).

    The displacements in the dimensions are in the ratio 1, 3, 5 ... (Miller and Glanz 1996). A grid has one tile more
    in each dimension, so that it covers the space wherever it lies. What is outside the bounds counts to the border.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    tilings: int
    tiles: int

    @property
    def size(self) -> int:
        return self.tilings * (self.tiles + 1) ** len(self.low)

    def __call__(self, obs: Float[Array, "..."]) -> Active:
        dimensions = len(self.low)
        offsets = np.outer(np.arange(self.tilings), 2 * np.arange(dimensions) + 1) % self.tilings / self.tilings
        position = _scaled(obs, self.low, self.high) * self.tiles
        tile = jnp.clip(jnp.floor(position + offsets).astype(jnp.int32), 0, self.tiles)
        strides = (self.tiles + 1) ** np.arange(dimensions)
        first = np.arange(self.tilings) * (self.tiles + 1) ** dimensions
        return Active(first + tile @ jnp.asarray(strides, jnp.int32))


@as_tree
class Encoder:
    """A function of the user's own from an observation to `size` features; the observation's numbers themselves
    where there is none."""

    size: int
    function: Callable[..., Any] | None = None

    def __call__(self, obs: Array) -> Active:
        values = obs if self.function is None else self.function(obs)
        return Active(jnp.arange(self.size), jnp.ravel(values).astype(jnp.float32))


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
        active = self.features(obs)
        rows = self.weights.at[active.indices].get(mode="promise_in_bounds")
        if active.values is None:
            return rows[0] if len(active.indices) == 1 else rows.sum(0)
        return jnp.tensordot(active.values, rows, 1)

    def add(self, obs: Array, amount: Float[Array, "..."]) -> LinearFunction:
        """The function after `amount` `[...]` times the features of `obs` was added to its weights: a semi-gradient
        step, because the gradient of a linear function is its features."""
        return LinearFunction(weights=add(self.weights, self.features(obs), amount), features=self.features)


def add(weights: Float[Array, "n ..."], active: Active, amount: Float[Array, "..."]) -> Float[Array, "n ..."]:
    """`weights` with `amount` `[...]` times each active feature added."""
    if active.values is None and len(active.indices) == 1:
        at = active.indices[0]
        row = jax.lax.dynamic_index_in_dim(weights, at, keepdims=True)
        return jax.lax.dynamic_update_slice_in_dim(weights, row + amount, at, 0)
    scale = jnp.ones(len(active.indices)) if active.values is None else active.values
    amounts = scale.reshape(-1, *([1] * jnp.ndim(amount))) * amount
    return weights.at[active.indices].add(amounts, mode="promise_in_bounds", unique_indices=True)
