"""The examples of CONTRIBUTING.md are complete files that work as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from treadle import registry
from treadle.loops import fused
from treadle.loops.play import WorldPlayer
from treadle.loops.rollout import make_spec
from treadle.registry import as_float32

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


@pytest.mark.usefixtures("examples")
def test_the_world_of_the_guide_can_be_watched_and_played():
    corridor = registry.environments.make("Corridor-v0", slip=0.0)
    player = WorldPlayer(as_float32(corridor))
    algorithm = as_float32(registry.algorithms.make("linear-q"))
    spec = make_spec(algorithm, corridor, 1)
    player.follow(algorithm, algorithm.init(jax.random.key(0), spec), spec)
    player.reset(0)
    player.move("agent", (2.3, 0.5))
    player.step(player.keys["ArrowRight"])
    picture: Any = player.see().picture
    assert picture.handles[0].at == (3.5, 0.5)
    for _ in range(4):
        player.step(player.keys["ArrowRight"])
    assert (player.see().reward, player.ended, player.see().success) == (1.0, "terminated", True)
