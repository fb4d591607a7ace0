"""`pevl ablate`: train and measure the variants of one of the paper's tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pevl_cli.cli import console, options
from pevl_cli.cli.paths import check_pose_weights, write_text
from pevl_cli.cli.progress import AblationView

Name = Literal["components", "ucmr", "similarities", "modalities", "adapters", "pose-input"]
SEEDS = (0, 1, 2)


def ablate(
    name: Annotated[
        Name,
        typer.Argument(
            help="Table 4 of the paper (components), 5 (ucmr), 6 (similarities), 7 (modalities), "
            "8 (adapters) or 9 (pose-input).",
            metavar="NAME",
        ),
    ],
    dataset: options.Dataset,
    root: options.Root = None,
    poses: options.Poses = None,
    labels: options.DatasetLabels = None,
    fold: options.Fold = None,
    layout: options.Layout = None,
    config: options.Config = None,
    clip: options.Clip = None,
    epochs: options.Epochs = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            min=0, help="Random seed; repeat the option for several. Default: 0, 1 and 2."
        ),
    ] = None,
    assignments: options.Assignments = None,
    pose_weights: options.PoseWeights = None,
    device: options.OptionalDevice = None,
    precision: options.OptionalPrecision = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the runs. Default: runs/DATASET-CONFIG-ablation."),
    ] = None,
    output: options.Output = None,
) -> None:
    """Repeat an ablation table of the paper on your data.

    Trains and measures each variant of the table with each seed.
    Run the same command again to continue after an interruption.

    \b
    Example: pevl ablate components --dataset haa500 --root DIR --epochs 30
    """
    if poses is None:
        check_pose_weights(pose_weights)
    overrides = {
        "data.dataset": dataset,
        "data.root": root,
        "data.poses": poses,
        "data.fold": fold,
        "data.layout": layout,
        "data.labels": labels,
        "clip": clip,
        "optim.epochs": epochs,
        "run.out": out,
        "run.pose_weights": pose_weights,
        "run.device": device,
        "run.precision": precision,
        "run.tracker": "none",
    }
    overrides = {key: value for key, value in overrides.items() if value is not None}
    _run(name, config, overrides, assignments or [], sorted(set(seed or SEEDS)), output)


def _run(
    name: Name,
    config: str | None,
    overrides: dict[str, Any],
    assignments: Sequence[str],
    seeds: Sequence[int],
    output: Path | None,
) -> None:
    from pevl_cli.data.dataset import read_data
    from pevl_cli.training.settings import load_settings

    settings = load_settings(config, overrides, assignments)
    if settings.run.out is None:  # not the folder of `pevl train`
        folder = settings.folder.with_name(f"{settings.folder.name}-ablation")
        run = settings.run.model_copy(update={"out": folder})
        settings = settings.model_copy(update={"run": run})
    manifest = read_data(settings.data, 0)
    for warning in (*manifest.warnings, *manifest.split_notes):
        console.warn(warning)

    from pevl_cli.evaluation import ablation
    from pevl_cli.training.train import read_stored_poses

    stored = read_stored_poses(settings, manifest)
    console.note_bundled_weights(settings.run.pose_weights, stored is None)
    with AblationView() as listener:
        rows = ablation.ablate(name, settings, manifest, stored, seeds, listener)
    table = ablation.markdown(name, rows, ablation.table_title(settings, manifest))
    write_text(table, settings.folder / f"{name}.md")
    write_text(table, output)
