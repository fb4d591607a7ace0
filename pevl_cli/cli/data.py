"""`pevl data`: check which clips of a data set are on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pevl_cli.cli import console, options, tables
from pevl_cli.cli.paths import check_output

if TYPE_CHECKING:
    from pevl_cli.data.manifest import Item, Manifest
    from pevl_cli.pose.files import PoseStore

app = typer.Typer(no_args_is_help=True)


@app.callback()
def data() -> None:
    """Check a data set; this help lists the data sets.

    \b
    gym99, gym288            FineGym, v1.0 lists (finegym = gym99)
    gym99-v1.1, gym288-v1.1  FineGym, the larger training lists
    diving48                 Diving48, V2 labels
    haa500                   HAA500
    smarthome-cs             Toyota Smarthome (= smarthome; smarthome-cv1, smarthome-cv2)
    kinetics400              Kinetics-400
    """


@app.command("check")
def check_data(
    name: Annotated[
        str, typer.Argument(help="A data set: its name, folder or CSV.", metavar="NAME")
    ],
    root: options.Root = None,
    poses: options.Poses = None,
    labels: options.DatasetLabels = None,
    fold: options.Fold = None,
    output: Annotated[
        Path | None,
        typer.Option(
            *("--output", "-o"),
            callback=check_output,
            help="Write a CSV of the missing clips to this file.",
        ),
    ] = None,
) -> None:
    """Count the clips on disk and the missing clips.

    \b
    Example: pevl data check gym99 --root DIR --output missing.csv
    """
    from pevl_cli.data.dataset import DataSettings, read_data
    from pevl_cli.data.manifest import write_missing

    manifest = read_data(DataSettings(dataset=Path(name), root=root, labels=labels, fold=fold), 0)
    source = poses or manifest.poses
    stored = None
    if source is not None:
        from pevl_cli.pose.files import read_poses

        stored = read_poses(source)
    for warning in (*manifest.warnings, *manifest.split_notes):
        console.warn(warning)
    rows, missing = _count(manifest, stored)
    tables.show_data_check(manifest.name or name, rows)
    if source is not None:
        print(f"poses: {source}")
    if output is not None:
        write_missing(output, missing)
        print(f"{output} lists the {len(missing)} missing clips")
    elif missing:
        example = missing[0].name or missing[0].path
        print(f"missing, for example: {example}; hint: list all with --output FILE.csv")


def _count(
    manifest: Manifest, stored: PoseStore | None
) -> tuple[list[tuple[int | str, ...]], list[Item]]:
    """Rows of `tables.show_data_check`, and the missing clips: those without video and poses."""
    from pevl_cli.data.manifest import SPLITS

    rows: list[tuple[int | str, ...]] = []
    missing: list[Item] = []
    for split in SPLITS:
        items = manifest.in_split(split)
        if not items and split not in manifest.official_counts:
            continue
        on_disk = [i for i in items if i.on_disk and i.path.exists()]
        with_poses = [i for i in items if stored is not None and stored.find(i.name) is not None]
        available = {*on_disk, *with_poses}
        absent = [i for i in items if i not in available]
        missing += absent
        parts = sum(i.start_s is not None for i in on_disk)
        official = manifest.official_counts.get(split)
        counts = (len(items), len(on_disk) - parts, parts, len(with_poses), len(absent))
        rows.append((split, "" if official is None else official, *counts))
    return rows, missing
