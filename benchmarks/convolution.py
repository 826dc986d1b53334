"""Forms of the convolution, side by side: milliseconds of a pass through a network for images, and of its gradient.

    python benchmarks/convolution.py --networks nature --batches 32 128

Each form is a function of one picture `[H, W, C]`, a kernel `[filters, size, size, C]` and a stride, under `vmap`. They
are compiled by the options of Treadle's loops, for one thread or for a pool of them, and gradients also inside of
`lax.scan` and `lax.cond`, where learning takes place. Prints a table; trust ratios within one run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from treadle import convolution
from treadle.convolution import ARCHITECTURES, as_products, blocks, by_library, features_for
from treadle.loops.execution import compiler_options, tune_cpu
from treadle.spaces import Box

STACK = Box(0, 255, (4, 84, 84), jnp.uint8)
STEPS = 2
"""Gradient steps in a scan."""


def channels_first(x, kernel, stride):
    """XLA's convolution of planes."""
    names = ("NCHW", "OIHW", "NCHW")
    planes, kernel = jnp.moveaxis(x.astype(kernel.dtype), -1, 0)[None], jnp.moveaxis(kernel, -1, 1)
    y = jax.lax.conv_general_dilated(planes, kernel, (stride, stride), "VALID", dimension_numbers=names)
    return jnp.moveaxis(y[0], 0, -1)


def space_to_depth(x, kernel, stride):
    """XLA's convolution by steps of one over blocks of `stride x stride` pixels."""
    return by_library(*blocks(x, kernel, stride), 1)


def strided_patches(x, kernel, stride):
    """One product over windows that are cut out by strided slices."""
    filters, size = kernel.shape[:2]
    rows, columns = ((n - size) // stride + 1 for n in x.shape[:2])
    last = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    windows = [x[i : i + last[0] : stride, j : j + last[1] : stride] for i in range(size) for j in range(size)]
    patches = jnp.concatenate(windows, axis=-1).reshape(rows * columns, -1).astype(kernel.dtype)
    return (patches @ kernel.reshape(filters, -1).T).reshape(rows, columns, filters)


def library_patches(x, kernel, stride):
    """One product over windows that `lax.conv_general_dilated_patches` cuts out."""
    filters, size = kernel.shape[:2]
    names, strides = ("NHWC", "HWIO", "NHWC"), (stride, stride)
    x = x.astype(kernel.dtype)[None]
    patches = jax.lax.conv_general_dilated_patches(x, (size, size), strides, "VALID", dimension_numbers=names)[0]
    return patches @ jnp.moveaxis(kernel, -1, 1).reshape(filters, -1).T


def transposed_kernel(x, kernel, stride):
    """As `as_products`, with windows cut in one go and a kernel that has a column for each filter."""
    x, kernel = blocks(x, kernel, stride)
    filters, size = kernel.shape[:2]
    rows, columns = x.shape[0] - size + 1, x.shape[1] - size + 1
    windows = [x[i : i + rows, j : j + columns] for i in range(size) for j in range(size)]
    patches = jnp.concatenate(windows, axis=-1).reshape(rows * columns, -1).astype(kernel.dtype)
    matrix = jax.lax.optimization_barrier(kernel.reshape(filters, -1).T)
    return (patches @ matrix).reshape(rows, columns, filters)


def shifted_sums(x, kernel, stride):
    """One product of lines of blocks with all lines of the kernel, whose results are shifted and summed."""
    x, kernel = blocks(x, kernel, stride)
    filters, size = kernel.shape[:2]
    rows, columns = x.shape[0] - size + 1, x.shape[1] - size + 1
    lines = jnp.concatenate([x[:, j : j + columns] for j in range(size)], axis=-1).astype(kernel.dtype)
    matrix = jnp.moveaxis(kernel, 1, 0).reshape(size * filters, -1)
    y = (lines.reshape(len(x) * columns, -1) @ matrix.T).reshape(len(x), columns, size, filters)
    return sum(y[i : i + rows, :, i] for i in range(size))


FORMS: dict[str, Callable[..., Any]] = {
    "by_library": by_library,
    "channels_first": channels_first,
    "space_to_depth": space_to_depth,
    "strided_patches": strided_patches,
    "library_patches": library_patches,
    "transposed_kernel": transposed_kernel,
    "shifted_sums": shifted_sums,
    "as_products": as_products,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32, 64, 128, 256])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--threads", nargs="+", choices=("one", "pool"), default=["one", "pool"])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each number")
    options = parser.parse_args()

    tune_cpu()
    print(f"jax {jax.__version__}, {jax.default_backend()}, load {os.getloadavg()[0]:.1f}")
    print("| network | batch | threads | form | forward | gradient | in scan | in cond |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for network in options.networks:
        for batch in options.batches:
            for threads in options.threads:
                for form in options.forms:
                    found = milliseconds(network, batch, threads == "pool", FORMS[form], options.seconds)
                    cells = " | ".join(f"{x:.2f}" for x in found)
                    print(f"| {network} | {batch} | {threads} | {form} | {cells} |", flush=True)


def milliseconds(
    network: Any, batch: int, pool: bool, form: Callable[..., Any], seconds: float
) -> tuple[float, float, float, float]:
    """Of a pass, of a gradient by the parameters, and of a gradient step in a loop and in a branch."""
    convolution.convolve = form
    obs = jax.random.randint(jax.random.key(0), (STEPS, batch, *STACK.shape), 0, 256).astype(jnp.uint8)
    parameters = jax.jit(lambda: features_for(jax.random.key(1), network, STACK, "scaled"))()

    def forward(parameters, obs):
        return jax.vmap(parameters)(obs)

    def gradient(parameters, obs):
        return jax.grad(lambda p: jnp.mean(forward(p, obs) ** 2))(parameters)

    def scanned(parameters, obs):
        def step(parameters, obs):
            return jax.tree.map(lambda p, g: p - 1e-3 * g, parameters, gradient(parameters, obs)), ()

        return jax.lax.scan(step, parameters, obs)[0]

    def branched(parameters, obs):
        return jax.lax.cond(jnp.max(obs[0, 0]) > 0, scanned, lambda parameters, obs: parameters, parameters, obs)

    compiler = compiler_options()
    if compiler is not None:
        compiler |= {"xla_cpu_multi_thread_eigen": pool}

    def timed(function: Callable[..., Any], *arguments: Any) -> float:
        return median_milliseconds(jax.jit(function, compiler_options=compiler), arguments, seconds)

    return (
        timed(forward, parameters, obs[0]),
        timed(gradient, parameters, obs[0]),
        timed(scanned, parameters, obs) / STEPS,
        timed(branched, parameters, obs) / STEPS,
    )


def median_milliseconds(function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> float:
    """The median of as many calls as there is time for, three at least, the first of all apart."""
    jax.block_until_ready(function(*arguments))
    durations, end = [], time.perf_counter() + seconds
    while len(durations) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        durations.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(durations)


if __name__ == "__main__":
    main()
