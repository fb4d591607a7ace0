"""`pevl benchmark`: measure a checkpoint on a data set."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pevl_cli import choices
from pevl_cli.cli import console, options, tables
from pevl_cli.cli.paths import check_output, check_pose_weights, make_folder, write_text
from pevl_cli.cli.progress import ClipProgress

if TYPE_CHECKING:
    from pevl_cli.data.dataset import DataSettings
    from pevl_cli.data.manifest import Manifest
    from pevl_cli.evaluation.outcome import Outcome
    from pevl_cli.pose.files import PoseStore
    from pevl_cli.recognise import Recogniser


def benchmark(
    dataset: options.Dataset,
    checkpoint: Annotated[
        str, typer.Option(help="Checkpoint: a folder or a bundled name.")
    ] = "pevl-mini",
    root: options.Root = None,
    poses: options.Poses = None,
    split: Annotated[
        choices.Split | None,
        typer.Option(help="Split to measure. Default: the one with published results."),
    ] = None,
    labels: options.DatasetLabels = None,
    fold: options.Fold = None,
    layout: options.Layout = None,
    clip: options.Clip = None,
    views: options.Views = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Clips per forward pass; halved when memory is too small.")
    ] = 16,
    workers: options.Workers = None,
    no_pose: options.NoPose = False,
    pose_weights: options.PoseWeights = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the report. Default: runs/DATASET-SPLIT-by-CHECKPOINT."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            *("--output", "-o"),
            callback=check_output,
            help="Write the results to this JSON file instead of a report.",
        ),
    ] = None,
) -> None:
    """Measure a checkpoint on a data set.

    Writes a report (HTML, Markdown, JSON) and prints the main results.

    \b
    Example:
      pevl benchmark --dataset haa500 --root DIR --checkpoint runs/haa500-mini/best
    See also: pevl compare, pevl ablate
    """
    if not (no_pose or poses is not None):
        check_pose_weights(pose_weights)

    from pevl_cli import recognise
    from pevl_cli.data.dataset import DataSettings
    from pevl_cli.evaluation import benchmark as evaluation

    data = DataSettings(dataset=dataset, root=root, poses=poses, labels=labels, fold=fold)
    manifest = _read_data(data, checkpoint)
    measured_split, _ = evaluation.choose_split(manifest, checkpoint, split)
    for warning in (*manifest.warnings, *(manifest.split_notes if measured_split != "all" else ())):
        console.warn(warning)
    stored = None if no_pose else _stored_poses(manifest, poses, pose_weights, layout)
    use_detector = not no_pose and stored is None
    recogniser = recognise.load(checkpoint, clip, pose_weights, use_detector, device, precision)
    console.note_bundled_weights(pose_weights, recogniser.detector is not None)
    folder = None
    if output is None:
        name = f"{manifest.title}-{measured_split}-by-{_short_name(checkpoint)}"
        folder = out or Path("runs") / name
        make_folder(folder)
    for warning in recogniser.views_warning(views):
        console.warn(warning)
    try:
        with ClipProgress("measuring") as listener:
            outcome = evaluation.benchmark(
                manifest,
                recogniser,
                checkpoint_name=checkpoint,
                poses=stored,
                split=split,
                views=views,
                listener=listener,
                batch=batch_size,
                workers=workers,
                timed=folder is not None,
            )
    except BaseException:
        if folder is not None:
            with suppress(OSError):  # only an empty folder is removed
                folder.rmdir()
        raise
    _write(outcome, manifest, recogniser, stored, folder, output)
    if evaluation.seen_in_training(outcome.split, manifest, checkpoint):
        console.warn(
            "the checkpoint was trained on these clips; on new clips the results are usually lower"
        )


def _read_data(data: DataSettings, checkpoint: str) -> Manifest:
    """Read the data set; held-out clips are chosen with the checkpoint's seed and method."""
    from pevl_cli.data.dataset import read_data
    from pevl_cli.model.checkpoint import find, read_facts

    facts = read_facts(find(checkpoint))
    if "hold_out" in facts.training:
        data = data.model_copy(update={"hold_out": facts.training["hold_out"]})
    return read_data(data, int(facts.training.get("seed", 0)), facts.label_set)


def _stored_poses(
    manifest: Manifest, poses: Path | None, pose_weights: Path | None, layout: str | None
) -> PoseStore | None:
    """The poses of --poses; without it and --pose-weights, those of the data set."""
    from pevl_cli.pose.files import read_poses
    from pevl_cli.training.train import count_without_poses

    source = poses or (manifest.poses if pose_weights is None else None)
    if source is None:
        return None
    stored = read_poses(source, layout)
    console.warn_about_missing_poses(count_without_poses(manifest.items, stored), source)
    return stored


def _write(
    outcome: Outcome,
    manifest: Manifest,
    recogniser: Recogniser,
    stored: PoseStore | None,
    folder: Path | None,
    output: Path | None,
) -> None:
    """Write the report or the JSON file, and print the results."""
    if folder is not None:
        from pevl_cli.evaluation.report_page import write_report

        write_report(folder, outcome, manifest, recogniser, stored)
    elif output is not None:
        write_text(json.dumps(outcome.as_dict(), indent=1), output)
    tables.show_outcome(outcome)
    if folder is not None:
        print(f"report: {folder / 'report.html'}")


def _short_name(checkpoint: str) -> str:
    """A checkpoint's name in the report folder's name, such as `my_set-mini-best`."""
    path = Path(checkpoint)
    return "-".join(path.resolve().parts[-2:]) if path.is_dir() else path.name


def new_command(arguments: Sequence[str]) -> str | None:
    """The new command for `pevl benchmark --compare` and `--ablation`, options of earlier releases.

    None for all other arguments.
    """
    command = next((i for i, a in enumerate(arguments) if not a.startswith("-")), None)
    if command is None or arguments[command] != "benchmark":
        return None
    rest = list(arguments[command + 1 :])
    if "--compare" in rest:
        rest.remove("--compare")
        return shlex.join(["pevl", "compare", *rest])
    for position, argument in enumerate(rest):
        option, equals, name = argument.partition("=")
        if option == "--ablation":
            after = rest[position + 1 :]
            if not equals:
                name, after = (after[0] if after else "NAME"), after[1:]
            return shlex.join(["pevl", "ablate", name, *rest[:position], *after])
    return None
