"""The examples of CONTRIBUTING.md are complete files that work as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from treadle import registry
from treadle.loops import fused

GUIDE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """Both files, written out and imported as `--import` does, and forgotten afterwards."""
    for known in (registry.algorithms, registry.environments):
        known.names()
        monkeypatch.setattr(known, "_entries", dict(known._entries))
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    for name, source in zip(("linear_q.py", "corridor.py"), blocks, strict=True):
        file = tmp_path / name
        file.write_text(source)
        registry.import_file(file)


@pytest.mark.usefixtures("examples")
def test_the_algorithm_of_the_guide_solves_the_world_of_the_guide():
    """Off policy: while it acts at random it learns what is best."""
    corridor = registry.environments.make("Corridor-v0")
    q_learning = registry.algorithms.make("linear-q", epsilon=1.0)

    state, record = jax.jit(fused.train, static_argnums=3)(q_learning, corridor, jax.random.key(0), 10_000)

    greedy = np.argmax(state.algorithm.weights, axis=-1)
    assert np.all(greedy[: corridor.length - 1] == 1), "every cell should send the agent to the right"
    lengths, returns = np.asarray(record.episodes.lengths), np.asarray(record.episodes.returns)
    assert np.any(lengths == corridor.max_episode_steps), "some episodes should run into the time limit"
    before_the_limit = (lengths > 0) & (lengths < corridor.max_episode_steps)
    np.testing.assert_array_equal(returns[before_the_limit], 1.0)
