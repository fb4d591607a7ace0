"""`pevl compare`: compare results of `pevl benchmark`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pevl_cli.cli import tables
from pevl_cli.cli.paths import check_output, write_text


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Two or more report folders of `pevl benchmark`.", metavar="RUN"),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            *("--output", "-o"),
            callback=check_output,
            help="Write the comparison to this file (.md or .json) instead of the screen.",
        ),
    ] = None,
) -> None:
    """Compare results of `pevl benchmark`.

    Compares the first run with each other run, clip by clip.

    \b
    Example: pevl compare runs/my_set-test-by-a runs/my_set-test-by-b -o both.md
    """
    from pevl_cli.evaluation import compare as evaluation

    comparison = evaluation.compare([evaluation.read_result(run) for run in runs])
    if output is None:
        tables.show_comparison(comparison)
    elif output.suffix == ".md":
        write_text(evaluation.markdown(comparison), output)
    else:
        write_text(json.dumps(comparison.as_dict(), indent=1), output)
