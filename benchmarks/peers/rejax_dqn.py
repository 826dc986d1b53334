"""Steps per second of rejax's DQN on gymnax's CartPole-v1, compiled beforehand, after learning has started.

Prints one line of JSON. Runs in the peers' environment, without Treadle.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time

import jax
from rejax import get_algo

LEARNING_STARTS = 1_000


def make(total_timesteps: int):
    """The same work as the others: no double targets (rejax's default), and no evaluation inside the timed run."""
    algorithm = get_algo("dqn").create(
        env="CartPole-v1",
        total_timesteps=total_timesteps,
        eval_freq=total_timesteps,
        skip_initial_evaluation=True,
        num_envs=1,
        num_epochs=1,
        buffer_size=10_000,
        fill_buffer=LEARNING_STARTS,
        batch_size=64,
        learning_rate=1e-3,
        target_update_freq=100,
        ddqn=False,
        agent_kwargs={"activation": "relu"},
    )
    return algorithm.replace(eval_callback=lambda algorithm, train_state, key: ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000, help="steps that are timed")
    steps = parser.parse_args().steps

    warm_up, timed = make(LEARNING_STARTS + 200), make(steps)
    state, _ = jax.jit(lambda key: warm_up.train(rng=key))(jax.random.PRNGKey(0))
    compiled = jax.jit(lambda state: timed.train(train_state=state)).lower(state).compile()
    jax.block_until_ready(state)

    begin = time.perf_counter()
    jax.block_until_ready(compiled(state))
    seconds = time.perf_counter() - begin

    names = ("rejax", "gymnax", "jax", "flax")
    result = {
        "peer": "rejax",
        "steps_per_second": steps / seconds,
        "device": jax.default_backend(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
