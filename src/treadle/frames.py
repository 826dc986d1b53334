"""Replay of images: each frame is stored once, and stacks are put together again when a batch is drawn.

An observation that stacks the last `k` frames shares `k - 1` of them with the one before it, and each successor is the
next row's observation: written as they come, `2k` pictures a transition where one is new (Mnih et al. 2015 keep the
frames apart for the same reason). So the memory is a ring over time in which every row of `B` environments has its
newest frame, and of the rest only what is small. It relies on the stream that `Spec.frame_stack` promises.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8, UInt32

from treadle.memory import Layout, Memory, Sample
from treadle.prioritized import PrioritizedMemory, PrioritizedState, Tree
from treadle.registry import as_tree
from treadle.returns import n_step
from treadle.types import Counter, Transition

CANDIDATES = 32
"""Rows that are looked at for each place in a uniform batch, of which the first that may be drawn is taken."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FrameState:
    """A ring of steps of `B` environments, each step a slot of `B` rows: frames, the rest of each row, where the next
    step goes, how many there are, and whether the next one does not go on from the last.

    A row began with the frame beside it as its newest, and led to that of the next slot.
    """

    frames: UInt8[Array, "rows+1 f"]
    """After those of the rows one more, which is black: it stands for what was before an episode began."""
    rows: UInt32[Array, "rows w"]
    position: Counter
    size: Counter
    broken: Counter
    """1 where the next row begins a new stream, else 0."""
    layout: Layout = field(metadata={"static": True})
    obs_shape: tuple[int, ...] = field(metadata={"static": True})


def frame_stack(state: PyTree) -> int:
    """The frames in one observation of a memory's state; 0 where it is not one of frames."""
    ring = state.ring if isinstance(state, PrioritizedState) else state
    return ring.obs_shape[0] if isinstance(ring, FrameState) else 0


def memory_bytes(memory: Memory, example: Transition) -> int:
    """Bytes that a memory will take for transitions like `example`, of which only shapes and dtypes count. Nothing is
    allocated."""
    leaves = jax.tree.leaves(jax.eval_shape(memory.init, example))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


@as_tree
class FrameMemory:
    """A ring of the last rows of environments whose observations are stacks of frames, each row that counts equally
    likely to be sampled, with returns over `n_step` steps.

    The stream is that of `Spec.frame_stack`. A stack begins anew after each row that is not valid, and nowhere else: an
    episode that terminates may go on in the next valid row, as a game does after a lost life. What is drawn are the
    valid rows of the last `capacity / num_envs` steps of which the `n_step` steps are in. Returns end at the first row
    that terminated or was truncated, and where the stream broke off (`begin_episodes`), as at a time limit.
    """

    capacity: int
    """Rows that can be drawn once the memory is full, over all environments, rounded up to whole steps of them. Rows
    that lead from one episode to the next are among these, and are never drawn."""
    batch_size: int
    """Transitions in a sample."""
    num_envs: int
    """Environments side by side, `B`."""
    frame_stack: int
    """Frames in one observation, `k`."""
    n_step: int = 1
    """Rewards that are summed before the bootstrap."""
    gamma: float = 0.99
    """Discount per step."""

    @property
    def num_slots(self) -> int:
        """Steps in the ring: those that can be drawn, and those at either end whose frames or rewards are not all
        there."""
        return -(-self.capacity // self.num_envs) + self.frame_stack + self.n_step - 1

    @property
    def num_rows(self) -> int:
        """Rows in the ring; those of slot `s` are numbered from `s * num_envs`."""
        return self.num_slots * self.num_envs

    def init(self, example: Transition) -> FrameState:
        """An empty memory for transitions like `example` (one transition, no batch axes).

        Raises `TypeError` unless its observation is a stack `[k, ...]` of uint8 frames and its action an array of 32
        bits.
        """
        obs = example.obs
        if obs.dtype != jnp.uint8 or obs.ndim < 2 or obs.shape[0] != self.frame_stack:
            wanted = f"a stack of {self.frame_stack} uint8 frames [{self.frame_stack}, ...]"
            raise TypeError(f"this replay memory holds {wanted}; it was given {obs.dtype} of shape {obs.shape}.")
        layout = Layout.of(_rest(example._replace(valid=example.terminated)))
        if layout.num_bytes:
            raise TypeError("this replay memory holds actions of 32 bits; it was given uint8.")
        return FrameState(
            frames=jnp.zeros((self.num_rows + 1, math.prod(obs.shape[1:])), jnp.uint8),
            rows=jnp.zeros((self.num_rows, layout.num_words), jnp.uint32),
            position=Counter.zero(),
            size=Counter.zero(),
            broken=Counter.zero().add(1),
            layout=layout,
            obs_shape=obs.shape,
        )

    def add(self, state: FrameState, rollout: Transition) -> FrameState:
        """Append the rows of a rollout `[T, B, ...]`, over the oldest ones.

        Of each only the newest frame of its successor is written. A stream that begins does so with a row that is not
        valid, and has led to the first observation.
        """
        steps = rollout.reward.shape[0]
        if rollout.valid is None:
            rollout = rollout._replace(valid=jnp.ones(rollout.reward.shape, jnp.bool_))
        words, _ = state.layout.pack(_rest(rollout), batch_ndim=2)
        newest = rollout.next_obs[:, :, -1].reshape(len(words), -1)
        start = state.position.add(state.broken.value).value

        def step(x, t):
            return jax.lax.dynamic_slice_in_dim(x, t * self.num_envs, self.num_envs)

        def write(t, ring):
            frames, rows = ring
            return self._write(frames, start + t + 1, step(newest, t)), self._write(rows, start + t, step(words, t))

        first = rollout.obs[0, :, -1].reshape(self.num_envs, -1)
        frames = self._write(state.frames, start, first)
        rows = self._write(state.rows, state.position.value, jnp.zeros_like(step(words, 0)))
        frames, rows = jax.lax.fori_loop(0, steps, write, (frames, rows))
        added = state.broken.add(steps).value
        return dataclasses.replace(
            state,
            frames=frames,
            rows=rows,
            position=Counter((state.position.value + added) % self.num_slots),
            size=Counter(jnp.minimum(state.size.value + added, self.num_slots)),
            broken=Counter.zero(),
        )

    def begin_episodes(self, state: FrameState) -> FrameState:
        """The memory where the next row does not go on from the last: no stack and no return will reach over, and the
        last row keeps its successor."""
        return dataclasses.replace(state, broken=Counter(jnp.ones_like(state.broken.value)))

    def sample(self, state: FrameState, key: Array) -> Sample:
        """`batch_size` transitions drawn with replacement, weights 1.

        For each place rows are drawn until one may be taken, at most `CANDIDATES` of them. Where even every second one
        leads from an episode to the next, one place in four billion remains; it has weight 0. So has all of a sample
        from a memory in which nothing may be drawn yet.
        """
        oldest = self._oldest(state)
        count = jnp.maximum(oldest - self.n_step + 1, 0) * self.num_envs
        bits = jax.random.bits(key, (self.batch_size, CANDIDATES))
        chosen = (bits % jnp.maximum(count, 1).astype(jnp.uint32)).astype(jnp.int32)
        slots = (state.position.value - self.n_step - chosen // self.num_envs) % self.num_slots
        candidates = slots * self.num_envs + chosen % self.num_envs
        drawable = self.drawable(state, candidates)
        indices = jnp.take_along_axis(candidates, jnp.argmax(drawable, axis=1)[:, None], axis=1)[:, 0]
        return Sample(self.items(state, indices), indices, jnp.any(drawable, axis=1).astype(jnp.float32))

    def drawable(self, state: FrameState, indices: Int[Array, "*N"]) -> Bool[Array, "*N"]:
        """Which rows of the ring may be drawn: valid ones whose frames are all there still, and whose rewards already.
        Numbers past the ring's end may not."""
        slots = indices // self.num_envs
        age = (state.position.value - slots - 1) % self.num_slots + 1
        held = (age >= self.n_step) & (age <= self._oldest(state)) & (indices < self.num_rows)
        _, valid = self._rows(state, indices % self.num_rows)
        return held & valid

    def items(self, state: FrameState, indices: Int[Array, " N"]) -> Transition:
        """The transitions at rows that may be drawn: returns over `n_step` steps or fewer, the successor of the last of
        them, and the discount of its bootstrap among the extras, as `treadle.returns.n_step` gives it."""
        k, n = self.frame_stack, self.n_step
        rows, valid = self._rows(state, self._later(indices[:, None], jnp.arange(1 - k, n)))
        here = jax.tree.map(lambda x: x[:, k - 1 :], (rows, valid))
        whole, discount = jax.vmap(self._return)(*here)
        begun = jax.vmap(self._begun)
        obs = self._stacks(state, indices, begun(valid, jnp.zeros_like(indices)))
        next_obs = self._stacks(state, self._later(indices, whole.next_obs), begun(valid, whole.next_obs))
        return whole._replace(obs=obs, next_obs=next_obs, extras=discount)

    def update_priorities(self, state: FrameState, indices: Array, td_errors: Array) -> FrameState:
        """Nothing: every transition stays equally likely."""
        return state

    def changed(self, before: FrameState, after: FrameState, steps: int) -> tuple[Int[Array, " N"], Bool[Array, " N"]]:
        """The rows of which a rollout of so many steps changed whether they may be drawn, and which of them may now.
        Others among them are numbered `num_rows`."""
        n, k = self.n_step, self.frame_stack
        added = steps + before.broken.value
        count = min(steps + n + k, self.num_slots)
        age = count - k - jnp.arange(count)
        slots = jnp.where(age < added + n, (after.position.value - age) % self.num_slots, self.num_slots)
        indices = (slots[:, None] * self.num_envs + jnp.arange(self.num_envs)).reshape(-1)
        return jnp.minimum(indices, self.num_rows), self.drawable(after, indices)

    def _oldest(self, state: FrameState) -> Int[Array, ""]:
        """Steps since the oldest rows of which all frames are there; the last rows have 1."""
        return jnp.minimum(state.size.value, self.num_slots - self.frame_stack)

    def _write(self, ring: Array, slot: Array, row: Array) -> Array:
        return jax.lax.dynamic_update_slice(ring, row, (slot % self.num_slots * self.num_envs, 0))

    def _later(self, indices: Int[Array, "*N"], steps: Int[Array, "*N"]) -> Int[Array, "*N"]:
        """The rows of the same environments so many steps later."""
        return (indices + steps * self.num_envs) % self.num_rows

    def _rows(self, state: FrameState, indices: Int[Array, "*N"]) -> tuple[Transition, Bool[Array, "*N"]]:
        """All but the frames of rows, and which of them are valid."""
        words = state.rows.at[indices.reshape(-1)].get(mode="promise_in_bounds")
        rows = state.layout.unpack(words, jnp.zeros((indices.size, 0), jnp.uint8))
        rows = jax.tree.map(lambda x: x.reshape(*indices.shape, *x.shape[1:]), rows)
        return rows._replace(valid=None), rows.valid

    def _return(self, rows: Transition, valid: Bool[Array, " n"]) -> tuple[Transition, Array]:
        """The return of `n` rows `[n]` of one environment, its `next_obs` the number of steps to the successor. Before
        a row that is not valid the stream ends, whether or not an episode does."""
        goes_on = jnp.append(valid[1:], True)
        steps = jnp.arange(1, self.n_step + 1)
        return n_step(rows._replace(next_obs=steps, truncated=rows.truncated | ~goes_on), self.gamma)

    def _begun(self, valid: Bool[Array, " k-1+n"], ahead: Int[Array, ""]) -> Bool[Array, " k"]:
        """Which frames of a stack are of its own episode, of a stack so many steps ahead of the row at `k - 1`."""
        before = jax.lax.dynamic_slice_in_dim(valid, ahead, self.frame_stack - 1)
        return jnp.append(jnp.flip(jnp.cumprod(jnp.flip(before))).astype(jnp.bool_), True)

    def _stacks(
        self, state: FrameState, indices: Int[Array, " N"], begun: Bool[Array, "N k"]
    ) -> UInt8[Array, "N k ..."]:
        """The observations whose newest frames lie at these rows, black where their episodes had not begun."""
        places = self._later(indices[:, None], jnp.arange(1 - self.frame_stack, 1))
        frames = state.frames.at[jnp.where(begun, places, self.num_rows)].get(mode="promise_in_bounds")
        return frames.reshape(len(indices), *state.obs_shape)


@as_tree
class PrioritizedFrameMemory(PrioritizedMemory):
    """The rows of a `FrameMemory`, drawn the more often the larger their TD errors were (Schaul et al. 2016).

    A row has the highest priority so far once its `n_step` steps are in, and none from when one of its frames is
    overwritten.
    """

    num_envs: int
    """Environments side by side, `B`."""
    frame_stack: int
    """Frames in one observation, `k`."""
    n_step: int = 1
    """Rewards that are summed before the bootstrap."""
    gamma: float = 0.99
    """Discount per step."""

    @property
    def uniform(self) -> FrameMemory:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What holds the rows."""
        return FrameMemory(
            capacity=self.capacity,
            batch_size=self.batch_size,
            num_envs=self.num_envs,
            frame_stack=self.frame_stack,
            n_step=self.n_step,
            gamma=self.gamma,
        )

    @property
    def tree(self) -> Tree:
        """What holds their priorities, zeros for rows that may not be drawn."""
        return Tree(self.uniform.num_rows)

    def add(self, state: Any, rollout: Transition) -> Any:
        """Append the rows of a rollout `[T, B, ...]` as `FrameMemory` does. Those that may be drawn from now on have
        the highest priority so far, and those that may not any more have none."""
        ring = self.uniform.add(state.ring, rollout)
        indices, drawable = self.uniform.changed(state.ring, ring, rollout.reward.shape[0])
        state = self._prioritize(state, indices, jnp.where(drawable, state.highest, 0.0))
        return dataclasses.replace(state, ring=ring)

    def begin_episodes(self, state: Any) -> Any:
        """The memory where the next row does not go on from the last, as in `FrameMemory`."""
        return dataclasses.replace(state, ring=self.uniform.begin_episodes(state.ring))

    def sample(self, state: Any, key: Array) -> Sample:
        """`batch_size` transitions with importance weights, as `PrioritizedMemory` draws them; all of weight 0 where
        nothing may be drawn yet."""
        sample = super().sample(state, key)
        return sample._replace(weights=jnp.where(state.sums.root > 0, sample.weights, 0.0))

    def update_priorities(self, state: Any, indices: Int[Array, " N"], td_errors: Float[Array, " N"]) -> Any:
        """The priorities of sampled transitions follow their TD errors; of rows that may not be drawn, or lie past the
        ring's end, nothing changes."""
        drawable = self.uniform.drawable(state.ring, indices)
        priorities = self.priorities(td_errors)
        highest = jnp.maximum(state.highest, jnp.max(jnp.where(drawable, priorities, 0.0)))
        state = dataclasses.replace(state, highest=highest)
        return self._prioritize(state, jnp.where(drawable, indices, self.uniform.num_rows), priorities)


def _rest(transition: Transition) -> Any:
    """All that is kept of transitions beside their frames."""
    return transition._replace(obs=(), next_obs=(), extras=())
