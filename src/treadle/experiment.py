"""What an experiment is: trials over many seeds, a figure of them, and the claims that it should bear out.

The experiments themselves are the files of `treadle/experiments`, each with one `EXPERIMENT`.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib
import json
import pkgutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from treadle import figures, registry, settings
from treadle.algorithms.base import Algorithm, require
from treadle.environments.base import Environment
from treadle.environments.wrappers import wrap
from treadle.errors import TreadleError, UnknownName, nearest
from treadle.files import replacing
from treadle.loops.crew import Crew
from treadle.loops.crew_looks import look_at_crews
from treadle.loops.looks import Observe, Unit, look_at_seeds
from treadle.run import versions, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_KEPT = 200_000
"""Numbers of an observed array that is kept among the data; a larger one can be made anew."""


class Outcome(NamedTuple):
    """What a trial gave, for each of `S` seeds and at each of `N` looks."""

    returns: np.ndarray
    """`[S, N]`: of the episode that ended before a look."""
    lengths: np.ndarray
    """`[S, N]`: its steps; 0 where none ended."""
    ended: np.ndarray
    """`[S, N]`: how many episodes ended since the look before. Where several, the two above are their sums."""
    observed: Any
    """What the trial's `observe` kept: a tree of `[S, N, ...]`."""


@dataclass(frozen=True)
class Trial:
    """An algorithm in an environment, for so many episodes or updates of each seed."""

    label: str
    algorithm: str
    environment: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    world: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the environment that differ from its defaults."""
    wrappers: Mapping[str, Any] = field(default_factory=dict)
    """What is changed about the environment beyond that: fields of `treadle.wrap`."""
    episodes: int | None = None
    updates: int | None = None
    every: int = 1
    """Updates between two looks; a rest that fills no such span is left out."""
    observe: Observe | None = None
    """What to keep of the learner at each look, which is after each episode or after `every` updates."""
    seeds: int | None = None
    """At most so many seeds, where the experiment has more."""
    crew: Crew | None = None
    """By how many workers steps are taken; by one loop unless given. Counted in updates only."""

    @classmethod
    def of_preset(cls, label: str, preset: settings.Preset, **fields: Any) -> Trial:
        """A trial with a preset's settings, changes to its environment, and length."""
        algorithm = preset.make()
        steps = algorithm.num_steps * algorithm.num_envs
        length = {} if preset.total_timesteps is None else {"updates": -(-preset.total_timesteps // steps)}
        own = {"settings": preset.settings, "wrappers": preset.wrappers, **length}
        return cls(label, preset.algorithm, preset.environment, **{**own, **fields})

    def made(self) -> tuple[Algorithm, Environment, int, Unit]:
        """What is trained, where, and for how many looks. Raises `TreadleError` where the settings do not fit."""
        from treadle.loops.rollout import make_spec

        algorithm = settings.make(self.algorithm, dict(self.settings))
        world = registry.environments.make(self.environment, **self.world)
        world = wrap(world, **self.wrappers) if self.wrappers else world
        algorithm.check(make_spec(algorithm, world, 1))
        count = self.episodes if self.updates is None else self.updates // self.every
        assert count, f"{self.label} needs a number of episodes, or of updates that reaches a look"
        return algorithm, world, count, "episode" if self.updates is None else "update"

    def run(self, seed: int, seeds: int) -> Outcome:
        """Train every seed. Raises `TreadleError` where the settings do not fit."""
        algorithm, world, count, unit = self.made()
        if self.crew is not None:
            assert unit == "update" and self.observe is not None, f"{self.label}: workers are looked at after updates"
            looks = look_at_crews(algorithm, world, count, self.observe, self.crew, self.every, seed, seeds)
        else:
            looks = look_at_seeds(algorithm, world, count, self.observe, unit, seed, seeds, self.every)
        return Outcome(*jax.device_get(looks))


Outcomes = Mapping[str, Outcome]
"""The outcome of each trial, by its label."""


class Verdict(NamedTuple):
    """Whether a claim held, and the figures that say so."""

    holds: bool
    figures: str


@dataclass(frozen=True)
class Claim:
    """A sentence about the outcomes, and how to judge it."""

    text: str
    judge: Callable[[Outcomes], Verdict]
    expected: bool = True
    """Whether it is known to hold; what somebody claimed and what was found not to hold stays, and the tests say so."""


@dataclass(frozen=True)
class Experiment:
    """What is trained, drawn and claimed. Its name is that of its file."""

    about: str
    source: str
    """Where it comes from: the book or paper, and the number of the figure."""
    trials: tuple[Trial, ...]
    draw: Callable[[Figure, Outcomes], None]
    claims: tuple[Claim, ...] = ()
    seeds: int = 30
    size: tuple[float, float] = (8.0, 4.8)
    """Of the figure, in inches."""

    def run(self, seed: int = 0, seeds: int | None = None, tell: Callable[[str], None] = lambda text: None) -> Outcomes:
        """Every trial in turn; `tell` is given the label of each as it begins."""
        outcomes = {}
        for trial in self.trials:
            tell(trial.label)
            number = self.seeds if seeds is None else seeds
            outcomes[trial.label] = trial.run(seed, min(number, trial.seeds or number))
        return outcomes


class Judged(NamedTuple):
    """A claim as it was found."""

    claim: str
    holds: bool
    figures: str


@functools.cache
def experiments() -> dict[str, Experiment]:
    """All experiments by name, which is that of their file with dashes."""
    package = importlib.import_module("treadle.experiments")
    found = {}
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        content = importlib.import_module(f"treadle.experiments.{module.name}")
        if hasattr(content, "EXPERIMENT"):
            found[module.name.replace("_", "-")] = content.EXPERIMENT
    return found


def find(name: str) -> Experiment:
    """The experiment of this name. Raises `UnknownName` with the nearest."""
    known = experiments()
    if name not in known:
        raise UnknownName(
            f"there is no experiment '{name}'.{nearest(name, known)} `treadle reproduce --list` shows them all."
        )
    return known[name]


def reproduce(
    name: str,
    folder: Path,
    seed: int = 0,
    seeds: int | None = None,
    command: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Judged]:
    """Run an experiment and write into `folder`: figures/NAME.png, experiment.json (claims, settings, versions) and
    data.npz (returns and lengths of every seed, and what was observed where that is small). Returns the claims as they
    were found.

    Raises `UnknownName`, `InvalidSetting`, or `TreadleError` where the folder cannot be written.
    """
    experiment = find(name)
    require(seeds is None or seeds >= 1, "seeds", seeds, "at least 1")
    require(0 <= seed < 2**31, "seed", seed, "between 0 and 2^31 - 1")
    _make_room(folder)
    began = time.monotonic()
    outcomes = experiment.run(seed, seeds, tell)
    judged = [_judged(claim, outcomes) for claim in experiment.claims]
    figure = figures.new_figure(*experiment.size)
    experiment.draw(figure, outcomes)
    figures.save(figure, folder / "figures" / f"{name}.png")
    _keep(folder, outcomes)
    about = {
        "experiment": name,
        "about": experiment.about,
        "source": experiment.source,
        "command": command,
        "date": datetime.date.today().isoformat(),
        "seed": seed,
        "seeds": experiment.seeds if seeds is None else seeds,
        "wall_seconds": time.monotonic() - began,
        "versions": versions(),
        "trials": [_described(trial) for trial in experiment.trials],
        "claims": [j._asdict() for j in judged],
    }
    write_whole(folder / "experiment.json", json.dumps(about, indent=1) + "\n")
    return judged


def _judged(claim: Claim, outcomes: Outcomes) -> Judged:
    verdict = claim.judge(outcomes)
    return Judged(claim.text, bool(verdict.holds), verdict.figures)


def _make_room(folder: Path) -> None:
    if (folder / "run.json").exists():
        raise TreadleError(f"{folder} holds a training run, which stays as it is. Give another folder with --out.")
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TreadleError(f"the folder {folder} cannot be made: {error.strerror}. Give another with --out.") from None


def _keep(folder: Path, outcomes: Outcomes) -> None:
    arrays = {}
    for label, outcome in outcomes.items():
        arrays |= {f"{label}/{name}": getattr(outcome, name) for name in ("returns", "lengths", "ended")}
        for path, value in jax.tree_util.tree_leaves_with_path(outcome.observed):
            if value.size <= MOST_KEPT:
                arrays["/".join([label, "observed", *(str(getattr(p, "key", p)) for p in path)])] = value
    with replacing(folder / "data.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def _described(trial: Trial) -> dict[str, Any]:
    values = dataclasses.asdict(dataclasses.replace(trial, observe=None))
    del values["observe"]
    return json.loads(json.dumps(values, default=str))
