"""How figures look: one palette, quiet axes, and a legend that hides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.errors import TreadleError
from treadle.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which stays distinct for every common kind of colour blindness.
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
)
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)
GREY, INK, EDGE, GRID = "#7A8793", "#2B2F33", "#B8C0C7", "#E6EAED"


def new_figure(width: float = 8.0, height: float = 4.8) -> Figure:
    """An empty figure, its size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, title: str = "", xlabel: str = "", ylabel: str = "", legend: bool = True) -> None:
    """Titles, labels and quiet axes, when everything is drawn."""
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold", parse_math=False)
    axes.set_xlabel(xlabel, color=INK, fontsize=10)
    axes.set_ylabel(ylabel, color=INK, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(EDGE)
    axes.tick_params(colors=INK, labelsize=9, color=EDGE)
    axes.grid(axis="y", color=GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    if legend and axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, handlelength=1.6)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure, whole or not at all; the ending of the name chooses the format. Raises `TreadleError`."""
    path = Path(path)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise TreadleError(f"a figure cannot be written as {path.name}: end the name in .png, .pdf or .svg.")
    with replacing(path, "the figure") as temporary:
        figure.savefig(temporary, format=kind)
    return path


def lines(axes: Axes, x: Any, curves: dict[str, Any], **style: Any) -> None:
    """A line for each label, in the palette's order."""
    for colour, (label, values) in zip(COLOURS, curves.items(), strict=False):
        axes.plot(x, values, label=label, **{"color": colour, "linewidth": 1.8, **style})
