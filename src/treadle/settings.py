"""An algorithm's settings as data: presets from files, values for a run's metadata, and back."""

from __future__ import annotations

import dataclasses
import tomllib
from importlib import resources
from typing import Any

import jax
import numpy as np

from treadle import registry
from treadle.environments import atari
from treadle.environments.wrappers import Task, wrap
from treadle.errors import InvalidSetting, TreadleError, UnknownName, nearest

GAMES = "Atari"
"""What stands for every Atari game that has no presets of its own, in an algorithm's presets."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """Tuned settings for an algorithm in an environment: the same for the command line and for Python."""

    algorithm: str
    environment: str
    name: str
    about: str
    total_timesteps: int | None
    settings: dict[str, Any]
    wrappers: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What is changed about the environment: the file's sub-table `environment`."""

    def task(self, **changes: Any) -> Task:
        """The environment with what the preset changes about it, `changes` on top."""
        return wrap(self.environment, **{**self.wrappers, **changes})

    def make(self, **changes: Any) -> Any:
        """The algorithm with these settings, `changes` on top."""
        return make(self.algorithm, {**self.settings, **changes})


def make(algorithm: str, settings: dict[str, Any]) -> Any:
    """An algorithm from plain data (lists become tuples, whole numbers become floats where a float is expected).

    Raises `InvalidSetting` for a setting that the algorithm does not have.
    """
    cls, overrides = registry.algorithms.find(algorithm)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for name, value in {**overrides, **settings}.items():
        if name not in fields:
            raise InvalidSetting(f"{algorithm} has no setting '{name}'.{nearest(name, fields)}")
        if isinstance(value, list):
            value = tuple(value)
        if value == "none":  # TOML has no word for it
            value = None
        if isinstance(value, int) and not isinstance(value, bool) and "float" in str(fields[name].type):
            value = float(value)
        values[name] = value
    return cls(**values)


def describe(algorithm: Any) -> dict[str, Any]:
    """The settings of an algorithm, or of wrappers, as JSON values. A network of the user's own is named but not
    described: its weights are in the checkpoint, its form is in the user's code."""
    values = {}
    for f in dataclasses.fields(algorithm):
        value = getattr(algorithm, f.name)
        if isinstance(value, (np.generic, np.ndarray, jax.Array)) and value.ndim == 0:
            value = value.item()
        if value is None or isinstance(value, (bool, int, float, str)):
            values[f.name] = value
        elif isinstance(value, tuple):
            values[f.name] = list(value)
        else:
            values[f.name] = {"own": type(value).__name__}
    return values


def restore(algorithm: str, settings: dict[str, Any], **own: Any) -> Any:
    """The inverse of `describe`. Parts of the user's own must be given again as `own`.

    Raises `TreadleError` naming the part that is missing, or that there is none of a name.
    """
    values = dict(settings)
    unknown = [name for name in own if name not in settings]
    if unknown:
        raise TreadleError(
            f"{algorithm} has no part '{unknown[0]}' that could be given.{nearest(unknown[0], settings)}"
        )
    for name, value in settings.items():
        if isinstance(value, dict) and "own" in value:
            if own.get(name) is None:
                article = "an" if name[0] in "aeiou" else "a"
                raise TreadleError(
                    f"this was saved with {article} {name} of its maker's own ({value['own']}), which a file cannot "
                    f"bring back. Give it again: {name}=..."
                )
            values[name] = own[name]
    return make(algorithm, values)


def presets(algorithm: str | None = None, environment: str | None = None) -> list[Preset]:
    """All presets, or those of an algorithm or an environment; an Atari game without its own has those of all
    games. Raises `UnknownName` for Atari ids that cannot be played here, such as where ale-py is not installed."""
    found = []
    for folder in sorted((resources.files("treadle") / "presets").iterdir(), key=lambda f: f.name):
        if not folder.is_dir() or algorithm not in (None, folder.name):
            continue
        for file in sorted(folder.iterdir(), key=lambda f: f.name):
            if file.name.endswith(".toml"):
                found += _read(folder.name, file)
    own = [p for p in found if environment in (None, p.environment)]
    if own or environment is None or environment in registry.environments:
        return own
    shared = [p for p in found if p.environment == GAMES]
    if not shared or atari.game_of(environment) is None:
        return []
    return [dataclasses.replace(p, environment=environment) for p in shared]


def preset(algorithm: str, environment: str, name: str = "default") -> Preset:
    """The named preset. Raises `UnknownName` with the nearest name."""
    candidates = presets(algorithm, environment)
    for candidate in candidates:
        if candidate.name == name:
            return candidate
    if not candidates:
        raise UnknownName(f"there is no preset for {algorithm} in {environment}; `treadle list` shows which there are.")
    known = [p.name for p in candidates]
    raise UnknownName(
        f"there is no preset '{name}' for {algorithm} in {environment}.{nearest(name, known)} There is: "
        f"{', '.join(known)}."
    )


def _read(algorithm: str, file: Any) -> list[Preset]:
    environment = file.name.removesuffix(".toml").replace("__", "/")
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    return [
        Preset(
            algorithm,
            environment,
            name,
            table.pop("about", ""),
            table.pop("total_timesteps", None),
            wrappers=table.pop("environment", {}),
            settings=table,
        )
        for name, table in ((name, _whole(content, name)) for name in content)
    ]


def _whole(content: dict[str, Any], name: str) -> dict[str, Any]:
    """A table of a file of presets with what it takes from the one that it is `like`."""
    own = dict(content[name])
    return (_whole(content, own.pop("like")) if "like" in own else {}) | own
