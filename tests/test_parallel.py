"""Data-parallel seeds: what several devices learn together is what one learns alone, and each does its part."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from treadle import A2C, DQN, PPO, CartPole, Pendulum, checkpoint, registry
from treadle.algorithms.ddpg import DDPG
from treadle.errors import InvalidSetting, UnsupportedSpace
from treadle.loops import parallel
from treadle.loops.parallel import DataParallelSeeds
from treadle.loops.rollout import make_spec
from treadle.loops.seeds import FusedSeeds
from treadle.registry import as_float32
from treadle.sharding import DATA, split_rows, whole

pytestmark = pytest.mark.least_optimised

UPDATES = 12
"""Past the time limit, for methods that learn at an episode's end; few enough for rounding errors to stay small."""
SMALLER = {
    "num_envs": 4,
    "rollout_length": 5,
    "epochs": 2,
    "num_minibatches": 2,
    "capacity": 60,
    "batch_size": 6,
    "learning_starts": 0,
    "hidden_sizes": (8,),
    "max_episode_length": 200,
}
"""What makes an algorithm that has such settings quick."""
WORLDS = (
    as_float32(CartPole(max_episode_steps=6)),
    as_float32(Pendulum(max_episode_steps=6)),
    as_float32(registry.environments.make("Maze", max_episode_steps=6)),
    as_float32(registry.environments.make("RandomWalk", max_episode_steps=6)),
)
SMALL = as_float32(DQN(capacity=60, batch_size=6, learning_starts=8, hidden_sizes=(8,), num_envs=4))


def world_for(algorithm: Any) -> Any:
    """The first of the worlds that the algorithm serves."""
    for world in WORLDS:
        try:
            algorithm.check(make_spec(algorithm, world, 1_000))
        except UnsupportedSpace:
            continue
        return world
    raise AssertionError(f"{algorithm} serves none of the worlds")


def close(a: Any, b: Any, rtol: float = 1e-3, atol: float = 1e-4) -> None:
    """Equal but for rounding in what is real, and else to the last bit."""
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        x, y = (jax.random.key_data(z) if jnp.issubdtype(z.dtype, jax.dtypes.prng_key) else z for z in (x, y))
        where = jax.tree_util.keystr(path)
        assert x.shape == y.shape, where
        real = np.issubdtype(x.dtype, np.floating)
        np.testing.assert_allclose(x, y, rtol * real, atol * real, err_msg=where)


def learn_alike(algorithm: Any, world: Any, num_seeds: int = 1, layout: Any = "map", keep_data: bool = False) -> None:
    """Train on two devices and on one, and compare all that there is to compare."""
    algorithm = as_float32(algorithm)
    steps = UPDATES * algorithm.num_envs * algorithm.num_steps
    one = FusedSeeds(algorithm, world, steps, 3, num_seeds, layout, keep_data)
    two = DataParallelSeeds(algorithm, world, steps, 3, num_seeds, 2, layout, keep_data)
    first = jax.device_get(one.state)
    close(first, jax.device_get(two.state), rtol=0, atol=1e-6)
    alone, together = one.advance(UPDATES), two.advance(UPDATES)
    close(alone, together)
    # Replay memory holds numbers as words, which rounding changes by more than their value.
    learned, learned_together = (without_words(jax.device_get(trainer.state)) for trainer in (one, two))
    close(learned, learned_together)
    pairs = zip(jax.tree.leaves(without_words(first).algorithm), jax.tree.leaves(learned.algorithm), strict=True)
    assert any(not np.array_equal(x, y) for x, y in pairs if np.issubdtype(x.dtype, np.floating)), "something learned"
    assert (together.data is not None) == keep_data


def without_words(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.zeros(x.shape) if x.dtype == np.uint32 else x, tree)


QUICK = ("dqn", "ppo", "q-learning", "sarsa-lambda")
"""Of each way in which work is split, or is not."""


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in registry.algorithms.names()],
)
def test_two_devices_learn_what_one_learns(name):
    cls, _ = registry.algorithms.find(name)
    fields = {f.name for f in dataclasses.fields(cls)}
    algorithm = registry.algorithms.make(name, **{k: v for k, v in SMALLER.items() if k in fields})
    learn_alike(algorithm, world_for(algorithm))


@pytest.mark.parametrize(
    "algorithm",
    [
        DQN(**{**vars(SMALL), "prioritized": True, "n_step": 3, "double": True, "batch_size": 5}),
        pytest.param(
            PPO(
                **{k: SMALLER[k] for k in ("num_envs", "rollout_length", "num_minibatches", "hidden_sizes")},
                penalty="kl",
                stop_at_kl=4.0,
                normalise_observations=True,
                normalise_rewards=True,
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            DDPG(
                **{k: SMALLER[k] for k in ("num_envs", "batch_size", "capacity", "learning_starts", "hidden_sizes")},
                noise="ornstein-uhlenbeck",
                normalise_observations=True,
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["dqn", "ppo", "ddpg"],
)
def test_so_they_do_with_seeds_side_by_side_and_every_kind_of_state(algorithm):
    """Five rows are a batch that two devices cannot halve."""
    learn_alike(algorithm, world_for(algorithm), num_seeds=2, layout="vmap", keep_data=True)


def compiled(trainer: DataParallelSeeds) -> str:
    """The program of one device."""
    advance = parallel._compiled_advance(trainer._mesh, trainer._layout, False)
    with jax.set_mesh(trainer._mesh):
        return advance.lower(trainer.algorithm, trainer.environment, trainer._state, 2).compile().as_text()


@pytest.mark.parametrize(
    ("algorithm", "rows"),
    [
        (PPO(num_envs=6, rollout_length=10, num_minibatches=3, hidden_sizes=(23,)), 20),
        (A2C(num_envs=6, rollout_length=5, hidden_sizes=(23,)), 30),
        (DQN(num_envs=6, capacity=99, batch_size=14, learning_starts=8, hidden_sizes=(23,)), 14),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_each_device_has_half_of_the_work_and_gradients_are_summed(algorithm, rows):
    """The hidden layer of 23 units shows for how many rows a network is evaluated."""
    text = compiled(DataParallelSeeds(as_float32(algorithm), WORLDS[0], 1_000))
    hidden = {tuple(map(int, shape.split(","))) for shape in re.findall(r"f32\[([\d,]+),23\]", text)}
    sizes = {int(np.prod(shape)) for shape in hidden}
    assert rows // 2 in sizes and rows not in sizes
    assert 3 in sizes and 6 not in sizes, "the environments in which it acts"
    assert any("f32[23]" in line for line in text.splitlines() if " all-reduce(" in line), "the gradient of a bias"


def test_a_state_is_whole_on_every_device_and_what_acts_is_split():
    trainer = DataParallelSeeds(SMALL, WORLDS[0], 1_000, num_seeds=3)
    for _ in range(2):
        learned, acting = trainer._state.algorithm, trainer._state.actor
        assert all(x.sharding.is_fully_replicated and len(x.devices()) == 2 for x in jax.tree.leaves(learned))
        assert {x.sharding.shard_shape(x.shape)[:2] for x in jax.tree.leaves(acting)} == {(3, 2)}
        trainer.advance(UPDATES)
    for tree in (trainer.state, trainer.policies()):
        assert {len(x.devices()) for x in jax.tree.leaves(tree)} == {1}, "to index what is spread makes devices wait"


def test_a_checkpoint_goes_on_exactly_and_serves_one_device_too(tmp_path):
    through = DataParallelSeeds(SMALL, WORLDS[0], 1_000, num_seeds=3)
    through.advance(UPDATES)
    checkpoint.save(tmp_path / "run.safetensors", through.state, {})
    through.advance(UPDATES)
    for kind, tolerance in ((DataParallelSeeds, 0.0), (FusedSeeds, 1e-4)):
        resumed = kind(SMALL, WORLDS[0], 1_000, seed=77, num_seeds=3)
        state, _ = checkpoint.load(tmp_path / "run.safetensors", resumed.state)
        resumed.restore(state)
        resumed.advance(UPDATES)
        states = (without_words(jax.device_get(trainer.state)) for trainer in (through, resumed))
        close(*states, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("devices", "num_envs", "sentence"),
    [
        (3, 6, r"devices \(--devices\) was 3; it must be at most 2, .*JAX_NUM_CPU_DEVICES=3"),
        (2, 5, r"devices \(--devices\) was 2; it must be a divisor of num_envs \(--num-envs\), which is 5"),
        (0, 4, r"devices \(--devices\) was 0; it must be a whole number, at least 1"),
        (1.5, 4, r"devices \(--devices\) was 1\.5; it must be a whole number"),
    ],
)
def test_devices_that_cannot_share_the_work_are_told(devices, num_envs, sentence):
    algorithm = dataclasses.replace(SMALL, num_envs=num_envs)
    with pytest.raises(InvalidSetting, match=sentence):
        DataParallelSeeds(algorithm, WORLDS[0], 1_000, devices=devices)


def test_without_a_mesh_for_it_nothing_is_split():
    """So every other program is what it was, to the last bit."""
    rows = jnp.zeros((4, 3))

    def equations() -> list[str]:
        return [str(e.primitive) for e in jax.make_jaxpr(lambda x: whole(split_rows(x)))(rows).eqns]

    assert equations() == []
    for axis, kind, expected in ((DATA, "Auto", 2), ("seeds", "Auto", 0), (DATA, "Explicit", 0)):
        with jax.set_mesh(Mesh(np.asarray(jax.devices()[:2]), (axis,), axis_types=(AxisType[kind],))):
            assert equations() == ["sharding_constraint"] * expected
