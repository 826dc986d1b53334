"""Rounds of replay per second with flashbax's prioritised flat buffer: one transition of CartPole is added, 64 are
sampled, and their priorities are updated, all in one compiled loop over a full memory.

Prints one line of JSON. Runs in the peers' environment, without Treadle.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time

import flashbax
import jax
import jax.numpy as jnp

BATCH_SIZE = 64
CHUNK = 5_000
"""Rounds in one call of the compiled loop."""
BETA, PRIORITY_OFFSET = 0.4, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capacity", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=20_000, help="rounds that are timed, at least")
    options = parser.parse_args()

    buffer = flashbax.make_prioritised_flat_buffer(
        max_length=options.capacity,
        min_length=BATCH_SIZE,
        sample_batch_size=BATCH_SIZE,
        priority_exponent=0.6,
        device=jax.default_backend(),
    )

    def one_round(state, x):
        key, td_errors = x
        state = buffer.add(state, timestep())
        batch = buffer.sample(state, key)
        weights = (options.capacity * batch.probabilities) ** -BETA
        read = sum(jnp.sum(leaf) for leaf in jax.tree.leaves((batch.experience, weights / jnp.max(weights))))
        return buffer.set_priorities(state, batch.indices, jnp.abs(td_errors) + PRIORITY_OFFSET), read

    def fill(state):
        return jax.lax.fori_loop(0, options.capacity + 1, lambda _, state: buffer.add(state, timestep()), state)

    keys = jax.random.split(jax.random.key(0), CHUNK)
    td_errors = jax.random.normal(jax.random.key(1), (CHUNK, BATCH_SIZE))
    state = jax.jit(fill, donate_argnums=0)(buffer.init(timestep()))
    step = jax.jit(lambda state, xs: jax.lax.scan(one_round, state, xs), donate_argnums=0)
    state, _ = jax.block_until_ready(step(state, (keys, td_errors)))

    chunks = -(-options.steps // CHUNK)
    begin = time.perf_counter()
    for _ in range(chunks):
        state, read = step(state, (keys, td_errors))
        jax.block_until_ready(read)
    seconds = time.perf_counter() - begin

    result = {
        "peer": "flashbax",
        "steps_per_second": chunks * CHUNK / seconds,
        "capacity": options.capacity,
        "device": jax.default_backend(),
        "versions": {name: importlib.metadata.version(name) for name in ("flashbax", "jax")},
    }
    print(json.dumps(result))


def timestep() -> dict[str, jax.Array]:
    """One step of CartPole; the buffer pairs each with the next for the successor."""
    return {
        "obs": jnp.ones(4),
        "action": jnp.ones((), jnp.int32),
        "reward": jnp.ones(()),
        "terminated": jnp.zeros((), jnp.bool_),
        "truncated": jnp.zeros((), jnp.bool_),
    }


if __name__ == "__main__":
    main()
