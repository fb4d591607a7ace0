"""`pevl pose`: detect the actor's joints in videos, or store those of a whole data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pevl_cli.cli import console, options
from pevl_cli.cli.batch import exit_if_failed, process_files
from pevl_cli.cli.paths import check_files_exist, check_output, check_pose_weights, write_text
from pevl_cli.cli.pose_store import StoreRequest, check_export, store_poses
from pevl_cli.errors import UsageError

if TYPE_CHECKING:
    from pevl_cli.pose.detector import PoseDetector

Format = Literal["json", "csv"]
Frames = Literal["48", "all"]
POSE_FILES = {".npz", ".json", ".pkl", ".pickle"}


def pose(
    videos: Annotated[
        list[str],
        typer.Argument(
            help="Videos, folders or patterns; or one file of stored poses. With --store or "
            "--export also a data set: its folder, CSV or name.",
            metavar="VIDEO",
        ),
    ],
    frames: Annotated[
        Frames, typer.Option(help="The 48 frames that the model uses, or all frames.")
    ] = "48",
    format: Annotated[
        Format, typer.Option(help="Output format; csv has one row per joint.")
    ] = "json",
    draw: Annotated[
        Path | None,
        typer.Option(
            callback=check_output,
            help="Draw the skeleton into this video (.mp4) or image of 6 frames (.png, .jpg).",
        ),
    ] = None,
    start: options.Start = None,
    end: options.End = None,
    clip: Annotated[
        str | None, typer.Option(help="Name of the clip in a file of stored poses.")
    ] = None,
    layout: options.Layout = None,
    root: options.Root = None,
    store: Annotated[
        Path | None,
        typer.Option(
            callback=check_output,
            help="Write the poses of all clips to this .npz file, for --poses.",
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            callback=check_export,
            help="Write the poses of all clips as a pickle for PYSKL and MMAction2.",
            metavar="FILE.pkl",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="With --store: process only part i of n of the clips.", metavar="i/n"),
    ] = None,
    workers: options.Workers = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray", help="With --store: use Ray Data's workers (needs: pip install 'pevl[ray]')."
        ),
    ] = False,
    pose_weights: options.PoseWeights = None,
    device: options.Device = "auto",
    output: options.Output = None,
) -> None:
    """Print or draw the joints of the main person.

    With --store or --export: write the joints of a whole data set to a file.

    \b
    Examples:
      pevl pose clip.mp4 --draw clip.png
      pevl pose gym99 --root DIR --store gym99.npz --workers 4
    """
    if store is not None or export is not None:
        video_options = (draw, start, end, clip, layout, output)
        if any(value is not None for value in video_options) or format != "json":
            raise UsageError(
                "--draw, --start, --end, --clip, --layout, --format and --output cannot be "
                "used with --store or --export."
            )
        store_poses(
            StoreRequest(
                *(videos, root, store, export, shard, workers, ray),
                *(pose_weights, device, frames == "all"),
            )
        )
        return
    if root is not None or shard is not None or ray or workers is not None:
        raise UsageError("--root, --shard, --workers and --ray need --store FILE.npz.")
    if len(videos) == 1 and Path(videos[0]).suffix in POSE_FILES:
        _write([_stored_record(Path(videos[0]), clip, draw, layout)], format, output)
        return
    _from_videos(videos, frames, (start, end), draw, pose_weights, device, format, output)


def _write(records: list[dict[str, Any]], format: Format, output: Path | None) -> None:
    from pevl_cli.output.records import poses_csv

    write_text(json.dumps(records) if format == "json" else poses_csv(records), output)


def _from_videos(
    videos: list[str],
    frames: Frames,
    part_s: tuple[float | None, float | None],
    draw: Path | None,
    pose_weights: Path | None,
    device: str,
    format: Format,
    output: Path | None,
) -> None:
    from pevl_cli.media.video import find_videos

    paths = find_videos(videos)
    check_files_exist(paths)
    if draw is not None and len(paths) > 1:
        raise UsageError("--draw needs exactly one video.")
    check_pose_weights(pose_weights)

    from pevl_cli.hardware import choose_device
    from pevl_cli.output.draw import check_drawing

    if draw is not None:
        check_drawing(draw)
    from pevl_cli.pose.detector import PoseDetector

    detector = PoseDetector(pose_weights, device=choose_device(device))
    detector.digest()  # raises here if the weights cannot be read
    console.note_bundled_weights(pose_weights)
    records, failed = process_files(
        paths, lambda path: _record(path, detector, frames, part_s, draw)
    )
    _write(records, format, output)
    exit_if_failed(failed, len(paths))


def _record(
    path: Path,
    detector: PoseDetector,
    frames: Frames,
    part_s: tuple[float | None, float | None],
    draw: Path | None,
) -> dict[str, Any]:
    """The JSON record of the actor of a video; also drawn if ``draw`` is given."""
    import numpy as np

    from pevl_cli.media.video import frames_in_span, read_timeline, sample_clip
    from pevl_cli.output.draw import draw_actor
    from pevl_cli.output.records import pose_record
    from pevl_cli.pose.actor import FrameSource

    if frames == "48":
        clip = sample_clip(path, 48, *part_s)
        for warning in clip.warnings:
            console.warn(f"{path}: {warning}")
        actor, indices, frame_of = detector.actor(clip), clip.indices, clip.frame_of
        timeline = read_timeline(path)
    else:
        timeline = read_timeline(path)
        indices = frames_in_span(timeline, *part_s)
        actor = detector.find_actor(FrameSource.from_video(timeline, indices))
        frame_of = np.arange(len(indices))
    if not actor.seen.any():
        console.warn(f"{path}: no person was detected.")
    if draw is not None:
        draw_actor(draw, timeline, actor, indices)
    return pose_record(str(path), timeline, actor, indices, frame_of)


def _stored_record(
    path: Path, clip: str | None, draw: Path | None, layout: str | None
) -> dict[str, Any]:
    """The JSON record of the actor of one stored clip; also drawn if ``draw`` is given."""
    from pevl_cli.output.draw import check_drawing, draw_stored
    from pevl_cli.output.records import stored_pose_record
    from pevl_cli.pose.files import read_poses

    if draw is not None:
        check_drawing(draw)
    poses = read_poses(path, layout)
    if clip is None and len(poses) > 1:
        raise UsageError(
            f"{path}: contains {len(poses)} clips, such as {', '.join(poses.names[:3])}; hint: "
            "choose "
            "one with --clip."
        )
    stored = poses.get(clip or poses.names[0])
    if stored is None:
        raise UsageError(f"{path}: has no clip '{clip}'; it has {', '.join(poses.names[:3])}, ...")
    actor = stored.actor()
    if not actor.seen.any():
        console.warn(f"{path}: no person is visible.")
    if draw is not None:
        draw_stored(draw, stored, actor)
    return stored_pose_record(stored, actor)
