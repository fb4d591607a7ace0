"""`pevl models`: list the models that pevl knows by name, and download one."""

from __future__ import annotations

from typing import Annotated

import typer

from pevl_cli.cli import tables
from pevl_cli.cli.progress import ClipProgress

app = typer.Typer()


@app.callback(invoke_without_command=True)
def list_models(context: typer.Context) -> None:
    """List the known models, or download one.

    The list shows the state, size and licence of each model, and the path if it is on disk.

    \b
    Examples:
      pevl models
      pevl models fetch yolo11n-pose.pt
    """
    if context.invoked_subcommand is None:
        from pevl_cli.weights import list_models

        tables.show_models(list_models())


@app.command("fetch")
def fetch_model(
    name: Annotated[str, typer.Argument(help="A name that `pevl models` lists.", metavar="NAME")],
) -> None:
    """Download a model by its name, check its hash and print its path.

    \b
    Example: pevl models fetch yolo11s-pose.pt
    """
    from pevl_cli.weights import fetch

    with ClipProgress("downloading") as listener:
        path = fetch(name, listener)
    print(path)
