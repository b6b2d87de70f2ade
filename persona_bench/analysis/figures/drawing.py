"""How every figure looks: size, colours, caption and legend, and the same bytes for the same content.

Figures are one column wide (5 inches), so that they can be read in print and on a phone; colours are Okabe and Ito's
(https://jfly.uni-koeln.de/color/), which colour-blind readers can tell apart, and a trait keeps its colour everywhere.
Matplotlib is imported only when something is drawn, and without its global state.
"""

import hashlib
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from persona_bench.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.0
"""Width of every figure in inches."""
DPI = 160
FONT = 9.5
_FOOT_CHARACTERS = 72
GREY = "#666666"
_KNOWN = {
    "evil": "#D55E00",
    "sycophancy": "#0072B2",
    "hallucination": "#009E73",
    "optimistic": "#E69F00",
    "impolite": "#CC79A7",
    "apathetic": "#56B4E9",
    "humorous": "#8C6D1F",
}
_SPARE = ("#E69F00", "#56B4E9", "#CC79A7", "#000000", "#8C6D1F")
MARKERS = "osD^vP*X"
_METADATA: dict[str, Any] = {".png": {"Software": None}, ".pdf": dict.fromkeys(("CreationDate", "Producer", "Creator"))}
MOST_LAYERS = 6


@dataclass(frozen=True)
class Caption:
    """What stands under every figure, so that it can be read away from its report.

    Attributes:
        model: the model under test.
        preset: the preset of the run.
        grader: the judge's model.
        date: of the run, as text.
        seed: of the run.
    """

    model: str
    preset: str
    grader: str
    date: str
    seed: int | None = None

    def line(self, n: int | str) -> str:
        """The caption with the number of samples drawn."""
        parts = [self.model, f"preset {self.preset}", f"grader {self.grader}", f"n = {n}", self.date]
        parts += [] if self.seed is None else [f"seed {self.seed}"]
        return " · ".join(part for part in parts if part)


def trait_colours(traits: Sequence[str]) -> dict[str, str]:
    """A colour for each trait: fixed for the traits that come with the suite, else spare ones in order of name."""
    taken = {_KNOWN[trait] for trait in traits if trait in _KNOWN}
    spare = [colour for colour in _SPARE if colour not in taken] or list(_SPARE)
    others = sorted(set(traits) - _KNOWN.keys())
    return {trait: _KNOWN.get(trait) or spare[others.index(trait) % len(spare)] for trait in sorted(set(traits))}


def trait_markers(traits: Sequence[str]) -> dict[str, str]:
    """A marker for each trait, in order of name: one for all panels of a figure."""
    return {trait: MARKERS[number % len(MARKERS)] for number, trait in enumerate(sorted(set(traits)))}


def slug(trait: str) -> str:
    """A file name for a trait whose name may hold anything; different traits never share one."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", trait).strip("-")[:40]
    return plain if plain == trait else f"{plain or 'trait'}-{hashlib.sha256(trait.encode()).hexdigest()[:6]}"


UNDER: dict[str, Any] = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.17),
    "frameon": False,
    "handletextpad": 0.1,
    "columnspacing": 0.9,
}


@contextmanager
def drawing_style() -> Iterator[None]:
    """The look of all figures, for the time of drawing only."""
    from matplotlib import rc_context

    settings: Any = {
        "font.family": "DejaVu Sans",
        "font.size": FONT,
        "axes.titlesize": 10.5,
        "axes.labelsize": FONT,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.title_fontsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#E8E8E8",
        "axes.axisbelow": True,
        "pdf.fonttype": 42,
        "svg.hashsalt": "persona-bench",
        # Names come from strangers: a dollar sign is no formula.
        "text.parse_math": False,
    }
    with rc_context(settings), warnings.catch_warnings():
        # A trait may be named in a script the font lacks: a box in the title is no reason to lose the figure.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def new_figure(height: float, width: float = WIDTH) -> "Figure":
    """An empty figure, height and width in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", stem: Path) -> list[Path]:
    """Write PNG and PDF."""
    paths = [stem.with_name(f"{stem.name}{suffix}") for suffix in _METADATA]
    for path in paths:
        save_as(figure, path)
    return paths


def save_as(figure: "Figure", path: Path) -> None:
    """Write one file, `.png` or `.pdf`, whole and without dates or versions: its bytes depend on the content only.

    Raises:
        DataError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=suffix.removeprefix("."), metadata=_METADATA[suffix])


def put_foot(figure: "Figure", line: str, note: str) -> None:
    """Caption and note under a figure."""
    characters = int(_FOOT_CHARACTERS * figure.get_figwidth() / WIDTH)
    # A number is not parted from its percent sign.
    lines = textwrap.wrap(note.replace(" %", "\N{NO-BREAK SPACE}%"), characters)
    rows = [""]
    for part in flat_text(line, 400).split(" · "):
        joined = f"{rows[-1]} · {part}" if rows[-1] else part
        rows = [*rows[:-1], joined] if len(joined) <= characters else [*rows, part]
    text = "\n".join([*lines, *(piece for row in rows for piece in textwrap.wrap(row, characters))])
    figure.supxlabel(text, fontsize=9, color=GREY, x=0.01, ha="left")


def put_legend(figure: "Figure", axes: "Axes", columns: int = 0) -> None:
    """The legend above a figure, by default in two or three columns, and in fewer where they would be cut off."""
    pairs = zip(*axes.get_legend_handles_labels(), strict=True)
    # What is steered comes first, its controls after.
    ordered = sorted(pairs, key=lambda pair: "random" in pair[1])
    if not ordered:
        return
    handles, labels = [handle for handle, _ in ordered], [label for _, label in ordered]
    for n in range(columns or (2 if len(labels) < 7 else 3), 0, -1):
        legend = figure.legend(handles, labels, loc="outside upper center", ncols=n, frameon=False)
        if n == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def has_label(axes: "Axes", label: str) -> bool:
    """Whether something drawn has this label already."""
    return label in axes.get_legend_handles_labels()[1]


def halo() -> list[Any]:
    """A white edge around small text, which is read over lines by it."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2, foreground="white")]


def shaded(colour: str, i: int, n: int) -> tuple[float, float, float]:
    """Lighter for early layers, the full colour for the last."""
    from matplotlib.colors import to_rgb

    strength = 1.0 if n < 2 else 0.45 + 0.55 * i / (n - 1)
    red, green, blue = to_rgb(colour)
    return 1 - strength * (1 - red), 1 - strength * (1 - green), 1 - strength * (1 - blue)


def flat_text(text: str, longest: int = 48) -> str:
    """Text from strangers, shortened and on one line."""
    flat = " ".join(str(text).split())
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"


def fullest_half(cells: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The half in which most cells were run; the report half where they are equal."""
    sizes = cells.groupby("half").size().to_dict()
    half = max(sizes, key=lambda name: (sizes[name], name == "report"))
    return cells[cells["half"] == half], str(half)


def named_traits(table: pd.DataFrame) -> list[str]:
    """The traits of a table, sorted, without the empty name of unsteered rows."""
    return sorted({str(trait) for trait in table["trait"] if isinstance(trait, str)} - {""})


def all_traits(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """The traits of all tables, sorted."""
    found: set[str] = set()
    for table in tables.values():
        if "trait" in table:
            found |= set(named_traits(table))
    return sorted(found)
