"""Observation and action spaces: `Discrete` and `Box`, the two that the built-in algorithms serve."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from treadle.errors import UnsupportedSpace


@dataclass(frozen=True)
class Discrete:
    """The integers `start, start + 1, ..., start + n - 1`. Inside Treadle actions count from 0;
    adapters add `start`."""

    n: int
    start: int = 0

    shape = ()
    dtype = jnp.int32

    def __str__(self) -> str:
        return f"Discrete({self.n})" if self.start == 0 else f"Discrete({self.n}, start={self.start})"

    def __post_init__(self):
        if not 1 <= self.n < 2**31:
            raise UnsupportedSpace(
                f"a Discrete space of {self.n:,} elements is not served: they are counted from 1 to 2^31 - 1. Describe "
                "what is there by several numbers (a Box)."
            )

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Uniform integers in `[0, n)` of the given shape."""
        return jax.random.randint(key, shape, 0, self.n, jnp.int32)

    def describe(self) -> dict[str, Any]:
        """The space as JSON values; `from_description` is the inverse."""
        return {"type": "Discrete", "n": self.n, "start": self.start}


@dataclass(frozen=True)
class Box:
    """Arrays of one shape between `low` and `high` (each a number or nested tuples of the shape)."""

    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Uniform between two finite bounds (both included for integers), exponential from one, else normal."""
        low, high = (np.broadcast_to(np.asarray(b, np.float64), self.shape) for b in (self.low, self.high))
        has_low, has_high = np.isfinite(low), np.isfinite(high)
        floor, ceiling = np.where(has_low, low, 0.0), np.where(has_high, high, 0.0)
        keys = jax.random.split(key, 3)
        span = ceiling - floor + (1 if np.issubdtype(self.dtype, np.integer) else 0)
        uniform = floor + jax.random.uniform(keys[0], shape + self.shape) * span
        beyond = jax.random.exponential(keys[1], shape + self.shape)
        one_sided = jnp.where(has_low, floor + beyond, ceiling - beyond)
        free = jax.random.normal(keys[2], shape + self.shape)
        sample = jnp.where(has_low & has_high, uniform, jnp.where(has_low | has_high, one_sided, free))
        if np.issubdtype(self.dtype, np.integer):
            sample = jnp.minimum(jnp.floor(sample), jnp.where(has_high, ceiling, jnp.inf))
        return sample.astype(self.dtype)

    @property
    def is_bounded(self) -> bool:
        """Whether every number has a bound on either side, and what lies between can be told in 32 bits."""
        low, high = self._bounds
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.isfinite(high - low).all())

    def from_unit(self, unit: Float[Array, "... n"]) -> Float[Array, "..."]:
        """The elements `[..., *shape]` where `n` numbers each stand in [-1, 1], between the bounds; beyond, they are
        taken for -1 or 1."""
        low, high = self._bounds
        share = 0.5 * (jnp.clip(unit, -1.0, 1.0) + 1.0)
        scaled = jnp.clip(low + share * (high - low), low, high)
        return scaled.reshape(*unit.shape[:-1], *self.shape)

    def to_unit(self, element: Float[Array, "..."]) -> Float[Array, "... n"]:
        """The inverse of `from_unit`. A number whose two bounds are one stands at -1."""
        low, high = self._bounds
        flat = element.reshape(*element.shape[: element.ndim - len(self.shape)], -1)
        return 2.0 * (flat - low) / np.where(high > low, high - low, 1.0).astype(np.float32) - 1.0

    @property
    def half_width(self) -> Float[np.ndarray, "..."]:
        """Half of what lies between the bounds of each number."""
        low, high = self._bounds
        return (0.5 * (high - low)).reshape(self.shape)

    @property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The bounds as float32 `[n]`."""
        with np.errstate(over="ignore"):
            low, high = (np.broadcast_to(np.asarray(b, np.float32), self.shape).ravel() for b in (self.low, self.high))
        return low, high

    def __str__(self) -> str:
        one = all(np.ndim(bound) == 0 for bound in (self.low, self.high))
        return f"Box of shape {self.shape}" + (f" from {self.low:g} to {self.high:g}" if one else "")

    def describe(self) -> dict[str, Any]:
        """The space as JSON values; `from_description` is the inverse."""
        return {
            "type": "Box",
            "low": np.asarray(self.low, np.float64).tolist(),
            "high": np.asarray(self.high, np.float64).tolist(),
            "shape": list(self.shape),
            "dtype": np.dtype(self.dtype).name,
        }


@dataclass(frozen=True, kw_only=True)
class Grid(Discrete):
    """Numbers that stand for the points of a grid over a bounded `Box`: `levels` values in each dimension, evenly
    spaced, both bounds included. The last dimension changes fastest. `n` is `levels` to the power of the dimensions."""

    box: Box
    levels: int

    def take(self, number: Array | np.ndarray | np.integer) -> Any:
        """The points `[..., *box.shape]` of whole numbers `[...]`: NumPy's for NumPy's, JAX's for JAX's, and the same
        to the last bit."""
        number = number if isinstance(number, jax.Array) else np.asarray(number)
        size = math.prod(self.box.shape)
        digits = number[..., None] // self.levels ** np.arange(size)[::-1].astype(np.int32) % self.levels
        values = jnp.asarray(self._values) if isinstance(number, jax.Array) else self._values
        return values[digits, np.arange(size)].reshape(*number.shape, *self.box.shape)

    @functools.cached_property
    def _values(self) -> np.ndarray:
        """The levels of each dimension, `[levels, size]`."""
        low, high = (np.broadcast_to(np.asarray(b, np.float64), self.box.shape) for b in (self.box.low, self.box.high))
        return np.linspace(low.ravel(), high.ravel(), self.levels).astype(self.box.dtype)

    def describe(self) -> dict[str, Any]:
        """The space as JSON values; `from_description` is the inverse."""
        return {"type": "Grid", "n": self.n, "levels": self.levels, "box": self.box.describe()}


Space = Discrete | Box


def from_gymnasium(space: Any) -> Space:
    """The Treadle space of a Gymnasium space.

    Raises `UnsupportedSpace` for anything but `Discrete` and `Box`, with what to do about it.
    """
    kind = type(space).__name__
    if kind == "Discrete":
        return Discrete(int(space.n), int(space.start))
    if kind == "Box":
        return Box(_nested(space.low), _nested(space.high), tuple(space.shape), _narrow(np.dtype(space.dtype)).type)
    hints = {
        "Dict": "wrap it in gymnasium.wrappers.FlattenObservation",
        "Tuple": "wrap it in gymnasium.wrappers.FlattenObservation",
        "MultiDiscrete": "flatten it to one Discrete with an action or observation wrapper",
        "MultiBinary": "wrap it in gymnasium.wrappers.FlattenObservation",
    }
    hint = hints.get(kind, "convert it with a Gymnasium wrapper")
    raise UnsupportedSpace(f"the space {space} is not served: Treadle needs Discrete or Box; {hint}.")


def from_description(description: dict[str, Any]) -> Space:
    """The inverse of `describe`, for metadata read from a file."""
    if description["type"] == "Discrete":
        return Discrete(int(description["n"]), int(description["start"]))
    if description["type"] == "Grid":
        box: Any = from_description(description["box"])
        return Grid(int(description["n"]), box=box, levels=int(description["levels"]))
    return Box(
        _nested(description["low"]),
        _nested(description["high"]),
        tuple(description["shape"]),
        np.dtype(description["dtype"]).type,
    )


def _narrow(dtype: np.dtype) -> np.dtype:
    """The dtype in which Treadle holds such observations: bytes and bools as they are, all else in 32 bits."""
    if dtype in (np.uint8, np.bool_):
        return dtype
    return np.dtype({"f": np.float32, "i": np.int32, "u": np.uint32}[dtype.kind])


def _nested(values: Any) -> Any:
    """Arrays as hashable nested tuples; one number where all are equal."""
    array = np.asarray(values)
    if array.size and np.all(array == array.flat[0]):
        return float(array.flat[0])

    def tuples(x):
        return tuple(tuples(y) for y in x) if isinstance(x, list) else float(x)

    return tuples(array.tolist())
