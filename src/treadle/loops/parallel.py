"""The fused loop for seeds that each use several devices: environments and batches are split over them.

The program is that of one device, and XLA's partitioner splits it (`treadle.sharding`): it equals training on one
device with the whole batch, up to the order in which float32 numbers are summed. Seeds run in turn (`lax.map`) or side
by side (`vmap`), each on all devices.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from treadle import hoist
from treadle.algorithms.base import Algorithm, require
from treadle.environments.base import Environment
from treadle.loops import fused
from treadle.loops.execution import compiler_options
from treadle.loops.fused import Record, TrainState
from treadle.loops.rollout import make_spec
from treadle.loops.seeding import seed_key
from treadle.loops.seeds import FusedSeeds, Layout, each
from treadle.sharding import DATA, split_rows, whole


class DataParallelSeeds:
    """Training of `num_seeds` seeds in a JAX world, a chunk of updates at a time, each seed on `devices` devices.

    The same interface as `FusedSeeds`, and the same state: a checkpoint of the one is a checkpoint of the other.
    `device_put` and `device_get` are all that the host does with what is spread over devices: to index it would make
    them wait for each other.

    Raises `InvalidSetting` for devices that there are not, or that do not divide the number of environments.
    """

    exact_resume = True
    chunk_steps = FusedSeeds.chunk_steps

    def __init__(
        self,
        algorithm: Algorithm,
        environment: Environment,
        total_timesteps: int,
        seed: int = 0,
        num_seeds: int = 1,
        devices: int = 2,
        layout: Layout | None = None,
        keep_data: bool = False,
    ):
        check_devices(devices, algorithm)
        self.algorithm, self.environment, self.num_seeds = algorithm, environment, num_seeds
        self.keep_data = keep_data
        self.spec = make_spec(algorithm, environment, total_timesteps)
        self._mesh = Mesh(np.asarray(jax.devices()[:devices]), (DATA,), axis_types=(AxisType.Auto,))
        self._layout: Layout = layout or ("map" if jax.default_backend() == "cpu" else "vmap")
        keys = jnp.stack([seed_key(seed, i) for i in range(num_seeds)])
        with jax.set_mesh(self._mesh):
            self._state: TrainState = _compiled_init(self._mesh)(algorithm, environment, keys, total_timesteps)

    @property
    def state(self) -> TrainState:
        """What a checkpoint keeps, on one device. `advance` may reuse its memory: copy what should outlive that."""
        return self._together(self._state)

    def restore(self, state: TrainState) -> None:
        """Go on from a state as `state` returned it, or `FusedSeeds`."""
        self._state = jax.device_put(state, _state_sharding(self._mesh))

    def advance(self, num_updates: int) -> Record:
        """`num_updates` rounds of every seed: metrics `[S, N]`, episodes `[S, N, T, B]`, as NumPy arrays."""
        step = _compiled_advance(self._mesh, self._layout, self.keep_data)
        with jax.set_mesh(self._mesh):
            self._state, record = step(self.algorithm, self.environment, self._state, num_updates)
        return jax.device_get(record)

    def policies(self) -> PyTree:
        """What acting greedily needs, of all seeds, on one device."""
        return self._together(self.algorithm.policy(self._state.algorithm))

    def close(self) -> None:
        """Nothing to release."""

    def _together(self, tree: Any) -> Any:
        return jax.device_put(tree, self._mesh.devices.flat[0])


def check_devices(devices: Any, algorithm: Algorithm) -> None:
    """Raise `InvalidSetting` unless there are so many devices and they divide the algorithm's environments."""
    require(hasattr(devices, "__index__") and devices >= 1, "devices", repr(devices), "a whole number, at least 1")
    there = len(jax.devices())
    more = f". JAX_NUM_CPU_DEVICES={devices} in the environment makes as many of a CPU"
    at_most = f"at most {there}, the devices that there are{more if jax.default_backend() == 'cpu' else ''}"
    require(devices <= there, "devices", devices, at_most)
    divides = f"a divisor of num_envs (--num-envs), which is {algorithm.num_envs}, since each device steps as many"
    require(algorithm.num_envs % devices == 0, "devices", devices, divides)


@functools.cache
def _compiled_init(mesh: Mesh) -> Any:
    def init(algorithm, environment, keys, total_timesteps):
        return jax.lax.map(lambda key: fused.init(algorithm, environment, key, total_timesteps), keys)

    return jax.jit(init, static_argnums=3, out_shardings=_state_sharding(mesh), compiler_options=compiler_options())


@functools.cache
def _compiled_advance(mesh: Mesh, layout: Layout, keep_data: bool) -> Any:
    def advance(algorithm, environment, states, num_updates):
        return each(lambda state: _advance_one(algorithm, environment, state, num_updates, keep_data), states, layout)

    state, everywhere = _state_sharding(mesh), NamedSharding(mesh, P())
    of_rollouts = NamedSharding(mesh, P(None, None, None, DATA))
    return jax.jit(
        advance,
        static_argnums=3,
        donate_argnums=2,
        in_shardings=(everywhere, everywhere, state),
        out_shardings=(state, Record(everywhere, of_rollouts, of_rollouts)),  # pyright: ignore[reportArgumentType]
        compiler_options=compiler_options(),
    )


def _advance_one(
    algorithm: Algorithm, environment: Environment, state: TrainState, num_updates: int, keep_data: bool
) -> tuple[TrainState, Record]:
    """`fused.advance` of one seed over the devices. Its carry stays in buffers of their own: what is split cannot lie
    side by side with what is whole."""
    one_round = fused.make_round(algorithm, environment, keep_data)

    def split_round(carry, key):
        (algorithm_state, actor), record = one_round(carry, key)
        return (whole(algorithm_state), split_rows(actor)), record

    carry = whole(state.algorithm), split_rows(state.actor)
    (algorithm_state, actor), record = hoist.scan(split_round, carry, fused.round_keys(state, num_updates))
    return TrainState(algorithm_state, actor, state.updates.add(num_updates), state.key), record


def _state_sharding(mesh: Mesh) -> Any:
    """Of states stacked by seed: what acts is split by environment, all else is whole on every device."""
    everywhere, by_environment = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, DATA))
    return TrainState(everywhere, by_environment, everywhere, everywhere)  # pyright: ignore[reportArgumentType]
