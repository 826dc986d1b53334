"""Rounds of replay per second: one transition of CartPole is added, 64 are sampled, and their priorities are updated,
all in one compiled loop over a full memory.

Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import jax.numpy as jnp

import treadle
from treadle import hoist
from treadle.loops.execution import compile_small, tune_cpu
from treadle.memory import UniformMemory
from treadle.prioritized import PrioritizedMemory
from treadle.types import Transition

BATCH_SIZE = 64
CHUNK = 10_000
"""Rounds in one call of the compiled loop."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", choices=("prioritized", "uniform"), default="prioritized")
    parser.add_argument("--capacity", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=200_000, help="rounds that are timed, at least")
    options = parser.parse_args()

    tune_cpu()
    cls = {"prioritized": PrioritizedMemory, "uniform": UniformMemory}[options.memory]
    memory = cls(capacity=options.capacity, batch_size=BATCH_SIZE)

    def advance(state, keys, td_errors):
        def one_round(state, x):
            key, td_errors = x
            state = memory.add(state, rollout(1))
            batch = memory.sample(state, key)
            read = sum(jnp.sum(leaf) for leaf in jax.tree.leaves((batch.items, batch.weights)))
            return memory.update_priorities(state, batch.indices, td_errors), read

        return hoist.scan(one_round, state, (keys, td_errors))

    keys = jax.random.split(jax.random.key(0), CHUNK)
    td_errors = jax.random.normal(jax.random.key(1), (CHUNK, BATCH_SIZE))
    state = jax.jit(memory.add)(memory.init(jax.tree.map(lambda x: x[0, 0], rollout(1))), rollout(options.capacity))
    step = compile_small(advance, donate_argnums=0)
    state, _ = jax.block_until_ready(step(state, keys, td_errors))

    chunks = -(-options.steps // CHUNK)
    begin = time.perf_counter()
    for _ in range(chunks):
        state, read = step(state, keys, td_errors)
        jax.block_until_ready(read)
    seconds = time.perf_counter() - begin

    result = {
        "peer": "Treadle",
        "steps_per_second": chunks * CHUNK / seconds,
        "memory": options.memory,
        "capacity": options.capacity,
        "device": jax.default_backend(),
        "versions": {"treadle": treadle.__version__, "jax": jax.__version__},
    }
    print(json.dumps(result))


def rollout(steps: int) -> Transition:
    """`[steps, 1]` transitions of CartPole's shapes."""
    obs, never = jnp.ones((steps, 1, 4)), jnp.zeros((steps, 1), jnp.bool_)
    return Transition(obs, jnp.ones((steps, 1), jnp.int32), jnp.ones((steps, 1)), obs, never, never)


if __name__ == "__main__":
    main()
