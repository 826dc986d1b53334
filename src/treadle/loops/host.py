"""The host loop: any Gymnasium environment, with acting and learning compiled into one dispatch a step."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from treadle.algorithms.base import Algorithm
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.errors import InvalidSetting
from treadle.hoist import is_key
from treadle.loops.dispatch import BLOCK, Buffers, Plan, programs
from treadle.loops.execution import free_memory
from treadle.loops.fused import Record
from treadle.loops.rollout import Episodes
from treadle.loops.seeding import host_seed, purpose, seed_key
from treadle.types import Carry, Counter, Spec, Transition, space_spec


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
    what_begins_anew = "A Gymnasium environment's inner state cannot be saved: new episodes begin, all else continues."
    chunk_steps = 500

    def __init__(
        self,
        algorithm: Algorithm,
        make_environments: Any,
        total_timesteps: int,
        seed: int = 0,
        num_seeds: int = 1,
        keep_data: bool = False,
        first: int = 0,
        overlap: bool = False,
        to_learn: bool = True,
    ):
        """`make_environments()` gives a fresh `GymnasiumEnvironments` for one seed; seeds count from `first`. What
        `advance` returns has the transitions too if it is to `keep_data`. Environments that step by themselves do so
        during updates if these are to `overlap`. Seeds that are not `to_learn` need no room for what only learning
        needs."""
        self.algorithm = algorithm
        self.num_seeds = num_seeds
        last = first + num_seeds
        # Several are saved as one stacked copy.
        copies = 0 if not to_learn else 1 if num_seeds == 1 else 2
        self._learners = [
            HostLearner(
                algorithm,
                make_environments(),
                seed_key(seed, index),
                total_timesteps,
                keep_data,
                overlap,
                room_for=copies * (last - index),
            )
            for index in range(first, last)
        ]
        self.spec = self._learners[0].spec

    @property
    def environments(self) -> list[GymnasiumEnvironments]:
        """Those of each seed."""
        return [learner.environments for learner in self._learners]

    @property
    def state(self) -> HostState:
        """What a checkpoint keeps of all seeds, stacked along a leading axis. Of one seed, large arrays are no copies:
        whoever holds them longer than until the next `advance` makes that copy them."""
        return _stacked([learner.state for learner in self._learners])

    @property
    def shapes(self) -> HostState:
        """Shapes and dtypes of `state`, at no cost."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.num_seeds, *x.shape), x.dtype), self.shapes_of_one)

    @property
    def shapes_of_one(self) -> HostState:
        """Shapes and dtypes of one seed's."""
        return self._learners[0].shapes

    def restore(self, state: HostState) -> None:
        """Go on from a state as `state` returned it, at the start of new episodes. Of one seed, large arrays of JAX are
        used up: a replay memory is never there twice."""
        for index, learner in enumerate(self._learners):
            learner.restore(jax.tree.map(lambda x, i=index: self._part(x, i), state))

    def _part(self, stacked: Array, index: int) -> Array:
        is_spent = self.num_seeds == 1 and isinstance(stacked, jax.Array) and _is_large(stacked)
        return _only(stacked) if is_spent else stacked[index]

    def advance(self, num_updates: int) -> Record:
        """`num_updates` rounds of every seed: metrics averaged `[S, 1]`, episodes `[S, N, T, B]`."""
        records = [learner.advance(num_updates) for learner in self._learners]
        return jax.tree.map(lambda *x: np.stack(x), *records)

    def policies(self) -> PyTree:
        """What acting greedily needs, of all seeds."""
        return _stacked([learner.policy for learner in self._learners])

    def policies_in(self, state: HostState) -> PyTree:
        """The same in a state as `state` returned it, of which the policies' parts are enough."""

        def of_seed(index: int) -> PyTree:
            blank = jax.ShapeDtypeStruct
            own = jax.tree.map(lambda x: x if isinstance(x, blank) else x[index], state.algorithm)
            return self.algorithm.policy(own)

        return _stacked([of_seed(index) for index in range(self.num_seeds)])

    def close(self) -> None:
        """Close every seed's environments."""
        for learner in self._learners:
            learner.environments.close()


class HostLearner:
    """One seed: its environments, and between dispatches the algorithm's state as a few buffers."""

    def __init__(
        self,
        algorithm: Algorithm,
        environments: GymnasiumEnvironments,
        key: Array,
        total_timesteps: int,
        keep_data: bool = False,
        overlap: bool = False,
        room_for: int = 1,
    ):
        """There must be `room_for` so many states. With `overlap`, where the environments step by themselves, the first
        step of a round begins before the update: its actions are those of the parameters before that, and the results
        another run's. Raises `InvalidSetting` where there is no room."""
        self.algorithm, self.environments = algorithm, environments
        self._overlaps = overlap and environments.steps_by_itself
        self._kept: list[list[np.ndarray]] | None = [] if keep_data else None
        self.spec = host_spec(algorithm, environments, total_timesteps)
        self._key = key
        self._obs = environments.reset(host_seed(purpose(key, "reset")))
        self._masked = environments.masks_rows
        self._learning_reward = environments.wrappers.learning_reward if environments.wrappers.changes_rewards else None
        self._programs = programs(Plan.of(algorithm, self.spec, self._masked))
        _check_room(algorithm, self._programs.state.nbytes, room_for)
        self._settings = self._programs.settings.pack(algorithm)
        self._begun: tuple[Array, ...] | None = None

    @property
    def _buffers(self) -> tuple[Array, ...]:
        """Those of the state at the start, if nothing came before: whoever restores another needs no room for it."""
        if self._begun is None:
            init_key = purpose(self._key, "init")
            self._begin(self._programs.init(self._settings, init_key, self.spec.total_timesteps), 0)
        assert self._begun is not None
        return self._begun

    @property
    def state(self) -> HostState:
        """What a checkpoint keeps. Large arrays are no copies as long as nobody advances."""
        kept: Any = tuple(np.asarray(b) if _is_large(b) else jnp.copy(b) for b in self._buffers)
        buffers = self._programs.state.unpack(kept)
        return HostState(buffers.algorithm, buffers.carry, Counter(buffers.round), self._key)

    @property
    def policy(self) -> PyTree:
        """What acting greedily needs, copied; nothing else is."""
        return jax.tree.map(jnp.copy, self.algorithm.policy(self._programs.state.unpack(self._buffers).algorithm))

    @property
    def shapes(self) -> HostState:
        """Shapes and dtypes of `state`."""
        buffers = self._programs.state.example
        return HostState(buffers.algorithm, buffers.carry, Counter(buffers.round), jax.eval_shape(lambda: self._key))

    def restore(self, state: HostState) -> None:
        """Go on from a saved state at the start of new episodes."""
        updates = int(state.updates.value)
        self._key = state.key
        self._obs = self.environments.reset(host_seed(jax.random.fold_in(purpose(state.key, "reset"), updates)))
        self._begin(self.algorithm.begin_episodes(state.algorithm), updates)

    def _begin(self, algorithm_state: PyTree, updates: int) -> None:
        train_key = purpose(self._key, "train")
        self._returns = np.zeros(self.spec.num_envs, np.float32)
        self._lengths = np.zeros(self.spec.num_envs, np.int32)
        carry = self.algorithm.init_carry(self.spec)
        totals = self._programs.totals.start()
        start = Buffers(algorithm_state, carry, jnp.asarray(updates, jnp.int32), totals)
        self._begun = self._programs.state.pack(start)
        self._act_draws = _Draws(self._programs.draw_acts, train_key)
        self._update_draws = _Draws(self._programs.draw_updates, train_key)
        self._round = updates
        self._act(0, np.zeros(self.spec.num_envs, np.bool_))

    def advance(self, num_updates: int) -> Record:
        """`num_updates` rounds: metrics averaged over them `[1]`, episodes `[N, T, B]`."""
        steps, batch = self.algorithm.num_steps, self.spec.num_envs
        _ = self._buffers
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
                if t + 1 < steps or self._overlaps:
                    self._act(t + 1, restarted)
            if self._overlaps:
                self._learn(rows, extras)
            else:
                self._turn(rows, extras)
        totals, self._begun = self._programs.take_metrics(self._buffers)
        return Record(self._programs.totals.metrics(np.asarray(totals)), episodes, self._take_data(num_updates))

    def _take_data(self, num_updates: int) -> Transition | None:
        """The transitions `[N, T, B, ...]` since they were last taken, where they are kept."""
        if self._kept is None:
            return None
        columns: list[Any] = [np.stack(column) for column in zip(*self._kept, strict=True)]
        self._kept = []
        return Transition(*(x.reshape(num_updates, -1, *x.shape[1:]) for x in columns))

    def _act(self, t: int, restarted: np.ndarray) -> None:
        """Choose actions for step `t` of the round at hand."""
        drawn, place = self._act_draws.at(self._round * self.algorithm.num_steps + t)
        self._receive(self._programs.act(self._settings, self._buffers, drawn, place, self._obs, restarted))

    def _learn(self, rows: list[tuple[np.ndarray, ...]], extras: list[PyTree]) -> None:
        """Learn from the round's rows, while the environments take the first step of the next round."""
        drawn, place = self._update_draws.at(self._round)
        self._round += 1
        places = np.int32(place)
        self._begun = self._programs.learn(self._settings, self._buffers, drawn, places, _columns(rows), tuple(extras))

    def _turn(self, rows: list[tuple[np.ndarray, ...]], extras: list[PyTree]) -> None:
        """Learn from the round's rows, and choose actions for the first step of the next round."""
        packed = _columns(rows)
        for_update, at_update = self._update_draws.at(self._round)
        self._round += 1
        for_act, at_act = self._act_draws.at(self._round * self.algorithm.num_steps)
        places = np.array([at_update, at_act], np.int32)
        self._receive(
            self._programs.turn(self._settings, self._buffers, for_update, for_act, places, packed, tuple(extras))
        )

    def _receive(self, outputs: Any) -> None:
        """Take the next action and the buffers from a dispatched program, as soon as the action is there.

        A thread that sleeps until a result is ready is woken late: for results that take tens of microseconds it is
        faster to keep asking, for a while.
        """
        action, self._extras, self._begun = outputs
        for _ in range(_SPINS):
            if action.is_ready():
                break
        self._action = np.asarray(action)
        self.environments.send(self._action)

    def _step(self, episodes: Episodes, n: int, t: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """One step of every environment with the action at hand. Returns the packed row, and which environments
        stand at the start of an episode. Returns of episodes are counted from the environment's own reward."""
        obs, action, step = self._obs, self._action, self.environments.receive()
        next_obs, reward, terminated, truncated, valid, self._obs, _ = step
        ended, terminal = terminated | truncated, step.terminal
        learned = reward if self._learning_reward is None else self._learning_reward(reward, terminal)
        leaves = [obs, action, learned, next_obs, terminal, truncated & ~terminal]
        if self._kept is not None:
            own = [obs, action, reward, next_obs, terminated, truncated]
            self._kept.append(own if valid is None else [*own, valid])
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


LARGE = 1 << 20
"""Bytes from which an array is not copied to be saved, nor to be restored."""


def _is_large(array: Any) -> bool:
    return not is_key(array) and array.nbytes >= LARGE


@functools.partial(jax.jit, donate_argnums=0)
def _only(stacked: Array) -> Array:
    """The one seed's array of those of all seeds, in the same memory."""
    return stacked[0]


def _stacked(trees: list[PyTree]) -> PyTree:
    """The seeds' trees as one; large arrays of a single seed are not copied."""

    def leaf(*arrays: Any) -> Any:
        alone = len(arrays) == 1 and isinstance(arrays[0], np.ndarray)
        return arrays[0][None] if alone else jnp.stack(arrays)

    return jax.tree.map(leaf, *trees)


def _check_room(algorithm: Algorithm, each: int, count: int) -> None:
    """Raise `InvalidSetting` where `count` states of `each` bytes are more than there is room for."""
    free = free_memory()
    if free is None or count * each <= free:
        return
    capacity = getattr(algorithm, "capacity", None)
    why = "" if capacity is None else f", most of it for the replay memory, whose capacity (--capacity) is {capacity:,}"
    cure = "fewer seeds at a time (--seeds)" if each <= free else "a smaller capacity"
    raise InvalidSetting(
        f"{algorithm.name} would need {count * each / 2**30:.1f} GiB of memory{why}; {free / 2**30:.1f} GiB are free. "
        f"Take {cure}."
    )


def _columns(rows: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """What the steps of a round have been packed into, along a leading axis."""
    columns = zip(*rows, strict=True)
    return tuple(column[0][None] if len(column) == 1 else np.stack(column) for column in columns)


_SPINS = 3_000


class _Draws:
    """Random numbers for many steps, drawn in one dispatch when the last ones are used up: drawing them one step at a
    time would cost more than acting itself."""

    def __init__(self, draw: Any, key: Array):
        self._draw, self._key = draw, key
        self._start, self._block = -BLOCK, ()

    def at(self, number: int) -> tuple[tuple[Array, ...], int]:
        """The block that holds what step `number` needs, and where in it."""
        if not 0 <= number - self._start < BLOCK:
            self._start = number
            self._block = self._draw(self._key, np.int32(number))
        return self._block, number - self._start


def host_spec(algorithm: Algorithm, environments: GymnasiumEnvironments, total_timesteps: int) -> Spec:
    """What the algorithm may know of host environments."""
    spec = space_spec(environments.observation_space, environments.action_space, algorithm.num_envs, total_timesteps)
    return dataclasses.replace(
        spec, max_episode_steps=environments.max_episode_steps, frame_stack=environments.frame_stack
    )
