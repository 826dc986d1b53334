"""The episode at hand of each environment, for methods that learn when it is over."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, UInt8, UInt32

from treadle.memory import Layout
from treadle.types import Counter


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EpisodeBuffer:
    """Rows of the episode at hand of `B` environments, at most `L` for each.

    All environments write to the same ring of `L` steps, so that a step of all of them is one block write, and each
    knows how many rows ago its own episode began.

        buffer = buffer.append((t.obs, t.reward), t.valid)          # a step [B, ...] of all environments
        (obs, reward), counts = buffer.row(b, k)                    # step k of environment b's episode
        buffer = buffer.clear(t.terminated | t.truncated)           # after learning: these begin anew
    """

    words: UInt32[Array, "L B w"]
    bytes: UInt8[Array, "L B b"]
    position: Counter
    """Where the next row goes."""
    lengths: Int[Array, " B"]
    """Rows of each episode so far, those that are overwritten among them."""
    layout: Layout = field(metadata={"static": True})

    @classmethod
    def init(cls, example: PyTree, num_envs: int, length: int) -> EpisodeBuffer:
        """An empty buffer for rows like `example` (one row, no batch axes) of episodes of up to `length` steps."""
        layout = Layout.of((example, jnp.zeros((), jnp.bool_)))
        return cls(
            words=jnp.zeros((length, num_envs, layout.num_words), jnp.uint32),
            bytes=jnp.zeros((length, num_envs, layout.num_bytes), jnp.uint8),
            position=Counter.zero(),
            lengths=jnp.zeros(num_envs, jnp.int32),
            layout=layout,
        )

    @property
    def capacity(self) -> int:
        """`L`: the longest episode that is kept whole."""
        return self.words.shape[0]

    @property
    def overflowed(self) -> Bool[Array, " B"]:
        """Whether the beginning of an environment's episode is lost, because it was longer than the buffer."""
        return self.lengths > self.capacity

    def append(self, rows: PyTree, valid: Bool[Array, " B"] | None = None) -> EpisodeBuffer:
        """With one more row `[B, ...]` for each environment. Rows that are not valid do not begin an episode, and
        within one they do not count."""
        batch = len(self.lengths)
        counts = jnp.ones(batch, jnp.bool_) if valid is None else valid
        words, bytes_ = self.layout.pack((rows, counts), batch_ndim=1)
        at = self.position.value
        begun = 1 if valid is None else (valid | (self.lengths > 0)).astype(jnp.int32)
        return EpisodeBuffer(
            words=jax.lax.dynamic_update_slice_in_dim(self.words, words[None], at, 0),
            bytes=jax.lax.dynamic_update_slice_in_dim(self.bytes, bytes_[None], at, 0) if bytes_.size else self.bytes,
            position=Counter(jnp.where(at + 1 == self.capacity, 0, at + 1)),
            lengths=self.lengths + begun,
            layout=self.layout,
        )

    def row(self, env: Int[Array, ""] | int, step: Int[Array, ""] | int) -> tuple[Any, Bool[Array, ""]]:
        """The row of step `step` in the episode of environment `env`, and whether it counts.

        `step` is from 0 to `lengths[env] - 1`. Where the episode has overflowed the row is another's.
        """
        at = self.position.value - self.lengths[env] + step
        place = (jnp.where(at < 0, at + self.capacity, at), env, 0)
        words = jax.lax.dynamic_slice(self.words, place, (1, 1, self.layout.num_words))
        bytes_ = jax.lax.dynamic_slice(self.bytes, place, (1, 1, self.layout.num_bytes))
        return jax.tree.map(lambda x: x[0], self.layout.unpack(words[0], bytes_[0]))

    def clear(self, ended: Bool[Array, " B"]) -> EpisodeBuffer:
        """Without the episodes of the environments that `ended`."""
        return dataclasses.replace(self, lengths=jnp.where(ended, 0, self.lengths))
