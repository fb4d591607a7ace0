"""Notes, warnings and errors on stderr. Results are not printed here: they go to stdout."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from pevl_cli.errors import PevlError

# The option `pevl --debug`; set once, before a subcommand runs.
_show_tracebacks = False


def show_tracebacks(show: bool) -> None:
    """Set whether `print_error` also prints the traceback."""
    global _show_tracebacks
    _show_tracebacks = show


def stderr() -> Console:
    """A rich console that writes to stderr."""
    from rich.console import Console

    return Console(stderr=True)


def note(text: str) -> None:
    """Print a note on stderr."""
    print(f"note: {text}", file=sys.stderr)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {text}", file=sys.stderr)


def print_error(error: PevlError) -> None:
    """Print an error on stderr, in one line."""
    if _show_tracebacks:
        traceback.print_exception(error)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def warn_about_missing_poses(count: int, source: Path | None) -> None:
    """Warn that ``count`` clips of a data set have no stored poses."""
    if count:
        warn(f"{count} clips have no poses in {source}; for these, only the video frames are used")


def note_bundled_weights(pose_weights: Path | None, used: bool = True) -> None:
    """Print a note if the bundled detector is used because no other is chosen or downloaded."""
    from pevl_cli.weights import bundled_weights_note

    text = bundled_weights_note(pose_weights) if used else None
    if text is not None:
        note(text)
