"""The look of the plots: a palette for colour-blind readers, themes, one look a series, files of the same bytes."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bsa_bench.errors import StoreError
from bsa_bench.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Theme = Literal["light", "dark"]
StyleName = Literal["screen", "paper"]
Format = Literal["png", "svg", "pdf"]
FORMATS: tuple[Format, ...] = ("png", "svg", "pdf")

# Okabe and Ito, "Color universal design", 2008; its yellow is left out, too pale on white.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
BLACK, ORANGE, SKY = "#000000", "#E69F00", "#56B4E9"
GREY = "#6B6B6B"
# Paul Tol, "Colour schemes", 2021, muted: where eight are too few.
INDIGO, TEAL, OLIVE, SAND, WINE, MAGENTA, BROWN = (
    "#332288",
    "#44AA99",
    "#999933",
    "#DDCC77",
    "#882255",
    "#AA4499",
    "#661100",
)
SPARSE_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
#: What stands for those that a dark page would swallow.
ON_DARK = {
    BLACK: "#F2F2F2",
    GREY: "#A9A9A9",
    BLUE: "#3D9BE0",
    INDIGO: "#8F84E8",
    WINE: "#D1588A",
    BROWN: "#C07850",
}
BACKGROUNDS: Mapping[Theme, str] = {"light": "#FFFFFF", "dark": "#15181C"}
DENSE_COLOURS = (BLACK, ORANGE, SKY, PURPLE, GREEN, VERMILLION, BLUE)
MARKERS = "osD^vPX<>*hp"
_GRIDS: Mapping[Theme, str] = {"light": "#E3E3E3", "dark": "#33383F"}
_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "hatch.linewidth": 0.7,
    "svg.hashsalt": "bsa-bench",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    # Names are the user's: a dollar sign in one begins no formula.
    "text.parse_math": False,
    "text.usetex": False,
}
_SIZES: Mapping[StyleName, dict[str, Any]] = {
    "screen": {
        "font.size": 10.5,
        "axes.titlesize": 10.5,
        "legend.fontsize": 9.5,
        "grid.linewidth": 0.8,
        "lines.linewidth": 1.7,
        "lines.markersize": 6.5,
        "errorbar.capsize": 2.5,
    },
    "paper": {
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "axes.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "grid.linewidth": 0.5,
        "lines.linewidth": 1.1,
        "lines.markersize": 4,
        "errorbar.capsize": 1.5,
    },
}
PNG_DPI = 160


def rc(style: StyleName, theme: Theme) -> dict[Any, Any]:
    """Matplotlib's settings of a style and a theme."""
    ink, grey, background = themed(BLACK, theme), themed(GREY, theme), BACKGROUNDS[theme]
    coloured = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
    grounds = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), background)
    return _RC | _SIZES[style] | coloured | grounds | {"axes.titlecolor": grey, "grid.color": _GRIDS[theme]}


def themed(colour: str, theme: Theme) -> str:
    """A colour of the palette as a theme shows it."""
    return ON_DARK.get(colour, colour) if theme == "dark" else colour


@dataclass(frozen=True)
class Look:
    """How one series is drawn; the same in all plots of a report. Dense rows are dashed."""

    colour: str
    marker: str
    is_dense: bool

    @property
    def line(self) -> dict[str, Any]:
        """Keywords for `plot` and `errorbar`."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": (0, (4, 2)) if self.is_dense else "-",
            "markeredgecolor": self.colour,
            "zorder": 3,
        }

    def hollow(self, background: str) -> dict[str, Any]:
        """Keywords for `plot`: the same points, hollow, over those of `line`."""
        return self.line | {"linestyle": "none", "markerfacecolor": background, "zorder": 4}


def looks(series: Mapping[str, bool], theme: Theme = "light") -> dict[str, Look]:
    """Give each series (label -> whether it is dense) a look.

    Colours run apart for sparse and dense, and no marker recurs before all are used.
    """
    found: dict[str, Look] = {}
    counts = {True: 0, False: 0}
    for name, dense in series.items():
        palette = DENSE_COLOURS if dense else SPARSE_COLOURS
        colour = themed(palette[counts[dense] % len(palette)], theme)
        found[name] = Look(colour, MARKERS[len(found) % len(MARKERS)], dense)
        counts[dense] += 1
    return found


@contextmanager
def drawing(style: StyleName, theme: Theme) -> Iterator[None]:
    """Have matplotlib draw with a style and a theme, and else as it was shipped: nothing of the user's settings shows.

    Letters that the font lacks are boxes, in SVG files text that a viewer's own fonts show.

    Raises:
        StoreError: matplotlib cannot be imported, for a settings file in this folder that is no text, say.
    """
    try:
        mpl = _import_matplotlib()
    except (ImportError, ValueError, OSError) as error:
        raise StoreError(f"plots cannot be drawn, matplotlib does not load here: {error}") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", category=mpl.MatplotlibDeprecationWarning)
        shipped = {name: value for name, value in mpl.rcParamsDefault.items() if not name.startswith("backend")}
        with mpl.rc_context(shipped | rc(style, theme)):
            yield


def _import_matplotlib() -> Any:
    """Without the variables that name a backend and a settings file, which may be of another program or not be there.

    We draw into files alone, so no backend is chosen.
    """
    given = {name: os.environ.pop(name) for name in ("MPLBACKEND", "MATPLOTLIBRC") if name in os.environ}
    spec = importlib.util.find_spec("matplotlib")
    try:
        if spec and spec.origin and "matplotlib" not in sys.modules:
            os.environ["MATPLOTLIBRC"] = str(Path(spec.origin).parent / "mpl-data" / "matplotlibrc")
        import matplotlib as mpl
    finally:
        os.environ.pop("MATPLOTLIBRC", None)
        os.environ.update(given)
    return mpl


def save(figure: Figure, folder: Path, name: str, formats: Sequence[Format]) -> tuple[Path, ...]:
    """Write a figure in each format, with its label as the title; the same figure gives the same bytes."""
    title = visible(str(figure.get_label()))
    metadata: dict[Format, dict[str, Any]] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None, "Title": title},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None, "Title": title},
    }
    files = []
    for each in formats:
        path = folder / f"{name}.{each}"
        figure.savefig(path, dpi=PNG_DPI, metadata=metadata[each])
        files.append(path)
    return tuple(files)
