"""Training by many workers with looks at the learner between: the same as `looks`, where figures are of workers."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from treadle.algorithms.base import Algorithm
from treadle.environments.base import Environment
from treadle.loops.choose import make_trainer
from treadle.loops.crew import Crew
from treadle.loops.execution import compile_small
from treadle.loops.looks import Looks, Moment, Observe
from treadle.loops.seeding import purpose, seed_key
from treadle.registry import as_float32
from treadle.types import Mean


def look_at_crews(
    algorithm: Algorithm,
    environment: Environment,
    count: int,
    observe: Observe,
    crew: Crew,
    every: int = 1,
    seed: int = 0,
    num_seeds: int = 1,
) -> Looks:
    """`num_seeds` seeds up to their `count`-th look, one after every so many updates `[S, N]`. What a moment tells of
    where acting stood is not known here: its `visited` is `()`.

    Raises what `make_trainer` does.
    """
    total = count * every * algorithm.num_steps * algorithm.num_envs
    trainer = make_trainer(algorithm, environment, total, seed, num_seeds, crew=crew)
    prepared, world = as_float32(algorithm.prepared()), as_float32(environment)
    look = _compiled(observe)
    seen: list[Looks] = []
    try:
        for number in range(count):
            record = trainer.advance(every)
            state: Any = trainer.state.algorithm
            metrics = {name: np.asarray(m.total / m.weight)[:, 0] for name, m in record.metrics.items() if _is_known(m)}
            rows = []
            for index in range(num_seeds):
                own = jax.tree.map(lambda x, i=index: x[i], (state, metrics))
                key = jax.random.fold_in(purpose(seed_key(seed, index), "look"), number)
                rows.append(jax.device_get(look(prepared, world, *own, key)))
            returns, lengths = (np.asarray(x) for x in record.episodes)
            axes = (1, 2, 3)
            ended = (lengths > 0).sum(axis=axes)
            observed = jax.tree.map(lambda *x: np.stack(x), *rows)
            seen.append(Looks(returns.sum(axis=axes), lengths.sum(axis=axes), ended, observed))
    finally:
        trainer.close()
    return jax.tree.map(lambda *x: np.stack(x, axis=1), *seen)


def _is_known(metric: Any) -> bool:
    return isinstance(metric, Mean) and bool(np.all(metric.weight > 0))


@functools.cache
def _compiled(observe: Observe) -> Any:
    def look(algorithm, environment, state, metrics, key):
        nowhere: Any = ()
        told = jax.tree.map(jnp.asarray, metrics)
        return observe(Moment(algorithm, environment, state, told, nowhere, key))

    return compile_small(look)
