"""Steps per second of the arm with a random goal, many side by side, with random actions and a new episode wherever one
ends. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import jax.numpy as jnp

import treadle
from treadle import registry
from treadle.loops.execution import compile_small, tune_cpu
from treadle.registry import as_float32
from treadle.types import select


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", type=int, default=1_024, help="arms side by side")
    parser.add_argument("--steps", type=int, default=10_000_000, help="steps of all arms that are timed")
    options = parser.parse_args()
    tune_cpu()
    world = as_float32(registry.environments.make("ArmHard"))
    length = options.steps // options.arms

    def one_step(carry, key):
        state, obs, lengths = carry
        action_key, reset_key = jax.random.split(key)
        action = jax.random.uniform(action_key, (options.arms, 2), minval=-1.0, maxval=1.0)
        state, step = jax.vmap(world.step, in_axes=(0, 0, None))(state, action, key)
        lengths = lengths + 1
        ended = step.terminated | (lengths >= world.max_episode_steps)
        fresh = jax.vmap(world.reset)(jax.random.split(reset_key, options.arms))
        # Observations are carried along, or nobody would compute them.
        state, obs = select(ended, fresh, (state, step.obs))
        return (state, obs, jnp.where(ended, 0, lengths)), jnp.mean(step.reward)

    def run(key):
        first, keys = jax.random.split(key)
        start = *jax.vmap(world.reset)(jax.random.split(first, options.arms)), jnp.zeros(options.arms, jnp.int32)
        (_, obs, _), rewards = jax.lax.scan(one_step, start, jax.random.split(keys, length))
        return obs, rewards

    compiled = compile_small(run)
    jax.block_until_ready(compiled(jax.random.key(0)))
    begin = time.perf_counter()
    _, rewards = jax.block_until_ready(compiled(jax.random.key(1)))
    seconds = time.perf_counter() - begin
    result = {
        "peer": "Treadle",
        "steps_per_second": length * options.arms / seconds,
        "mean_reward": float(jnp.mean(rewards)),
        "device": jax.default_backend(),
        "versions": {"treadle": treadle.__version__, "jax": jax.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
