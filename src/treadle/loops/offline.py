"""Learning from stored transitions: they take the place of what acting would have seen, and no world is stepped.

The rows of a dataset reach `update` as rollouts `[T, B]`, so that whatever an algorithm does with experience it does
with these. They are gone over again and again, in passes: in each pass a seed takes the episodes in an order of its
own, drawn anew, and the rows of an episode in the order of time. The row after which a column goes on elsewhere counts
as truncated where it did not end its episode, so that nothing is chained across: returns of several steps bootstrap
there.

Which rows come at a step follows from the seed's key and the step's number alone, as all randomness does.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int, PyTree

from treadle import hoist, registry
from treadle.algorithms.base import Algorithm
from treadle.dataset import Dataset
from treadle.environments.wrappers import Wrappers
from treadle.errors import InvalidSetting, TreadleError
from treadle.loops.execution import compiler_options
from treadle.loops.fused import Record
from treadle.loops.rollout import Episodes
from treadle.loops.seeding import purpose
from treadle.loops.seeds import Layout, SpreadSeeds, each, sharded
from treadle.types import Carry, Counter, Spec, Transition, select


class OfflineState(NamedTuple):
    """Everything that a run of one seed is: a checkpoint is this tree."""

    algorithm: PyTree
    carry: Carry
    updates: Counter
    key: Array


class Rows(NamedTuple):
    """A dataset on the device."""

    transitions: Transition
    """`[N, ...]`, with the reward that learning sees."""
    starts: Int[Array, " E"]
    """The first row of each episode."""
    lengths: Int[Array, " E"]
    """Its rows."""
    fresh_carry: Carry
    """What acting remembers at an episode's start."""


class OfflineSeeds(SpreadSeeds[OfflineState]):
    """Learning of `num_seeds` seeds from a dataset, a chunk of updates at a time.

    The same interface as `FusedSeeds`; a step is a row. There are no episodes in what `advance` returns. Without a
    dataset there is only a state, such as evaluation needs.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        spec: Spec,
        dataset: Dataset | None,
        wrappers: Wrappers,
        seed: int = 0,
        num_seeds: int = 1,
        layout: Layout | None = None,
    ):
        """`dataset` is one that fits the spaces of `spec`; of the `wrappers` it is the rewards' that count."""
        super().__init__(algorithm, spec, num_seeds, layout)
        carry = algorithm.init_carry(spec)
        self._rows = None
        if dataset is not None:
            self._rows = jax.device_put(_rows(dataset, wrappers, carry), NamedSharding(self._mesh, P()))

        def init(algorithm: Algorithm, carry: Carry, keys: Array) -> OfflineState:
            def one(key: Array) -> OfflineState:
                return OfflineState(algorithm.init(purpose(key, "init"), spec), carry, Counter.zero(), key)

            return jax.lax.map(one, keys)

        compiled = jax.jit(sharded(init, self._mesh), compiler_options=compiler_options())
        self._state = compiled(algorithm, carry, self._keys(seed))

    def advance(self, num_updates: int) -> Record:
        """`num_updates` rollouts for every seed: metrics `[S, N]`, and episodes `[S, N, T, B]` of which none ended."""
        if self._rows is None:
            raise TreadleError("this learner was made without the transitions that it is to learn from.")
        step = _compiled_advance(self._mesh, self._layout)
        self._state, metrics = step(self.algorithm, self._rows, self._state, num_updates)
        metrics = self._of_seeds(jax.device_get(metrics))
        shape = (self.num_seeds, num_updates, self.algorithm.num_steps, self.algorithm.num_envs)
        none = np.broadcast_to(np.float32(0.0), shape), np.broadcast_to(np.int32(0), shape)
        return Record(metrics, Episodes(*none))


def check_learns_from_data(algorithm: Algorithm) -> None:
    """Raise `InvalidSetting` for a method to which the transitions of another policy would teach something else."""
    survey, name = algorithm.survey, getattr(algorithm, "name", type(algorithm).__name__)
    if survey is None:
        raise InvalidSetting(
            f"{name} does not say whether it can learn from what another policy did, and from stored data (--data) it "
            "would have to. If it can, say so in its class: survey = Survey('model-free', 'values', 'step', "
            "'off-policy')."
        )
    if survey.policy == "on-policy":
        others = ", ".join(
            name
            for name, (cls, _) in registry.algorithms.entries().items()
            if cls.survey and cls.survey.policy == "off-policy"
        )
        raise InvalidSetting(
            f"{name} is on-policy: it learns about the policy that acts, and the stored data (--data) is of another. "
            f"Off-policy methods are {others}."
        )
    if getattr(algorithm, "behaviour", ()) is None:
        raise InvalidSetting(
            f"{name} weighs each step by how probable its action was, and the stored data (--data) does not say that. "
            "Give the probabilities of the policy that made it: --behaviour 0.5 0.5, one number for each action."
        )


def _rows(dataset: Dataset, wrappers: Wrappers, fresh_carry: Carry) -> Rows:
    lengths = dataset.episode_lengths
    ends = np.cumsum(lengths)
    t = dataset.transitions
    truncated = np.array(t.truncated)
    truncated[ends - 1] |= ~np.asarray(t.terminated)[ends - 1]
    reward: Any = np.asarray(t.reward)
    if wrappers.changes_rewards:
        reward = wrappers.learning_reward(reward, np.asarray(t.terminated))
    t = t._replace(reward=reward, truncated=truncated)  # pyright: ignore[reportArgumentType]
    starts, sizes = (x.astype(np.int32) for x in (ends - lengths, lengths))
    return Rows(t, starts, sizes, fresh_carry)  # pyright: ignore[reportArgumentType]


def places(
    starts: Int[Array, " E"], lengths: Int[Array, " E"], size: int, key: Array, first: Array, steps: int, batch: int
) -> tuple[Int[Array, "steps batch"], Bool[Array, " steps"]]:
    """The row of each of `batch` columns at `steps` steps from step `first` on, and whether columns go on elsewhere
    after it.

    In each pass over `size` rows the episodes are shuffled, and each column is given an equal part of the whole, which
    may begin within an episode. Where the parts do not come out even some rows are in two of them.
    """
    part = -(-size // batch)
    number = first + jnp.arange(steps)
    passes = number // part - first // part
    count = (steps - 1) // part + 2
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, first // part + jnp.arange(count))
    order = jax.vmap(lambda key: jax.random.permutation(key, len(starts)))(keys).ravel()
    # The passes one behind the other, as a single list of episodes and where each of them ends.
    ends = jnp.cumsum(lengths[order])
    offsets = np.arange(batch, dtype=np.int64) * size // batch
    wanted = (passes * size + number % part)[:, None] + jnp.asarray(offsets, jnp.int32)
    found = jnp.searchsorted(ends, wanted, side="right")
    episode = order[found]
    return starts[episode] + wanted - (ends[found] - lengths[episode]), number % part == part - 1


def learn(algorithm: Algorithm, rows: Rows, state: OfflineState, num_updates: int) -> tuple[OfflineState, Any]:
    """`num_updates` rollouts of stored rows, and an update from each; the metrics `[N]`. Pure: splitting it into chunks
    changes nothing."""
    steps, batch = algorithm.num_steps, algorithm.num_envs
    numbers = state.updates.value + jnp.arange(num_updates)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(purpose(state.key, "train"), numbers)
    place, goes_elsewhere = places(
        rows.starts,
        rows.lengths,
        len(rows.transitions.reward),
        purpose(state.key, "data"),
        state.updates.value * steps,
        num_updates * steps,
        batch,
    )
    xs = keys, place.reshape(num_updates, steps, batch), goes_elsewhere.reshape(num_updates, steps)

    def one_round(learner, x):
        (learned, carry), (key, place, goes_elsewhere) = learner, x
        rollout_key, update_key = jax.random.split(key)
        rollout = jax.tree.map(lambda x: x.at[place].get(mode="promise_in_bounds"), rows.transitions)
        truncated = rollout.truncated | (goes_elsewhere[:, None] & ~rollout.terminated)
        rollout = rollout._replace(truncated=truncated)
        carry, extras = _look(algorithm, rows.fresh_carry, learned, carry, rollout, rollout_key)
        learned, metrics = algorithm.update(learned, rollout._replace(extras=extras), update_key)
        return (learned, carry), metrics

    (learned, carry), metrics = hoist.scan(one_round, (state.algorithm, state.carry), xs)
    return OfflineState(learned, carry, state.updates.add(num_updates), state.key), metrics


def _look(
    algorithm: Algorithm, fresh: Carry, state: PyTree, carry: Carry, rollout: Transition, key: Array
) -> tuple[Carry, PyTree]:
    """What `act` remembers at the stored observations for `update`; what it would have done there is left."""

    def one_step(carry, x):
        obs, ended, key = x
        _, carry, extras = algorithm.act(state, carry, obs, key)
        return select(ended, fresh, carry), extras

    keys = jax.random.split(key, algorithm.num_steps)
    return hoist.scan(one_step, carry, (rollout.obs, rollout.terminated | rollout.truncated, keys))


@functools.cache
def _compiled_advance(mesh: Mesh, layout: Layout) -> Any:
    def advance(algorithm, rows, states, num_updates):
        def many(algorithm, rows, states):
            def one(state):
                return learn(algorithm, rows, state, num_updates)

            return each(one, states, layout)

        return sharded(many, mesh)(algorithm, rows, states)

    return jax.jit(advance, static_argnums=3, donate_argnums=2, compiler_options=compiler_options())
