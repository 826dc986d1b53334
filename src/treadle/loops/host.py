"""The host loop: any Gymnasium environment, with acting and learning compiled into one dispatch a step."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from treadle.algorithms.base import Algorithm
from treadle.environments.gymnasium import GymnasiumEnvironments
from treadle.loops.dispatch import BLOCK, Buffers, Plan, programs
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
    ):
        """`make_environments()` gives a fresh `GymnasiumEnvironments` for one seed; seeds count from `first`. What
        `advance` returns has the transitions too if it is to `keep_data`."""
        self.algorithm = algorithm
        self.num_seeds = num_seeds
        self._learners = [
            HostLearner(algorithm, make_environments(), seed_key(seed, index), total_timesteps, keep_data)
            for index in range(first, first + num_seeds)
        ]
        self.spec = self._learners[0].spec

    @property
    def environments(self) -> list[GymnasiumEnvironments]:
        """Those of each seed."""
        return [learner.environments for learner in self._learners]

    @property
    def state(self) -> HostState:
        """What a checkpoint keeps of all seeds, stacked along a leading axis."""
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
        """What acting greedily needs, of all seeds."""
        return self.algorithm.policy(self.state.algorithm)

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
    ):
        self.algorithm, self.environments = algorithm, environments
        self._kept: list[list[np.ndarray]] | None = [] if keep_data else None
        self.spec = host_spec(algorithm, environments, total_timesteps)
        self._key = key
        self._obs = environments.reset(host_seed(purpose(key, "reset")))
        self._masked = environments.masks_rows
        self._learning_reward = environments.wrappers.learning_reward if environments.wrappers.changes_rewards else None
        self._programs = programs(Plan.of(algorithm, self.spec, self._masked))
        self._settings = self._programs.settings.pack(algorithm)
        state = self._programs.init(self._settings, purpose(key, "init"), total_timesteps)
        self._begin(state, 0)

    @property
    def state(self) -> HostState:
        """A copy of what a checkpoint keeps."""
        buffers = self._programs.state.unpack(tuple(jnp.copy(b) for b in self._buffers))
        return HostState(buffers.algorithm, buffers.carry, Counter(buffers.round), self._key)

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
        self._buffers = self._programs.state.pack(start)
        self._act_draws = _Draws(self._programs.draw_acts, train_key)
        self._update_draws = _Draws(self._programs.draw_updates, train_key)
        self._round = updates
        self._act(0, np.zeros(self.spec.num_envs, np.bool_))

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
                    self._act(t + 1, restarted)
            self._turn(rows, extras)
        totals, self._buffers = self._programs.take_metrics(self._buffers)
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

    def _turn(self, rows: list[tuple[np.ndarray, ...]], extras: list[PyTree]) -> None:
        """Learn from the round's rows, and choose actions for the first step of the next round."""
        columns = list(zip(*rows, strict=True))
        packed = tuple(column[0][None] if len(column) == 1 else np.stack(column) for column in columns)
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
        action, self._extras, self._buffers = outputs
        for _ in range(_SPINS):
            if action.is_ready():
                break
        self._action = np.asarray(action)

    def _step(self, episodes: Episodes, n: int, t: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """One step of every environment with the action at hand. Returns the packed row, and which environments
        stand at the start of an episode. Returns of episodes are counted from the environment's own reward."""
        obs, action = self._obs, self._action
        next_obs, reward, terminated, truncated, valid, self._obs = self.environments.step(action)
        ended = terminated | truncated
        learned = reward if self._learning_reward is None else self._learning_reward(reward, terminated)
        leaves = [obs, action, learned, next_obs, terminated, truncated]
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
    return dataclasses.replace(spec, max_episode_steps=environments.max_episode_steps)
