"""Names, and the rule that makes algorithms and worlds JAX trees."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import pytest

from treadle import registry
from treadle.algorithms.base import Algorithm
from treadle.errors import TreadleError, UnknownName
from treadle.registry import Registry, as_float32, as_tree, import_file, is_static


@pytest.fixture
def fresh() -> Registry:
    """A registry of its own, over a package in which nothing registers anything."""
    return Registry("algorithm", "treadle.loops")


@pytest.fixture
def forgetful(monkeypatch):
    """What a test registers is forgotten afterwards."""
    for known in (registry.algorithms, registry.environments):
        known.names()
        monkeypatch.setattr(known, "_entries", dict(known._entries))


@as_tree
class Settings:
    rate: float = 0.5
    optional_rate: float | None = None
    parameters: Any = ()
    double: bool = False
    sizes: tuple[int, ...] = (64, 64)
    loss: Literal["huber", "squared"] = "huber"
    limit: int | None = None


make_settings: Any = Settings


@pytest.mark.parametrize(
    ("annotation", "static"),
    [
        (int, True),
        (bool, True),
        (str, True),
        (int | None, True),
        (tuple[int, ...], True),
        (Literal["a", "b"], True),
        (float, False),
        (float | None, False),
        (Any, False),
        (jax.Array, False),
    ],
    ids=str,
)
def test_numbers_with_a_fraction_and_trees_are_data_and_all_else_is_program(annotation, static):
    assert is_static(annotation) == static


def test_leaves_are_the_floats_and_trees():
    settings = make_settings(rate=0.25, parameters={"w": jnp.ones(2)}, limit=7)
    leaves = jax.tree.leaves(settings)
    assert leaves[0] == 0.25
    assert len(leaves) == 2
    doubled = jax.tree.map(lambda x: 2 * x, settings)
    assert doubled.rate == 0.5
    assert doubled.limit == 7


def test_a_new_rate_compiles_nothing_anew_and_a_new_structure_does():
    traces = []

    @jax.jit
    def use(settings):
        traces.append(settings.double)
        return settings.rate * (2 if settings.double else 1)

    assert use(as_float32(make_settings(rate=1.0))) == 1.0
    assert use(as_float32(make_settings(rate=3.0))) == 3.0
    assert traces == [False]
    assert use(as_float32(make_settings(rate=3.0, double=True))) == 6.0
    assert traces == [False, True]


def test_a_stack_of_settings_is_a_sweep():
    stack = jax.tree.map(lambda *x: jnp.stack(x), *[as_float32(make_settings(rate=r)) for r in (0.1, 0.2, 0.3)])
    result = jax.vmap(lambda settings: settings.rate * 10)(stack)
    assert jnp.allclose(result, jnp.array([1.0, 2.0, 3.0]))


def test_settings_cannot_be_changed_in_place_or_given_by_position():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_settings().rate = 1.0
    with pytest.raises(TypeError, match="positional"):
        make_settings(0.1)
    assert as_tree(Settings) is Settings


def test_one_class_may_have_several_names_with_other_defaults(fresh):
    @fresh.register("slow", rate=0.001)
    @fresh.register("fast")
    class Method:
        rate: float = 1.0

    assert fresh.names() == ["fast", "slow"]
    assert fresh.make("fast").rate == 1.0
    assert fresh.make("slow").rate == 0.001
    assert fresh.make("slow", rate=0.5).rate == 0.5
    assert fresh.entries()["slow"] == (Method, {"rate": 0.001})


def test_a_taken_name_is_refused_and_the_same_class_may_come_again(fresh):
    @fresh.register("method")
    class Method:
        rate: float = 1.0

    fresh.register("method")(Method)
    with pytest.raises(TreadleError, match=r"two algorithms want the name 'method'.*Method and .*Other"):

        @fresh.register("method")
        class Other:
            rate: float = 1.0

    assert fresh.find("method")[0] is Method


@pytest.mark.parametrize(("wrong", "right"), [("cartpole-v1", "CartPole-v1"), ("CartPol-v0", "CartPole-v0")])
def test_an_unknown_world_suggests_the_nearest_and_lists_all(wrong, right):
    with pytest.raises(UnknownName, match=f"no environment '{wrong}'.*Did you mean '{right}'") as refusal:
        registry.environments.make(wrong)
    for name in registry.environments.names():
        assert name in str(refusal.value)
    assert "--import" in str(refusal.value)


def test_suggestions_also_look_where_the_caller_says(fresh):
    fresh.register("sarsa")(type("Sarsa", (), {}))
    with pytest.raises(UnknownName, match="Did you mean 'FrozenLake-v1'"):
        fresh.find("FrozenLak-v1", also=["FrozenLake-v1"])
    with pytest.raises(UnknownName) as refusal:
        fresh.find("xyzzy")
    assert "Did you mean" not in str(refusal.value)


def test_looking_a_name_up_finds_the_built_in_files():
    assert "CartPole-v1" in registry.environments
    assert "dqn" in registry.algorithms
    assert issubclass(registry.algorithms.find("dqn")[0], Algorithm)


USER_FILE = '''
"""A user's method and world."""
import jax.numpy as jnp

from treadle.algorithms.base import Algorithm
from treadle.algorithms.base import register as register_algorithm
from treadle.environments.base import register as register_environment
from treadle.spaces import Box, Discrete
from treadle.types import Step


@register_algorithm("their-method")
class TheirMethod(Algorithm):
    boldness: float = 0.5


@register_environment("Their-World-v0")
class TheirWorld:
    max_episode_steps: int | None = 10

    @property
    def observation_space(self):
        return Box(-1.0, 1.0, (1,))

    @property
    def action_space(self):
        return Discrete(2)

    def reset(self, key):
        return (), jnp.zeros(1)

    def step(self, state, action, key):
        return (), Step(jnp.zeros(1), jnp.ones(()), jnp.array(True))
'''


@pytest.mark.usefixtures("forgetful")
def test_a_users_file_brings_its_algorithms_and_worlds(tmp_path):
    file = tmp_path / "theirs.py"
    file.write_text(USER_FILE)
    import_file(file)

    method = registry.algorithms.make("their-method", boldness=0.75, num_envs=4)
    assert (method.boldness, method.num_envs, method.name) == (0.75, 4, "their-method")
    world = registry.environments.make("Their-World-v0")
    assert world.max_episode_steps == 10
    assert world.name == "Their-World-v0"
    with pytest.raises(UnknownName, match="Did you mean 'their-method'"):
        registry.algorithms.find("their_method")

    import_file(file)
    assert registry.algorithms.make("their-method").boldness == 0.5, "a file may be brought twice"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("x = 1\ny = 1 / 0\n", r"bad\.py could not be imported \(line 2\): ZeroDivisionError: division by zero\."),
        ("import no_such_module\n", r"\(line 1\): ModuleNotFoundError: No module named 'no_such_module'\."),
        ("def broken(:\n", r"bad\.py could not be imported.*SyntaxError"),
    ],
)
def test_a_failing_file_gives_a_sentence(tmp_path, source, sentence):
    file = tmp_path / "bad.py"
    file.write_text(source)
    with pytest.raises(TreadleError, match=sentence):
        import_file(file)


def test_a_missing_file_and_another_kind_of_file_give_a_sentence(tmp_path):
    with pytest.raises(TreadleError, match=r"--import was given nowhere\.py, and there is no such file"):
        import_file("nowhere.py")
    notes = tmp_path / "notes.txt"
    notes.write_text("x = 1")
    with pytest.raises(TreadleError, match=r"not a Python file: its name should end in \.py"):
        import_file(notes)


@pytest.mark.usefixtures("forgetful")
def test_a_file_that_takes_a_built_in_name_is_refused(tmp_path):
    file = tmp_path / "rival.py"
    file.write_text(USER_FILE.replace("their-method", "dqn"))
    with pytest.raises(TreadleError, match="two algorithms want the name 'dqn'"):
        import_file(file)


def test_two_classes_with_equal_fields_are_different_trees():
    """Else a program that was compiled for one could be run for the other."""
    q_learning, expected = (registry.algorithms.make(name) for name in ("q-learning", "expected-sarsa"))
    assert jax.tree.structure(q_learning) == jax.tree.structure(registry.algorithms.make("q-learning", gamma=0.5))
    assert jax.tree.structure(q_learning) != jax.tree.structure(expected)
