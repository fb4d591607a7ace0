"""Put together what `pevl-mini` learns from: real clips with video, and clips of which there are
poses only.

    python benchmarks/make_mini.py data CLIPS --out DIR \\
      --pose-weights yolo11n-pose.pt pevl-pose
    python benchmarks/make_mini.py start pevl-mini --to DIR/start
    pevl train --dataset DIR/clips.csv --poses DIR/poses --labels benchmarks/mini.txt ...
    python benchmarks/make_mini.py ship CLIPS RUN/best RUN/last --made DIR \\
      --to pevl_cli/assets/checkpoints/pevl-mini

(the whole command and what came of it: benchmarks/README.md). Every clip with video is listed once
for each detector, so that the model learns, and is chosen by, the joints of both. Only train and
val parts are read.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pevl_cli.cache import atomic_write
from pevl_cli.data import extract
from pevl_cli.data.clips import Clips
from pevl_cli.data.manifest import Item, read_manifest
from pevl_cli.data.samples import view
from pevl_cli.data.sets.pyskl import read_pyskl
from pevl_cli.matching import (
    encode_labels,
    flips_at_test,
    match_samples,
    normalise_prototypes,
    sum_video_features,
)
from pevl_cli.model import checkpoint
from pevl_cli.model.calibration import fit_calibration
from pevl_cli.model.pevl import PeVL
from pevl_cli.pose.files import read_poses
from pevl_cli.weights import find_weights

FIELD = "field"
PICKLES = "poses/jhmdb14_split1_train.pkl", "poses/tennis4_train.pkl"
# The same action under the name that it has among the clips with video.
SAME = {"pullup": "workout_pullup", "wave": "wave_one_hand"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(required=True)
    made = steps.add_parser("data", help="one CSV and one folder of poses")
    made.add_argument("data", type=Path)
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--pose-weights", nargs="+", default=["yolo11n-pose.pt", "pevl-pose"])
    made.set_defaults(do=put_together)
    started = steps.add_parser("start", help="what a checkpoint knows of poses and words alone")
    started.add_argument("checkpoint")
    started.add_argument("--to", type=Path, required=True)
    started.set_defaults(do=start)
    shipped = steps.add_parser("ship", help="checkpoints of a run, averaged, into the package")
    shipped.add_argument("data", type=Path)
    shipped.add_argument("checkpoints", type=Path, nargs="+")
    shipped.add_argument("--made", type=Path, required=True, help="what `data` made")
    shipped.add_argument("--to", type=Path, required=True)
    shipped.set_defaults(do=ship)
    arguments = parser.parse_args()
    arguments.do(arguments)


def put_together(arguments: argparse.Namespace) -> None:
    out, data = arguments.out, arguments.data.resolve()
    poses = out / "poses"
    poses.mkdir(parents=True, exist_ok=True)
    rows = []
    for named in arguments.pose_weights:
        weights = find_weights(named)
        place = out / weights.stem
        if not place.is_symlink():
            place.symlink_to(data / FIELD, target_is_directory=True)
        items = [
            replace(item, name=f"{weights.stem}/{item.name}")
            for item in read_manifest(data / FIELD).items
        ]
        summary = extract.extract(
            items,
            poses / f"{weights.stem}.npz",
            str(weights),
            "cpu",
            workers=os.cpu_count() or 1,
            listener=_tell,
        )
        print(f"{weights.stem}: {summary.clips} clips, nobody found in {summary.without_person}")
        for item in items:
            if item.split in ("train", "val"):
                path = f"{item.name}{item.path.suffix}"
                rows.append((path, item.label, item.split, item.group))
    for name in PICKLES:
        shutil.copy(data / name, poses)
        # Their val parts are measured on the pickles themselves.
        rows += [_row(item) for item in read_pyskl(data / name, None, None).in_split("train")]
    with atomic_write(out / "clips.csv") as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "label", "split", "group"))
        table.writerows(rows)
    print(f"{out / 'clips.csv'}: {len(rows)} rows")


def start(arguments: argparse.Namespace) -> None:
    """Without its video, which sees through the pose network of its day: a new one starts anew."""
    model, facts = checkpoint.load(checkpoint.find(arguments.checkpoint))
    config = facts.model.model_copy(update={"video": False})
    wanted = PeVL(config).state_dict().keys()
    state = {name: value for name, value in model.state_dict().items() if name in wanted}
    checkpoint.save(arguments.to, state, facts.model_copy(update={"model": config}))


def ship(arguments: argparse.Namespace) -> None:
    """The mean of some checkpoints of one run, with scores fitted anew, and with the names of the
    sets it was made from, by which `pevl benchmark` knows them again."""
    loaded = [checkpoint.load(folder) for folder in arguments.checkpoints]
    model, facts = loaded[0]
    for one, _ in loaded:
        one.prototypes = None  # looked up anew
    model.load_state_dict(averaged([one.state_dict() for one, _ in loaded]))
    labels = facts.label_set
    listed = read_manifest(arguments.made / "clips.csv")
    poses = read_poses(arguments.made / "poses", None)
    shown, clips = (
        Clips(listed.in_split(split), labels.names, facts.model, None, poses=poses)
        for split in ("train", "val")
    )
    drawn = shown.draw_examples(len(shown), facts.training["seed"])
    examples = ((shown.labels[i], view(shown[i], facts.model)) for i in drawn)
    model.prototypes = normalise_prototypes(sum_video_features(model, examples, len(labels)))
    texts, flip = encode_labels(model, labels), flips_at_test(model, labels)
    found = match_samples(model, [clips[i] for i in range(len(clips))], texts, flip_at_test=flip)
    near = found.prototype_similarity(model.prototypes)
    calibration = fit_calibration(found.values, clips.labels, "val", near)
    sets = [read_manifest(arguments.data / FIELD)]
    sets += [read_pyskl(arguments.data / name, None, None) for name in PICKLES]
    began = facts.training["init"]
    training = facts.training | {
        "data": [manifest.title for manifest in sets],
        "init": None if began is None else Path(began).name,
    }
    stored = facts.model_copy(update={"training": training, "calibration": calibration})
    checkpoint.save(arguments.to, model.state_dict(), stored)


def averaged(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each weight; what counts (batches, say) stays the first one's."""
    return {
        name: torch.stack([s[name] for s in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }


def _row(item: Item) -> tuple[str, str, str, str]:
    # A name of poses only; the ending keeps dots in it from being taken for one.
    return f"{item.name}.pose", SAME.get(item.label, item.label), item.split, ""


def _tell(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"{done} of {total}", flush=True)


if __name__ == "__main__":
    main()
