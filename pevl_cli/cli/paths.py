"""Check the paths of options before the work begins; write the results."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pevl_cli.cli import console
from pevl_cli.errors import PevlError, UsageError


def check_output(path: Path | None) -> Path | None:
    """The path itself. UsageError if it is a folder, or if its folder does not exist."""
    if path is None:
        return None
    if path.is_dir():
        raise UsageError(f"{path}: this is a folder; give the name of a file.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist; create it first.")
    return path


def make_folder(folder: Path) -> None:
    """Create the folder of --out. UsageError when it cannot be created or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {folder}: this folder cannot be created ({error.strerror})."
        ) from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--out {folder}: this folder cannot be written to.")


def write_text(text: str, output: Path | None) -> None:
    """Write text to a file atomically; ``output`` None: to stdout."""
    text = text if text.endswith("\n") else text + "\n"
    if output is None:
        sys.stdout.write(text)
        return
    from pevl_cli.cache import atomic_write

    with atomic_write(output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_files_exist(paths: Sequence[Path]) -> None:
    """PevlError if no file exists. If only some are missing, processing reports each of them."""
    if not any(path.exists() for path in paths):
        for path in paths[:-1]:
            console.print_error(PevlError(f"{path}: this file does not exist."))
        raise PevlError(f"{paths[-1]}: this file does not exist.")


def check_pose_weights(pose_weights: Path | None) -> None:
    """UsageError for --pose-weights that do not exist. Does not import torch."""
    if pose_weights is None or pose_weights.expanduser().is_file():
        return
    from pevl_cli.weights import find_weights

    try:
        find_weights(pose_weights)
    except PevlError as error:
        raise UsageError(str(error)) from error
