"""`pevl train`: train or fine-tune a model on labelled clips."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pevl_cli import choices
from pevl_cli.cli import console, options
from pevl_cli.cli.paths import check_pose_weights
from pevl_cli.cli.progress import TrainingView
from pevl_cli.errors import PevlError, UsageError

if TYPE_CHECKING:
    from pevl_cli.training.epoch_time import EpochTime
    from pevl_cli.training.plan import Plan
    from pevl_cli.training.progress import Result
    from pevl_cli.training.settings import TrainSettings


def train(
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="A folder with one folder per action, a CSV (path,label,...), a PYSKL pickle, or "
            "a name: "
            "gym99, gym288, diving48, haa500, smarthome, kinetics400 (see `pevl data --help`)."
        ),
    ] = None,
    root: options.Root = None,
    poses: options.Poses = None,
    config: options.Config = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run. Default: runs/DATASET-CONFIG.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Label file with texts and other phrasings of the data set's labels."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Start from this checkpoint: a folder, or pevl-mini. Its labels are replaced by "
            "yours."
        ),
    ] = None,
    clip: options.Clip = None,
    shots: Annotated[
        int | None, typer.Option(min=1, help="Use at most this many training clips of each action.")
    ] = None,
    hold_out: Annotated[
        choices.HoldOut | None,
        typer.Option(
            help="If the data set has no splits, validate on whole groups (people, videos) or on "
            "random clips."
        ),
    ] = None,
    fold: options.Fold = None,
    layout: options.Layout = None,
    all_clips: Annotated[
        bool,
        typer.Option(
            "--all-clips",
            help="Also train on the val split, for a final model. Nothing is validated.",
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a clip that cannot be read.")
    ] = False,
    recipe: Annotated[
        choices.Recipe | None,
        typer.Option(
            help="Training settings: own, for your own clips; paper, for the paper's data sets."
        ),
    ] = None,
    epochs: options.Epochs = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=2, help="Clips per batch; they are contrasted with each other."),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Highest learning rate, that of new weights.")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(min=0, help="Stop after this many epochs without improvement; 0: never."),
    ] = None,
    crop: Annotated[
        choices.Crop | None,
        typer.Option(
            help="full: the middle square of the frame; follow: a square around the main person."
        ),
    ] = None,
    no_video: Annotated[bool, typer.Option("--no-video", help="Train on poses only.")] = False,
    no_pose: options.NoPose = False,
    pose_weights: options.PoseWeights = None,
    device: options.OptionalDevice = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Number of GPUs of this machine to use.")
    ] = None,
    precision: options.OptionalPrecision = None,
    tracker: Annotated[
        choices.Tracker | None, typer.Option(help="Program that records the training curves.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of all random numbers.")] = None,
    assignments: options.Assignments = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in --out.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show settings, sizes, steps and the time of an epoch; do not train."
        ),
    ] = False,
) -> None:
    """Train a model on your own actions.

    \b
    Example: pevl train --dataset my_clips --init pevl-mini
    with my_clips/squat/1.mp4, my_clips/squat/2.mp4, my_clips/lunge/1.mp4, ...
    """
    if no_video and no_pose:
        raise UsageError(
            "--no-video and --no-pose cannot be used together: the model would have no input."
        )
    overrides: dict[str, Any] = {
        "data.dataset": dataset,
        "data.root": root,
        "data.poses": poses,
        "data.fold": fold,
        "data.layout": layout,
        "data.all_clips": all_clips or None,
        "data.labels": labels,
        "data.shots": shots,
        "data.hold_out": hold_out,
        "data.strict": strict or None,
        "init": init,
        "clip": clip,
        "recipe": recipe,
        "optim.epochs": epochs,
        "optim.batch_size": batch_size,
        "optim.lr": learning_rate,
        "optim.patience": patience,
        "model.crop": "full" if no_pose else crop,
        "model.video": False if no_video else None,
        "model.pose": False if no_pose else None,
        "run.out": out,
        "run.pose_weights": pose_weights,
        "run.device": device,
        "run.processes": gpus,
        "run.precision": precision,
        "run.tracker": tracker,
        "run.seed": seed,
    }
    overrides = {key: value for key, value in overrides.items() if value is not None}
    if dataset is not None and dataset.suffix in {".pkl", ".pickle"} and init is None:
        # Before the settings are loaded, so that other options of the user can change the result.
        overrides["model.video"] = False
    if resume and config is None:
        config = _settings_to_resume(out, dataset)
    if not (no_pose or poses is not None):
        check_pose_weights(pose_weights)
    _run(config, overrides, assignments or [], resume, dry_run)


def _run(
    config: str | None,
    overrides: dict[str, Any],
    assignments: Sequence[str],
    resume: bool,
    dry_run: bool,
) -> None:
    """Read the data set, then train or show the plan."""
    from pevl_cli.data.dataset import read_data
    from pevl_cli.model.config import CONFIGS
    from pevl_cli.training.settings import load_settings

    named = "data.dataset" in overrides or any(
        a.partition("=")[0].strip() == "data.dataset" for a in assignments
    )
    if not named and (config is None or config in CONFIGS):
        raise UsageError(
            "--dataset is missing: give a folder with one folder per action, or a CSV file."
        )
    settings = load_settings(config, overrides, assignments)
    manifest = read_data(settings.data, settings.run.seed)
    # Of several processes, only the first one prints.
    first = os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("RANK", "0") == "0"
    for warning in (*manifest.warnings, *manifest.split_notes) if first else ():
        console.warn(warning)

    from pevl_cli.training import build, run_folder
    from pevl_cli.training import train as training

    if settings.init is not None:
        settings = build.load_settings_with_init(config, overrides, assignments)
    stored = training.read_stored_poses(settings, manifest)
    settings = training.adapt_settings(settings, manifest, stored)
    if first and stored is not None:
        count = training.count_without_poses(manifest.items, stored)
        console.warn_about_missing_poses(count, stored.source)
    if first and not (resume or dry_run) and run_folder.has_state(settings.folder):
        console.warn(
            f"{settings.folder}: the earlier run in this folder is replaced (its last state is "
            "kept as state.replaced.pt). To continue that run: stop now and add --resume; to keep "
            "it: --out ANOTHER_FOLDER"
        )
    uses_detector = stored is None and (settings.model.pose or settings.model.crop != "full")
    console.note_bundled_weights(settings.run.pose_weights, first and uses_detector)
    if dry_run and not first:
        return
    if dry_run:
        from pevl_cli.training.epoch_time import measure_epoch
        from pevl_cli.training.plan import make_plan

        console.note("some clips and steps are measured, for about 20 s at most; nothing is kept")
        plan = make_plan(settings, manifest, stored)
        _show_plan(settings, plan, measure_epoch(settings, manifest, stored, plan))
        return
    if not first:
        training.train(settings, resume=resume, manifest=manifest, poses=stored)
        return
    with TrainingView() as listener:
        result = training.train(settings, listener, resume, manifest, stored)
    _show_result(result, settings)
    if result.interrupted:
        raise typer.Exit(130)


def _settings_to_resume(out: Path | None, dataset: Path | None) -> str | None:
    """The settings file of the run to continue; None if there is none.

    PevlError if another version of pevl wrote it: its options would be reported one by one, and the
    state would be refused in the end.
    """
    from pevl_cli.training.settings import load_settings

    if out is not None:
        files = [out / "settings.yaml"]
    elif dataset is not None:
        from pevl_cli.data.sets.named import known_name
        from pevl_cli.model.config import CONFIGS

        named = known_name(dataset)
        title = named if named and not dataset.exists() else dataset.resolve().stem
        files = [Path("runs") / f"{title}-{config}" / "settings.yaml" for config in CONFIGS]
    else:
        raise UsageError("--resume: give the run's folder with --out.")
    files = [file for file in files if file.is_file()]
    if len(files) > 1:
        folders = ", ".join(str(file.parent) for file in files)
        raise UsageError(f"--resume: several runs fit: {folders}; choose one with --out.")
    if not files:
        return None
    try:
        load_settings(files[0])
    except UsageError as error:
        reason = str(error).rstrip(".")
        raise PevlError(
            f"{files[0]}: written by another version of pevl, or changed ({reason}); continue the "
            "run with the version that began it, or start anew without --resume."
        ) from error
    return str(files[0])


def _show_plan(settings: TrainSettings, plan: Plan, epoch: EpochTime) -> None:
    """Print the settings as YAML, a format that --config reads, and sizes and time of the run."""
    import yaml
    from rich.console import Console
    from rich.table import Table

    print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    table = Table(title="would train", title_justify="left", show_header=False)
    for name, value in (*plan.rows(), *epoch.rows()):
        table.add_row(name, value)
    Console().print(table)


def _show_result(result: Result, settings: TrainSettings) -> None:
    """Print a summary on stderr, and on stdout the command that uses the checkpoint."""
    out = console.stderr()
    for line in _problems(result):
        out.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
    for line in (*_summary(result), "use it with:"):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    command = ["pevl", "classify", "VIDEO", "--checkpoint", str(result.folder / "best")]
    if settings.model.base == "clip" and settings.clip is not None:
        command += ["--clip", settings.clip]
    if settings.run.pose_weights is not None:
        command += ["--pose-weights", str(settings.run.pose_weights)]
    print(shlex.join(command))


def _problems(result: Result) -> list[str]:
    lines = [f"left out: {clip.reason}" for clip in result.left_out[:10]]
    if result.left_out:
        lines.append(
            f"{len(result.left_out)} clips were left out; "
            f"{result.folder / 'left_out.csv'} lists each with the reason"
        )
    if result.incomplete:
        lines.append(f"the data set is incomplete: {result.incomplete}")
    return lines


def _summary(result: Result) -> list[str]:
    lines = []
    if result.interrupted and not result.epochs:
        return [
            "interrupted in the first epoch: nothing has been validated, and the checkpoints have "
            "learnt next to nothing. To continue, run the same command with --resume."
        ]
    if result.interrupted:
        lines.append(
            f"interrupted after {result.epochs} epochs; the checkpoints can be used. To continue, "
            "run the same command with --resume."
        )
    if result.stopped_early:
        lines.append(f"stopped after {result.epochs} epochs without further improvement.")
    effort = (
        f"trained on {result.train_clips} clips in {result.seconds / 60:.1f} min, "
        f"{result.wait:.0%} of it waiting for clips"
    )
    best = result.best
    if best is None:
        return [*lines, f"{effort}; the accuracy is unknown because there are no validation clips."]
    lines.append(
        f"best epoch {result.best_epoch}: top-1 {best.top1:.1%}, mean class "
        f"{best.mean_class:.1%} on {best.count} validation clips; {effort}"
    )
    perfect = sum(value == 1 for value in best.per_class.values())
    lines.append(f"actions with all clips correct: {perfect} of {len(best.per_class)}")
    weakest = sorted(best.per_class.items(), key=lambda item: item[1])[:3]
    if weakest[0][1] < 1:
        lines.append("weakest: " + ", ".join(f"{n} {v:.0%}" for n, v in weakest if v < 1))
    if best.confused:
        pairs = (f"{t} named {g} ({n}x)" for t, g, n in best.confused[:3])
        lines.append("most frequent confusions: " + ", ".join(pairs))
    return lines
