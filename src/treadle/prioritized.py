"""Prioritized experience replay (Schaul et al. 2016, arXiv 1511.05952, the proportional variant).

Transitions lie in the ring of `treadle.memory`; a sum tree over their priorities draws them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from treadle.memory import MemoryState, Sample, UniformMemory
from treadle.registry import as_tree
from treadle.types import Transition


class Nodes(NamedTuple):
    """All nodes of a tree. The root is also kept apart: if it were read from the array between two writes, XLA would
    copy the array."""

    values: Float[Array, " nodes"]
    root: Float[Array, ""]


@dataclass(frozen=True)
class Tree:
    """A tree over `capacity` leaves, each node the sum (or the least) of its `fan_out` children.

    One array holds it, level after level, leaves first, the children of a node side by side. Nodes are always computed
    from their children and never changed by differences, so that rounding errors cannot add up.

    Eight children are quickest on a CPU: with fewer there are more levels, each of which costs several kernels, and
    with more each level takes longer.
    """

    capacity: int
    fan_out: int = 8

    @property
    def families(self) -> list[int]:
        """Groups of siblings on each level, leaves first; the last is the root's."""
        counts = [-(-self.capacity // self.fan_out)]
        while counts[-1] > 1:
            counts.append(-(-counts[-1] // self.fan_out))
        return [*counts, 1]

    @property
    def levels(self) -> int:
        """Levels below the root."""
        return len(self.families) - 1

    @property
    def first(self) -> Int[Array, " levels+1"]:
        """Where each level begins, counted in groups of siblings."""
        return jnp.asarray(list(itertools.accumulate(self.families[:-1], initial=0)), jnp.int32)

    def init(self, value: float) -> Nodes:
        """A tree whose every node is `value`, which must be the sum (or the least) of none."""
        count = sum(self.families) * self.fan_out
        return Nodes(jnp.full(count, value, jnp.float32), jnp.asarray(value, jnp.float32))

    def write(
        self, nodes: Nodes, leaves: Int[Array, " N"], values: Float[Array, " N"], merge: Callable[..., Array]
    ) -> Nodes:
        """The tree with other values in some leaves, and every node above them merged anew (`merge` is `jnp.sum` or
        `jnp.min`).

        Leaves numbered `capacity` or more are left out. Of a leaf that is named twice, one value stays.
        """
        first = self.first
        places = jnp.where(leaves < self.capacity, leaves, len(nodes.values))
        written = nodes.values.at[places].set(values, mode="drop")

        def repair(level, carry):
            values, families, _ = carry
            merged = merge(self._children(values, first[level] + families), axis=1)
            places = first[level + 1] * self.fan_out + families
            values = values.at[places].set(merged, mode="promise_in_bounds")
            return values, families // self.fan_out, merged

        families = jnp.minimum(leaves, self.capacity - 1) // self.fan_out
        written, _, merged = jax.lax.fori_loop(0, self.levels, repair, (written, families, values))
        return Nodes(written, merged[0])

    def find(
        self, sums: Nodes, values: Float[Array, " N"], remainders: Float[Array, " N"] | float = 0.0
    ) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
        """The leaf on which each value in [0, total) lands, and what it holds: the first leaf such that it and all
        before it sum to more than the value.

        A value that rounding has put past the end of its node lands on the last child that is not zero: a leaf of zero
        is never found, unless all are zero; then it is the first.

        What float32 cut off from the values can be given as `remainders`, to be added where what is left of a value is
        small enough to hold it. Without, some slots of a memory of a million would be drawn 6% too often, because
        2^24 values are all that a total has.
        """
        first = self.first

        def descend(step, carry):
            families, values, _ = carry
            values = jnp.maximum(values + jnp.where(step == self.levels // 2, remainders, 0.0), 0.0)
            children = self._children(sums.values, first[self.levels - 1 - step] + families)
            child, begin, held = _child_at(children, values)
            return families * self.fan_out + child, values - begin, held

        root = jnp.zeros(values.shape, jnp.int32)
        leaves, _, held = jax.lax.fori_loop(0, self.levels, descend, (root, values, values))
        return leaves, held

    def _children(self, values: Float[Array, " nodes"], families: Int[Array, " N"]) -> Float[Array, "N fan_out"]:
        return jax.vmap(lambda n: jax.lax.dynamic_slice(values, (n * self.fan_out,), (self.fan_out,)))(families)


def _child_at(children: Float[Array, "N fan_out"], values: Float[Array, " N"]) -> tuple[Array, Array, Array]:
    """The last child that is not zero and begins at or before the value: its number, where it begins, what it holds."""

    def step(carry, child):
        begin, *chosen = carry
        here = (begin <= values) & (child[1] > 0)
        chosen = [jnp.where(here, new, old) for new, old in zip((begin, *child), chosen, strict=True)]
        return (begin + child[1], *chosen), None

    zero = jnp.zeros(values.shape)
    numbers = np.arange(children.shape[1], dtype=np.int32)
    nothing = (zero, zero, zero.astype(jnp.int32), zero)
    (_, begin, number, held), _ = jax.lax.scan(step, nothing, (numbers, children.T), unroll=True)
    return number, begin, held


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PrioritizedState:
    """The transitions, and trees over their priorities to the power of alpha."""

    ring: MemoryState
    sums: Nodes
    least: Nodes | None
    """The least priorities above zero; only where weights are taken over the memory."""
    highest: Float[Array, ""]
    """The highest priority so far, to the power of alpha: that of new transitions."""


@as_tree
class PrioritizedMemory:
    """A ring of the last `capacity` transitions, drawn the more often the larger their TD errors were.

    `P(i) = p_i^alpha / sum_k p_k^alpha` with `p_i = |td_error_i| + priority_offset` (equation 1 and section 3.3).
    """

    capacity: int
    """Transitions that the memory holds."""
    batch_size: int
    """Transitions in a sample."""
    alpha: float = 0.6
    """How much priorities count, in [0, 1]: with 0 all transitions are equally likely."""
    beta: float = 0.4
    """How much importance weights correct for that, in [0, 1]: with 1 fully. Whoever schedules it replaces it."""
    priority_offset: float = 0.01
    """Added to the absolute TD error, so that no transition is lost from sight."""
    error_clip: float | None = None
    """Absolute TD errors above this count as this; `None` clips none."""
    weights_over: Literal["batch", "memory"] = "batch"
    """Weights are divided by the greatest in the sample, or by the greatest that any transition in memory has."""

    @property
    def uniform(self) -> UniformMemory:
        """What holds the transitions."""
        return UniformMemory(capacity=self.capacity, batch_size=self.batch_size)

    @property
    def tree(self) -> Tree:
        """What holds their priorities."""
        return Tree(self.capacity)

    def init(self, example: Transition) -> PrioritizedState:
        """An empty memory for transitions like `example` (one transition, no batch axes)."""
        return PrioritizedState(
            ring=self.uniform.init(example),
            sums=self.tree.init(0.0),
            least=self.tree.init(np.inf) if self.weights_over == "memory" else None,
            highest=jnp.ones(()) if self.error_clip is None else self.priorities(jnp.asarray(self.error_clip)),
        )

    def add(self, state: PrioritizedState, rollout: Transition) -> PrioritizedState:
        """Append the valid transitions of a rollout `[T, B, ...]` as `UniformMemory` does, with the highest priority
        so far: what is new will be seen soon."""
        slots, _ = self.uniform.slots(state.ring, rollout)
        state = self._prioritize(state, slots, jnp.broadcast_to(state.highest, slots.shape))
        return dataclasses.replace(state, ring=self.uniform.add(state.ring, rollout))

    def sample(self, state: PrioritizedState, key: Array) -> Sample:
        """`batch_size` transitions, one from each of as many equal slices of the sum of priorities (appendix B.2.1),
        with importance weights.

        `w_i = (N P(i))^-beta / max_j w_j` (section 3.4) is `(p_min / p_i)^beta`, since `N` and the sum of priorities
        are the same for all.
        """
        width = state.sums.root / self.batch_size
        begin = jnp.arange(self.batch_size) * width
        inside = jax.random.uniform(key, (self.batch_size,)) * width
        values = begin + inside
        indices, drawn = self.tree.find(state.sums, values, remainders=inside - (values - begin))
        least = jnp.min(drawn) if state.least is None else state.least.root
        weights = jnp.where(drawn > 0, _power(least / drawn, self.beta), 1.0)
        return Sample(self.uniform.items(state.ring, indices), indices, weights)

    def update_priorities(
        self, state: PrioritizedState, indices: Int[Array, " N"], td_errors: Float[Array, " N"]
    ) -> PrioritizedState:
        """The priorities of sampled transitions follow their TD errors. Indices where nothing lies are left out, such
        as the capacity: a round that must not change priorities can give that."""
        held = indices < state.ring.size.value
        priorities = self.priorities(td_errors)
        highest = jnp.maximum(state.highest, jnp.max(jnp.where(held, priorities, 0.0)))
        state = dataclasses.replace(state, highest=highest)
        return self._prioritize(state, jnp.where(held, indices, self.capacity), priorities)

    def priorities(self, td_errors: Float[Array, "..."]) -> Float[Array, "..."]:
        """`p^alpha` of transitions with these TD errors."""
        errors = jnp.abs(td_errors)
        errors = errors if self.error_clip is None else jnp.minimum(errors, self.error_clip)
        return _power(errors + self.priority_offset, self.alpha)

    def _prioritize(self, state: PrioritizedState, indices: Array, priorities: Array) -> PrioritizedState:
        sums, least = self.tree.write(state.sums, indices, priorities, jnp.sum), state.least
        if least is not None:
            drawable = jnp.where(priorities > 0, priorities, jnp.inf)
            least = self.tree.write(least, indices, drawable, jnp.min)
        return dataclasses.replace(state, sums=sums, least=least)


def _power(base: Array, exponent: Array | float) -> Array:
    """`base ** exponent` of numbers that are not negative, and 0 of 0 whatever the exponent: no TD error, no priority.

    On a CPU it takes a third of the time of `**`.
    """
    return jnp.where(base > 0, jnp.exp(exponent * jnp.log(base)), 0.0)
