"""`pevl classify`: name the action in each video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pevl_cli.cli import console, options, tables
from pevl_cli.cli.batch import exit_if_failed, process_files
from pevl_cli.cli.paths import check_files_exist, check_pose_weights, write_text
from pevl_cli.errors import UsageError

if TYPE_CHECKING:
    from pevl_cli.recognise import Answer

Format = Literal["table", "json", "csv"]


def classify(
    videos: options.Videos,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Actions to choose from: a label file, or a bundled set such as gym99. Default: "
            "the checkpoint's labels."
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Checkpoint: a folder or a bundled name. Default: pevl-mini.")
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            help=f"{options.CLIP_SOURCES} Without --checkpoint: plain zero-shot CLIP without pose."
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of labels to show.")] = 5,
    views: options.Views = None,
    start: options.Start = None,
    end: options.End = None,
    no_pose: options.NoPose = False,
    pose_weights: options.PoseWeights = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    format: Annotated[Format, typer.Option(help="Output format.")] = "table",
    output: options.Output = None,
) -> None:
    """Name the action in each video.

    \b
    Examples:
      pevl classify clip.mp4
      pevl classify clips/ --labels my_actions.txt --format csv -o actions.csv
    """
    from pevl_cli.labels import read_labels
    from pevl_cli.media.video import find_videos

    paths = find_videos(videos)
    check_files_exist(paths)
    label_set = read_labels(labels) if labels is not None else None
    zero_shot = clip is not None and checkpoint is None
    if zero_shot and label_set is None:
        raise UsageError("plain CLIP has no labels; hint: give some with --labels FILE.")
    if not (no_pose or zero_shot):
        check_pose_weights(pose_weights)

    from pevl_cli import recognise

    recogniser = recognise.load(checkpoint, clip, pose_weights, not no_pose, device, precision)
    console.note_bundled_weights(pose_weights, recogniser.detector is not None)

    def name_action(path: Path) -> Answer:
        answer = recogniser.classify(path, label_set, top_k, views, start, end)
        if format == "table" and output is None:
            tables.show_answer(answer)
        return answer

    answers, failed = process_files(paths, name_action)
    _write_answers(answers, format, output)
    exit_if_failed(failed, len(paths))


def _write_answers(answers: list[Answer], format: Format, output: Path | None) -> None:
    """Write all answers in one document.

    A table on the screen is already printed, video by video.
    """
    from pevl_cli.output import records

    if format == "json":
        write_text(records.answers_json(answers), output)
    elif format == "csv":
        write_text(records.answers_csv(answers), output)
    elif output is not None:
        write_text(tables.answers_text(answers), output)
