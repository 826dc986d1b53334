"""Scenes as text and pictures; `film` makes them move.

A text drawing is one character a cell in grid worlds and Braille in all others: a character holds 2 by 4 dots, and is
about twice as high as wide, so that the dots are square.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool

from treadle import figures
from treadle.files import replacing
from treadle.scene import Circle, Colour, Label, Line, Point, Polygon, Scene, Shape

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont
    from rich.text import Text

BACKGROUND = "#FFFFFF"
PALETTE: dict[Colour, str] = {
    "ink": figures.INK,
    "muted": figures.EDGE,
    "ground": figures.GRID,
    "wall": figures.GREY,
    "agent": figures.BLUE,
    "goal": figures.GREEN,
    "danger": figures.VERMILLION,
    "accent": figures.ORANGE,
}
_STYLES: dict[Colour, str] = {
    "ink": "bold",
    "muted": "bright_black",
    "ground": "bright_black",
    "wall": "",
    "agent": "bold bright_blue",
    "goal": "bold green",
    "danger": "red",
    "accent": "yellow",
}
"""The terminal's own colours, because it alone knows its background."""

FINER = 4
"""Pictures are drawn so many times larger, and reduced: that smooths their edges."""
_THIN = 1.5


def as_text(scene: Scene, columns: int = 60, rows: int | None = None) -> str:
    """The scene in characters: as many lines as a grid world has rows, else as large as fits into `columns` and `rows`
    with its proportions kept."""
    return "\n".join("".join(line) for line in _page(scene, columns, rows).characters)


def as_rich(scene: Scene, columns: int = 60, rows: int | None = None) -> Text:
    """The same in the terminal's colours."""
    from rich.text import Text

    text = Text(no_wrap=True)
    page = _page(scene, columns, rows)
    for characters, colours in zip(page.characters, page.colours, strict=True):
        line = iter(characters)
        for colour, run in itertools.groupby(colours):
            text.append("".join(next(line) for _ in run), _STYLES[colour] if colour else "")
        text.append("\n")
    text.right_crop(1)
    return text


def as_image(scene: Scene, width: int = 480) -> Image:
    """The scene as a picture, `width` pixels wide and as high as its proportions demand."""
    from PIL import Image, ImageDraw

    wide, high = sides(scene)
    scale = width / wide
    height = max(1, round(high * scale))
    picture = Image.new("RGB", (width * FINER, height * FINER), BACKGROUND)
    draw, view = ImageDraw.Draw(picture), _View(scene.low[0], scene.high[1], scale * FINER, 0.75 * FINER)
    for shape in scene.shapes:
        _paint(draw, view, shape, PALETTE[shape.colour])
    return picture.reduce(FINER)


def save_png(scene: Scene, path: str | Path, width: int = 480) -> Path:
    """Write the picture of a scene. Raises `TreadleError` where it cannot be written."""
    path = Path(path)
    with replacing(path, "the drawing") as temporary:
        as_image(scene, width).save(temporary, "PNG")
    return path


def sides(scene: Scene) -> tuple[float, float]:
    """Width and height in the world's units."""
    return scene.high[0] - scene.low[0], scene.high[1] - scene.low[1]


class _View(NamedTuple):
    """From a world's coordinates to pixels, whose `y` points downwards and which are counted at their centres."""

    left: float
    top: float
    scale: float
    thinnest: float = 1.0
    """Of lines, in pixels."""

    def at(self, point: Point) -> Point:
        return (point[0] - self.left) * self.scale - 0.5, (self.top - point[1]) * self.scale - 0.5


def _paint(draw: ImageDraw, view: _View, shape: Shape, fill: int | str) -> None:
    if isinstance(shape, Polygon):
        draw.polygon([view.at(point) for point in shape.points], fill)
    elif isinstance(shape, Circle):
        _disc(draw, view.at(shape.centre), shape.radius * view.scale, fill)
    elif isinstance(shape, Line):
        width = max(shape.width * view.scale, view.thinnest)
        _stroke(draw, [view.at(point) for point in shape.points], width, fill)
    else:
        draw.text(view.at(shape.at), shape.text, fill, font(max(1, round(shape.size * view.scale))), anchor="mm")


def _disc(draw: ImageDraw, centre: Point, radius: float, fill: int | str) -> None:
    x, y = centre
    # Pillow would cut fractions off, and move the disc.
    draw.ellipse([round(edge) for edge in (x - radius, y - radius, x + radius, y + radius)], fill)


def _stroke(draw: ImageDraw, points: Sequence[Point], width: float, fill: int | str) -> None:
    """A line with round ends and corners."""
    if width < _THIN:
        draw.line([(round(x), round(y)) for x, y in points], fill, 1)
        return
    for (x1, y1), (x2, y2) in itertools.pairwise(points):
        length = math.hypot(x2 - x1, y2 - y1)
        if length > 0:
            x, y = (y1 - y2) / length * width / 2, (x2 - x1) / length * width / 2
            draw.polygon([(x1 + x, y1 + y), (x2 + x, y2 + y), (x2 - x, y2 - y), (x1 - x, y1 - y)], fill)
    for point in points:
        _disc(draw, point, width / 2, fill)


@functools.cache
def font(size: int) -> FreeTypeFont:
    """Matplotlib's own font, which is there on every machine and has arrows."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


class _Page(NamedTuple):
    """Lines of characters, and the colour of each."""

    characters: list[list[str]]
    colours: list[list[Colour | None]]

    @classmethod
    def blank(cls, columns: int, rows: int) -> _Page:
        return cls([[" "] * columns for _ in range(rows)], [[None] * columns for _ in range(rows)])

    def put(self, row: int, column: int, character: str, colour: Colour) -> None:
        self.characters[row][column], self.colours[row][column] = character, colour


def _page(scene: Scene, columns: int, rows: int | None) -> _Page:
    if scene.cells is not None:
        return _cells(scene, *scene.cells)
    width, height = sides(scene)
    scale = min(2 * columns / width, math.inf if rows is None else 4 * rows / height)
    # Rounding must not add a column or a row of which nothing is seen.
    columns, rows = (max(1, math.ceil(x * scale - 1e-6)) for x in (width / 2, height / 4))
    view, page = _View(scene.low[0], scene.high[1], scale), _Page.blank(columns, rows)
    _put_dots(page, scene, view)
    for shape in scene.shapes:
        if isinstance(shape, Label):
            _put_label(page, shape, view)
    return page


def _cells(scene: Scene, columns: int, rows: int) -> _Page:
    width, height = sides(scene)
    page = _Page.blank(columns, rows)
    for shape in scene.shapes:
        if isinstance(shape, Polygon | Circle) and shape.glyph:
            x, y = _centre(shape)
            column = math.floor((x - scene.low[0]) / width * columns)
            row = math.floor((scene.high[1] - y) / height * rows)
            if 0 <= row < rows and 0 <= column < columns:
                page.put(row, column, shape.glyph[0], shape.colour)
    return page


def _centre(shape: Polygon | Circle) -> Point:
    """Of a polygon the middle of its bounding box."""
    if isinstance(shape, Circle):
        return shape.centre
    xs, ys = zip(*shape.points, strict=True)
    return (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2


_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""The bits of the Braille characters, from U+2800 on."""
_COLOURS: tuple[Colour, ...] = tuple(PALETTE)


def _put_dots(page: _Page, scene: Scene, view: _View) -> None:
    rows, columns = len(page.characters), len(page.characters[0])
    # The scene may end within a character: what lies at its edge is to have no outline there.
    height, width = (
        round((scene.high[1] - scene.low[1]) * view.scale),
        round((scene.high[0] - scene.low[0]) * view.scale),
    )
    dots = np.zeros((max(1, height), max(1, width)), np.int64)
    for shape in scene.shapes:
        if not isinstance(shape, Label):
            covered = _mask(shape, view, dots.shape)
            lit = covered & _texture(shape, covered)
            dots = np.where(covered, np.where(lit, 1 + _COLOURS.index(shape.colour), 0), dots)
    dots = np.pad(dots, [(0, 4 * rows - dots.shape[0]), (0, 2 * columns - dots.shape[1])])
    blocks = dots.reshape(rows, 4, columns, 2).swapaxes(1, 2)
    bits = ((blocks > 0) * _DOTS).sum(axis=(2, 3))
    for row, column in np.argwhere(bits).tolist():
        found = blocks[row, column]
        # Of two colours in one character the rarer is seen: it is what lies on the other.
        lit, counts = np.unique(found[found > 0], return_counts=True)
        colour = _COLOURS[int(lit[np.argmin(counts)]) - 1]
        page.put(row, column, chr(0x2800 + int(bits[row, column])), colour)


def _mask(shape: Shape, view: _View, size: tuple[int, ...]) -> Bool[np.ndarray, "H W"]:
    """The dots of which a shape covers half, or as much as of any. Thin lines are drawn dot by dot, without gaps."""
    from PIL import Image, ImageDraw

    finer = 1 if isinstance(shape, Line) and shape.width * view.scale < _THIN else FINER
    picture = Image.new("L", (size[1] * finer, size[0] * finer))
    _paint(ImageDraw.Draw(picture), view._replace(scale=view.scale * finer), shape, 255)
    covered = np.asarray(picture.reduce(finer))
    return covered >= max(1, min(128, covered.max()))


def _texture(shape: Shape, covered: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Where a shape's dots are lit: text has no colours, so that areas differ in how dense they are. Light ones have an
    outline."""
    y, x = np.indices(covered.shape)
    textures = {"ground": np.zeros_like(covered), "muted": (x + 2 * y) % 4 == 0}
    textures |= {"goal": (x + y) % 2 == 0, "danger": (x + y) % 3 == 0}
    if isinstance(shape, Line) or shape.colour not in textures:
        return np.ones_like(covered)
    around = np.pad(covered, 1, mode="edge")
    inside = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return textures[shape.colour] | ~inside


def _put_label(page: _Page, label: Label, view: _View) -> None:
    rows, columns = len(page.characters), len(page.characters[0])
    x, y = view.at(label.at)
    row, text = math.floor((y + 0.5) / 4), label.text[:columns]
    first = min(max(round((x + 0.5) / 2 - len(text) / 2), 0), columns - len(text))
    if 0 <= row < rows:
        for column, character in enumerate(text, first):
            page.put(row, column, character, label.colour)
