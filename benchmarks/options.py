"""What each training option is worth: `mini` with one option changed, several seeds.

    python benchmarks/options.py FOLDER --out DIR --pose-weights yolo11n-pose.pt

FOLDER is a data set with a val split. Every row has the same short schedule; figures are those of
the last epoch, so that nothing is chosen on the clips it is tested on. Results that lie in DIR
already are not computed again, so several calls may share the rows by their --seeds.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pevl_cli.training.settings import POSE_ONLY, load_settings
from pevl_cli.training.train import train

STILL = {"augment.turn_deg": 0.0, "augment.scale": 0.0}
ROWS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "class tokens without the joints": {"model.class_token": "learned"},
    "contrast within the batch": {"model.contrast": "batch"},
    "pose by convolutions, largest frame": {f"model.{k}": v for k, v in POSE_ONLY.items()},
    "without turning and scaling": STILL,
    "without joint noise and dropout": {"augment.joint_noise": 0.0, "augment.joint_dropout": 0.0},
    "without temporal speed": {"augment.shortest": 1.0},
    "with two phrasings a label": {"data.labels": str(Path(__file__).with_name("field21.txt"))},
    "without averaging of the weights": {"optim.ema_decay": 0.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pose-weights")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--no-video", action="store_true", help="the pose branch alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for seed in arguments.seeds:
        for row in arguments.rows:
            target = arguments.out / f"{row.replace(' ', '_').replace(',', '')}-{seed}.json"
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(json.dumps(measure(arguments, ROWS[row], seed, target)))
                print(target.name, target.read_text(), flush=True)
    print(f"{'':36} {'top-1':>14} {'mean class':>14}  seeds")
    for row in ROWS:
        name = row.replace(" ", "_").replace(",", "")
        found = [json.loads(f.read_text()) for f in sorted(arguments.out.glob(f"{name}-*.json"))]
        if found:
            both = [[r[key] for r in found] for key in ("top1", "mean_class")]
            cells = [f"{np.mean(v):6.1%} ± {np.std(v):5.1%}" for v in both]
            print(f"{row:36} {cells[0]:>14} {cells[1]:>14}  {len(found)}")


def measure(
    arguments: argparse.Namespace, changes: dict[str, Any], seed: int, target: Path
) -> dict[str, float]:
    run = target.with_suffix("")
    settings = load_settings(
        "mini",
        {
            "data.dataset": arguments.folder,
            "optim.epochs": arguments.epochs,
            "run.out": run,
            "run.seed": seed,
            "run.device": "cpu",
            "run.pose_weights": arguments.pose_weights,
            "run.tracker": "none",
            "data.workers": 0,  # on a core or two, loader processes cost more than they save
            **({"model.video": False} if arguments.no_video else {}),
            **changes,
        },
    )
    result = train(settings)
    if result.interrupted:
        raise KeyboardInterrupt
    shutil.rmtree(run)
    assert result.last is not None
    return {
        "top1": result.last.top1,
        "mean_class": result.last.mean_class,
        "minutes": round(result.seconds / 60, 1),
    }


if __name__ == "__main__":
    main()
