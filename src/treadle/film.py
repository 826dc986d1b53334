"""Scenes one after another: GIF, MP4 and film strips. What comes as pictures already is taken as it is."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, UInt8

from treadle import figures
from treadle.drawing import BACKGROUND, PALETTE, as_image, font, sides
from treadle.errors import InvalidSetting, TreadleError
from treadle.files import replacing
from treadle.scene import Scene

if TYPE_CHECKING:
    from PIL.Image import Image

LAST_SECONDS = 1.0
"""How long a moving picture rests at its end."""
STRIP_PICTURES, STRIP_WIDTH = 8, 960
_CAPTION, _GAP = 22, 8
_QUALITY = 18
"""x264's constant rate factor: what is lost is hardly seen."""
_BT709 = 1
"""The number of that standard in H.264, for colours, curve and weights. Players guess where none is named."""


def save_gif(pictures: Sequence[Scene | Image], path: str | Path, frame_seconds: float) -> Path:
    """Write scenes, or pictures of one size, as a moving picture that begins again after a rest at its end.

    The format counts hundredths of a second, and two are the least that is shown as it should be. Raises
    `TreadleError` where there is nothing to show or the file cannot be written.
    """
    _require_some(pictures)
    seconds = [max(0.02, frame_seconds)] * (len(pictures) - 1) + [LAST_SECONDS]
    frames = (_few_colours(as_image(p)) if isinstance(p, Scene) else p for p in pictures)
    path = Path(path)
    with replacing(path, "the drawing") as temporary:
        next(frames).save(
            temporary,
            "GIF",
            save_all=True,
            append_images=frames,
            duration=[round(1000 * s) for s in seconds],
            loop=0,
            optimize=False,
        )
    return path


def require_video() -> None:
    """Raises `TreadleError` where PyAV is missing, with which `save_mp4` writes."""
    if importlib.util.find_spec("av") is None:
        raise TreadleError("an .mp4 file needs PyAV, which is not installed: pip install 'treadle[video]'")


def save_mp4(pictures: Sequence[Scene | Image], path: str | Path, frame_seconds: float) -> Path:
    """Write scenes, or pictures of one size, as a video (H.264) that rests at its end.

    Raises `TreadleError` where there is nothing to show, PyAV is missing or the file cannot be written.
    """
    _require_some(pictures)
    require_video()
    import av
    from av.video.reformatter import Colorspace

    path = Path(path)
    rate = Fraction(1 / frame_seconds).limit_denominator(1000)
    with replacing(path, "the drawing") as temporary, av.open(str(temporary), "w", format="mp4") as film:
        frames = _even_frames(pictures, round(LAST_SECONDS * rate))
        first = next(frames)
        stream = film.add_stream("libx264", rate, options={"crf": str(_QUALITY)})
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        for pixels in itertools.chain([first], frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            film.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        film.mux(stream.encode(None))
    return path


def _even_frames(pictures: Sequence[Scene | Image], last: int) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Each picture once, the last one `last` times. The video's colours lie on every second row and column, so that
    both must be even in number: where they are not, the last is there twice."""
    for number, picture in enumerate(pictures, 1):
        drawn = as_image(picture) if isinstance(picture, Scene) else picture.convert("RGB")
        pixels = np.asarray(drawn)
        height, width = pixels.shape[:2]
        even = np.pad(pixels, [(0, height % 2), (0, width % 2), (0, 0)], mode="edge")
        yield from itertools.repeat(even, max(1, last) if number == len(pictures) else 1)


def save_strip(pictures: Sequence[Scene | Image], path: str | Path) -> Path:
    """Write a film strip: of the scenes, or pictures of one size, the first, the last and a few evenly spaced between
    them, each with its number. Raises `TreadleError` where there is nothing to show or the file cannot be written."""
    from PIL import Image, ImageDraw

    _require_some(pictures)
    count = min(STRIP_PICTURES, len(pictures))
    chosen = [round(i * (len(pictures) - 1) / max(count - 1, 1)) for i in range(count)]
    columns = _strip_columns(count, _proportion(pictures[0]))
    width = (STRIP_WIDTH - _GAP) // columns - _GAP
    frames = [_at_width(pictures[number], width) for number in chosen]
    height = frames[0].height + _CAPTION + _GAP
    strip = Image.new("RGB", (columns * (width + _GAP) + _GAP, -(-count // columns) * height + _GAP), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for place, (number, frame) in enumerate(zip(chosen, frames, strict=True)):
        corner = (_GAP + place % columns * (width + _GAP), _GAP + place // columns * height)
        strip.paste(frame, corner)
        edge = (corner[0] - 1, corner[1] - 1, corner[0] + frame.width, corner[1] + frame.height)
        draw.rectangle(edge, outline=figures.GRID)
        middle = (corner[0] + width / 2, corner[1] + frame.height + _CAPTION / 2)
        draw.text(middle, f"step {number}", figures.GREY, font(13), anchor="mm")
    path = Path(path)
    with replacing(path, "the drawing") as temporary:
        strip.save(temporary, "PNG")
    return path


@functools.cache
def _gif_palette() -> Image:
    """Every colour, and steps between any two, which smoothed edges need. Common to all frames, it keeps still what
    stands still."""
    from PIL import Image, ImageColor

    colours = np.array([ImageColor.getrgb(colour) for colour in (BACKGROUND, *PALETTE.values())])
    pairs = itertools.combinations(colours, 2)
    mixed = np.rint([a + (b - a) * part / 6 for a, b in pairs for part in range(1, 6)]).astype(np.int64)
    # Pillow's search for the nearest is coarse: what is nearly a colour would be taken for it.
    apart = np.abs(mixed[:, None] - colours).max(axis=2).min(axis=1) >= 12
    entries: Int[np.ndarray, "N 3"] = np.concatenate([colours, mixed[apart]])
    picture = Image.new("P", (1, 1))
    picture.putpalette(entries.ravel().tolist())
    return picture


def _few_colours(picture: Image) -> Image:
    from PIL import Image

    return picture.quantize(palette=_gif_palette(), dither=Image.Dither.NONE)


def _require_some(pictures: Sequence[Scene | Image]) -> None:
    if not pictures:
        raise InvalidSetting("a drawing was given no scenes; it needs at least one.")


def _proportion(picture: Scene | Image) -> float:
    """Height in widths."""
    width, height = sides(picture) if isinstance(picture, Scene) else picture.size
    return height / width


def _at_width(picture: Scene | Image, width: int) -> Image:
    if isinstance(picture, Scene):
        return as_image(picture, width)
    return picture.convert("RGB").resize((width, max(1, round(width * picture.height / picture.width))))


def _strip_columns(count: int, proportion: float) -> int:
    """As many columns as make the strip about one and a half times as wide as high."""

    def unlike(columns: int) -> float:
        width = STRIP_WIDTH // columns
        return abs(math.log(STRIP_WIDTH / (-(-count // columns) * (width * proportion + _CAPTION + _GAP)) / 1.5))

    return min(range(1, count + 1), key=unlike)
