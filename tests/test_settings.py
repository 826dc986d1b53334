"""Presets and settings as data: the same from a file, on the command line and in Python."""

from __future__ import annotations

import dataclasses
import json
import typing
from importlib import resources
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest

import treadle
from treadle import DQN, registry, settings
from treadle.errors import InvalidSetting, TreadleError, UnknownName
from treadle.loops.choose import resolve
from treadle.loops.host import host_spec
from treadle.loops.rollout import make_spec
from treadle.settings import Preset

PRESETS = settings.presets()
ALGORITHMS = registry.algorithms.names()


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is what a field's annotation says."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(v, arguments[0]) for v in value)
    if arguments:
        return any(fits(value, a) for a in arguments)
    return type(value) is annotation


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: f"{p.algorithm}-{p.environment}-{p.name}")
def test_a_preset_names_what_there_is_and_makes_sense(preset: Preset):
    assert preset.algorithm in registry.algorithms
    assert preset.about and type(preset.total_timesteps) is int and preset.total_timesteps > 0
    algorithm = preset.make()
    hints = typing.get_type_hints(type(algorithm))
    for field in dataclasses.fields(algorithm):
        value = getattr(algorithm, field.name)
        assert fits(value, hints[field.name]), f"{field.name} = {value!r}"

    game = preset.environment == settings.GAMES
    world = resolve(dataclasses.replace(preset.task(), environment="PongNoFrameskip-v4") if game else preset.task())
    if callable(world):
        environments = world(algorithm.num_envs)
        algorithm.check(host_spec(algorithm, environments, preset.total_timesteps))
        environments.close()
    else:
        algorithm.check(make_spec(algorithm, world, preset.total_timesteps))


def test_every_preset_file_is_found():
    folders = (resources.files("treadle") / "presets").iterdir()
    files = [f for d in folders if d.is_dir() for f in d.iterdir()]
    files = [f for f in files if f.name.endswith(".toml")]
    assert len(files) == len({(p.algorithm, p.environment) for p in PRESETS}) >= 2
    for preset in PRESETS:
        assert preset in treadle.presets(preset.algorithm, preset.environment)
        assert treadle.preset(preset.algorithm, preset.environment, preset.name) == preset
    games = ("ALE/Breakout-v5", "PongNoFrameskip-v4")
    assert [{p.environment for p in treadle.presets("dqn", game)} for game in games] == [{game} for game in games]
    assert treadle.preset("dqn", games[0]).settings == treadle.preset("dqn", settings.GAMES).settings
    assert treadle.presets("dqn", "no-such-world") == treadle.presets("no-such-algorithm") == []


def test_both_tutorials_agents_are_presets():
    first, second = (treadle.preset("dqn", name, "tutorial") for name in ("CartPole-v1", "CartPoleShaped-v1"))
    assert first.settings["max_grad_norm"] == "none"
    assert first.make().max_grad_norm is None, "a file has no word for None but this"
    assert first.make().hidden_sizes == (128, 128)
    assert second.make(num_envs=4, gamma=0.5).num_envs == 4
    assert second.make(gamma=0.5).gamma == 0.5 and second.make().gamma == 0.9


def test_a_preset_may_be_like_another():
    plain, double = (treadle.preset("dqn", "CartPole-v1", name) for name in ("default", "double"))
    assert double.settings == {**plain.settings, "double": True}
    assert double.total_timesteps == plain.total_timesteps
    assert "like" not in double.settings and double.about != plain.about


def test_a_misspelt_preset_suggests_the_nearest():
    with pytest.raises(UnknownName, match=r"no preset 'defualt'.*Did you mean 'default'\?.*rl-zoo, tutorial"):
        treadle.preset("dqn", "CartPole-v1", "defualt")
    with pytest.raises(UnknownName, match=r"no preset for dqn in FrozenLake-v1; `treadle list`"):
        treadle.preset("dqn", "FrozenLake-v1")


def test_settings_come_from_plain_data():
    made = settings.make("dqn", {"hidden_sizes": [3, 4], "gamma": 1, "max_grad_norm": "none", "double": True})
    assert made.hidden_sizes == (3, 4) and made.max_grad_norm is None and made.double is True
    assert type(made.gamma) is float
    with pytest.raises(InvalidSetting, match=r"dqn has no setting 'learning_rat'\. Did you mean 'learning_rate'\?"):
        settings.make("dqn", {"learning_rat": 0.1})
    with pytest.raises(UnknownName, match=r"no algorithm 'dqm'\. Did you mean 'dqn'\?"):
        settings.make("dqm", {})


@pytest.mark.parametrize("name", ALGORITHMS)
def test_settings_survive_being_written_and_read(name):
    """Through JSON, every field another than its default where that is a number."""
    algorithm = registry.algorithms.make(name)
    changed = {}
    for field in dataclasses.fields(algorithm):
        value = getattr(algorithm, field.name)
        if type(value) in (int, float):
            changed[field.name] = value + 1 if type(value) is int else value / 3
    algorithm = dataclasses.replace(algorithm, **changed)
    told = json.loads(json.dumps(settings.describe(algorithm)))
    restored = settings.restore(name, told)
    assert type(restored) is type(algorithm)
    for field in dataclasses.fields(algorithm):
        value, again = getattr(algorithm, field.name), getattr(restored, field.name)
        assert again == value and type(again) is type(value), field.name
    assert set(changed) and settings.describe(restored) == told


@pytest.mark.parametrize("rate", [np.float32(0.25), np.float64(0.25), jnp.float32(0.25), jnp.asarray(0.25)])
def test_a_number_in_an_array_is_a_number(rate):
    told = settings.describe(DQN(learning_rate=rate))
    assert told["learning_rate"] == 0.25 and type(told["learning_rate"]) is float
    assert settings.restore("dqn", json.loads(json.dumps(told))).learning_rate == 0.25


def test_a_network_of_the_users_own_must_be_given_again():
    def own(obs):
        return obs

    told = settings.describe(DQN(network=own))
    assert told["network"] == {"own": "function"}
    with pytest.raises(TreadleError, match=r"a network of its maker's own \(function\).*Give it again: network="):
        settings.restore("dqn", told)
    restored = settings.restore("dqn", told, network=own)
    assert restored.network is own


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("optimiser", "adamw", "one of adam, rmsprop, sgd"),
        ("epsilon_schedule", "cosine", "one of linear, exponential"),
        ("capacity", 1e5, "a whole number"),
        ("num_envs", True, "a whole number"),
        ("hidden_sizes", [64, 64], r"a tuple, such as \(64, 64\)"),
        ("hidden_sizes", 64, "a tuple"),
        ("double", "yes", "True or False"),
    ],
)
def test_a_setting_of_another_kind_is_told_in_a_sentence(name, value, expected):
    """On the command line the parser says it; Python must say it too, and not by an error deep inside of JAX."""
    given: Any = {name: value}
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(InvalidSetting, match=rf"{name} \({flag}\) was .*; it must be {expected}"):
        DQN(**given).check()


def test_the_checks_of_presets_see_what_is_wrong():
    nonsense = Preset("dqn", "CartPole-v1", "nonsense", "", 10, {"batch_size": 10, "capacity": 5})
    with pytest.raises(InvalidSetting, match="batch_size"):
        nonsense.make().check()
    hints = typing.get_type_hints(DQN)
    assert not fits("hubber", hints["loss"]) and not fits(1, hints["gamma"]) and not fits([3], hints["hidden_sizes"])
