"""Keys: one for each seed of a run, and from it one for each named purpose."""

from __future__ import annotations

import zlib

import jax
from jaxtyping import Array


def purpose(key: Array, name: str) -> Array:
    """The key for a named purpose, so that streams are apart by construction and not by arithmetic on seeds."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def seed_key(seed: int, index: int = 0) -> Array:
    """The key of the `index`-th seed of a run whose base seed is `seed`.

    Runs with neighbouring base seeds share no stream: `seed_key(0, 1)` is not `seed_key(1, 0)`.
    """
    return jax.random.fold_in(purpose(jax.random.key(seed), "seed"), index)


def host_seed(key: Array) -> int:
    """A seed for a NumPy or Gymnasium generator, in [0, 2^31)."""
    return int(jax.random.bits(key, (), "uint32")) & 0x7FFFFFFF
