"""A drawing of a world as plain data: the terminal, the PNG, the film and the browser draw the same scene.

Coordinates are in the world's own units, `x` to the right and `y` upwards. Colours are named for what a thing is, so
that each medium has its own palette.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Colour = Literal["ink", "muted", "ground", "wall", "agent", "goal", "danger", "accent"]
Point = tuple[float, float]


class Polygon(NamedTuple):
    """A filled shape through `points`. `glyph` stands for it in a text drawing of a grid world."""

    points: tuple[Point, ...]
    colour: Colour = "ink"
    glyph: str = ""


class Circle(NamedTuple):
    """A filled disc."""

    centre: Point
    radius: float
    colour: Colour = "ink"
    glyph: str = ""


class Line(NamedTuple):
    """A stroke through `points`, `width` wide in the world's units."""

    points: tuple[Point, ...]
    width: float
    colour: Colour = "ink"


class Label(NamedTuple):
    """A text centred at a point, `size` high in the world's units."""

    at: Point
    text: str
    size: float
    colour: Colour = "ink"


Shape = Polygon | Circle | Line | Label


class Handle(NamedTuple):
    """Something of the scene that a person may take hold of and move: the disc in which it is taken hold of, and the
    name by which the world's `move` knows it."""

    name: str
    at: Point
    radius: float


@dataclass(frozen=True)
class Scene:
    """What to draw, later shapes over earlier ones, between the corners `low` and `high`."""

    low: Point
    high: Point
    shapes: tuple[Shape, ...]
    cells: tuple[int, int] | None = None
    """Columns and rows of a grid world: its text drawing is one character a cell, the last glyph whose shape has its
    centre there."""
    handles: tuple[Handle, ...] = ()
    """What a person may move, where the world has a method `move`; of two that overlap the later one."""
