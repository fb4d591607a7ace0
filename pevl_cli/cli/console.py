"""Notes, warnings and errors on stderr. Results are not printed here: they go to stdout."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from pevl_cli.errors import PevlError

# `pevl --debug`. Set once, by the command's callback, before any subcommand runs.
_show_tracebacks = False


def show_tracebacks(show: bool) -> None:
    """Whether `print_error` also prints where in the code an error was raised."""
    global _show_tracebacks
    _show_tracebacks = show


def stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def print_error(error: PevlError) -> None:
    """An error in one line, whatever its text."""
    if _show_tracebacks:
        traceback.print_exception(error)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def warn_about_missing_poses(count: int, source: Path | None) -> None:
    """Warn that ``count`` clips of a data set have no stored poses."""
    if count:
        warn(f"{count} clips have no poses in {source}; only their video frames are used")


def note_bundled_weights(pose_weights: Path | None, used: bool = True) -> None:
    """A note where the bundled detector is used because no other was chosen or fetched."""
    from pevl_cli.weights import bundled_weights_note

    text = bundled_weights_note(pose_weights) if used else None
    if text is not None:
        note(text)
