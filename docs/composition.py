"""Write the page of what composes: which options of DQN were trained together, and which refuse one another.

    python docs/composition.py

The runs that it lists are those of tests/test_composition.py, which trains every one of them and asserts that the page
is true.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).resolve().parent / "composition.md"


class Option(NamedTuple):
    """Something that can be set or left, and the settings that do it."""

    name: str
    settings: dict[str, Any]
    kind: str = ""
    """Options of one kind exclude one another, because they are values of one setting."""


OWN_NETWORK = "own network"
HOST, SEEDS, DATA = "Gymnasium", "2 seeds", "stored data"
OPTIONS = (
    Option("double targets", {"double": True}),
    Option("dueling heads", {"dueling": True}),
    Option("3-step returns", {"n_step": 3}),
    Option("prioritized", {"prioritized": True}, "memory"),
    Option(
        "prioritized, weights over the memory",
        {"prioritized": True, "priority_weights": "memory", "priority_clip": None},
        "memory",
    ),
    Option("soft target", {"tau": 0.05, "target_update_period": 1}),
    Option("squared loss", {"loss": "squared"}),
    Option("RMSProp", {"optimiser": "rmsprop"}),
    Option("clipped by value", {"max_grad_norm": None, "max_grad_value": 1.0}),
    Option("annealed rate", {"learning_rate_end": 1e-4}),
    Option("exponential epsilon", {"epsilon_schedule": "exponential", "epsilon_scale": 500.0}),
    Option("rounds of 4 steps and updates", {"train_frequency": 4, "gradient_steps": 4}),
    Option("3 environments", {"num_envs": 3, "capacity": 1_001}),
    Option(OWN_NETWORK, {}),
    Option(HOST, {}, "world"),
    Option(SEEDS, {}),
    Option(DATA, {}, "world"),
)
REFUSED = {
    frozenset({"dueling heads", OWN_NETWORK}): "the heads belong to the built-in network; one of your own may have them"
}
"""Pairs that are refused in a sentence, and why."""


def composes(a: Option, b: Option) -> bool:
    """Whether both can be set."""
    return not (a.kind and a.kind == b.kind) and frozenset({a.name, b.name}) not in REFUSED


def runs() -> list[tuple[Option, ...]]:
    """Runs that cover all pairs: each two options both set, unless they do not compose, both left, and one of the two.

    Found greedily: of a number of runs put together in random order, the one that adds the most pairs comes next.
    """
    missing, draw = set(_pairs()), random.Random(0)
    found: list[tuple[Option, ...]] = []
    while missing:
        candidates = [_put_together(missing, draw) for _ in range(CANDIDATES)]
        best = max(candidates, key=lambda chosen: len(_covered(missing, chosen)))
        missing -= _covered(missing, best)
        found.append(tuple(option for option in OPTIONS if best[option.name]))
    return found


CANDIDATES = 100
Pair = frozenset[tuple[str, bool]]


def _pairs() -> Iterator[Pair]:
    for a, b in itertools.combinations(OPTIONS, 2):
        for values in itertools.product((True, False), repeat=2):
            if values != (True, True) or composes(a, b):
                yield frozenset({(a.name, values[0]), (b.name, values[1])})


def _put_together(missing: set[Pair], draw: random.Random) -> dict[str, bool]:
    """A run that decides one option after the other, each for the value that adds more pairs."""
    chosen: dict[str, bool] = {}
    for option in draw.sample(OPTIONS, len(OPTIONS)):
        may_be_set = all(composes(option, other) for other in OPTIONS if chosen.get(other.name))
        gains = {value: _gain(missing, option.name, value, chosen) for value in (True, False)}
        better = draw.random() < 0.5 if gains[True] == gains[False] else gains[True] > gains[False]
        chosen[option.name] = may_be_set and better
    return chosen


def _gain(missing: set[Pair], name: str, value: bool, chosen: dict[str, bool]) -> int:
    return sum(frozenset({(name, value), other}) in missing for other in chosen.items())


def _covered(missing: set[Pair], chosen: dict[str, bool]) -> set[Pair]:
    return {pair for pair in missing if all(chosen[name] == value for name, value in pair)}


def page() -> str:
    """The whole page."""
    found = runs()
    lines = [
        "# What composes",
        "",
        INTRODUCTION.format(runs=len(found)),
        _row("", *map(str, range(1, 1 + len(OPTIONS)))),
    ]
    lines.append(_row(*["---"] * (1 + len(OPTIONS))))
    for number, option in enumerate(OPTIONS, 1):
        cells = [_cell(option, other, found) for other in OPTIONS]
        lines.append(_row(f"{number} {option.name}", *cells))
    lines += ["", "| refused | because |", "| --- | --- |"]
    lines += [_row(" with ".join(sorted(pair)), why) for pair, why in REFUSED.items()]
    lines += ["", "| run | options that are set |", "| --- | --- |"]
    lines += [_row(str(n), ", ".join(option.name for option in run)) for n, run in enumerate(found, 1)]
    return "\n".join(lines) + "\n"


INTRODUCTION = """Written by `python docs/composition.py`; [a test](../tests/test_composition.py) trains these runs and
asserts that the page is true. Each cell of the table says in how many of {runs} runs the two options of DQN were set
together; in each run every seed must find the way through a corridor, and none of its values may exceed the best
policy's. The runs cover all pairs: both set, both left, and one of the two. `no` is refused in a sentence, and `or` is
a choice between two that stand for one another.
"""


def _cell(a: Option, b: Option, found: list[tuple[Option, ...]]) -> str:
    if a is b:
        return ""
    if frozenset({a.name, b.name}) in REFUSED:
        return "no"
    return str(sum(a in run and b in run for run in found)) if composes(a, b) else "or"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"Written to {PAGE.name}.")
