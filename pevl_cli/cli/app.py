"""The command `pevl`: its subcommands, process settings and exit codes.

Slow imports are inside the commands' functions, so that help and usage errors are quick. Results
go to stdout, everything else to stderr. Exit codes: 0 success, 1 failure, 2 wrong usage,
130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated

import typer

from pevl_cli import __version__
from pevl_cli.cli import console, data, models
from pevl_cli.cli.ablate import ablate
from pevl_cli.cli.benchmark import benchmark, new_command
from pevl_cli.cli.classify import classify
from pevl_cli.cli.compare import compare
from pevl_cli.cli.demo import demo
from pevl_cli.cli.pose import pose
from pevl_cli.cli.train import train
from pevl_cli.errors import PevlError, UsageError

app = typer.Typer(
    name="pevl",
    help="Name fine-grained human actions in your own videos.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100},
    rich_markup_mode=None,  # plain help: importing rich would slow the start
)


def _print_version(show: bool) -> None:
    if show:
        print(f"pevl {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    console.show_tracebacks(debug)


app.command()(classify)
app.command()(pose)
app.command()(train)
app.command()(benchmark)
app.command()(compare)
app.command()(ablate)
app.command()(demo)
app.add_typer(models.app, name="models")
app.add_typer(data.app, name="data")


def main() -> None:
    """Run the command. Only here an error becomes a message line and an exit code."""
    _prepare_process()
    try:
        replacement = new_command(sys.argv[1:])
        if replacement is not None:
            raise UsageError(f"this option is now a separate command; use: {replacement}")
        app(prog_name="pevl")
    except PevlError as error:
        console.print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `pevl ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _prepare_process() -> None:
    """Change settings of the whole process, which only the command may do, not the library.

    Runs before the slow imports: most settings are read when a library is imported.
    """
    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # avoids a warning of tokenizers after a fork
    # OpenMP threads that spin while they wait make a training step up to seven times slower when
    # other programs run on the machine (benchmarks/README.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Hide log lines that repeat pevl's own messages: Fabric's start-up lines, the hub's retries,
    # and open_clip's lines, which go to the root logger.
    for part in ("utilities", "strategies", "plugins"):  # importing Fabric sets its top level
        logging.getLogger(f"lightning_fabric.{part}").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
    logging.getLogger().addFilter(_is_not_from_open_clip)
    warnings.filterwarnings("ignore", module="lightning_fabric")


def _is_not_from_open_clip(record: logging.LogRecord) -> bool:
    return "open_clip" not in record.pathname


if __name__ == "__main__":
    main()
