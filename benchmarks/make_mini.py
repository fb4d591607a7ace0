"""Put together what `pevl-mini` learns from: real clips with video, and clips of which there are
poses only.

    python benchmarks/make_mini.py data CLIPS --out DIR --pose-weights yolo11n-pose.pt pevl-pose
    pevl train --dataset DIR/clips.csv --poses DIR/poses --labels benchmarks/mini.txt \\
      --config mini-i3d --set model.train_stem=true --out RUN
    python benchmarks/make_mini.py ship CLIPS RUN/last --folds DIR/?.npz --made DIR \\
      --to pevl_cli/assets/checkpoints/pevl-mini

Every clip with video is listed once for each detector, so that the model learns the joints of both.
DIR/fold0.csv and so on are the same clips, those of one fold's sources as split "test", for
benchmarks/sources.py, which makes DIR/?.npz. Only train and val parts are read.
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
from sources import FOLDS, Fold, deal_sources, fit_folds, prototypes
from torch import Tensor

from pevl_cli.cache import atomic_write
from pevl_cli.data import extract
from pevl_cli.data.clips import Clips
from pevl_cli.data.manifest import read_manifest
from pevl_cli.data.sets.pyskl import read_pyskl
from pevl_cli.model import checkpoint
from pevl_cli.pose.files import read_poses
from pevl_cli.weights import find_weights

VIDEOS = "field", "field2"
PICKLES = {
    name: f"poses/{name}_train.pkl"
    for name in (
        "jhmdb14_split1",
        "tennis4",
        "penn_action",
        "utd_mhad",
        "sbu_interaction",
        "utkinect",
    )
}
# The same action under one name, and what is no action of `mini.txt`: None. Of a pickle that is not
# here, all labels keep their names.
SAME: dict[str, dict[str, str | None]] = {
    "field": {f"workout_{name}": name for name in ("pullup", "pushup", "squat")},
    "jhmdb14_split1": {"wave": "wave_one_hand", "golf": "golf_swing"},
    "tennis4": {
        "tennis backhand": "tennis_backhand",
        "tennis forehand": "tennis_forehand",
        "neutral, waiting for the ball": "tennis_ready",
        "tennis serve": "tennis_serve",
    },
    "penn_action": {"jumping_jacks": "jumping_jack"},
    "utd_mhad": {
        **dict.fromkeys(("swipe_left", "swipe_right", "arm_cross", "draw_x", "draw_circle_cw")),
        **dict.fromkeys(("draw_circle_ccw", "draw_triangle", "boxing", "knock", "pickup_throw")),
        "wave": "wave_one_hand",
        "bowling": "bowl",
        "tennis_swing": "tennis_forehand",
        "arm_curl": "bicep_curl",
        "jog": "run",
        "sit_to_stand": "stand",
        "stand_to_sit": "sit",
    },
    "sbu_interaction": {
        **dict.fromkeys(("approach", "depart", "exchange_object")),
        "kick": "kick_person",
        "push": "push_person",
        "shake_hands": "handshake",
        "punch": "punch_person",
    },
    "utkinect": {
        **dict.fromkeys(("carry", "pull")),
        "sit_down": "sit",
        "stand_up": "stand",
        "pick_up": "pick",
        "wave_hands": "wave_two_hands",
        "clap_hands": "clap",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(required=True)
    made = steps.add_parser("data", help="one CSV and one folder of poses")
    made.add_argument("data", type=Path)
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--pose-weights", nargs="+", default=["yolo11n-pose.pt", "pevl-pose"])
    made.set_defaults(do=put_together)
    shipped = steps.add_parser("ship", help="checkpoints of a run, averaged, into the package")
    shipped.add_argument("data", type=Path)
    shipped.add_argument("checkpoints", type=Path, nargs="+")
    shipped.add_argument("--folds", type=Path, nargs="+", required=True, help="of sources.py score")
    shipped.add_argument("--made", type=Path, required=True, help="what `data` made")
    shipped.add_argument("--to", type=Path, required=True)
    shipped.set_defaults(do=ship)
    arguments = parser.parse_args()
    arguments.do(arguments)


def put_together(arguments: argparse.Namespace) -> None:
    out, data = arguments.out, arguments.data.resolve()
    poses = out / "poses"
    poses.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, str, str, int | None]] = []
    sets = {name: read_manifest(data / name).items for name in VIDEOS}
    second = sets["field2"]
    folds = deal_sources([i.label for i in second], [i.group for i in second])
    fold_of = dict(zip((i.name for i in second), folds, strict=True))
    for named in arguments.pose_weights:
        weights = find_weights(named)
        items = []
        for name in VIDEOS:
            place = out / weights.stem / name
            place.parent.mkdir(exist_ok=True)
            if not place.exists():
                place.symlink_to(data / name, target_is_directory=True)
            for item in sets[name]:
                path = f"{weights.stem}/{name}/{item.name}"
                items.append(replace(item, name=path))
                label = SAME.get(name, {}).get(item.label, item.label)
                fold = fold_of[item.name] if name == "field2" else None
                rows.append((f"{path}{item.path.suffix}", label, item.split, item.group, fold))
        summary = extract.extract(
            items,
            poses / f"{weights.stem}.npz",
            str(weights),
            "cpu",
            workers=os.cpu_count() or 1,
            listener=_tell,
        )
        print(f"{weights.stem}: {summary.clips} clips, nobody found in {summary.without_person}")
    for name, file in PICKLES.items():
        shutil.copy(data / file, poses)
        # Their val parts are measured on the pickles themselves.
        for item in read_pyskl(data / file, None, None).in_split("train"):
            label = SAME.get(name, {}).get(item.label, item.label)
            if label is not None:
                # The ending keeps dots in the name from being taken for one.
                rows.append((f"{item.name}.pose", label, "train", "", None))
    for k in range(FOLDS):
        _write(out / f"fold{k}.csv", [_in_fold(row, k) for row in rows])
    _write(out / "clips.csv", [_in_fold(row, None) for row in rows])


def _in_fold(row: tuple[str, str, str, str, int | None], fold: int | None) -> tuple[str, ...]:
    """Path, label, split and group of a clip, whose own fold is the last of ``row``, or None."""
    path, label, split, group, own = row
    if own is not None:
        split = "test" if own == fold else "train"
    return path, label, split, group


def _write(target: Path, rows: Sequence[tuple[str, ...]]) -> None:
    with atomic_write(target) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "label", "split", "group"))
        table.writerows(rows)
    print(f"{target}: {len(rows)} rows")


def ship(arguments: argparse.Namespace) -> None:
    """The mean of some checkpoints of one run, with prototypes, with scores fitted to what the
    models of all folds say of the sources that they have not learnt from, and with the names of
    the sets it was made from, by which `pevl benchmark` knows them again."""
    loaded = [checkpoint.load(checkpoint.find(folder)) for folder in arguments.checkpoints]
    model, facts = loaded[0]
    for one, _ in loaded:
        one.prototypes = None  # computed anew
    model.load_state_dict(averaged([one.state_dict() for one, _ in loaded]))
    labels = facts.label_set
    poses = read_poses(arguments.made / "poses", None)
    listed = read_manifest(arguments.made / "clips.csv")
    shown = Clips(listed.in_split("train"), labels.names, facts.model, None, poses=poses)
    model.prototypes = prototypes(model, shown, len(labels))
    calibration = fit_folds([Fold.read(file) for file in arguments.folds])
    sets = [read_manifest(arguments.data / name) for name in VIDEOS]
    sets += [read_pyskl(arguments.data / file, None, None) for file in PICKLES.values()]
    training = facts.training | {
        "data": [manifest.title for manifest in sets],
        "init": "i3d-kinetics-400",
    }
    config = facts.model.model_copy(update={"train_stem": False})
    stored = facts.model_copy(
        update={"training": training, "calibration": calibration, "model": config}
    )
    checkpoint.save(arguments.to, model.state_dict(), stored)


def averaged(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each weight; what counts (batches, say) stays the first one's."""
    return {
        name: torch.stack([s[name] for s in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }


def _tell(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"{done} of {total}", flush=True)


if __name__ == "__main__":
    main()
