"""Steps per second of rejax's PPO on gymnax's CartPole-v1, compiled beforehand, after learning has started.

Prints one line of JSON. Runs in the peers' environment, without Treadle.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time

import jax
from rejax import get_algo

NUM_ENVS, NUM_STEPS = 4, 128
ITERATION = NUM_ENVS * NUM_STEPS


def make(total_timesteps: int):
    """The same work as the others, without evaluation inside the timed run."""
    algorithm = get_algo("ppo").create(
        env="CartPole-v1",
        total_timesteps=total_timesteps,
        eval_freq=total_timesteps,
        skip_initial_evaluation=True,
        num_envs=NUM_ENVS,
        num_steps=NUM_STEPS,
        num_epochs=4,
        num_minibatches=4,
        learning_rate=3e-4,
        gamma=0.99,
        gae_lambda=0.95,
        clip_eps=0.2,
        ent_coef=0.0,
        vf_coef=0.5,
        max_grad_norm=0.5,
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
    )
    return algorithm.replace(eval_callback=lambda algorithm, train_state, key: ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000, help="steps that are timed, at least")
    steps = -(-parser.parse_args().steps // ITERATION) * ITERATION

    warm_up, timed = make(2 * ITERATION), make(steps)
    state, _ = jax.jit(lambda key: warm_up.train(rng=key))(jax.random.PRNGKey(0))
    compiled = jax.jit(lambda state: timed.train(train_state=state)).lower(state).compile()
    jax.block_until_ready(state)

    begin = time.perf_counter()
    final, _ = jax.block_until_ready(compiled(state))
    seconds = time.perf_counter() - begin
    assert int(final.global_step - state.global_step) == steps

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
