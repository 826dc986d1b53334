"""Workers that act for one learner: what they do with a snapshot of what it knows, in whatever thread or process.

A worker owns its environments. Each of its tasks is one rollout under the snapshot that comes with it. It answers with
the rollout itself, or with the gradients that it found in it: whichever the algorithm's `workers` says.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from treadle.algorithms.base import Algorithm
from treadle.environments.base import Environment
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.loops.execution import compiler_options
from treadle.loops.host import host_spec
from treadle.loops.rollout import Actor, Episodes, collect, make_spec, start, with_alarm
from treadle.loops.seeding import host_seed, purpose
from treadle.loops.totals import Totals
from treadle.packing import Packing
from treadle.types import Spec, Transition, select, space_spec

World = Environment | Callable[..., GymnasiumEnvironments]
"""A world in JAX, or what makes so many host environments."""


class Contribution(NamedTuple):
    """What a worker answers to one task."""

    payload: Any
    """The rollout `[T, b, ...]`, or gradients as `LearnerPrograms.payload` packs them."""
    totals: Float[np.ndarray, "2 K"] | None
    """The metrics of gradients, as `Totals` sums them."""
    episodes: Episodes
    """Those that ended `[T, b]`."""


@dataclass(frozen=True)
class Post:
    """What every worker of a learner is: its algorithm, world and environments `b`."""

    algorithm: Algorithm
    world: World
    num_envs: int

    def worker(self, key: Array) -> Worker:
        """One that has all its randomness from this key. Raises what making its environments does."""
        kind = WorldWorker if isinstance(self.world, Environment) else HostWorker
        return kind(self, key)

    @property
    def sends_gradients(self) -> bool:
        return self.algorithm.workers == "gradients"


class WorldWorker:
    """One in a JAX world: a task is one call of a compiled program."""

    def __init__(self, post: Post, key: Array):
        world: Any = post.world
        self._programs = world_programs(Shapes.of(post.algorithm), Shapes.of(world), post.num_envs)
        self._settings = self._programs.settings.pack((post.algorithm, world))
        self._key = purpose(key, "train")
        self._tasks = 0
        self._actor = self._programs.start(self._settings, purpose(key, "reset"))

    def work(self, shared: tuple[Any, ...]) -> Contribution:
        """The answer to its next task, by a snapshot as `LearnerPrograms` packs it."""
        payload, totals, episodes, self._actor = self._programs.work(
            self._settings, shared, self._actor, self._key, np.int32(self._tasks)
        )
        self._tasks += 1
        told = Episodes(np.asarray(episodes.returns), np.asarray(episodes.lengths))
        return Contribution(payload, None if totals is None else np.asarray(totals), told)

    def close(self) -> None:
        """Nothing to release."""


class HostWorker:
    """One in Gymnasium's own environments."""

    def __init__(self, post: Post, key: Array):
        world: Any = post.world
        self.environments: GymnasiumEnvironments = world(post.num_envs)
        algorithm, wrappers = post.algorithm, self.environments.wrappers
        spec = dataclasses.replace(host_spec(algorithm, self.environments, 0), num_envs=post.num_envs)
        self._num_steps = algorithm.num_steps
        self._programs = host_programs(Shapes.of(algorithm), HostPlan.of(spec, self.environments.masks_rows))
        self._settings = self._programs.settings.pack(algorithm)
        self._learning_reward = wrappers.learning_reward if wrappers.changes_rewards else None
        self._key, self._tasks = purpose(key, "train"), 0
        self._obs = self.environments.reset(host_seed(purpose(key, "reset")))
        self._restarted = np.zeros(post.num_envs, np.bool_)
        self._carry = algorithm.init_carry(spec)
        self._returns = np.zeros(post.num_envs, np.float32)
        self._lengths = np.zeros(post.num_envs, np.int32)

    def work(self, shared: tuple[Any, ...]) -> Contribution:
        """The answer to its next task, by a snapshot as `LearnerPrograms` packs it."""
        steps, envs = self._num_steps, len(self._lengths)
        episodes = Episodes(np.zeros((steps, envs), np.float32), np.zeros((steps, envs), np.int32))
        rows, extras = [], []
        for t in range(steps):
            at = self._key, np.int32(self._tasks), np.int32(t)
            action, extra, self._carry = self._programs.act(
                self._settings, shared, self._carry, self._obs, self._restarted, *at
            )
            extras.append(extra)
            rows.append(self._step(np.asarray(action), episodes, t))
        columns: list[Any] = [None if x[0] is None else np.stack(x) for x in zip(*rows, strict=True)]
        rollout = Transition(*columns)._replace(extras=jax.tree.map(lambda *x: np.stack(x), *extras))
        payload, totals = self._programs.answer(self._settings, shared, rollout, self._key, np.int32(self._tasks))
        self._tasks += 1
        return Contribution(payload, None if totals is None else np.asarray(totals), episodes)

    def _step(self, action: np.ndarray, episodes: Episodes, t: int) -> tuple[np.ndarray | None, ...]:
        """A row of the rollout, without extras. Returns of episodes are counted from the environment's own reward."""
        obs = self._obs
        step = self.environments.step(action)
        next_obs, reward, terminated, truncated, valid, self._obs, _ = step
        counts = np.ones_like(terminated) if valid is None else valid
        ended = (terminated | truncated) & counts
        self._returns += np.where(counts, reward, 0.0)
        self._lengths += counts
        episodes.returns[t] = np.where(ended, self._returns, 0.0)
        episodes.lengths[t] = np.where(ended, self._lengths, 0)
        self._returns[ended], self._lengths[ended] = 0.0, 0
        self._restarted = ended | ~counts
        learned = reward if self._learning_reward is None else self._learning_reward(reward, step.terminal)
        return obs, action, np.asarray(learned, np.float32), next_obs, step.terminal, truncated & ~step.terminal, valid

    def close(self) -> None:
        self.environments.close()


Worker = WorldWorker | HostWorker


@dataclass(frozen=True)
class Shapes:
    """What a compiled program depends on of a tree: those with equal shapes share it."""

    treedef: Any
    leaves: tuple[tuple[tuple[int, ...], str], ...]

    @classmethod
    def of(cls, tree: PyTree) -> Shapes:
        leaves, treedef = jax.tree.flatten(tree)
        return cls(treedef, tuple((tuple(leaf.shape), leaf.dtype.name) for leaf in map(jnp.asarray, leaves)))

    @property
    def example(self) -> Any:
        """A tree of this kind whose leaves are shapes only."""
        return jax.tree.unflatten(self.treedef, [jax.ShapeDtypeStruct(*leaf) for leaf in self.leaves])


@dataclass(frozen=True)
class HostPlan:
    """What compiled programs depend on of host environments."""

    observation_space: Any
    action_space: Any
    num_envs: int
    max_episode_steps: int | None
    masked: bool

    @classmethod
    def of(cls, spec: Spec, masked: bool) -> HostPlan:
        return cls(spec.observation_space, spec.action_space, spec.num_envs, spec.max_episode_steps, masked)

    @property
    def spec(self) -> Spec:
        spec = space_spec(self.observation_space, self.action_space, self.num_envs)
        return dataclasses.replace(spec, max_episode_steps=self.max_episode_steps)


class WorldPrograms(NamedTuple):
    settings: Packing
    start: Any
    work: Any


class HostPrograms(NamedTuple):
    settings: Packing
    act: Any
    answer: Any


class LearnerPrograms(NamedTuple):
    """Those of the learner, whose state stays on the device as a few buffers."""

    settings: Packing
    state: Packing
    init: Any
    """`(settings, key, total_timesteps)` to the state and what is shared of it."""
    share: Any
    """`state` to what is shared of it."""
    apply: Any
    """`(settings, state, payload)` to the next state and what is shared of it."""
    update: Any
    """`(settings, state, rollouts, key, number)` to the next state, what is shared of it, and totals."""
    totals: Totals


@functools.cache
def world_programs(algorithm: Shapes, environment: Shapes, num_envs: int) -> WorldPrograms:
    """The programs of a worker with so many environments of a JAX world."""
    settings = Packing((algorithm.example, environment.example))
    spec = dataclasses.replace(_world_spec(algorithm, environment), num_envs=num_envs)
    packings = _Packings.of(algorithm.example, spec)

    def first(method: Any, world: Any, key: Any) -> Actor:
        return start(world, method.init_carry(spec), num_envs, key)

    actor_packing = Packing(jax.eval_shape(first, algorithm.example, environment.example, _key_shape()))

    def begin(packed, key):
        method, world = settings.unpack(packed)
        return actor_packing.pack(first(method, world, key))

    def work(packed, shared, actor, key, number):
        method, world = settings.unpack(packed)
        state, before = packings.shared.unpack(shared), actor_packing.unpack(actor)
        rollout_key, learn_key = jax.random.split(jax.random.fold_in(key, number))
        after: Actor
        after, rollout, episodes = collect(method, world, spec, state, before, rollout_key)
        payload, totals = packings.answer(method, state, rollout, learn_key)
        return payload, totals, episodes, actor_packing.pack(after)

    jit = functools.partial(jax.jit, compiler_options=compiler_options())
    return WorldPrograms(settings, jit(begin), jit(work))


@functools.cache
def host_programs(algorithm: Shapes, plan: HostPlan) -> HostPrograms:
    """The programs of a worker with host environments like these."""
    settings, spec = Packing(algorithm.example), plan.spec
    packings = _Packings.of(algorithm.example, spec, plan.masked)

    def act(packed, shared, carry, obs, restarted, key, number, t):
        method = settings.unpack(packed)
        rollout_key = jax.random.split(jax.random.fold_in(key, number))[0]
        carry = select(restarted, method.init_carry(spec), carry)
        action, carry, extras = method.act(
            packings.shared.unpack(shared), carry, obs, jax.random.fold_in(rollout_key, t)
        )
        return action, extras, carry

    def answer(packed, shared, rollout, key, number):
        learn_key = jax.random.split(jax.random.fold_in(key, number))[1]
        return packings.answer(settings.unpack(packed), packings.shared.unpack(shared), rollout, learn_key)

    jit = functools.partial(jax.jit, compiler_options=compiler_options())
    return HostPrograms(settings, jit(act), jit(answer))


@functools.cache
def learner_programs(algorithm: Shapes, plan: Shapes | HostPlan) -> LearnerPrograms:
    """The programs of a learner whose workers act in a world of this kind."""
    spec = plan.spec if isinstance(plan, HostPlan) else _world_spec(algorithm, plan)
    settings = Packing(algorithm.example)
    packings = _Packings.of(algorithm.example, spec, isinstance(plan, HostPlan) and plan.masked)

    def packed_pair(method, state):
        return packings.state.pack(state), packings.shared.pack(method.shared(state))

    def init(packed, key, total_timesteps):
        method = settings.unpack(packed)
        return packed_pair(method, method.init(key, dataclasses.replace(spec, total_timesteps=total_timesteps)))

    def share(packed, state):
        return packed_pair(settings.unpack(packed), packings.state.unpack(state))[1]

    def apply(packed, state, payload):
        method = settings.unpack(packed)
        gradients = packings.gradients.unpack(payload)
        return packed_pair(method, method.apply(packings.state.unpack(state), gradients))

    def update(packed, state, rollouts, key, number):
        method = settings.unpack(packed)
        rollout = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *rollouts)
        learned, metrics = method.update(packings.state.unpack(state), rollout, jax.random.fold_in(key, number))
        return *packed_pair(method, learned), packings.totals.add(with_alarm(metrics, rollout))

    jit = functools.partial(jax.jit, compiler_options=compiler_options())
    programs = jit(init, static_argnums=2), jit(share), jit(apply), jit(update)
    return LearnerPrograms(settings, packings.state, *programs, packings.totals)


class _Packings(NamedTuple):
    """How a learner's state, what is shared of it and gradients are packed."""

    state: Packing
    shared: Packing
    gradients: Packing
    totals: Totals

    @classmethod
    def of(cls, algorithm: Algorithm, spec: Spec, masked: bool = False) -> _Packings:
        def all_of(method, key):
            state, carry = method.init(key, spec), method.init_carry(spec)
            t = spec.example._replace(valid=spec.example.terminated if masked else None)
            t = jax.tree.map(lambda x: jnp.broadcast_to(x, (spec.num_envs, *jnp.shape(x))), t)
            shared = method.shared(state)
            _, _, extras = method.act(shared, carry, t.obs, key)
            rollout = t._replace(extras=extras)
            rollout = jax.tree.map(lambda x: jnp.broadcast_to(x, (method.num_steps, *x.shape)), rollout)
            if method.workers == "gradients":
                gradients, metrics = method.gradients(shared, rollout, key)
            else:
                gradients, (_, metrics) = (), method.update(state, rollout, key)
            return state, shared, gradients, with_alarm(metrics, rollout)

        state, shared, gradients, metrics = jax.eval_shape(all_of, algorithm, _key_shape())
        return cls(Packing(state), Packing(shared), Packing(gradients), Totals.of(metrics))

    def answer(self, method: Algorithm, state: PyTree, rollout: Transition, key: Array) -> tuple[Any, Any]:
        """What a worker sends of a rollout: itself, or what it teaches and totals."""
        if method.workers != "gradients":
            return rollout, None
        gradients, metrics = method.gradients(state, rollout, key)
        return self.gradients.pack(gradients), self.totals.add(with_alarm(metrics, rollout))


def _world_spec(algorithm: Shapes, environment: Shapes) -> Spec:
    found: list[Spec] = []

    def look(method, world):
        found.append(make_spec(method, world, 0))

    jax.eval_shape(look, algorithm.example, environment.example)
    example = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found[0].example)
    return dataclasses.replace(found[0], example=example)


def _key_shape() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))
