"""Teach `pevl-mini` three actions that it does not know, five clips each, and name other sources'.

    python benchmarks/teach.py CLIPS/field2 --out DIR --poses STORE.npz

As a coach does: `pevl train --dataset FOLDER --init pevl-mini`. Each draw takes three of field2's
actions that the checkpoint has no label for, five clips of each from as many sources as there are,
and is tested on all clips of these actions from other sources. Seconds are those of the whole
training, without the detection of poses, which are stored. Results in DIR are not computed again.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np

from pevl_cli.data.clips import Clips
from pevl_cli.data.manifest import Item, Manifest, read_manifest
from pevl_cli.matching import encode_labels, flips_at_test, match_samples
from pevl_cli.model import checkpoint
from pevl_cli.pose.files import PoseStore, read_poses
from pevl_cli.training.build import load_settings_with_init
from pevl_cli.training.train import train

ACTIONS, CLIPS, LEAST_TESTED = 3, 5, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="field2's folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--poses", type=Path, required=True)
    parser.add_argument("--init", default="pevl-mini")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="as of pevl train")
    arguments = parser.parse_args()
    manifest, poses = read_manifest(arguments.data), read_poses(arguments.poses, None)
    known = checkpoint.read_facts(checkpoint.find(arguments.init)).label_set
    rows = []
    for draw in range(arguments.draws):
        file = arguments.out / f"{draw}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            texts = dict(zip(manifest.labels.names, manifest.labels.texts, strict=True))
            unknown = [n for n in manifest.labels.names if known.find(n) is None]
            unknown = [n for n in unknown if known.find(texts[n]) is None]
            shown, tested = choose(manifest, unknown, draw)
            row = teach(arguments, manifest, poses, shown, tested, draw)
            file.write_text(json.dumps(row))
        rows.append(json.loads(file.read_text()))
        print(rows[-1], flush=True)
    tested = sum(r["tested"] for r in rows)
    right, accepted = (sum(r[key] for r in rows) / tested for key in ("right", "right_accepted"))
    seconds = [r["seconds"] for r in rows]
    print(
        f"{tested} clips of other sources: {right:.1%} right, {accepted:.1%} right and accepted; "
        f"{min(seconds):.0f} to {max(seconds):.0f} s"
    )


def choose(manifest: Manifest, labels: list[str], draw: int) -> tuple[list[Item], list[Item]]:
    """The clips to learn from, and those of other sources, of three labels drawn by ``draw``."""
    rng = np.random.default_rng(draw)
    shown: list[Item] = []
    tested: list[Item] = []
    for label in rng.permutation(labels).tolist():
        clips = [item for item in manifest.items if item.label == label]
        by_source: dict[str, list[Item]] = {}
        for i in rng.permutation(len(clips)):
            by_source.setdefault(clips[i].group, []).append(clips[i])
        taken: list[Item] = []
        sources = list(by_source)
        for source in sources:
            if len(taken) < CLIPS:
                # One clip of each source, or as many as are needed if there are few.
                each = 1 if len(sources) > CLIPS else CLIPS
                taken += by_source[source][: min(each, CLIPS - len(taken))]
        used = {item.group for item in taken}
        rest = [item for item in clips if item.group not in used]
        if len(taken) == CLIPS and len(rest) >= LEAST_TESTED:
            shown, tested = shown + taken, tested + rest
        if len({item.label for item in shown}) == ACTIONS:
            break
    return shown, tested


def teach(
    arguments: argparse.Namespace,
    manifest: Manifest,
    poses: PoseStore,
    shown: list[Item],
    tested: list[Item],
    draw: int,
) -> dict[str, object]:
    folder = arguments.out / f"draw{draw}"
    folder.mkdir(exist_ok=True)
    dataset = folder / "clips.csv"
    texts = dict(zip(manifest.labels.names, manifest.labels.texts, strict=True))
    with dataset.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "text", "group"))
        for item in shown:
            table.writerow((item.path.resolve(), item.label, texts[item.label], item.group))
    overrides = {
        "data.dataset": dataset,
        "init": arguments.init,
        "run.out": folder / "run",
        "run.device": "cpu",
        "run.tracker": "none",
        "run.seed": draw,
    }
    names = {item.path.resolve(): item.name for item in shown}
    learnt = read_manifest(dataset)
    renamed = [Item(**{**vars(i), "name": names[i.path.resolve()]}) for i in learnt.items]
    learnt = Manifest(**{**vars(learnt), "items": tuple(renamed)})
    began = time.monotonic()
    train(load_settings_with_init(None, overrides, arguments.set), manifest=learnt, poses=poses)
    seconds = time.monotonic() - began
    model, facts = checkpoint.load(folder / "run" / "best")
    labels = facts.label_set
    clips = Clips(tested, labels.names, facts.model, None, poses=poses)
    texts_, flip = encode_labels(model, labels), flips_at_test(model, labels)
    samples = [clips[i] for i in range(len(clips))]
    found = match_samples(model, samples, texts_, flip_at_test=flip, with_detector=True)
    assert facts.calibration is not None
    scores = facts.calibration.scores(found.values, found.prototype_similarity(model.prototypes))
    best, named = scores.max(1)
    right = [int(a) == b for a, b in zip(named, clips.labels, strict=True)]
    threshold = facts.calibration.threshold or 0.0
    accepted = [r and float(s) >= threshold for r, s in zip(right, best, strict=True)]
    return {
        "labels": list(labels.names),
        "tested": len(tested),
        "right": sum(right),
        "right_accepted": sum(accepted),
        "threshold": threshold,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
