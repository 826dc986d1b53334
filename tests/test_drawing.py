"""Scenes as text and pictures: known places have known colours, and files are whole or not there."""

from __future__ import annotations

import errno
import os
import sys

import av
import jax
import numpy as np
import pytest
from PIL import Image, ImageColor

from treadle import drawing, film, registry
from treadle.drawing import PALETTE, as_image, as_rich, as_text
from treadle.errors import InvalidSetting, TreadleError
from treadle.files import replacing
from treadle.scene import Circle, Colour, Label, Line, Polygon, Scene


def box(x: float, y: float, width: float, height: float, colour: Colour = "ink", glyph="") -> Polygon:
    return Polygon(((x, y), (x + width, y), (x + width, y + height), (x, y + height)), colour, glyph)


def line_world(agent: int) -> Scene:
    """Six cells with a treasure at the right end."""
    cells = [box(i, 0, 1, 1, "ground", "-") for i in range(5)]
    return Scene((0, 0), (6, 1), (*cells, box(5, 0, 1, 1, "goal", "T"), disc(agent)), cells=(6, 1))


def disc(cell: int) -> Circle:
    return Circle((cell + 0.5, 0.5), 0.3, "agent", "o")


def pixel(picture: Image.Image, x: int, y: int) -> tuple[int, ...]:
    found = picture.getpixel((x, y))
    assert isinstance(found, tuple)
    return found


def rgb(name: Colour) -> tuple[int, ...]:
    return ImageColor.getrgb(PALETTE[name])


WHITE = (255, 255, 255)


def test_a_grid_world_is_one_character_a_cell():
    assert as_text(line_world(1)) == "-o---T"
    assert as_text(line_world(5)) == "-----o", "the last glyph of a cell covers the others"
    assert as_text(line_world(1), columns=2, rows=1) == "-o---T", "whatever the size asked for"


def test_rows_are_counted_from_the_top_and_a_cell_without_a_glyph_is_blank():
    shapes = (
        *(box(x, y, 1, 1, "ground", "-") for x in range(4) for y in range(4)),
        box(2, 2, 1, 1, "danger", "X"),
        box(1, 1, 1, 1, "danger", "X"),
        box(2, 1, 1, 1, "goal", "T"),
        box(3, 3, 1, 1, "wall"),
        Label((3.5, 0.5), "r", 0.5),
        Circle((0.5, 3.5), 0.3, "agent", "o"),
        Circle((4.5, 0.5), 0.3, "agent", "?"),
    )
    maze = Scene((0, 0), (4, 4), shapes, cells=(4, 4))
    assert as_text(maze).splitlines() == ["o---", "--X-", "-XT-", "----"]
    bare = Scene((0, 0), (4, 1), (box(1, 0, 1, 1, "wall", "#"),), cells=(4, 1))
    assert as_text(bare) == " #  "


def test_a_grid_may_begin_anywhere_and_its_cells_have_any_size():
    shapes = (Circle((-1.5, 20.0), 0.2, glyph="a"), Circle((1.9, 10.1), 0.2, glyph="b"))
    assert as_text(Scene((-2, 10), (2, 30), shapes, cells=(2, 2))).splitlines() == ["  ", "ab"]


def test_other_worlds_are_drawn_in_dots():
    """A character has 2 by 4 dots: 8 by 2 characters make 16 by 8 dots, one for each unit of this world."""
    shapes = (
        box(0.2, 4.2, 3.6, 3.6, "ink"),  # the dots 0 to 3 of the upper row, all
        Line(((5.5, 0.5), (5.5, 7.5)), 0.1, "ink"),  # the dots of column 5
        box(8.2, 0.2, 7.6, 7.6, "ground"),  # an outline, but for the world's own edges
    )
    text = as_text(Scene((0, 0), (16, 8), shapes), columns=8)
    assert text.splitlines() == ["⣿⣿⢸ ⡇   ", "  ⢸ ⡇   "]


def dots(text: str) -> int:
    return sum(bin(ord(c) - 0x2800).count("1") for c in text if c >= "\u2800")


def test_a_disc_is_round():
    """Of 16 by 16 dots it covers those within 7.2 of the middle, about 163."""
    text = as_text(Scene((-1, -1), (1, 1), (Circle((0, 0), 0.9, "agent"),)), columns=8)
    lines = text.splitlines()
    assert len(lines) == 4 and {line[3:5] for line in lines[1:3]} == {"⣿⣿"}
    assert lines[0][0] == lines[0][-1] == lines[3][0] == lines[3][-1] == " ", "corners are empty"
    assert 145 <= dots(text) <= 175


def test_what_lies_on_something_is_told_from_it():
    """Text has no colours: areas are as dense as they weigh, and a shape clears what is below it."""
    inside = [dots(as_text(Scene((0, 0), (16, 16), (box(-9, -9, 40, 40, name),)), 8)) for name in PALETTE]
    by_name = dict(zip(PALETTE, inside, strict=True))
    assert by_name["ink"] == by_name["wall"] == by_name["agent"] == by_name["accent"] == 256
    assert by_name["ground"] == 0 < by_name["muted"] < by_name["danger"] < by_name["goal"] == 128

    below, above = box(-9, -9, 40, 40, "wall"), box(4, 4, 8, 8, "ground")
    assert dots(as_text(Scene((0, 0), (16, 16), (below, above)), 8)) < 256
    assert dots(as_text(Scene((0, 0), (16, 16), (above, below)), 8)) == 256


@pytest.mark.parametrize(
    ("size", "columns", "rows", "expected"),
    [
        ((2, 1), 60, None, (60, 15)),  # characters are twice as high as wide
        ((1, 1), 60, None, (60, 30)),
        ((1, 1), 60, 10, (20, 10)),
        ((6, 1), 30, 10, (30, 3)),
        ((100, 1), 10, None, (10, 1)),
        ((1, 100), 10, 5, (1, 5)),
    ],
)
def test_proportions_are_kept(size, columns, rows, expected):
    lines = as_text(Scene((0, 0), size, (box(0, 0, *size),)), columns, rows).split("\n")
    assert ({len(line) for line in lines}, len(lines)) == ({expected[0]}, expected[1])


def test_labels_are_text_and_stay_inside():
    labels = (Label((8, 6), "score 21", 1), Label((0, 2), "left", 1), Label((16, 2), "right", 1))
    text = as_text(Scene((0, 0), (16, 8), (box(0, 0, 16, 8, "ground"), *labels)), columns=16)
    assert text.splitlines() == [" " * 16, "    score 21    ", " " * 16, "left       right"]
    assert as_text(Scene((0, 0), (8, 4), (Label((4, 2), "too long", 1),)), columns=4).split("\n")[-1] == "too "


def test_the_terminals_text_is_the_same_in_colours():
    scene = line_world(2)
    text = as_rich(scene)
    assert text.plain == as_text(scene)
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert "blue" in styles["o"] and "green" in styles["T"]

    apart = Scene((0, 0), (40, 20), (box(0, 0, 40, 20, "goal"), Circle((20, 10), 4, "agent")))
    text = as_rich(apart, 20)
    assert text.plain == as_text(apart, 20)
    assert {str(span.style) for span in text.spans if span.start <= len(text) // 2 < span.end} == {"bold bright_blue"}


def test_a_picture_has_its_colours_where_the_scene_has_its_shapes():
    shapes = (
        box(0, 0, 4, 1, "ground"),
        Circle((1, 1.5), 0.4, "agent"),
        Circle((3, 1.5), 0.4, "danger"),
        Circle((3, 1.5), 0.2, "goal"),
        Line(((0.0, 0.5), (2.0, 0.5), (2.0, 1.0)), 0.1, "ink"),
    )
    picture = as_image(Scene((0, 0), (4, 2), shapes), width=400)
    assert picture.size == (400, 200) and picture.mode == "RGB"
    assert pixel(picture, 100, 50) == rgb("agent"), "y points upwards in a scene and downwards in a picture"
    assert pixel(picture, 300, 50) == rgb("goal"), "later shapes lie over earlier ones"
    assert pixel(picture, 300, 80) == rgb("danger")
    assert pixel(picture, 50, 150) == pixel(picture, 200, 120) == rgb("ink")
    assert pixel(picture, 350, 150) == rgb("ground") and pixel(picture, 200, 20) == WHITE
    assert len(set(PALETTE.values())) == len(PALETTE)


def test_edges_are_smooth():
    picture = as_image(Scene((-1, -1), (1, 1), (Circle((0, 0), 0.5, "agent"),)), width=100)
    found = {c for _, c in picture.getcolors(10_000) or []}
    assert {WHITE, rgb("agent")} <= found
    between = [c for c in found if isinstance(c, tuple) and c not in (WHITE, rgb("agent"))]
    assert len(between) > 5 and all(rgb("agent")[0] < c[0] < 255 for c in between)


def test_a_line_is_seen_however_thin_and_a_label_is_drawn():
    thin = as_image(Scene((0, 0), (100, 100), (Line(((0, 50), (100, 50)), 0.001, "ink"),)), width=100)
    assert np.asarray(thin).min() < 220
    text = np.asarray(as_image(Scene((0, 0), (100, 100), (Label((50, 50), "→", 40, "ink"),)), width=100))
    ys, xs = np.nonzero(text.min(axis=2) < 128)
    assert 40 <= ys.mean() <= 60 and 40 <= xs.mean() <= 60 and 15 < np.ptp(xs) <= 40


def test_a_picture_goes_into_a_file_and_the_folder_is_made(tmp_path):
    path = drawing.save_png(line_world(0), tmp_path / "new" / "line.png", width=120)
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (120, 20))
    assert list(path.parent.iterdir()) == [path]


def test_an_episode_becomes_a_moving_picture(tmp_path):
    path = film.save_gif([line_world(i) for i in range(6)], tmp_path / "line.gif", 0.25)
    durations = []
    with Image.open(path) as picture:
        assert getattr(picture, "n_frames", 1) == 6 and picture.info["loop"] == 0 and picture.size == (480, 80)
        for i in range(6):
            picture.seek(i)
            durations.append(picture.info["duration"])
            frame = picture.convert("RGB")
            assert pixel(frame, 40 + 80 * i, 40) == rgb("agent")
            assert pixel(frame, 10 + 80 * 4, 40) == rgb("ground"), "what stands still does not change its colour"
    assert durations == [250] * 5 + [1000], "it rests at its end"
    assert list(tmp_path.iterdir()) == [path]


def test_a_moving_picture_keeps_every_colour_exactly(tmp_path):
    names = list(PALETTE)
    strips = tuple(box(i + 0.2, 0, 0.6, 1, name) for i, name in enumerate(names))
    scene = Scene((0, 0), (len(names), 1), strips)
    with Image.open(film.save_gif([scene], tmp_path / "colours.gif", 0.1)) as picture:
        frame = picture.convert("RGB")
        assert [pixel(frame, 60 * i + 30, 30) for i in range(8)] == [rgb(name) for name in names]
        assert {pixel(frame, 60 * i + 2, 30) for i in range(8)} == {WHITE}


def test_frames_that_come_as_pictures_are_kept_as_they_are(tmp_path):
    frames = [Image.new("RGB", (30, 20), (40 * i, 0, 0)) for i in range(4)]
    with Image.open(film.save_gif(frames, tmp_path / "frames.gif", 0.001)) as picture:
        assert getattr(picture, "n_frames", 1) == 4 and picture.size == (30, 20)
        assert picture.info["duration"] == 20, "the least that is shown as it should be"


def video(path) -> tuple[list[np.ndarray], float]:
    """The frames of a file, and how many there are a second."""
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p" and stream.average_rate
        return [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)], float(stream.average_rate)


def test_an_episode_becomes_a_video(tmp_path):
    path = film.save_mp4([line_world(i) for i in range(6)], tmp_path / "line.mp4", 0.25)
    frames, rate = video(path)
    assert rate == 4 and len(frames) == 5 + 4, "it rests at its end for a second"
    for i, frame in enumerate(frames):
        assert frame.shape == (80, 480, 3)
        found = frame[40, [40 + 80 * min(i, 5), 10 + 80 * 4, 470]].astype(int)
        assert np.abs(found - [rgb("agent"), rgb("ground"), rgb("goal")]).max() <= 6
    assert list(tmp_path.iterdir()) == [path]


def test_a_video_has_every_colour_and_even_sides(tmp_path):
    names = list(PALETTE)
    grey = Image.new("L", (31, 21), 90)
    assert {frame.shape for frame in video(film.save_mp4([grey], tmp_path / "grey.mp4", 0.02))[0]} == {(22, 32, 3)}
    strips = tuple(box(i, 0, 1, 1, name) for i, name in enumerate(names))
    frames, rate = video(film.save_mp4([Scene((0, 0), (8, 1), strips)], tmp_path / "colours.mp4", 0.02))
    assert rate == len(frames) == 50
    assert np.abs(frames[-1][30, 30::60].astype(int) - [rgb(name) for name in names]).max() <= 6


def test_without_the_library_a_video_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(TreadleError, match=r"needs PyAV, which is not installed: pip install 'treadle\[video\]'"):
        film.save_mp4([line_world(0)], tmp_path / "line.mp4", 0.1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("count", "size"), [(1, (960, 195)), (3, (960, 569)), (30, (960, 440))])
def test_a_film_strip_shows_the_first_the_last_and_some_between(tmp_path, count, size):
    scenes = [line_world(min(i, 5)) for i in range(count)]
    with Image.open(film.save_strip(scenes, tmp_path / "strip.png")) as strip:
        assert strip.size == size
        pixels = np.asarray(strip)
    agents = (pixels == rgb("agent")).all(axis=2)
    starts = np.flatnonzero(np.diff(agents.any(axis=1).astype(int)) == 1)
    assert len(starts) == {1: 1, 3: 3, 30: 4}[count]
    assert np.flatnonzero(agents[starts[0] + 5]).min() < 160, "the first is there"
    if count == 30:
        assert np.flatnonzero(agents[starts[-1] + 5]).max() > 900, "the last too, to the right of the one before"


def test_nothing_cannot_be_drawn(tmp_path):
    saves = (
        lambda path: film.save_gif([], path, 0.1),
        lambda path: film.save_mp4([], path, 0.1),
        lambda path: film.save_strip([], path),
    )
    for save in saves:
        with pytest.raises(InvalidSetting, match="needs at least one"):
            save(tmp_path / "nothing.gif")
    assert not list(tmp_path.iterdir())


SAVES = [
    lambda path: drawing.save_png(line_world(0), path),
    lambda path: film.save_gif([line_world(0), line_world(1)], path, 0.1),
    lambda path: film.save_strip([line_world(0)], path),
]


@pytest.mark.parametrize("save", SAVES, ids=["png", "gif", "strip"])
def test_a_drawing_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, save):
    def half(_self, path, *_, **__):
        path.write_bytes(b"half a picture")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "drawing"
    path.write_text("the one before")
    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(TreadleError, match=r"the drawing .*drawing cannot be written: No space left on device\. Give"):
        save(path)
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "the one before"
    with pytest.raises(TreadleError, match="cannot be written"):
        save(path / "inside.gif")


def test_a_video_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "line.mp4"
    path.write_text("the one before")
    pictures = iter([as_image(line_world(0))])

    def full(_):
        for picture in pictures:
            return picture
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(film, "as_image", full)
    with pytest.raises(
        TreadleError, match=r"the drawing .*line\.mp4 cannot be written: No space left on device\. Give"
    ):
        film.save_mp4([line_world(0), line_world(1)], path, 0.1)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "the one before"

    in_the_way = tmp_path / ".line.mp4.tmp"
    in_the_way.mkdir()
    for bad in (path, path / "inside.mp4", in_the_way):
        with pytest.raises(TreadleError, match=r"mp4.* cannot be written"):
            film.save_mp4([line_world(0)], bad, 0.1)
    assert path.read_text() == "the one before" and sorted(tmp_path.iterdir()) == [in_the_way, path]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("first")
        assert temporary.parent == path.parent and not path.exists()
    assert path.read_text() == "first"

    def write_half(then: Exception) -> None:
        with replacing(path, "the list", "Look for it.") as temporary:
            temporary.write_text("half")
            raise then

    with pytest.raises(TreadleError, match=rf"^the list {path} cannot be written: gone\. Look for it\.$"):
        write_half(OSError("gone"))
    with pytest.raises(ZeroDivisionError):
        write_half(ZeroDivisionError())
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]

    with pytest.raises(TreadleError, match="No such file"), replacing(tmp_path / "away" / "x", make_folder=False) as to:
        to.write_text("x")
    assert not (tmp_path / "away").exists()


def test_every_world_that_has_a_scene_can_be_drawn():
    drawn = 0
    for name in registry.environments.names():
        world = registry.environments.make(name)
        if hasattr(world, "scene"):
            scene = world.scene(jax.device_get(world.reset(jax.random.key(0))[0]))
            assert as_text(scene, 40).strip() and len(as_image(scene, 60).getcolors(10_000) or []) > 1, name
            drawn += 1
    assert drawn
