"""`pevl demo`: try pevl without a video."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pevl_cli.cli import console, options, tables
from pevl_cli.cli.paths import check_pose_weights, make_folder


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the clip and the image. Default: a temporary folder."),
    ] = None,
    pose_weights: options.PoseWeights = None,
    device: options.Device = "auto",
) -> None:
    """Try pevl without a video.

    Draws a short clip, names its action and shows the detected joints.
    Writes files only into --out or a temporary folder.

    \b
    Example: pevl demo --out demo
    """
    from pevl_cli.weights import find_weights

    check_pose_weights(pose_weights)
    console.note_bundled_weights(pose_weights)
    weights = find_weights(pose_weights)  # before the temporary cache replaces the real one
    folder = out or Path(tempfile.mkdtemp(prefix="pevl-demo-"))
    make_folder(folder)
    with _temporary_cache():
        from pevl_cli import recognise
        from pevl_cli.media.video import read_timeline, sample_clip
        from pevl_cli.output import demo_clip
        from pevl_cli.output.draw import draw_actor, draw_frame

        clip = demo_clip.draw_clip(folder / "demo.mp4")
        recogniser = recognise.load(pose_weights=weights, device=device)
        answer = recogniser.classify(clip)
        sampled = sample_clip(clip, recogniser.model.config.pose_frames)
        assert recogniser.detector is not None
        actor = recogniser.detector.actor(sampled)
        image = folder / "demo.png"
        draw_actor(image, read_timeline(clip), actor, sampled.indices)
    tables.show_answer(answer)
    tables.show_image(draw_frame(sampled, actor))
    print(f"\nclip: {clip}\njoints: {image}\n\nnext:")
    print(f"  {shlex.join(['pevl', 'classify', str(clip), '--top-k', '3'])}")
    print("  pevl classify YOUR_CLIP.mp4")
    print("  pevl train --dataset FOLDER_OF_CLASS_FOLDERS --init pevl-mini")


@contextmanager
def _temporary_cache() -> Iterator[None]:
    """Put pevl's caches and ultralytics' settings into a temporary folder."""
    from pevl_cli.cache import CACHE_VARIABLE

    variables = (CACHE_VARIABLE, "YOLO_CONFIG_DIR")
    before = {name: os.environ.get(name) for name in variables}
    with tempfile.TemporaryDirectory(prefix="pevl-cache-") as cache:
        os.environ.update(dict.fromkeys(variables, cache))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
