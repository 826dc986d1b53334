"""What there is: algorithms by the axes of the survey, worlds, presets, experiments."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from treadle import registry, settings
from treadle.algorithms.base import Survey

if TYPE_CHECKING:
    from rich.table import Table


def show() -> None:
    """Print the algorithms, the worlds and the presets."""
    from rich.console import Console

    console = Console()
    algorithms = _table("Algorithms", "algorithm", "what it is, and its place in the survey")
    for name, (cls, overrides) in registry.algorithms.entries().items():
        about = _first_line(cls) + _different(overrides)
        algorithms.add_row(name, f"{about}\n{_place(cls.survey)}".strip(), end_section=True)
    worlds = _table("Worlds in JAX", "environment", "what it is")
    for name, (cls, overrides) in registry.environments.entries().items():
        worlds.add_row(name, _first_line(cls) + _different(overrides))
    tuned = _table("Presets", "preset", "what it is")
    for p in settings.presets():
        tuned.add_row(f"{p.algorithm} {p.environment}\n  {p.name}", p.about)
    for table in (algorithms, worlds, tuned):
        console.print(table)
    console.print("Besides these, any Gymnasium environment by its own name, through the host loop.")
    console.print("`treadle reproduce --list` shows the experiments.")


def show_experiments() -> None:
    """Print the experiments that `treadle reproduce` runs."""
    from rich.console import Console

    from treadle import experiment

    table = _table("Experiments", "experiment", "what it shows, and where it comes from")
    for name, declared in experiment.experiments().items():
        table.add_row(name, f"{declared.about}\n{declared.source}", end_section=True)
    Console().print(table)


def _table(title: str, first: str, second: str) -> Table:
    """Names, which are never broken, and texts, which may be."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    table.add_column(second)
    return table


def _different(overrides: dict[str, Any]) -> str:
    """The settings by which a name differs from its class."""
    return f" With {', '.join(f'{name} = {value}' for name, value in overrides.items())}." if overrides else ""


def _place(survey: Survey | None) -> str:
    if survey is None:
        return ""
    return f"{survey.model}; learns {survey.learns}; updates each {survey.updates}; {survey.policy}"


def _first_line(cls: type) -> str:
    module = sys.modules[cls.__module__].__doc__ or cls.__doc__ or ""
    return module.strip().splitlines()[0] if module.strip() else ""
