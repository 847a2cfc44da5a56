"""A picture as a file: matplotlib where it is installed, one style, the same bytes each time.

matplotlib is imported when a picture is drawn.
"""

import io
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flmgrow.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("png", "svg", "pdf")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Told apart by the colour-blind, too."""

INK, FAINT = "#333333", "#777777"

_STYLE: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "text.color": INK,
    "text.usetex": False,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "savefig.dpi": 300,
    "svg.fonttype": "none",
    "svg.hashsalt": "flmgrow",
    "pdf.fonttype": 42,
}

_UNKNOWN_SCRIPTS = ("Glyph .* missing from", "Matplotlib currently does not support")
"""What matplotlib says of a name that its font cannot write: it draws boxes then, which do."""


def drawn(kind: str, size: tuple[float, float], draw: Callable[["Figure"], None]) -> bytes:
    """Return what ``draw`` puts on a figure of ``size`` (inches) as a file of a kind in ``KINDS``.

    Raises:
        UsageError: If matplotlib is missing or broken.
    """
    check_can_draw()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    file = io.BytesIO()
    style: Any = dict(_STYLE)
    with rc_context(style), warnings.catch_warnings():
        for words in _UNKNOWN_SCRIPTS:
            warnings.filterwarnings("ignore", words, UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(file, format=kind, metadata=dates.get(kind))
    return file.getvalue()


def check_can_draw() -> None:
    """Raise UsageError if matplotlib is missing or broken."""
    try:
        from matplotlib import figure  # noqa: F401
    except Exception as error:  # it reads the user's settings, and loads compiled code
        if isinstance(error, ModuleNotFoundError) and error.name == "matplotlib":
            raise UsageError(
                "the package matplotlib is not installed", "pip install 'flmgrow[plot]'"
            ) from None
        raise UsageError(
            f"the package matplotlib cannot be imported: {type(error).__name__}: {error}",
            "look at MPLBACKEND and matplotlibrc, or pip install --force-reinstall matplotlib",
        ) from error
