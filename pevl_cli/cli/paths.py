"""Paths that the user names: checked before the work begins, and written to after it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pevl_cli.cli import console
from pevl_cli.errors import PevlError, UsageError


def check_output(path: Path | None) -> Path | None:
    """The path, if a file can be written there. UsageError if not."""
    if path is None:
        return None
    if path.is_dir():
        raise UsageError(f"{path}: this is a folder; give the name of a file.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist; create it first.")
    return path


def make_folder(folder: Path) -> None:
    """Make the folder of --out. UsageError where it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {folder}: not a folder that can be made ({error.strerror})."
        ) from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--out {folder}: this folder cannot be written to.")


def write_text(text: str, output: Path | None) -> None:
    """Write to the file, as a whole or not at all, or to stdout where there is none."""
    text = text if text.endswith("\n") else text + "\n"
    if output is None:
        sys.stdout.write(text)
        return
    from pevl_cli.cache import atomic_write

    with atomic_write(output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_files_exist(paths: Sequence[Path]) -> None:
    """PevlError if none of the files exists; a part of them is left to the batch."""
    if not any(path.exists() for path in paths):
        for path in paths[:-1]:
            console.print_error(PevlError(f"{path}: this file does not exist."))
        raise PevlError(f"{paths[-1]}: this file does not exist.")


def check_pose_weights(pose_weights: Path | None) -> None:
    """UsageError for named weights that cannot be located, before torch is loaded."""
    if pose_weights is None or pose_weights.expanduser().is_file():
        return
    from pevl_cli.weights import find_weights

    try:
        find_weights(pose_weights)
    except PevlError as error:
        raise UsageError(str(error)) from error
