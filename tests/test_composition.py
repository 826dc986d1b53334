"""Every option of DQN with every other: the runs of docs/composition.md, trained."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from pathlib import Path
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import PROBES, PROBING
from treadle import DQN, Dataset
from treadle.errors import InvalidSetting
from treadle.loops.choose import make_offline_trainer, make_trainer
from treadle.loops.rollout import make_spec

pytestmark = pytest.mark.least_optimised

_spec: Any = importlib.util.spec_from_file_location(
    "composition", Path(__file__).resolve().parent.parent / "docs" / "composition.py"
)
composition = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(composition)

RUNS = composition.runs()
QUICK = (1, 5)
"""The runs, counted from 1, that are trained whenever the tests run; the others are slow tests."""
CORRIDOR = next(probe for probe in PROBES if "corridor" in probe.name)
STEPS = 4_000


class Corridor(gymnasium.Env):
    """The corridor in Gymnasium."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._cell = int(self.np_random.integers(3))
        return np.eye(4, dtype=np.float32)[self._cell], {}

    def step(self, action):
        self._cell = min(max(self._cell + 2 * int(action) - 1, 0), 3)
        arrived = self._cell == 3
        return np.eye(4, dtype=np.float32)[self._cell], float(arrived), arrived, False, {}


def corridor() -> gymnasium.Env:
    return gymnasium.wrappers.TimeLimit(Corridor(), 20)


@pytest.fixture(scope="module")
def data() -> Dataset:
    """What a random policy sees in the corridor."""
    env, rows = corridor(), []
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=0)
    for _ in range(STEPS):
        action = int(rng.integers(2))
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, reward, next_obs, terminated, truncated))
        obs = env.reset()[0] if terminated or truncated else next_obs
    names = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
    columns: Any = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    return Dataset(**columns)


def trained(run: tuple[Any, ...], data: Dataset) -> Any:
    """A trainer that has made the run."""
    names = {option.name for option in run}
    algorithm = dataclasses.replace(PROBING, **{k: v for option in run for k, v in option.settings.items()})
    if composition.OWN_NETWORK in names:
        algorithm = dataclasses.replace(algorithm, network=eqx.nn.MLP(4, 2, 32, 1, key=jax.random.key(0)))
    seeds = 2 if composition.SEEDS in names else 1
    if composition.DATA in names:
        trainer = make_offline_trainer(algorithm, CORRIDOR.environment, data, STEPS, num_seeds=seeds)
    else:
        environment = corridor if composition.HOST in names else CORRIDOR.environment
        trainer = make_trainer(algorithm, environment, STEPS, num_seeds=seeds)
    trainer.advance(STEPS // algorithm.train_frequency)
    return trainer


@jax.jit
def _action_values(networks: Any, obs: Any) -> Any:
    """Of each seed's network `[S, N, A]`."""
    return jax.vmap(lambda network: jax.vmap(network)(obs))(networks)


@pytest.mark.parametrize(
    "run",
    [run if number in QUICK else pytest.param(run, marks=pytest.mark.slow) for number, run in enumerate(RUNS, 1)],
    ids=[str(number) for number in range(1, 1 + len(RUNS))],
)
def test_options_that_are_set_together_learn_together(run, data):
    """The values of n-step returns are those of the policy that acts, which is random half of the time; what is best
    stays best, and no value may exceed the best policy's."""
    trainer = trained(run, data)
    obs, values = CORRIDOR.values(PROBING.gamma)
    for q in np.asarray(_action_values(trainer.state.algorithm.network, jnp.asarray(obs, jnp.float32))):
        np.testing.assert_array_equal(q.argmax(axis=1), values.argmax(axis=1))
        assert (q < values + 0.12).all()
        if not any("returns" in option.name for option in run):
            np.testing.assert_allclose(q, values, atol=0.15)


def test_the_runs_cover_every_pair():
    sets = [{option.name for option in run} for run in RUNS]
    for a, b in itertools.combinations(composition.OPTIONS, 2):
        seen = {(a.name in names, b.name in names) for names in sets}
        assert seen == set(itertools.product((True, False), repeat=2)) - ({(True, True)} - _both(a, b))


def _both(a: Any, b: Any) -> set[tuple[bool, bool]]:
    return {(True, True)} if composition.composes(a, b) else set()


def test_the_page_is_what_the_script_writes():
    assert composition.PAGE.read_text() == composition.page()


def test_what_is_refused_is_refused_in_a_sentence():
    assert list(composition.REFUSED) == [frozenset({"dueling heads", composition.OWN_NETWORK})]
    own = eqx.nn.MLP(4, 2, 32, 1, key=jax.random.key(0))
    with pytest.raises(InvalidSetting, match=r"dueling \(--dueling\) shapes the built-in network"):
        DQN(dueling=True, network=own).check(make_spec(PROBING, CORRIDOR.environment, 1))
