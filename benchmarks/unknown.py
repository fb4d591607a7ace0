"""How often a checkpoint says "none of these" where it should, and where it should not.

    python benchmarks/unknown.py CLIPS/clips CLIPS/field --known portrait_squat walking_160x120

Single clips of actions that are not among the labels, but those named with --known, should get a
score below the threshold; the data set's val clips one above it, and one below it where their own
label is not among those that are asked for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pevl_cli import recognise
from pevl_cli.data.manifest import read_manifest
from pevl_cli.errors import PevlError
from pevl_cli.media.video import VIDEO_SUFFIXES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--known", nargs="*", default=[], help="names without their endings")
    parser.add_argument("--checkpoint", default="pevl-mini")
    parser.add_argument("--pose-weights", default="pevl-pose")
    arguments = parser.parse_args()
    recogniser = recognise.load(arguments.checkpoint, pose_weights=arguments.pose_weights)
    refused: dict[str, list[bool]] = {"unknown": [], "known": []}
    for path in sorted(arguments.clips.iterdir()):
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        try:
            answer = recogniser.classify(path)
        except PevlError as error:
            print(error)
            continue
        first = answer.predictions[0]
        kind = "known" if path.stem in arguments.known else "unknown"
        print(f"{kind:8} {path.name:28} {first.score:6.1%} {first.label:24}", end="")
        print("none of these" if answer.none_of_these else "")
        if kind == "unknown":
            refused["unknown"].append(answer.none_of_these)
    items = read_manifest(arguments.dataset).in_split("val")
    refused["known"] = [recogniser.classify(item.path).none_of_these for item in items]
    assert recogniser.labels is not None
    names = recogniser.labels.names
    refused["known, own label not asked for,"] = [
        recogniser.classify(item.path, [n for n in names if n != item.label]).none_of_these
        for item in items
    ]
    threshold = recogniser.calibration.threshold or 0.0
    for kind, rejections in refused.items():
        print(f"{kind} clips: {sum(rejections)} of {len(rejections)} below {threshold:.1%}")


if __name__ == "__main__":
    main()
