"""matplotlib without a screen, where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

SUFFIXES = (".png", ".pdf", ".svg")


def import_figures() -> Any:
    """The module `matplotlib.figure`. Its figures need no window, and no global state.

    Raises:
        ValueError: it is not installed.
    """
    try:
        from matplotlib import figure
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install 'megatron-syne[plot]'") from None
    return figure


def check_suffix(name: str) -> None:
    """ValueError for a file name that is no picture's."""
    if Path(name).suffix not in SUFFIXES:
        raise ValueError(f"--plot {name}: the name must end in {', '.join(SUFFIXES)}")


def save_figure(figure: Any, file: BinaryIO, name: str) -> None:
    """Write a figure in the format that `name` says."""
    figure.savefig(file, format=Path(name).suffix[1:], dpi=120)
