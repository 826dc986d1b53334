"""Treadle's part of `make bench-atari`: DQN on Pong, its replay memory, its learner by itself, and the emulator.

    python benchmarks/treadle_atari.py dqn --features nature

Prints one line of JSON. Compilation and the start of learning come before what is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import treadle
from treadle.algorithms.dqn import DQN
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.environments.wrappers import Task, Wrappers
from treadle.loops.choose import make_trainer
from treadle.loops.execution import compile_small, compiler_options, keep_freed_memory, tune_cpu
from treadle.loops.host import host_spec
from treadle.types import Transition

GAME, NUM_ENVS = "PongNoFrameskip-v4", 8
BEFORE = 512
"""Steps before the first gradient step."""
STRETCH = 16
"""Updates between two looks at the clock."""
LEARNER = DQN(
    num_envs=NUM_ENVS,
    features="nature",
    learning_rate=1e-4,
    batch_size=32,
    capacity=100_000,
    learning_starts=BEFORE,
    train_frequency=1,
    gradient_steps=2,
    target_update_period=8_000,
    epsilon_start=0.01,
    epsilon_end=0.01,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("dqn", "memory", "learner", "emulation"))
    parser.add_argument("--seconds", type=float, default=20.0, help="that are timed, about")
    parser.add_argument("--features", choices=("nature", "dqn2013"), default="nature", help="dqn: the network")
    parser.add_argument("--size", type=int, default=84, help="dqn: rows and columns of a frame")
    parser.add_argument("--preset", help="dqn: settings of Treadle's preset of this name instead")
    parser.add_argument("--in-turn", action="store_true", help="dqn: learn and emulate in turn, not at the same time")
    parser.add_argument("--batch-size", type=int, default=32, help="learner: transitions in a gradient step")
    parser.add_argument("--capacity", type=int, default=100_000, help="memory, learner: transitions that it holds")
    options = parser.parse_args()

    tune_cpu()
    measure = {"dqn": dqn, "memory": memory, "learner": learner, "emulation": emulation}[options.what]
    print(
        json.dumps(
            {
                "peer": "Treadle",
                **measure(options),
                "device": jax.default_backend(),
                "versions": {
                    "treadle": treadle.__version__,
                    "jax": jax.__version__,
                    "ale-py": metadata.version("ale-py"),
                },
            }
        )
    )


def dqn(options: argparse.Namespace) -> dict[str, Any]:
    """Steps per second of a run."""
    algorithm = dataclasses.replace(LEARNER, features=options.features)
    task = Task(GAME, Wrappers(frame_size=options.size))
    if options.preset:
        preset = treadle.preset("dqn", GAME, options.preset)
        algorithm, task = preset.make(learning_starts=BEFORE), preset.task()
    trainer: Any = make_trainer(algorithm, task, 10_000_000, overlap=not options.in_turn)
    trainer.advance(BEFORE // (algorithm.num_envs * algorithm.num_steps) + STRETCH)

    steps, gradient_steps, begin = 0, 0.0, time.perf_counter()
    while time.perf_counter() - begin < options.seconds:
        record = trainer.advance(STRETCH)
        lengths = record.episodes.lengths
        steps += lengths.size - np.count_nonzero(lengths)  # the step after an end only resets
        gradient_steps += algorithm.gradient_steps * learned(record.metrics["loss"])
    seconds = time.perf_counter() - begin
    work = work_of(algorithm, trainer) | {"gradient_steps_per_step": round(gradient_steps / steps, 2)}
    trainer.close()
    return {"steps_per_second": steps / seconds, "work": work}


def learned(loss: Any) -> float:
    """In how many updates there was one. Raises `RuntimeError` where it is no number."""
    total, weight = float(np.sum(loss.total)), float(np.sum(loss.weight))
    if not math.isfinite(total):
        raise RuntimeError(f"the loss is {total}.")
    return weight


def work_of(algorithm: Any, trainer: Any) -> dict[str, Any]:
    """What a peer must have too."""
    return {
        "num_envs": algorithm.num_envs,
        "batch_size": algorithm.batch_size,
        "obs": list(trainer.spec.observation_space.shape),
        "parameters": size_of(trainer.shapes.algorithm.network),
    }


def size_of(network: Any) -> int:
    """Its parameters."""
    return sum(x.size for x in jax.tree.leaves(network))


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Bytes of the replay memory, and by how much the process grows when a run is made and learns."""
    jnp.zeros(()).block_until_ready()
    before = resident()
    algorithm = dataclasses.replace(LEARNER, capacity=options.capacity)
    trainer: Any = make_trainer(algorithm, GAME, 10_000_000)
    trainer.advance(BEFORE // algorithm.num_envs + STRETCH)
    leaves = jax.tree.leaves(trainer.shapes.algorithm.memory)
    taken = sum(x.size * x.dtype.itemsize for x in leaves)
    growth = resident() - before
    trainer.close()
    if growth < taken and jax.default_backend() == "cpu":
        raise RuntimeError("parts of the memory have not been written to, and the process will grow.")
    return {"memory_bytes": taken, "growth_bytes": growth, "work": {"capacity": options.capacity}}


def resident() -> int:
    """Bytes of this process that are in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


def learner(options: argparse.Namespace) -> dict[str, Any]:
    """Samples per second of gradient steps on a full memory, without acting and without the emulator."""
    algorithm = dataclasses.replace(
        LEARNER, batch_size=options.batch_size, capacity=options.capacity, learning_starts=0
    )
    environments = GymnasiumEnvironments(GAME, NUM_ENVS)
    spec = host_spec(algorithm, environments, 10_000_000)
    environments.close()
    state = algorithm.init(jax.random.key(0), spec)
    replay, slots = algorithm.memory_for(spec.frame_stack), 100
    add, filled = compile_small(replay.add, donate_argnums=0), state.memory
    for n in range(-(-options.capacity // (slots * NUM_ENVS)) + 1):
        filled = add(filled, rollout(np.random.default_rng(n), slots, spec.example))

    keep_freed_memory()
    as_in_runs = compiler_options(math.prod(spec.observation_space.shape))
    update = jax.jit(algorithm.update, donate_argnums=0, compiler_options=as_in_runs)
    state, row = state._replace(memory=filled), rollout(np.random.default_rng(0), 1, spec.example)
    keys = itertools.cycle(list(jax.random.split(jax.random.key(1), 256)))
    parameters = size_of(state.network)

    def learn() -> None:
        nonlocal state
        state, metrics = update(state, row, next(keys))
        if learned(metrics["loss"]) != 1:
            raise RuntimeError("an update took no gradient step.")

    rate = calls_per_second(learn, options.seconds)
    return {
        "samples_per_second": rate * algorithm.gradient_steps * options.batch_size,
        "work": {"batch_size": options.batch_size, "parameters": parameters, "capacity": options.capacity},
    }


def rollout(rng: np.random.Generator, steps: int, example: Transition) -> Transition:
    """`[steps, NUM_ENVS]` transitions of an episode without an end, of random pixels."""
    batch = steps, NUM_ENVS
    frames = rng.integers(0, 256, (steps + 1, NUM_ENVS, *example.obs.shape), np.uint8)
    never = jnp.zeros(batch, jnp.bool_)
    action = rng.integers(0, 6, batch, np.int32)
    reward = jnp.asarray(rng.integers(-1, 2, batch), jnp.float32)
    return Transition(frames[:-1], action, reward, frames[1:], never, never, ~never, jnp.zeros(batch))


def calls_per_second(call: Callable[[], None], seconds: float, before: int = 3) -> float:
    """Of as many calls as there is time for, after the first few."""
    for _ in range(before):
        call()
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        call()
        count += 1
    return count / (time.perf_counter() - begin)


def emulation(options: argparse.Namespace) -> dict[str, Any]:
    """Steps per second of the games by random actions, as Treadle has them and as ale-py gives them, in turns of half a
    second."""
    from ale_py.vector_env import AtariVectorEnv

    ours = GymnasiumEnvironments(GAME, NUM_ENVS)
    theirs = AtariVectorEnv("pong", NUM_ENVS, reward_clipping=False, **AS_MNIH)
    ours.reset(0)
    theirs.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 6, (1_000, NUM_ENVS), np.int32)
    counts = {"ours": 0, "theirs": 0}

    def step_with(step: Callable[[np.ndarray], Any], name: str) -> Callable[[], None]:
        def call() -> None:
            step(actions[counts[name] % len(actions)])
            counts[name] += 1

        return call

    calls = {"ours": step_with(ours.step, "ours"), "theirs": step_with(theirs.step, "theirs")}
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(max(2, round(options.seconds))):
        for name in ("ours", "theirs") if turn % 2 else ("theirs", "ours"):
            rates[name].append(NUM_ENVS * calls_per_second(calls[name], 0.5))
    ours.close()
    return {
        "steps_per_second": float(np.median(rates["ours"])),
        "bare_steps_per_second": float(np.median(rates["theirs"])),
    }


AS_MNIH = {
    "frameskip": 4,
    "stack_num": 4,
    "img_height": 84,
    "img_width": 84,
    "grayscale": True,
    "noop_max": 30,
    "repeat_action_probability": 0.0,
    "full_action_space": False,
    "max_num_frames_per_episode": 108_000,
}
"""How ale-py's own environments are made, as Treadle makes them for `PongNoFrameskip-v4`."""


if __name__ == "__main__":
    main()
