"""How many clips of each action are enough, from scratch and from a model of other actions.

    python benchmarks/few_shots.py FOLDER --out DIR --pose-weights yolo11n-pose.pt

The data set's classes are halved, every other one by name. A `mini` is trained on the first half;
the others are learnt from K clips each, from nothing and from that model, and tested on the val
clips of their half. Figures are those of the last epoch. Results in DIR are not computed again.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import torch

from pevl_cli.data.manifest import Manifest, read_manifest
from pevl_cli.training.build import load_settings_with_init
from pevl_cli.training.train import train

SHOTS = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pose-weights")
    parser.add_argument("--epochs", type=int, default=10, help="of the first half's model")
    parser.add_argument("--steps", type=int, default=60, help="on the few clips")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(arguments.folder)
    names = sorted(manifest.labels.names)
    for half in (0, 1):
        write(out / f"half{half}.csv", manifest, set(names[half::2]))
    base = out / "base"
    done = out / "base.json"
    if not done.exists():
        overrides = {"optim.epochs": arguments.epochs, "run.out": base}
        done.write_text(json.dumps(learn(arguments, out / "half0.csv", overrides)))
        print(done.name, done.read_text(), flush=True)
    for seed in arguments.seeds:
        for shots in SHOTS:
            for start in ("scratch", "other"):
                target = out / f"{start}-{shots}-{seed}.json"
                if target.exists():
                    continue
                overrides = {
                    "data.shots": shots,
                    "optim.epochs": 6,
                    "optim.min_steps": arguments.steps,
                    "run.seed": seed,
                    "run.out": target.with_suffix(""),
                    **({"init": str(base / "last")} if start == "other" else {}),
                }
                target.write_text(json.dumps(learn(arguments, out / "half1.csv", overrides)))
                shutil.rmtree(target.with_suffix(""))
                print(target.name, target.read_text(), flush=True)
    print(
        f"{'clips a class':>13} {'from scratch: top-1, mean class':>36} {'from other actions':>36}"
    )
    for shots in SHOTS:
        cells = []
        for start in ("scratch", "other"):
            found = [json.loads(f.read_text()) for f in out.glob(f"{start}-{shots}-*.json")]
            for key in ("top1", "mean_class"):
                values = [r[key] for r in found]
                cells.append(f"{np.mean(values):6.1%} ± {np.std(values):5.1%}" if found else "")
        print(f"{shots:>13} {cells[0]:>18}{cells[1]:>18} {cells[2]:>18}{cells[3]:>18}")


def write(target: Path, manifest: Manifest, names: set[str]) -> None:
    texts = dict(zip(manifest.labels.names, manifest.labels.texts, strict=True))
    with target.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "text", "group", "split"))
        for item in manifest.items:
            if item.label in names:
                where = item.path.resolve()
                rows.writerow((where, item.label, texts[item.label], item.group, item.split))


def learn(
    arguments: argparse.Namespace, dataset: Path, overrides: dict[str, object]
) -> dict[str, float]:
    common = {
        "data.dataset": dataset,
        "run.device": "cpu",
        "run.pose_weights": arguments.pose_weights,
        "run.tracker": "none",
        "data.workers": 0,
    }
    result = train(load_settings_with_init("mini", common | overrides))
    if result.interrupted:
        raise KeyboardInterrupt
    assert result.last is not None
    return {"top1": result.last.top1, "mean_class": result.last.mean_class}


if __name__ == "__main__":
    main()
