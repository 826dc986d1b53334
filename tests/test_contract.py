"""What every registered algorithm and world must keep: a new file is tested the moment it exists."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from treadle import checkpoint, registry
from treadle.algorithms.base import Algorithm
from treadle.environments.base import Environment
from treadle.environments.gymnasium import GymnasiumEnvironments, counterpart
from treadle.errors import UnsupportedSpace
from treadle.loops.rollout import collect, make_spec, start
from treadle.loops.seeding import seed_key
from treadle.registry import as_float32, as_tree
from treadle.spaces import Box, Discrete
from treadle.types import Alarm, Step, select

pytestmark = pytest.mark.least_optimised

ALGORITHMS = registry.algorithms.names()
WORLDS = registry.environments.names()


def shapes(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda: tree))
    return structure, [(x.shape, x.dtype) for x in leaves]


def is_in(space: Any, values: Any) -> bool:
    """Whether an array `[..., *shape]` holds elements of the space alone."""
    values = np.asarray(values)
    if values.dtype != np.dtype(space.dtype) or values.shape[values.ndim - len(space.shape) :] != tuple(space.shape):
        return False
    if isinstance(space, Discrete):
        return bool(((values >= space.start) & (values < space.start + space.n)).all())
    return bool(((values >= np.asarray(space.low)) & (values <= np.asarray(space.high))).all())


# Worlds


@functools.partial(jax.jit, static_argnums=2)
def walk(world: Any, key: jax.Array, steps: int = 50) -> Any:
    """Random steps, and a reset wherever an episode terminates: first observation, actions, and what `step` gave."""

    def one_step(state, key):
        action_key, step_key, reset_key = jax.random.split(key, 3)
        action = world.action_space.sample(action_key)
        state, step = world.step(state, action, step_key)
        return select(step.terminated, world.reset(reset_key)[0], state), (action, step)

    first_key, key = jax.random.split(key)
    state, obs = world.reset(first_key)
    _, (actions, steps_taken) = jax.lax.scan(one_step, state, jax.random.split(key, steps))
    return obs, actions, steps_taken


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_gives_what_its_spaces_say(name):
    world = registry.environments.make(name)
    assert isinstance(world, Environment)
    first, actions, steps = walk(as_float32(world), seed_key(0))
    assert is_in(world.observation_space, first)
    assert is_in(world.observation_space, steps.obs)
    counted_from_0 = Discrete(world.action_space.n) if isinstance(world.action_space, Discrete) else world.action_space
    assert is_in(counted_from_0, actions)
    assert np.isfinite(steps.reward).all()
    assert steps.reward.dtype == jnp.float32 and steps.reward.shape == (50,)
    assert steps.terminated.dtype == jnp.bool_ and steps.terminated.shape == (50,)


@pytest.mark.parametrize("name", WORLDS)
def test_a_worlds_state_keeps_its_form(name):
    world = as_float32(registry.environments.make(name))
    state, obs = jax.eval_shape(world.reset, jax.random.key(0))
    action = jax.eval_shape(world.action_space.sample, jax.random.key(0))
    after, step = jax.eval_shape(world.step, state, action, jax.random.key(0))
    assert shapes(after) == shapes(state)
    assert isinstance(step, Step)
    assert shapes(step.obs) == shapes(obs)


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_is_a_function_of_its_keys(name):
    world = as_float32(registry.environments.make(name))
    keys = jnp.stack([seed_key(i) for i in range(3)])
    together = jax.jit(jax.vmap(lambda world, key: walk(world, key), in_axes=(None, 0)))(world, keys)
    for i, key in enumerate(keys):
        once, again = walk(world, key), walk(world, key)
        jax.tree.map(np.testing.assert_array_equal, once, again)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a, b[i], atol=1e-5), once, together)


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_says_when_time_is_up_and_what_it_is(name):
    world = registry.environments.make(name)
    limit = world.max_episode_steps
    assert limit is None or (type(limit) is int and limit >= 1)
    assert type(world).__doc__ and inspect.getmodule(type(world)).__doc__  # pyright: ignore[reportOptionalMemberAccess]
    task = getattr(world, "evaluated_as", None)
    assert task is None or task in registry.environments or counterpart(task)


@functools.cache
def worlds_with(offer: str) -> list[str]:
    """The names of the worlds that have it."""
    return [name for name in WORLDS if hasattr(registry.environments.make(name), offer)]


@functools.cache
def beginning(name: str) -> Any:
    """A first state and observation, as plain numbers."""
    return jax.device_get(jax.jit(registry.environments.make(name).reset)(jax.random.key(0)))


@pytest.mark.parametrize("name", worlds_with("keys"))
def test_a_key_stands_for_an_action(name):
    world = registry.environments.make(name)
    assert world.keys
    for key, action in world.keys.items():
        assert key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "PageUp", "PageDown")
        assert is_in(world.action_space, np.asarray(action, world.action_space.dtype))


@pytest.mark.parametrize("name", worlds_with("action_names"))
def test_every_action_has_a_name_of_its_own(name):
    world = registry.environments.make(name)
    space = world.action_space
    assert len(set(world.action_names)) == (space.n if isinstance(space, Discrete) else space.shape[0])


@pytest.mark.parametrize("name", worlds_with("observe"))
def test_what_a_person_may_move_goes_there_and_is_observed(name):
    world = jax.device_get(as_float32(registry.environments.make(name)))
    state, obs = beginning(name)
    observe = jax.jit(world.observe)
    np.testing.assert_allclose(observe(state), obs, atol=1e-6)
    scene = world.scene(state)
    assert scene.handles and len({handle.name for handle in scene.handles}) == len(scene.handles)
    middle = np.add(scene.low, scene.high) / 2
    for place, handle in enumerate(scene.handles):
        way = middle - handle.at
        to = tuple(handle.at + 1.5 * handle.radius * way / np.linalg.norm(way))
        moved = world.move(state, handle.name, to)
        assert shapes(moved) == shapes(state)
        assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(moved))
        after = world.scene(moved).handles[place]
        assert after.name == handle.name
        assert np.linalg.norm(np.subtract(after.at, handle.at)) > 0
        assert np.linalg.norm(np.subtract(after.at, to)) < 1.5 * handle.radius, (
            "nearer than it was, on one axis at least"
        )
        seen = observe(moved)
        assert is_in(world.observation_space, seen) and not np.array_equal(seen, obs)


@pytest.mark.parametrize("name", worlds_with("scene"))
def test_handles_come_with_what_moves_them(name):
    world = registry.environments.make(name)
    if world.scene(beginning(name)[0]).handles:
        assert hasattr(world, "move") and hasattr(world, "observe")


@pytest.mark.parametrize("name", [name for name in WORLDS if counterpart(name)])
def test_a_world_of_gymnasiums_name_is_gymnasiums(name):
    world, theirs = registry.environments.make(name), GymnasiumEnvironments(name)
    assert theirs.max_episode_steps == world.max_episode_steps
    assert theirs.action_space == world.action_space
    space: Any = world.observation_space
    other: Any = theirs.observation_space
    assert type(space) is type(other) and space.shape == other.shape and np.dtype(space.dtype) == np.dtype(other.dtype)
    if isinstance(other, Box):
        np.testing.assert_allclose(np.asarray(space.low), np.asarray(other.low), rtol=1e-6)
        np.testing.assert_allclose(np.asarray(space.high), np.asarray(other.high), rtol=1e-6)
    theirs.close()


# Algorithms


@as_tree
class Line:
    """Somewhere on a line; a step goes by the action, left or right. Beyond 1 it is over."""

    continuous: bool = False
    cells: bool = False
    max_episode_steps: int | None = 6

    @property
    def observation_space(self) -> Any:
        return Discrete(9) if self.cells else Box(-2.0, 2.0, (2,))

    @property
    def action_space(self) -> Any:
        return Box(-1.0, 1.0, (1,)) if self.continuous else Discrete(3)

    def reset(self, key):
        state = jax.random.uniform(key, (2,), minval=-0.5, maxval=0.5)
        return state, self.observe(state)

    def step(self, state, action, key):
        push = action[0] if self.continuous else 0.5 * (action - 1)
        state = jnp.clip(state.at[0].add(push), -2.0, 2.0)
        return state, Step(self.observe(state), -jnp.abs(state[0]), jnp.abs(state[0]) > 1)

    def observe(self, state):
        return jnp.round(2 * state[0] + 4).astype(jnp.int32) if self.cells else state


SMALLER = {
    "num_envs": 2,
    "capacity": 64,
    "batch_size": 4,
    "learning_starts": 0,
    "hidden_sizes": (8,),
    "max_episode_length": 8,
}
"""What makes an algorithm that has such settings quick."""


def world_for(algorithm: Algorithm) -> Any:
    """The first of a few worlds that the algorithm serves."""
    with_a_table = registry.environments.make("RandomWalk")
    for world in map(as_float32, (Line(), Line(continuous=True), Line(cells=True), with_a_table)):
        try:
            algorithm.check(make_spec(algorithm, world, 1_000))
        except UnsupportedSpace:
            continue
        return world
    raise AssertionError(f"{algorithm} serves none of the worlds")


@functools.cache
def trained(name: str) -> Any:
    """An algorithm, its spec, and the states and metrics of two seeds after some rounds, compiled side by side."""
    cls, _ = registry.algorithms.find(name)
    fields = {f.name for f in dataclasses.fields(cls)}
    algorithm = as_float32(registry.algorithms.make(name, **{k: v for k, v in SMALLER.items() if k in fields}))
    world = world_for(algorithm)
    spec = make_spec(algorithm, world, 1_000)

    def init(key):
        return algorithm.init(key, spec), start(world, algorithm.init_carry(spec), spec.num_envs, key)

    def one_round(state, actor, key):
        actor, rollout, _ = collect(algorithm, world, spec, state, actor, key)
        state, metrics = algorithm.update(state, rollout, key)
        return state, actor, metrics

    keys = jnp.stack([seed_key(i) for i in range(2)])
    state, actor = jax.jit(jax.vmap(init))(keys)
    first, step = state, jax.jit(jax.vmap(one_round))
    for _ in range(12):  # past the time limit, for methods that learn at an episode's end
        state, actor, metrics = step(state, actor, keys)
    return algorithm, spec, first, state, metrics


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithms_own_settings_make_sense(name):
    algorithm = registry.algorithms.make(name)
    assert isinstance(algorithm, Algorithm)
    algorithm.check()
    world_for(algorithm)
    assert type(algorithm.num_steps) is int and algorithm.num_steps >= 1


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_its_place_in_the_survey(name):
    survey = registry.algorithms.find(name)[0].survey
    hints = typing.get_type_hints(type(survey))
    assert all(value in typing.get_args(hints[axis]) for axis, value in survey._asdict().items())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_setting_of_an_algorithm_is_explained(name):
    """The string below a field is its help on the command line."""
    cls, _ = registry.algorithms.find(name)
    assert cls.__doc__ and inspect.getmodule(cls).__doc__  # pyright: ignore[reportOptionalMemberAccess]
    explained = set()
    for owner in (c for c in cls.__mro__ if c is not object):
        module = ast.parse(inspect.getsource(inspect.getmodule(owner)))  # pyright: ignore[reportArgumentType]
        found = [n for n in ast.walk(module) if isinstance(n, ast.ClassDef) and n.name == owner.__name__]
        for statement, following in zip(found[0].body, found[0].body[1:], strict=False):
            says = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and says:
                explained.add(statement.target.id)
    assert {f.name for f in dataclasses.fields(cls)} <= explained


@pytest.mark.parametrize("name", ALGORITHMS)
def test_learning_keeps_the_form_of_an_algorithms_state(name):
    _, _, first, state, _ = trained(name)
    assert shapes(state) == shapes(first)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating))
    before, after = jax.tree.leaves(first), jax.tree.leaves(state)
    assert any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)), "nothing was learned"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithms_metrics_are_numbers(name):
    *_, metrics = trained(name)
    assert metrics
    for metric_name, metric in metrics.items():
        assert metric_name.isidentifier()
        dtype = jnp.bool_ if isinstance(metric, Alarm) else jnp.float32
        for part in jax.tree.leaves(metric):
            assert part.shape == (2,) and part.dtype == dtype, f"{metric_name}: a {dtype.__name__} for each seed"
            assert np.isfinite(part).all()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_without_exploring_the_policy_alone_acts_and_always_alike(name):
    algorithm, spec, _, states, _ = trained(name)
    state = jax.tree.map(lambda x: x[0], states)
    obs = jax.vmap(spec.observation_space.sample)(jax.random.split(jax.random.key(1), 5))
    carry = algorithm.init_carry(dataclasses.replace(spec, num_envs=5))

    @jax.jit
    def act(state, key):
        return algorithm.act(state, carry, obs, key, explore=False)[:2]

    action, after = act(state, jax.random.key(0))
    assert is_in(spec.action_space, action) and len(action) == 5
    assert shapes(after) == shapes(carry)
    for other in (act(state, jax.random.key(7)), act(algorithm.policy(state), jax.random.key(8))):
        jax.tree.map(np.testing.assert_array_equal, other, (action, after))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithms_state_survives_a_checkpoint(name, tmp_path):
    _, _, first, state, _ = trained(name)
    checkpoint.save(tmp_path / "state.safetensors", state, {})
    loaded, _ = checkpoint.load(tmp_path / "state.safetensors", first)
    assert shapes(loaded) == shapes(state)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(state), strict=True):
        a, b = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
        np.testing.assert_array_equal(a, b)
