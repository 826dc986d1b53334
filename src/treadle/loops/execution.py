"""How compiled programs are laid out on this machine."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

SMALL_LOOP = 100_000
"""Bytes: a loop whose body touches fewer is compiled into one function; XLA's own limit is 1,024."""


def tune_cpu() -> None:
    """Set JAX up for many small programs on a CPU: every core is a device of its own, so that seeds run side by side,
    and a compiled call runs in the thread that calls it, because waking another costs more than the call.

    To be called before JAX is first used; afterwards it changes nothing. A number of devices that the user chose
    (`JAX_NUM_CPU_DEVICES`) stays. The command line calls it by itself.

    Loops over little memory, those of tables and tile codings, are compiled into one function: a step of Sarsa with
    tile coding takes 0.3 microseconds instead of 1.5.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    option = f"xla_cpu_small_while_loop_byte_threshold={SMALL_LOOP}"
    if "xla_backend_extra_options" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_extra_options={option}".strip()
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.config.jax_num_cpu_devices > 0:  # pyright: ignore[reportAttributeAccessIssue]
        return
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", available_cores())


@functools.cache
def keep_freed_memory() -> None:
    """Have memory that a program gave back kept for the next one, where the C library is glibc: programs over large
    observations take tens of MB afresh at each call, and to map these anew each time is a third of a gradient step of
    DQN on Atari. What a process has held it then holds until its end.

    By `mallopt`: no maps of their own for large blocks, nothing handed back from the heap's end, and more taken there
    at a time.
    """
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            for parameter, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 1 << 26)):
                libc.mallopt(parameter, value)


CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where a container says what memory it may take."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes that the default device can still give: of an accelerator its own, else the machine's. `None` where nobody
    says."""
    told = jax.devices()[0].memory_stats()
    if told and "bytes_limit" in told:
        return told["bytes_limit"] - told.get("bytes_in_use", 0)
    return min((bytes_ for bytes_ in (_machine_memory(), _container_memory()) if bytes_ is not None), default=None)


def _machine_memory() -> int | None:
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    return None


def _container_memory() -> int | None:
    """What a container's limit leaves (control groups, version 2); files that are only cached count as free."""
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
        limit = int((CONTROL_GROUP / "memory.max").read_text())
        used = int((CONTROL_GROUP / "memory.current").read_text())
        lines = (CONTROL_GROUP / "memory.stat").read_text().splitlines()
        return limit - used + int(next(line for line in lines if line.startswith("inactive_file ")).split()[1])
    return None


LARGE_OBSERVATION = 20_000
"""Numbers in an observation from which the operations on a batch of them are worth several threads each."""


def compiler_options(observation_size: int = 0) -> dict[str, Any] | None:
    """XLA options for programs of many small operations. Where observations are large, all but the width of vectors is
    left to XLA: a gradient step of DQN on Atari at 84 by 84 pixels by the network of 2015 is 1.2 times as fast so on
    two cores, and one at 44 by 44 by the network of 2013 0.7 times.

    On a CPU, handing one operation after another to a pool of threads costs more than it gains: with one thread a
    device and operations in sequence, a step of DQN on CartPole takes 30 microseconds instead of 40. Full vector
    width, where the processor has it, gains another twentieth. So does leaving operations whole, which would be cut
    into tasks for threads that are not there: replay alone takes half the time.
    """
    if jax.default_backend() != "cpu":
        return None
    vectors = {"xla_cpu_prefer_vector_width": 512}
    if observation_size >= LARGE_OBSERVATION:
        return vectors
    return vectors | {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_cpu_multi_thread_eigen": False,
        "xla_disable_hlo_passes": "cpu-parallel-task-assigner",
    }


def compile_small(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` for such programs; the backend is looked up at the first call, not at import."""

    @functools.cache
    def jitted() -> Callable[..., Any]:
        return jax.jit(function, compiler_options=compiler_options(), **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return jitted()(*args, **kwargs)

    call.jitted = jitted  # type: ignore[attr-defined]
    return call


def seed_mesh(num_seeds: int) -> Mesh:
    """As many devices as seeds, as far as there are."""
    devices = jax.devices()
    return Mesh(np.asarray(devices[: max(1, min(num_seeds, len(devices)))]), ("seeds",))
