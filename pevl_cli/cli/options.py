"""The options that several commands share, each defined once.

Typer reads an option from the annotation of a parameter, and its default from the parameter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pevl_cli import choices
from pevl_cli.cli.paths import check_output
from pevl_cli.errors import UsageError


def _check_views(views: int | None) -> int | None:
    if views == 2:
        raise UsageError("--views 2: use 1 or 3 (3 as in the paper).")
    return views


_device = typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1 or mps.")
_precision = typer.Option(
    help="Number format of the computation; auto chooses by model and hardware."
)
_output = typer.Option(
    "--output",
    "-o",
    callback=check_output,
    help="Write the result to this file instead of the screen.",
)

# -- input
Videos = Annotated[
    list[str],
    typer.Argument(help="Video files, folders, or patterns such as '*.mp4'.", metavar="VIDEO"),
]
Start = Annotated[float | None, typer.Option(help="Start of the part to use, in seconds.")]
End = Annotated[float | None, typer.Option(help="End of the part to use, in seconds.")]
Dataset = Annotated[
    Path,
    typer.Option(
        help="A folder with one folder per action, a CSV, a PYSKL pickle, or a name such as haa500."
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(help="Folder of the files of a named data set (see `pevl data --help`)."),
]
DatasetLabels = Annotated[
    str | None,
    typer.Option("--labels", help="Label file with the names or texts of the data set's labels."),
]
Fold = Annotated[
    str | None, typer.Option(help="Which split of a pickle with several splits: 1, xsub, ...")
]

# -- joints
Poses = Annotated[
    Path | None,
    typer.Option(
        help="Use stored poses: a file of `pevl pose --store`, a PYSKL pickle, or a folder of "
        "JSON files."
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        help="Skeleton of the stored poses, such as coco17. Default: by the number of joints."
    ),
]
NoPose = Annotated[bool, typer.Option("--no-pose", help="Use the video frames only, no joints.")]
PoseWeights = Annotated[
    Path | None,
    typer.Option(
        help="Pose detector (YOLO-pose): a file, or a name from `pevl models`. Default: "
        "$PEVL_POSE_WEIGHTS, then yolo11n-pose.pt if downloaded, then the bundled detector."
    ),
]
Workers = Annotated[
    int | None,
    # --processes is the name in earlier releases.
    typer.Option(
        "--workers",
        "--processes",
        min=1,
        help="Number of processes that decode clips and detect joints; they share the GPUs.",
    ),
]

# -- model and device
CLIP_SOURCES = (
    "Weights of CLIP, Perception Encoder or SigLIP 2: NAME:TAG of open_clip, or a file: FILE if it "
    "says how it was trained (as OpenAI's archives do), otherwise NAME:FILE, such as "
    "ViT-B-16-quickgelu:FILE."
)
Clip = Annotated[str | None, typer.Option(help=CLIP_SOURCES)]
Config = Annotated[
    str | None,
    typer.Option(
        help="Model and settings: mini (small, without CLIP); vit-b-16 or vit-l-14 (on CLIP); "
        "pe-core-b-16, pe-core-l-14 or siglip2-b-16 (on newer towers); or a YAML file. Default: "
        "mini."
    ),
]
Views = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=3,
        callback=_check_views,
        help="Crops per frame, 1 or 3; their similarities are averaged. Default: the checkpoint's.",
    ),
]
Epochs = Annotated[
    int | None, typer.Option(min=1, help="Number of passes over the training clips.")
]
Device = Annotated[str, _device]
OptionalDevice = Annotated[str | None, _device]  # None: the value of the settings
Precision = Annotated[choices.Precision, _precision]
OptionalPrecision = Annotated[choices.Precision | None, _precision]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Set any training setting, such as optim.lr=1e-4.", metavar="KEY=VALUE"
    ),
]

# -- output
Output = Annotated[Path | None, _output]
