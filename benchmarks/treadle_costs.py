"""What workers cost: the times of a worker, of a learner and of Ray, and what one worker and two reach on this machine.

    python benchmarks/two_nodes.py --cpus 2 python benchmarks/treadle_costs.py

Prints one line of JSON, from which docs/scaling.py predicts what more machines bring.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

import treadle_workers
from run import commit, machine
from slow_world import SlowWorld, sleeping
from treadle.algorithms.a3c import A3C
from treadle.algorithms.base import Algorithm
from treadle.algorithms.ppo import PPO
from treadle.distributions import Categorical
from treadle.environments.base import Environment
from treadle.environments.wrappers import Task
from treadle.loops.choose import resolve
from treadle.loops.crew import Crew
from treadle.loops.execution import tune_cpu
from treadle.loops.host import host_spec
from treadle.loops.rollout import Episodes
from treadle.loops.workers import Contribution, HostPlan, Post, Shapes, learner_programs
from treadle.registry import as_float32

REPEATS = 7
LATE = 2**30
"""Total timesteps, which no schedule comes near."""


class Images(SlowWorld):
    """The slow environment as an Atari game looks: four frames of 84 by 84 bytes, four buttons."""

    observation_space = gymnasium.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    action_space = gymnasium.spaces.Discrete(4)  # pyright: ignore[reportAssignmentType]

    def __init__(self) -> None:
        super().__init__(busy=False)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return super().step(np.array([float(action) / 2 - 1]))

    def _obs(self) -> np.ndarray:
        return np.full((84, 84, 4), self._steps % 256, np.uint8)


class Convolutions(eqx.Module):
    """The layers of Mnih et al. (2015) with half of their 512 units, since policy and values have one each."""

    layers: list
    outputs: int = eqx.field(static=True)

    def __init__(self, outputs: int, key: jax.Array):
        a, b, c, d, e = jax.random.split(key, 5)
        self.layers = [
            eqx.nn.Conv2d(4, 32, 8, 4, key=a),
            eqx.nn.Conv2d(32, 64, 4, 2, key=b),
            eqx.nn.Conv2d(64, 64, 3, 1, key=c),
            eqx.nn.Linear(3136, 256, key=d),
            eqx.nn.Linear(256, outputs, key=e),
        ]
        self.outputs = outputs

    def __call__(self, obs: jax.Array) -> Any:
        x = jnp.moveaxis(obs.astype(jnp.float32) / 255, -1, 0)
        for layer in self.layers[:3]:
            x = jax.nn.relu(layer(x))
        x = self.layers[4](jax.nn.relu(self.layers[3](x.reshape(-1))))
        return x[0] if self.outputs == 1 else Categorical(x)


def convolutions() -> dict[str, Any]:
    one, other = jax.random.split(jax.random.key(0))
    return {"policy_network": Convolutions(4, one), "value_network": Convolutions(1, other)}


def seconds(do: Callable[[], Any], repeats: int = REPEATS, times: int = 1) -> float:
    """The median time of a call, after one that compiles."""
    do()
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(times):
            do()
        taken.append((time.perf_counter() - begin) / times)
    return statistics.median(taken)


def line(half: Callable[[], Any], full: Callable[[], Any], envs: int, repeats: int) -> tuple[float, float]:
    """What a rollout takes at least, and for each environment, from some with half of the environments and some with
    all, in turn. The least that was seen on each side: what disturbs one of them would be taken for the other's."""
    pairs = [(seconds(half, 1), seconds(full, 1)) for _ in range(repeats)]
    short, long = (min(side) for side in zip(*pairs, strict=True))
    for_each = min(max(long - short, 0.0) / (envs - envs // 2), long / envs)
    return long - for_each * envs, for_each


def size(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(jax.device_get(tree)))


def costs(
    name: str, algorithm: Algorithm, environment: Any, times: int = 1, repeats: int = REPEATS, learns: bool = True
) -> dict:
    """Of a worker and, where it `learns`, of a learner, without Ray: the fields of `Work` in docs/scaling.py."""
    world: Any = resolve(environment)
    method = as_float32(algorithm.prepared())
    if isinstance(world, Environment):
        world = as_float32(world)
        plan = Shapes.of(world)
    else:
        first = world(1)
        spec = dataclasses.replace(host_spec(method, first, LATE), num_envs=method.num_envs)
        plan = HostPlan.of(spec, first.masks_rows)
        first.close()
    programs = learner_programs(Shapes.of(method), plan)
    settings, key = programs.settings.pack(method), jax.random.key(0)
    state, shared = programs.init(settings, key, LATE)
    sent = jax.device_get(shared)
    gradients = method.workers == "gradients"

    def rollout(envs: int) -> Callable[[], Any]:
        worker = Post(method, world, envs).worker(key)
        return lambda: jax.device_get(worker.work(sent))

    all_envs = rollout(method.num_envs)
    if gradients:
        fixed, for_each = seconds(all_envs, repeats, times), 0.0
    else:
        fixed, for_each = line(rollout(method.num_envs // 2), all_envs, method.num_envs, repeats)
    payload = all_envs().payload

    def learn() -> Any:
        if gradients:
            return jax.device_get(programs.apply(settings, state, payload)[1])
        return jax.device_get(programs.update(settings, state, [payload], key, np.int32(0))[1])

    return {
        "name": name,
        "gradients": gradients,
        "steps": method.num_steps * method.num_envs,
        "envs": method.num_envs,
        "fixed": fixed,
        "for_each": for_each,
        "learn": seconds(learn, repeats, times) if learns else 0.0,
        "parameters": size(sent),
        "answer": size(payload),
    }


SHARED = (np.zeros(1_700, np.float32), np.zeros(8, np.int32))
"""About what A3C shares on Pendulum."""


class Echo:
    """In a worker: what Ray alone takes."""

    def answer(self, shared: tuple[np.ndarray, ...]) -> Contribution:
        """At once, as small a one as A3C's on Pendulum."""
        episodes = Episodes(np.zeros((10, 1), np.float32), np.zeros((10, 1), np.int32))
        return Contribution((np.zeros(1_700, np.float32), *shared[1:]), np.zeros((2, 8), np.float32), episodes)

    def bring(self, count: int) -> np.ndarray:
        """So many bytes."""
        return np.ones(count, np.uint8)

    def read(self, value: np.ndarray) -> int:
        """What was put."""
        return int(value[-1])


def ray_costs(address: str) -> dict:
    """Of calls and objects of a cluster, as Treadle makes them: the fields of `Ray` in docs/scaling.py."""
    import ray

    from treadle.loops.cluster.connection import connect
    from treadle.loops.cluster.remote import Limits, Remote, pickled

    connection = connect(address, 2)
    remotes = [Remote(connection, pickled(Echo, (), {}), [], Limits()) for _ in range(2)]
    large = np.ones(8_000_000, np.uint8)
    try:
        for remote in remotes:
            remote.start()
            remote.take(remote.call("answer", SHARED))

        def trip(remote: Any, method: str, *arguments: Any) -> None:
            reference = remote.call(method, *arguments)
            ray.wait([reference], timeout=60)
            remote.take(reference)

        before, calls = time.thread_time(), 0

        def small_answer() -> None:
            nonlocal calls
            calls += 1
            trip(remotes[0], "answer", shared)

        shared = ray.put(SHARED)
        empty = seconds(small_answer, times=50)
        handling = (time.thread_time() - before) / calls
        # SPREAD puts them on two nodes: the slower of the two reads from the other node's store.
        bring = max(seconds(lambda r=r: trip(r, "bring", large.size)) for r in remotes)
        read = max(seconds(lambda r=r: trip(r, "read", ray.put(large))) for r in remotes)
        small = seconds(lambda: ray.put(SHARED), times=50)
        put = seconds(lambda: ray.put(large))
    finally:
        for remote in remotes:
            remote.kill()
        connection.close()
    mb = large.size / 1e6
    return {
        "trip": empty,
        "trip_mb": max(bring - empty, 0.0) / mb,
        "handling": handling,
        "put": small,
        "put_mb": max(put - small, 0.0) / mb,
        "get_mb": max(read - empty - put, 0.0) / mb,
    }


def rates(algorithm: Algorithm, environment: Any, address: str) -> list[float]:
    """Steps per second of one worker and of two, on the cluster."""
    crews = [Crew("ray", workers=n, address=address) for n in (1, 2)]
    found = treadle_workers.measure(algorithm, Task.of(environment), crews, seconds=2.0, rounds=5)
    return [statistics.median(own) for own in found]


def main() -> None:
    tune_cpu()
    address = os.environ["RAY_ADDRESS"]
    small = treadle_workers.METHODS
    pendulum, task = treadle_workers.made("a3c", "Pendulum-v1")
    tried: dict[str, tuple[Any, Any]] = {
        "A3C, Pendulum-v1 in JAX": (pendulum, task),
        "A3C, steps of 1 ms": (small["a3c"], sleeping),
        "PPO, steps of 1 ms": (small["ppo"], sleeping),
    }
    works = [costs(name, of[0], of[1], times=50 if of[1] is task else 1) for name, of in tried.items()]
    a3c = A3C(num_envs=1, rollout_length=20, **convolutions())
    works.append(costs("A3C, steps of 1 ms, Atari-sized", a3c, Images, repeats=3))
    # On one core an update takes most of a minute: who learns so has an accelerator.
    ppo = PPO(num_envs=2, rollout_length=64, num_minibatches=4, **convolutions())
    works.append(costs("PPO, steps of 1 ms, Atari-sized, learning left out", ppo, Images, repeats=3, learns=False))
    told = {
        "works": works,
        "ray": ray_costs(address),
        "rates": {name: rates(of[0], of[1], address) for name, of in tried.items()},
        "machine": machine(),
        "commit": commit(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
