"""The fused loop for many seeds, sharded over devices.

On a CPU each device runs its seeds in turn (`lax.map`): a `vmap` would turn every `cond` into a `select` that runs
both branches. On an accelerator each device runs its seeds side by side (`vmap`), with counters shared by all seeds
so that their `cond`s stay branches.
"""

from __future__ import annotations

import functools
from typing import Any, Generic, Literal, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from treadle.algorithms.base import Algorithm
from treadle.environments.base import Environment
from treadle.loops import fused
from treadle.loops.execution import compiler_options, seed_mesh
from treadle.loops.fused import Record, TrainState
from treadle.loops.rollout import make_spec
from treadle.loops.seeding import seed_key
from treadle.types import Counter, Spec

Layout = Literal["map", "vmap"]
State = TypeVar("State")


class SpreadSeeds(Generic[State]):
    """`num_seeds` learners spread over the devices; `state` is stacked along a leading axis."""

    exact_resume = True
    chunk_steps = 20_000
    """Environment steps of one call at most."""
    _state: State

    def __init__(self, algorithm: Algorithm, spec: Spec, num_seeds: int, layout: Layout | None):
        self.algorithm, self.spec, self.num_seeds = algorithm, spec, num_seeds
        self._mesh = seed_mesh(num_seeds)
        self._layout: Layout = layout or ("map" if jax.default_backend() == "cpu" else "vmap")

    @property
    def state(self) -> State:
        """What a checkpoint keeps. `advance` may reuse its memory: copy what should outlive that."""
        return self._state if self._fills_devices else self._of_seeds(self._together(self._state))

    def restore(self, state: State) -> None:
        """Go on from a state as `state` returned it."""
        if not self._fills_devices:
            indices = jnp.asarray(padded(self.num_seeds, self._mesh))
            state = jax.tree.map(lambda x: x[indices], self._together(state))
        self._state = jax.device_put(state, self._sharding)

    def policies(self) -> PyTree:
        """What acting greedily needs, of all seeds, on one device."""
        state: Any = self._state
        return self._of_seeds(self._together(self.algorithm.policy(state.algorithm)))

    def close(self) -> None:
        """Nothing to release."""

    def _keys(self, seed: int, first: int = 0) -> Array:
        """The key of each, with this base, counted from `first`."""
        return jax.device_put(
            jnp.stack([seed_key(seed, first + i) for i in padded(self.num_seeds, self._mesh)]), self._sharding
        )

    def _of_seeds(self, tree: Any) -> Any:
        """Without what fills up the devices."""
        return jax.tree.map(lambda x: x[: self.num_seeds], tree)

    def _together(self, tree: Any) -> Any:
        """On one device. To index what is spread over several makes them wait for each other, which on a busy machine
        has taken so long that XLA gave up, and with it the process."""
        return tree if self._mesh.size == 1 else jax.device_put(tree, self._mesh.devices.flat[0])

    @property
    def _fills_devices(self) -> bool:
        """Whether the devices divide the number of seeds."""
        return self.num_seeds % self._mesh.size == 0

    @property
    def _sharding(self) -> NamedSharding:
        return NamedSharding(self._mesh, P("seeds"))


class FusedSeeds(SpreadSeeds[TrainState]):
    """Training of `num_seeds` seeds in a JAX world, those from `first` on, a chunk of updates at a time."""

    def __init__(
        self,
        algorithm: Algorithm,
        environment: Environment,
        total_timesteps: int,
        seed: int = 0,
        num_seeds: int = 1,
        layout: Layout | None = None,
        keep_data: bool = False,
        first: int = 0,
    ):
        super().__init__(algorithm, make_spec(algorithm, environment, total_timesteps), num_seeds, layout)
        self.environment, self.keep_data = environment, keep_data
        self._state = _compiled_init(self._mesh)(algorithm, environment, self._keys(seed, first), total_timesteps)

    def advance(self, num_updates: int) -> Record:
        """`num_updates` rounds of every seed: metrics `[S, N]`, episodes `[S, N, T, B]`, as NumPy arrays."""
        step = _compiled_advance(self._mesh, self._layout, *([True] if self.keep_data else []))
        self._state, record = step(self.algorithm, self.environment, self._state, num_updates)
        return self._of_seeds(jax.device_get(record))


def padded(num_seeds: int, mesh: Mesh) -> list[int]:
    """The seeds by number, the last repeated until the devices divide their number."""
    return [*range(num_seeds)] + [num_seeds - 1] * (-num_seeds % mesh.size)


@functools.cache
def _compiled_init(mesh: Mesh) -> Any:
    def init(algorithm, environment, keys, total_timesteps):
        def many(algorithm, environment, keys):
            return jax.lax.map(lambda key: fused.init(algorithm, environment, key, total_timesteps), keys)

        return sharded(many, mesh)(algorithm, environment, keys)

    return jax.jit(init, static_argnums=3, compiler_options=compiler_options())


@functools.cache
def _compiled_advance(mesh: Mesh, layout: Layout, keep_data: bool = False) -> Any:
    def advance(algorithm, environment, states, num_updates):
        def many(algorithm, environment, states):
            def one(state):
                return fused.advance(algorithm, environment, state, num_updates, keep_data)

            return each(one, states, layout)

        return sharded(many, mesh)(algorithm, environment, states)

    return jax.jit(advance, static_argnums=3, donate_argnums=2, compiler_options=compiler_options())


def sharded(function: Any, mesh: Mesh) -> Any:
    """A function of algorithm, environment, and keys or states of many seeds, these spread over the devices."""
    return jax.shard_map(function, mesh=mesh, in_specs=(P(), P(), P("seeds")), out_specs=P("seeds"), check_vma=False)


def each(advance_one: Any, states: Any, layout: Layout) -> Any:
    """A function of one seed's state, of all seeds: in turn, or side by side."""
    return jax.lax.map(advance_one, states) if layout == "map" else side_by_side(advance_one, states)


def side_by_side(advance_one: Any, states: TrainState) -> tuple[TrainState, Record]:
    """`vmap` over stacked states that keeps their counters unbatched."""
    num_seeds = jax.tree.leaves(states)[0].shape[0]

    def is_counter(x: Any) -> bool:
        return isinstance(x, Counter)

    axes = jax.tree.map(lambda x: None if is_counter(x) else 0, states, is_leaf=is_counter)
    shared = jax.tree.map(lambda x: Counter(x.value[0]) if is_counter(x) else x, states, is_leaf=is_counter)
    final, record = jax.vmap(advance_one, in_axes=(axes,), out_axes=(axes, 0))(shared)
    return jax.tree.map(lambda x: _repeat(x, num_seeds) if is_counter(x) else x, final, is_leaf=is_counter), record


def _repeat(counter: Counter, count: int) -> Counter:
    return Counter(jnp.broadcast_to(counter.value, (count,)))
