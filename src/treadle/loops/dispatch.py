"""The compiled programs of the host loop, between which the algorithm's state stays on the device in a few buffers."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from treadle import hoist
from treadle.algorithms.base import Algorithm
from treadle.loops.execution import LARGE_OBSERVATION, compiler_options, keep_freed_memory
from treadle.loops.rollout import with_alarm
from treadle.loops.totals import Totals
from treadle.packing import Packing
from treadle.spaces import Space
from treadle.types import Carry, Obs, Spec, Transition, select, space_spec

BLOCK = 256
"""Steps for which random numbers are drawn at once."""

LARGEST_DRAW = 1 << 20
"""Elements up to which a drawn array goes into the common block."""


class Buffers(NamedTuple):
    """What stays on the device between two calls."""

    algorithm: PyTree
    carry: Carry
    round: Any
    totals: Any
    """Sums and weights of each metric since they were last taken, `[2, K]`."""


class Row(NamedTuple):
    """What the host tells the compiled program of one step: the transition without extras, and where to act next."""

    transition: Transition
    acting_obs: Obs
    restarted: Array


@dataclass(frozen=True)
class Plan:
    """What the compiled programs depend on: learners with equal plans share them."""

    algorithm: Any
    shapes: tuple[tuple[tuple[int, ...], str], ...]
    observation_space: Space
    action_space: Space
    num_envs: int
    masked: bool
    frame_stack: int = 0

    @classmethod
    def of(cls, algorithm: Algorithm, spec: Spec, masked: bool) -> Plan:
        leaves, treedef = jax.tree.flatten(algorithm)
        shapes = tuple((tuple(leaf.shape), leaf.dtype.name) for leaf in map(jnp.asarray, leaves))
        spaces = spec.observation_space, spec.action_space
        return cls(treedef, shapes, *spaces, spec.num_envs, masked, spec.frame_stack)

    @property
    def example(self) -> Algorithm:
        """An algorithm of this plan whose leaves are shapes only."""
        leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in self.shapes]
        return jax.tree.unflatten(self.algorithm, leaves)

    @property
    def spec(self) -> Spec:
        spec = space_spec(self.observation_space, self.action_space, self.num_envs)
        return dataclasses.replace(spec, frame_stack=self.frame_stack)


class Programs(NamedTuple):
    """The compiled programs of a plan, and how what goes into them is packed."""

    settings: Packing
    state: Packing
    row: Packing
    totals: Totals
    init: Any
    draw_acts: Any
    draw_updates: Any
    act: Any
    turn: Any
    learn: Any
    take_metrics: Any


@functools.cache
def programs(plan: Plan) -> Programs:
    """The programs of the host loop: `init`, `act`, `turn`, which learns from a rollout and acts at once, and `learn`,
    which does not act.

    What is random in them is drawn beforehand, for `BLOCK` steps at once, by `draw_acts` and `draw_updates`.
    """
    spec, example = plan.spec, plan.example
    shapes = _shapes(example, spec, plan.masked)
    settings, state = Packing(example), Packing(shapes.buffers)
    fresh_carry = example.init_carry(spec)
    row = Packing(_row_shapes(spec, plan.masked))
    draw_act, act_with = hoist.split(_act, *shapes.act)
    draw_update, update_with = hoist.split(_update, *shapes.update)

    def init(packed, key, total_timesteps):
        return settings.unpack(packed).init(key, dataclasses.replace(spec, total_timesteps=total_timesteps))

    def draw_acts(train_key, first):
        numbers = first + jnp.arange(BLOCK)
        return _pack_draws(draw_act, jax.vmap(lambda n: _act_key(train_key, n, example.num_steps))(numbers))

    def draw_updates(train_key, first):
        numbers = first + jnp.arange(BLOCK)
        return _pack_draws(draw_update, jax.vmap(lambda n: _round_keys(train_key, n)[1])(numbers))

    def next_action(algorithm, buffers, drawn, place, obs, restarted):
        carry = select(restarted, fresh_carry, buffers.carry)
        numbers = _unpack_draws(draw_act, drawn, place)
        action, carry, extras = act_with(numbers, algorithm, buffers.algorithm, carry, obs)
        return action, extras, state.pack(buffers._replace(carry=carry))

    def act(packed, buffers, drawn, place, obs, restarted):
        return next_action(settings.unpack(packed), state.unpack(buffers), drawn, place, obs, restarted)

    def updated(algorithm, old, numbers, told, extras):
        rollout = told.transition._replace(extras=jax.tree.map(lambda *x: jnp.stack(x), *extras))
        algorithm_state, metrics = update_with(numbers, algorithm, old.algorithm, rollout)
        totals = old.totals + shapes.totals.add(metrics)
        return Buffers(algorithm_state, old.carry, old.round + 1, totals)

    def turn(packed, buffers, for_update, for_act, places, rows, extras):
        algorithm, told = settings.unpack(packed), jax.vmap(row.unpack)(rows)
        numbers = _unpack_draws(draw_update, for_update, places[0])
        new = updated(algorithm, state.unpack(buffers), numbers, told, extras)
        return next_action(algorithm, new, for_act, places[1], told.acting_obs[-1], told.restarted[-1])

    def learn(packed, buffers, drawn, place, rows, extras):
        numbers = _unpack_draws(draw_update, drawn, place)
        told = jax.vmap(row.unpack)(rows)
        return state.pack(updated(settings.unpack(packed), state.unpack(buffers), numbers, told, extras))

    def take_metrics(buffers):
        old = state.unpack(buffers)
        return old.totals, state.pack(old._replace(totals=jnp.zeros_like(old.totals)))

    observation_size = math.prod(plan.observation_space.shape)
    if observation_size >= LARGE_OBSERVATION:
        keep_freed_memory()
    options = compiler_options(observation_size)
    jit = functools.partial(jax.jit, compiler_options=options)
    return Programs(
        settings=settings,
        state=state,
        row=row,
        totals=shapes.totals,
        init=jit(init, static_argnums=2),
        draw_acts=jit(draw_acts),
        draw_updates=jit(draw_updates),
        act=jit(act, donate_argnums=1),
        turn=jit(turn, donate_argnums=1),
        learn=jit(learn, donate_argnums=1),
        take_metrics=jit(take_metrics, donate_argnums=0),
    )


def _act(key, algorithm, state, carry, obs):
    return algorithm.act(state, carry, obs, key)


def _update(key, algorithm, state, rollout):
    state, metrics = algorithm.update(state, rollout, key)
    return state, with_alarm(metrics, rollout)


def _round_keys(train_key: Array, number: Array) -> Array:
    """The keys of a round's rollout and update: those of the fused loop."""
    return jax.random.split(jax.random.fold_in(train_key, number))


def _act_key(train_key: Array, number: Array, num_steps: int) -> Array:
    """The key with which actions are chosen at the `number`-th step of all: that of the fused loop."""
    rollout_key = _round_keys(train_key, number // num_steps)[0]
    return jax.random.split(jax.random.split(rollout_key, num_steps)[number % num_steps], 3)[0]


def _pack_draws(draw: Any, keys: Array) -> tuple[Array, ...]:
    """What `draw` gives for each key, as one block of words (and whatever is no number)."""
    packing = Packing(jax.eval_shape(draw, keys[0]), LARGEST_DRAW)
    return jax.vmap(lambda key: packing.pack(draw(key)))(keys)


def _unpack_draws(draw: Any, block: tuple[Array, ...], place: Array) -> tuple:
    packing = Packing(jax.eval_shape(draw, jax.random.key(0)), LARGEST_DRAW)
    return packing.unpack(tuple(jax.lax.dynamic_index_in_dim(b, place, keepdims=False) for b in block))


class _Shapes(NamedTuple):
    """Shapes of what goes through the programs: the arguments of `_act` and `_update`, and what is kept."""

    totals: Totals
    buffers: Buffers
    act: tuple
    update: tuple


def _shapes(algorithm: Algorithm, spec: Spec, masked: bool) -> _Shapes:
    def one_round(algorithm, key):
        state, carry = algorithm.init(key, spec), algorithm.init_carry(spec)
        transition = _row_shapes(spec, masked).transition
        _, carry, extras = algorithm.act(state, carry, transition.obs, key)
        step = transition._replace(extras=extras)
        rollout = jax.tree.map(lambda x: jnp.broadcast_to(x, (algorithm.num_steps, *jnp.shape(x))), step)
        new_state, metrics = _update(key, algorithm, state, rollout)
        return new_state, carry, transition.obs, rollout, metrics

    key = jax.eval_shape(lambda: jax.random.key(0))
    state, carry, obs, rollout, metrics = jax.eval_shape(one_round, algorithm, key)
    totals = Totals.of(metrics)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    buffers = Buffers(state, carry, number, jax.eval_shape(totals.start))
    return _Shapes(totals, buffers, (key, algorithm, state, carry, obs), (key, algorithm, state, rollout))


def _row_shapes(spec: Spec, masked: bool) -> Row:
    transition = _batched(spec.example._replace(valid=spec.example.terminated if masked else None), spec.num_envs)
    return Row(transition, transition.obs, transition.terminated)


def _batched(example: PyTree, num_envs: int) -> PyTree:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_envs, *jnp.shape(x))), example)
