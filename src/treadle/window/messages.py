"""What the server and the page say to one another, as JSON: commands from the page, and what it is shown."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from treadle import tables
from treadle.features import Table
from treadle.loops.play import Player, Seen
from treadle.scene import Circle, Label, Line, Scene, Shape
from treadle.spaces import Discrete, Grid

SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
LONGEST = 4096
"""Bytes of a message from the page."""
MOST_ACTIONS = 200
"""Of more discrete actions than these neither names nor values are sent."""
MOST_TABLE = 20_000
JPEG_QUALITY = 85


class Command(NamedTuple):
    """What somebody at a page wants, or the session itself (`kind` in lower case letters)."""

    kind: str
    value: Any = None
    client: int | None = None


class Malformed(ValueError):
    """A message from a page that is none; its text is a sentence."""


def parse(text: str | None, client: int) -> Command:
    """The command in a message. Whether its values exist in the run is for the session to say. Raises `Malformed`."""
    try:
        given = json.loads(text or "")
    except (ValueError, RecursionError):
        raise Malformed("A message was not understood: it is not JSON.") from None
    kind = given.get("type") if isinstance(given, dict) else None
    if not isinstance(kind, str) or kind not in _VALUES:
        raise Malformed(f"A message was not understood: there is no {ascii(kind)[:40]} to be asked for.")
    try:
        return Command(kind, _VALUES[kind](given), client)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise Malformed(f"A message was not understood: '{kind}' was asked for without what it needs.") from None


def _whole(given: dict[str, Any]) -> int:
    value = given["value"]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError
    return value


def _truth(given: dict[str, Any]) -> bool:
    if not isinstance(given["value"], bool):
        raise TypeError
    return given["value"]


def _speed(given: dict[str, Any]) -> float:
    if given["value"] == "max":
        return math.inf
    if given["value"] not in SPEEDS or isinstance(given["value"], bool):
        raise ValueError
    return float(given["value"])


def _drag(given: dict[str, Any]) -> tuple[str, tuple[float, float]]:
    handle, x, y = given["handle"], float(given["x"]), float(given["y"])
    if not isinstance(handle, str) or not (abs(x) < 1e9 and abs(y) < 1e9):
        raise ValueError
    return handle, (x, y)


def _held(given: dict[str, Any]) -> tuple[str, ...]:
    held = given["held"]
    if not isinstance(held, list) or len(held) > 20 or not all(isinstance(key, str) for key in held):
        raise TypeError
    return tuple(held)


def _nothing(given: dict[str, Any]) -> None:
    return None


_VALUES = {
    "play": _nothing,
    "pause": _nothing,
    "step": _nothing,
    "reset": _nothing,
    "speed": _speed,
    "seed": _whole,
    "checkpoint": _whole,
    "start": _whole,
    "follow": _truth,
    "drag": _drag,
    "keys": _held,
}


def encode(message: dict[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"), allow_nan=False)


def notice(text: str, level: str = "info") -> str:
    return encode({"type": "notice", "text": text, "level": level})


def frame(number: int, episode: int, seen: Seen, control: dict[str, Any]) -> str:
    """What there is to see, with what the page's controls are to show."""
    picture = seen.picture
    return encode(
        {
            "type": "frame",
            "number": number,
            "episode": episode,
            "step": seen.step,
            "reward": _number(seen.reward),
            "return": _number(seen.episode_return),
            "ended": seen.ended,
            "success": seen.success,
            "action": seen.action if isinstance(seen.action, int) else _numbers(seen.action),
            "person": seen.by_person,
            "scene": _scene(picture) if isinstance(picture, Scene) else None,
            "image": None if isinstance(picture, Scene) else _image(picture),
            "insight": _insight(seen.insight),
            "control": control,
        }
    )


def actions(player: Player, names: Sequence[str] | None) -> dict[str, Any]:
    """What the agent chooses among. Of an action of several numbers each has a name."""
    space = player.action_space
    if isinstance(space, Discrete):
        return {"kind": "discrete", "names": _discrete_names(space, names)}
    low, high = (np.broadcast_to(np.asarray(bound, float), space.shape).ravel() for bound in (space.low, space.high))
    if names is None or len(names) != low.size:
        names = ["action"] if low.size == 1 else [f"action {i + 1}" for i in range(low.size)]
    return {"kind": "continuous", "names": list(names), "low": _numbers(low), "high": _numbers(high)}


def _discrete_names(space: Discrete, names: Sequence[str] | None) -> list[str]:
    if space.n > MOST_ACTIONS:
        return []
    if isinstance(space, Grid):
        points = space.take(np.arange(space.n)).reshape(space.n, -1).tolist()
        return [", ".join(f"{x:.3g}" for x in point) for point in points]
    return (
        list(names) if names is not None and len(names) == space.n else [str(space.start + i) for i in range(space.n)]
    )


def table(world: Any, state: PyTree) -> dict[str, Any] | None:
    """The values of every action in every cell, of one seed of a tabular method in a grid world; else `None`."""
    q = getattr(state, "q", None)
    if q is None or not isinstance(q.features, Table) or not hasattr(world, "transitions"):
        return None
    if not hasattr(q.weights, "__array__"):  # nothing that it plays by
        return None
    if tables.scene_of(world).cells is None:
        return None
    columns, rows = tables.grid_of(world)
    values = np.asarray(q.weights, float)
    if values.ndim != 2 or len(values) != columns * rows or values.size > MOST_TABLE:
        return None
    try:
        directions = tables.directions_of(world).tolist()
    except IndexError:  # an action that leads nowhere
        return None
    listed = [_numbers(row) for row in values]
    return {"type": "table", "values": listed, "columns": columns, "rows": rows, "directions": directions}


def _scene(scene: Scene) -> dict[str, Any]:
    extent = max(scene.high[0] - scene.low[0], scene.high[1] - scene.low[1], 1e-9)
    digits = 4 - math.floor(math.log10(extent))

    def flat(*points: Sequence[float]) -> list[float]:
        return [round(float(x), digits) for point in points for x in point]

    def one(shape: Shape) -> list[Any]:
        if isinstance(shape, Circle):
            return ["circle", shape.colour, *flat(shape.centre, (shape.radius,))]
        if isinstance(shape, Line):
            return ["line", shape.colour, *flat((shape.width,)), flat(*shape.points)]
        if isinstance(shape, Label):
            return ["label", shape.colour, *flat(shape.at), shape.text, *flat((shape.size,))]
        return ["polygon", shape.colour, flat(*shape.points)]

    return {
        "low": flat(scene.low),
        "high": flat(scene.high),
        "cells": None if scene.cells is None else list(scene.cells),
        # A place that is no number can be drawn nowhere.
        "shapes": [drawn for shape in scene.shapes if _is_finite(drawn := one(shape))],
        "handles": [[handle.name, *flat(handle.at, (handle.radius,))] for handle in scene.handles],
    }


def _is_finite(drawn: list[Any]) -> bool:
    numbers = [x for part in drawn for x in (part if isinstance(part, list) else [part]) if isinstance(x, float)]
    return all(map(math.isfinite, numbers))


def _image(pixels: Any) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _insight(insight: dict[str, np.ndarray]) -> dict[str, Any]:
    found = {}
    for name, value in insight.items():
        array = np.asarray(value, float)
        if array.size <= MOST_ACTIONS:
            found[name] = _number(float(array)) if array.ndim == 0 else _numbers(array.ravel())
    return found


def _numbers(values: Any) -> list[float | None] | None:
    return None if values is None else [_number(float(x)) for x in values]


def _number(value: float | None) -> float | None:
    """With the digits of a float32; `None` for what is not finite, which JSON cannot say."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.7g}")
