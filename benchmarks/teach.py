"""Teach `pevl-mini` three actions that it does not know, five clips each, and name other sources'.

    python benchmarks/teach.py CLIPS/field2 --out DIR --poses STORE.npz

As a coach does: `pevl train --dataset FOLDER --init pevl-mini`. Each draw takes three of field2's
actions that the checkpoint has no label for, five clips of each from as many sources as there are,
and is tested on all clips of these actions from other sources. Seconds are those of the whole
training, without the detection of poses, which are stored. Results in DIR are not computed again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from pevl_cli import recognise
from pevl_cli.data.manifest import Item, Manifest, hold_out, read_manifest
from pevl_cli.evaluation.benchmark import benchmark
from pevl_cli.labels import LabelSet
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
    names = tuple(dict.fromkeys(item.label for item in shown))
    texts = dict(zip(manifest.labels.names, manifest.labels.texts, strict=True))
    labels = LabelSet(names, tuple(texts[name] for name in names))
    folder = arguments.out / f"draw{draw}"
    overrides = {
        "data.dataset": arguments.data,
        "init": arguments.init,
        "run.out": folder,
        "run.device": "cpu",
        "run.tracker": "none",
        "run.seed": draw,
    }
    settings = load_settings_with_init(None, overrides, arguments.set)
    learnt = hold_out([replace(item, split="") for item in shown], seed=0)
    began = time.monotonic()
    train(settings, manifest=replace(manifest, items=tuple(learnt), labels=labels), poses=poses)
    seconds = time.monotonic() - began
    others = tuple(replace(item, split="test") for item in tested)
    outcome = benchmark(
        replace(manifest, items=others, labels=labels),
        recognise.load(folder / "best", device="cpu"),
        "best",
        poses,
        "test",
    )
    threshold = outcome.calibration.threshold or 0.0
    right = [clip for clip in outcome.clips if clip.correct]
    return {
        "labels": names,
        "tested": len(outcome.clips),
        "right": len(right),
        "right_accepted": sum(clip.score >= threshold for clip in right),
        "threshold": threshold,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
