"""What a run's checkpoints hold to play by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, PyTree

from treadle.environments.base import Environment
from treadle.loops import fused
from treadle.loops.choose import resolve, spec_by_spaces
from treadle.loops.host import HostState, host_spec
from treadle.loops.play import needed
from treadle.loops.rollout import make_spec
from treadle.registry import as_float32
from treadle.run import Run
from treadle.types import Counter


class Policies:
    """Loads a run's states without what only training needs, which is often most of a checkpoint.

    `algorithm` and `spec` are the trainer's.
    """

    def __init__(self, run: Run):
        world, steps = resolve(run.task, run.config.loop), run.config.total_timesteps
        algorithm = as_float32(run.algorithm().prepared())
        # Learning from stored transitions has not stepped the environment.
        by_data = run.config.data is not None
        if isinstance(world, Environment):
            world = as_float32(world)
            spec = make_spec(algorithm, world, steps)
        else:
            made = world(1)
            spec = (spec_by_spaces if by_data else host_spec)(algorithm, made, steps)
            made.close()

        def of_one(key: Array) -> Any:
            if isinstance(world, Environment) and not by_data:
                return fused.init(algorithm, world, key, steps)
            return HostState(algorithm.init(key, spec), algorithm.init_carry(spec), Counter.zero(), key)

        self.algorithm, self.spec, self._run = algorithm, spec, run
        # By its shapes alone: to compile what makes it would take longer than all else.
        one = jax.eval_shape(of_one, jax.random.key(0))
        self._states = jax.tree.map(lambda x: jax.ShapeDtypeStruct((run.config.seeds, *x.shape), x.dtype), one)
        self._wanted = jax.tree.map(lambda _: False, one)._replace(algorithm=needed(algorithm, one.algorithm, spec))

    def load(self, path: Path) -> tuple[PyTree, int]:
        """The states of all seeds in a checkpoint, and its step. Raises what `Run.load` does."""
        state, step = self._run.load(self._states, path, self._wanted)
        return state.algorithm, step

    def of_seed(self, states: PyTree, seed: int) -> PyTree:
        """One of them, with shapes in the place of what was not loaded, as `Player.follow` takes it."""

        def row(leaf: Any) -> Any:
            is_there = not isinstance(leaf, jax.ShapeDtypeStruct)
            return leaf[seed] if is_there else jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)

        return jax.tree.map(row, states)
