"""How the measurements of Treadle are taken."""

from __future__ import annotations

import json
import time
from typing import Any

import jax

import treadle
from treadle.algorithms.base import Algorithm
from treadle.loops.choose import LayoutName, LoopName, make_trainer
from treadle.loops.execution import tune_cpu


def measure(
    algorithm: Algorithm,
    task: str,
    loop: LoopName,
    seeds: int,
    chunk: int,
    before: int,
    chunks: int,
    layout: LayoutName = "auto",
) -> None:
    """Print, as a line of JSON, the steps per second of all seeds over `chunks` stretches of `chunk` steps of each.

    `before` stretches come first, which compile and pass the start of learning.
    """
    tune_cpu()
    updates = chunk // (algorithm.num_steps * algorithm.num_envs)
    trainer: Any = make_trainer(algorithm, task, (before + chunks) * chunk, num_seeds=seeds, loop=loop, layout=layout)
    for _ in range(before):
        trainer.advance(updates)

    begin = time.perf_counter()
    for _ in range(chunks):
        trainer.advance(updates)
    jax.block_until_ready(trainer.state)
    seconds = time.perf_counter() - begin
    trainer.close()

    result = {
        "peer": "Treadle",
        "steps_per_second": seeds * chunks * chunk / seconds,
        "algorithm": algorithm.name,
        "task": task,
        "loop": loop,
        "seeds": seeds,
        "device": jax.default_backend(),
        "versions": {"treadle": treadle.__version__, "jax": jax.__version__},
    }
    print(json.dumps(result))
