"""What pose alone, video alone and both give: accuracy of a checkpoint on a data set's split.

    python benchmarks/streams.py FOLDER --checkpoint pevl-mini --pose-weights yolo11n-pose.pt

The same weights judge each clip three times: with both streams, with the pictures taken away, and
with the joints taken away (the cut-out still follows the actor).
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch

from pevl_cli.data.manifest import read_manifest
from pevl_cli.data.samples import view
from pevl_cli.metrics import accuracy
from pevl_cli.model.features import Batch
from pevl_cli.recognise import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", default="pevl-mini")
    parser.add_argument("--pose-weights")
    parser.add_argument("--split", default="val")
    arguments = parser.parse_args()
    recogniser = load(arguments.checkpoint, pose_weights=arguments.pose_weights, device="cpu")
    labels = recogniser.labels
    assert labels is not None
    texts = recogniser.encode(labels)
    items = read_manifest(arguments.folder).in_split(arguments.split)
    rows: dict[str, list[torch.Tensor]] = {"both": [], "pose alone": [], "video alone": []}
    for item in items:
        sample = recogniser.read(item.path, item.start_s, item.end_s)
        whole = view(sample, recogniser.model.config)
        assert whole.joints is not None
        no_joints = whole.joints * torch.tensor([1.0, 1.0, 0.0])
        with torch.inference_mode():
            for name, batch in {
                "both": whole,
                "pose alone": Batch(None, whole.joints),
                "video alone": Batch(whole.frames, no_joints),
            }.items():
                rows[name].append(recogniser.model.match(batch, texts).values)
    true = [labels.names.index(item.label) for item in items]
    for name, matches in rows.items():
        figures = accuracy(torch.cat(matches), true, labels.names)
        if name == "both":
            counts = Counter(item.label for item in items)
            for label, share in figures.per_class.items():
                print(f"  {label:22} {round(share * counts[label]):3} of {counts[label]}")
        print(
            f"{name:12} top-1 {figures.top1:.1%}  mean class {figures.mean_class:.1%}  "
            f"({figures.count} clips)"
        )


if __name__ == "__main__":
    main()
