"""Mistakes that a person can make, each told in a sentence: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TreadleError(ValueError):
    """A mistake in what the user gave, or a condition that stops a run; its text is meant to be read."""

    exit_status = 2
    """What the command line exits with."""


class UnknownName(TreadleError):
    """A name that nothing is registered under."""


class InvalidSetting(TreadleError):
    """A setting outside its range, or two settings that exclude each other."""


class UnsupportedSpace(TreadleError):
    """A space, or a combination of an algorithm and a space, that cannot be served."""


class NonFinite(TreadleError):
    """A loss or another quantity became NaN or infinite; the run stopped and kept its last good checkpoint."""

    exit_status = 1


def nearest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'X'?"`, or an empty string when nothing is near."""
    by_lower: dict[str, str] = {}
    for k in known:
        by_lower.setdefault(k.lower(), k)
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""
