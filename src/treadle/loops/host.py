"""The host loop: any Gymnasium environment, with acting and learning compiled into one dispatch a step."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from treadle.algorithms.base import Algorithm
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.loops.execution import compiler_options
from treadle.loops.fused import Record
from treadle.loops.packing import Packing
from treadle.loops.rollout import Episodes
from treadle.loops.seeding import host_seed, purpose, seed_key
from treadle.spaces import Space
from treadle.types import Carry, Counter, Mean, Metrics, Obs, Spec, Transition, select, space_spec


class HostState(NamedTuple):
    """What of one seed a checkpoint can keep: a Gymnasium environment's inner state is not among it."""

    algorithm: PyTree
    carry: Carry
    updates: Counter
    key: Array


class HostSeeds:
    """Training of `num_seeds` seeds, one after the other, in Gymnasium's own environments.

    The same interface as `FusedSeeds`. `resume` continues with the same parameters, memory and schedules, but begins
    new episodes, because an environment's inner state cannot be saved.
    """

    exact_resume = False

    def __init__(
        self,
        algorithm: Algorithm,
        make_environments: Any,
        total_timesteps: int,
        seed: int = 0,
        num_seeds: int = 1,
    ):
        """`make_environments()` gives a fresh `GymnasiumEnvironments` for one seed."""
        self.algorithm = algorithm
        self.num_seeds = num_seeds
        self._learners = [
            HostLearner(algorithm, make_environments(), seed_key(seed, index), total_timesteps)
            for index in range(num_seeds)
        ]
        self.spec = self._learners[0].spec

    @property
    def state(self) -> HostState:
        return jax.tree.map(lambda *x: jnp.stack(x), *[learner.state for learner in self._learners])

    def restore(self, state: HostState) -> None:
        """Go on from a state as `state` returned it, at the start of new episodes."""
        for index, learner in enumerate(self._learners):
            learner.restore(jax.tree.map(lambda x, i=index: x[i], state))

    def advance(self, num_updates: int) -> Record:
        """`num_updates` rounds of every seed: metrics averaged `[S, 1]`, episodes `[S, N, T, B]`."""
        records = [learner.advance(num_updates) for learner in self._learners]
        return jax.tree.map(lambda *x: np.stack(x), *records)

    def policies(self) -> PyTree:
        return self.algorithm.policy(self.state.algorithm)

    def close(self) -> None:
        for learner in self._learners:
            learner.environments.close()


class HostLearner:
    """One seed: its environments, and between dispatches the algorithm's state as a few buffers."""

    def __init__(self, algorithm: Algorithm, environments: GymnasiumEnvironments, key: Array, total_timesteps: int):
        self.algorithm, self.environments = algorithm, environments
        self.spec = host_spec(algorithm, environments, total_timesteps)
        self._key = key
        self._obs = environments.reset(host_seed(purpose(key, "reset")))
        self._masked = environments.masks_rows
        self._programs = _programs(_Plan.of(algorithm, self.spec, self._masked))
        self._settings = self._programs.settings.pack(algorithm)
        state = self._programs.init(self._settings, purpose(key, "init"), total_timesteps)
        self._begin(state, 0)

    @property
    def state(self) -> HostState:
        buffers = self._programs.state.unpack(tuple(jnp.copy(b) for b in self._buffers))
        return HostState(buffers.algorithm, buffers.carry, Counter(buffers.round), self._key)

    def restore(self, state: HostState) -> None:
        """Go on from a saved state at the start of new episodes."""
        updates = int(state.updates.value)
        self._key = state.key
        self._obs = self.environments.reset(host_seed(jax.random.fold_in(purpose(state.key, "reset"), updates)))
        self._begin(state.algorithm, updates)

    def _begin(self, algorithm_state: PyTree, updates: int) -> None:
        self._train_key = purpose(self._key, "train")
        self._returns = np.zeros(self.spec.num_envs, np.float32)
        self._lengths = np.zeros(self.spec.num_envs, np.int32)
        carry = self.algorithm.init_carry(self.spec)
        totals = jnp.zeros((2, len(self._programs.metric_names)))
        start = _Buffers(algorithm_state, carry, jnp.asarray(updates, jnp.int32), totals)
        self._buffers = self._programs.state.pack(start)
        nothing = np.zeros(self.spec.num_envs, np.bool_)
        self._receive(self._programs.act(self._settings, self._buffers, self._train_key, 0, self._obs, nothing))

    def advance(self, num_updates: int) -> Record:
        """`num_updates` rounds: metrics averaged over them `[1]`, episodes `[N, T, B]`."""
        steps, batch = self.algorithm.num_steps, self.spec.num_envs
        episodes = Episodes(
            np.zeros((num_updates, steps, batch), np.float32),
            np.zeros((num_updates, steps, batch), np.int32),
        )
        for n in range(num_updates):
            rows, extras = [], []
            for t in range(steps):
                extras.append(self._extras)
                row, restarted = self._step(episodes, n, t)
                rows.append(row)
                if t + 1 < steps:
                    self._receive(
                        self._programs.act(self._settings, self._buffers, self._train_key, t + 1, self._obs, restarted)
                    )
            packed = tuple(np.stack(column) if steps > 1 else column[0][None] for column in zip(*rows, strict=True))
            self._receive(self._programs.turn(self._settings, self._buffers, self._train_key, packed, tuple(extras)))
        totals, self._buffers = self._programs.take_metrics(self._buffers)
        totals = np.asarray(totals)
        metrics = {
            name: Mean(totals[0, i : i + 1], totals[1, i : i + 1]) for i, name in enumerate(self._programs.metric_names)
        }
        return Record(metrics, episodes)

    def _receive(self, outputs: Any) -> None:
        """Take the next action and the buffers from a dispatched program, as soon as the action is there.

        A thread that sleeps until a result is ready is woken late: for results that take tens of microseconds it is
        faster to keep asking, for a while.
        """
        action, self._extras, self._buffers = outputs
        for _ in range(_SPINS):
            if action.is_ready():
                break
        self._action = np.asarray(action)

    def _step(self, episodes: Episodes, n: int, t: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """One step of every environment with the action at hand. Returns the packed row, and which environments
        stand at the start of an episode."""
        obs, action = self._obs, self._action
        next_obs, reward, terminated, truncated, valid, self._obs = self.environments.step(action)
        ended = terminated | truncated
        leaves = [obs, action, reward, next_obs, terminated, truncated]
        if valid is None:
            self._returns += reward
            self._lengths += 1
            restarted = ended
        else:
            ended &= valid
            self._returns += np.where(valid, reward, 0.0)
            self._lengths += valid
            restarted = ended | ~valid
            leaves.append(valid)
        if ended.any():
            episodes.returns[n, t] = np.where(ended, self._returns, 0.0)
            episodes.lengths[n, t] = np.where(ended, self._lengths, 0)
            self._returns[ended] = 0.0
            self._lengths[ended] = 0
        leaves += [self._obs, restarted]
        return self._programs.row.pack_host(leaves), restarted


_SPINS = 3_000


class _Buffers(NamedTuple):
    algorithm: PyTree
    carry: Carry
    round: Any
    totals: Any
    """Sums and weights of each metric since they were last taken, `[2, K]`."""


class _Row(NamedTuple):
    """What the host tells the compiled program of one step: the transition without extras, and where to act next."""

    transition: Transition
    acting_obs: Obs
    restarted: Array


@dataclass(frozen=True)
class _Plan:
    """What the compiled programs depend on: learners with equal plans share them."""

    algorithm: Any
    shapes: tuple[tuple[tuple[int, ...], str], ...]
    observation_space: Space
    action_space: Space
    num_envs: int
    masked: bool

    @classmethod
    def of(cls, algorithm: Algorithm, spec: Spec, masked: bool) -> _Plan:
        leaves, treedef = jax.tree.flatten(algorithm)
        shapes = tuple((tuple(leaf.shape), leaf.dtype.name) for leaf in map(jnp.asarray, leaves))
        return cls(treedef, shapes, spec.observation_space, spec.action_space, spec.num_envs, masked)

    @property
    def example(self) -> Algorithm:
        """An algorithm of this plan whose leaves are shapes only."""
        leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in self.shapes]
        return jax.tree.unflatten(self.algorithm, leaves)

    @property
    def spec(self) -> Spec:
        return space_spec(self.observation_space, self.action_space, self.num_envs, 0)


class _Programs(NamedTuple):
    settings: Packing
    state: Packing
    row: Packing
    metric_names: list[str]
    init: Any
    act: Any
    turn: Any
    take_metrics: Any


@functools.cache
def _programs(plan: _Plan) -> _Programs:
    """The three programs of the host loop: `init`, `act`, and `turn`, which learns from a rollout and acts at once."""
    spec, example = plan.spec, plan.example
    metric_names, state_shapes = _shapes(example, spec)
    settings, state = Packing(example), Packing(state_shapes)
    fresh_carry = example.init_carry(spec)
    masks = spec.example.terminated if plan.masked else None
    transition = _batched(spec.example._replace(valid=masks), spec.num_envs)
    row = Packing(_Row(transition, transition.obs, transition.terminated))
    options = compiler_options()

    def init(packed, key, total_timesteps):
        algorithm = settings.unpack(packed)
        return algorithm.init(key, dataclasses.replace(spec, total_timesteps=total_timesteps))

    def next_action(algorithm, buffers, train_key, t, obs, restarted):
        """The keys are those of the fused loop: rollout and update of each round, then one for each step."""
        rollout_key = jax.random.split(jax.random.fold_in(train_key, buffers.round))[0]
        act_key = jax.random.split(jax.random.split(rollout_key, algorithm.num_steps)[t], 3)[0]
        carry = select(restarted, fresh_carry, buffers.carry)
        action, carry, extras = algorithm.act(buffers.algorithm, carry, obs, act_key)
        return action, extras, state.pack(buffers._replace(carry=carry))

    def act(packed, buffers, train_key, t, obs, restarted):
        return next_action(settings.unpack(packed), state.unpack(buffers), train_key, t, obs, restarted)

    def turn(packed, buffers, train_key, rows, extras):
        algorithm, old = settings.unpack(packed), state.unpack(buffers)
        told = jax.vmap(row.unpack)(rows)
        rollout = told.transition._replace(extras=jax.tree.map(lambda *x: jnp.stack(x), *extras))
        update_key = jax.random.split(jax.random.fold_in(train_key, old.round))[1]
        algorithm_state, metrics = algorithm.update(old.algorithm, rollout, update_key)
        totals = old.totals + _sums(metrics, metric_names)
        new = _Buffers(algorithm_state, old.carry, old.round + 1, totals)
        return next_action(algorithm, new, train_key, 0, told.acting_obs[-1], told.restarted[-1])

    def take_metrics(buffers):
        old = state.unpack(buffers)
        return old.totals, state.pack(old._replace(totals=jnp.zeros_like(old.totals)))

    return _Programs(
        settings=settings,
        state=state,
        row=row,
        metric_names=metric_names,
        init=jax.jit(init, static_argnums=2, compiler_options=options),
        act=jax.jit(act, donate_argnums=1, compiler_options=options),
        turn=jax.jit(turn, donate_argnums=1, compiler_options=options),
        take_metrics=jax.jit(take_metrics, donate_argnums=0, compiler_options=options),
    )


def _shapes(algorithm: Algorithm, spec: Spec) -> tuple[list[str], _Buffers]:
    """The names of the metrics, and the shapes of what is kept between dispatches."""

    def one_round(algorithm, key):
        state, carry = algorithm.init(key, spec), algorithm.init_carry(spec)
        transition = _batched(spec.example, spec.num_envs)
        _, carry, extras = algorithm.act(state, carry, transition.obs, key)
        step = transition._replace(extras=extras)
        rollout = jax.tree.map(lambda x: jnp.broadcast_to(x, (algorithm.num_steps, *jnp.shape(x))), step)
        state, metrics = algorithm.update(state, rollout, key)
        return state, carry, metrics

    state, carry, metrics = jax.eval_shape(one_round, algorithm, jax.random.key(0))
    names = sorted(metrics)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return names, _Buffers(state, carry, number, jax.ShapeDtypeStruct((2, len(names)), jnp.float32))


def _sums(metrics: Metrics, names: list[str]) -> Array:
    means = [m if isinstance(m, Mean) else Mean(jnp.asarray(m), jnp.ones(())) for m in (metrics[n] for n in names)]
    return jnp.stack([jnp.stack([m.total for m in means]), jnp.stack([m.weight for m in means])])


def _batched(example: PyTree, num_envs: int) -> PyTree:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_envs, *jnp.shape(x))), example)


def host_spec(algorithm: Algorithm, environments: GymnasiumEnvironments, total_timesteps: int) -> Spec:
    """What the algorithm may know of host environments."""
    return space_spec(environments.observation_space, environments.action_space, algorithm.num_envs, total_timesteps)
