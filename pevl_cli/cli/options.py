"""Every option that more than one command has, once.

Typer reads an option from the annotation of a parameter, and its default from the parameter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pevl_cli import choices
from pevl_cli.cli.paths import check_output
from pevl_cli.errors import UsageError


def _check_views(views: int) -> int:
    if views == 2:
        raise UsageError("--views 2: use 1, or 3 as in the paper.")
    return views


_device = typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")
_precision = typer.Option(help="Number format of the matrix products.")
_output = typer.Option(
    "--output", "-o", callback=check_output, help="Write the result to this file, not to stdout."
)

# -- what to look at
Videos = Annotated[
    list[str], typer.Argument(help="Video files, folders or patterns.", metavar="VIDEO")
]
Start = Annotated[float | None, typer.Option(help="Begin at this time of the video, in seconds.")]
End = Annotated[float | None, typer.Option(help="End at this time of the video, in seconds.")]
Dataset = Annotated[
    Path,
    typer.Option(help="Folder of class folders, CSV, PYSKL pickle, or a name such as haa500."),
]
Root = Annotated[
    Path | None,
    typer.Option(help="Download folder of a named data set (see `pevl data --help`)."),
]
DatasetLabels = Annotated[
    str | None, typer.Option("--labels", help="Label file of a data set whose labels are numbers.")
]
Fold = Annotated[
    str | None, typer.Option(help="Split of a pickle with several splits: 1, xsub, ...")
]

# -- joints
Poses = Annotated[
    Path | None,
    typer.Option(help="Stored poses: a store of `pevl pose`, a PYSKL pickle, or a JSON folder."),
]
Layout = Annotated[
    str | None,
    typer.Option(help="Skeleton of --poses, where the number of joints leaves it open."),
]
NoPose = Annotated[bool, typer.Option("--no-pose", help="Use the video frames only.")]
PoseWeights = Annotated[
    Path | None,
    typer.Option(
        help="YOLO-pose weights: a file or a name of `pevl models`. Default: $PEVL_POSE_WEIGHTS, "
        "else yolo11n-pose.pt if it was fetched, else the bundled detector."
    ),
]
Workers = Annotated[
    int | None,
    # The second name is that of earlier releases.
    typer.Option(
        "--workers",
        "--processes",
        min=1,
        help="Processes that decode clips and find joints; they share the GPUs.",
    ),
]

# -- the model, and how it runs
Clip = Annotated[str | None, typer.Option(help="CLIP weights: NAME:TAG of open_clip, or a file.")]
Config = Annotated[
    str | None,
    typer.Option(
        help="mini (from scratch), vit-b-16 or vit-l-14 (on CLIP), or a YAML file. Default: mini."
    ),
]
Views = Annotated[
    int,
    typer.Option(
        min=1, max=3, callback=_check_views, help="1, or 3 crops whose similarities are averaged."
    ),
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the training clips.")]
Device = Annotated[str, _device]
OptionalDevice = Annotated[str | None, _device]  # None: as the settings have it
Precision = Annotated[choices.Precision, _precision]
OptionalPrecision = Annotated[choices.Precision | None, _precision]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any training setting: optim.lr=1e-4.", metavar="KEY=VALUE"),
]

# -- where the result goes
Output = Annotated[Path | None, _output]
