"""Process several files one after the other; a failed file does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import typer

from pevl_cli.cli import console
from pevl_cli.errors import PevlError

Result = TypeVar("Result")


def process_files(
    paths: Sequence[Path], process: Callable[[Path], Result]
) -> tuple[list[Result], int]:
    """The results of the successful files, and the number of failed files.

    The error of each failed file is printed.
    """
    results, failed = [], 0
    for path in paths:
        try:
            results.append(process(path))
        except PevlError as error:
            failed += 1
            console.print_error(error)
    return results, failed


def exit_if_failed(failed: int, total: int) -> None:
    """End with exit code 1 if any file failed."""
    if failed:
        if total > 1:
            console.warn(f"{failed} of {total} videos could not be processed")
        raise typer.Exit(1)
