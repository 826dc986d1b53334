"""What the measurements of Stable-Baselines3's policy-gradient methods share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import stable_baselines3
import torch


def measure(make: Callable[[], Any], before: int, steps: int) -> dict[str, Any]:
    """What the benchmark wants to know of a model that learns for `steps` after the first `before`, with the number of
    threads that suits it best."""
    # More threads do not help networks this small, so 1 and 2 are enough to find its fastest setting. Two of them can
    # be 30 times slower where something else runs, so a part of the steps decides.
    counts = [n for n in (1, 2) if n <= (os.cpu_count() or 1)]
    models = {n: make() for n in counts}
    for n, model in models.items():
        torch.set_num_threads(n)
        model.learn(before)
    by_threads = {n: steps_per_second(model, max(1, steps // 10), n) for n, model in models.items()}
    best = max(by_threads, key=lambda n: by_threads[n])
    return {
        "peer": "Stable-Baselines3",
        "steps_per_second": steps_per_second(models[best], steps, best),
        "threads": best,
        "steps_per_second_by_threads": by_threads,
        "versions": {
            "stable-baselines3": stable_baselines3.__version__,
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
        },
    }


def steps_per_second(model: Any, steps: int, threads: int) -> float:
    torch.set_num_threads(threads)
    passed, begin = model.num_timesteps, time.perf_counter()
    model.learn(steps, reset_num_timesteps=False)
    # Learning goes on to the end of a rollout.
    return (model.num_timesteps - passed) / (time.perf_counter() - begin)
