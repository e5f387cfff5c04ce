"""What all plots share: a figure without global state, safe text, colors, atomic PNGs.

matplotlib's object interface with the Agg canvas alone: no pyplot, so no display, no backend
switch for the user's own code, and nothing that outlives the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib import font_manager, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cvtrain.storage import replacing
from cvtrain.text import printable, shortened

INK = "#1f2430"
DPI = 120
MUTED = "#6b7280"
GRID = "#e5e7eb"
# Told apart by eyes with color deficiencies: Okabe and Ito 2008, the yellow left out on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#8C564B")

# Fonts that cover what DejaVu Sans lacks, by the names systems ship them under.
_WIDE_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Zen Hei", "Hiragino Sans",
    "PingFang SC", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Noto Sans Devanagari",
    "Noto Sans Thai", "Noto Emoji",
)  # fmt: skip

_STYLE: Any = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": f"cycler('color', {list(COLORS)!r})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "font.size": 9,
    "grid.color": GRID,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "text.parse_math": False,  # "$" in a class name is a dollar, not TeX
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@cache
def _fonts() -> list[str]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _WIDE_FONTS if name in installed)]


@contextmanager
def new_figure(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of ``width`` x ``height`` inches, saved as PNG to ``path`` at the end.

    Raises:
        RunError: the file cannot be written; nothing is left behind then.
    """
    style = _STYLE | {"font.family": _fonts()}
    with rc_context(style), warnings.catch_warnings():
        # A class name in a script that no installed font has: its boxes say so themselves.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        # Axes too small for their labels on extreme data: still better drawn than not.
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with replacing(Path(path)) as partial:
            figure.savefig(partial, format="png")


def safe(text: str, limit: int = 28) -> str:
    """Text that any font can be asked to draw: one line, nothing but letters, cut to ``limit``.

    Cut in the middle: names of a set often share their beginning or their end.
    """
    return shortened(printable(text), limit)


def entry(text: str) -> str:
    """Text of a legend: matplotlib leaves out what begins with an underscore."""
    return f" {text}" if text.startswith("_") else text
