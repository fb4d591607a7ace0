"""Whether a change of the code changed any number: joints, similarities, scores, losses, figures.

    python benchmarks/same_numbers.py record CLIPS/field --pose-weights FILE --to before.json
    ... change the code ...
    python benchmarks/same_numbers.py record CLIPS/field --pose-weights FILE --to after.json
    python benchmarks/same_numbers.py compare before.json after.json

Records, at one thread and in full precision: joints and cut-outs of ten validation clips;
similarities and scores of `pevl-mini` (one view, and three) and of a tiny model of the config
`vit-b-16` with random weights; what `pevl benchmark` says of these clips; and 20 training steps of
`mini` and of the tiny model with a fixed seed: every loss, validation figures, the sum of each
weight after them, and the calibration. `compare` lists every part that differs, and by how much.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pevl_cli import recognise
from pevl_cli.cache import CACHE_VARIABLE
from pevl_cli.data.manifest import Item, Manifest, read_manifest
from pevl_cli.evaluation.benchmark import benchmark
from pevl_cli.model.config import CONFIGS, ModelConfig
from pevl_cli.model.pevl import PeVL
from pevl_cli.training import train as training
from pevl_cli.training.progress import Event
from pevl_cli.training.settings import load_settings

CLIPS = 10
TINY: dict[str, Any] = {
    "embed_dim": 48,
    "width": 64,
    "layers": 2,
    "heads": 4,
    "image_size": 64,
    "text_width": 32,
    "text_layers": 2,
    "text_heads": 2,
    "context_length": 32,
    "vocab_size": 400,
    "tokenizer": "words",
}


def tiny_model() -> PeVL:
    """`vit-b-16` made tiny, random weights; what starts at zero is not zero."""
    torch.manual_seed(0)
    model = PeVL(ModelConfig.model_validate(CONFIGS["vit-b-16"].model_dump() | TINY))
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return model


def numbers(values: Tensor) -> Any:
    """As nested lists; 9 stands for NaN, which JSON has not."""
    return values.double().nan_to_num(9).tolist()


def record(clips: Path, weights: Path, folder: Path) -> dict[str, Any]:
    field = read_manifest(clips)
    items = field.in_split("val")[::9][:CLIPS]
    mini = recognise.load("pevl-mini", pose_weights=weights, device="cpu")
    labels = mini.labels
    assert labels is not None
    samples = [mini.read(i.path, i.start_s, i.end_s) for i in items]
    found = mini.match(samples, labels)
    assert found.video_features is not None
    out: dict[str, Any] = {
        "joints": [numbers(torch.from_numpy(s.joints)) for s in samples],
        "frames": [0 if s.frames is None else int(s.frames.astype("int64").sum()) for s in samples],
        "mini.similarities": numbers(found.values),
        "mini.video": numbers(found.video_features),
        "mini.scores": numbers(mini.scores(found, labels)),
        "mini.three_views": numbers(mini.match(samples[:3], labels, 3).values),
    }
    tiny = recognise.Recogniser(tiny_model(), labels, "", mini.detector, "cpu", "fp32")
    found = tiny.match([tiny.read(i.path) for i in items], labels)
    out["vit.similarities"] = numbers(found.values)
    out["vit.scores"] = numbers(tiny.scores(found, labels))
    manifest = small_set(field, items, folder)
    outcome = benchmark(manifest, mini, "pevl-mini", split="test").as_dict()
    parts = ("intervals", "clips", "cost", "labels", "groups", "reliability", "error_as_trained")
    figures = ("top1", "top5", "mean_class", "count", "per_class", "confused")
    out["benchmark"] = {k: outcome[k] for k in parts}
    out["benchmark"]["accuracy"] = {k: outcome["accuracy"][k] for k in figures}
    for name in ("mini", "vit"):
        out |= train(name, manifest, weights, folder)
    return out


def small_set(field: Manifest, tested: list[Item], folder: Path) -> Manifest:
    """The tested clips as split "test", and of four classes a few to train on and to validate."""
    rows = [(i, "test") for i in tested]
    for label in sorted({i.label for i in field.items})[:4]:
        for split, count in (("train", 4), ("val", 2)):
            rows += [(i, split) for i in field.in_split(split) if i.label == label][:count]
    write(folder / "set.csv", rows)
    return read_manifest(folder / "set.csv")


def write(target: Path, rows: Iterable[tuple[Item, str]]) -> None:
    with target.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["path", "label", "split", "group"])
        out.writerows([i.path.resolve(), i.label, split, i.group] for i, split in rows)


def train(name: str, manifest: Manifest, weights: Path, folder: Path) -> dict[str, Any]:
    """20 steps: each step's loss, learning rate and top-1, and what they led to."""
    write(folder / "train.csv", ((i, i.split) for i in manifest.items if i.split != "test"))
    overrides = {
        "data.dataset": folder / "train.csv",
        "optim.epochs": 5,
        "optim.min_steps": 20,
        "optim.batch_size": 4,
        "optim.lr": 1e-3,
        "optim.ema_decay": 0.9,
        "run.device": "cpu",
        "run.precision": "fp32",
        "run.tracker": "none",
        "run.out": folder / name,
        "run.pose_weights": weights,
        "run.seed": 3,
    }
    settings = load_settings("mini" if name == "mini" else "vit-b-16", overrides)
    if name == "vit":  # without CLIP's weights, which cannot be had everywhere
        model = tiny_model()
        settings = settings.model_copy(update={"model": model.config})
        training.make_model = lambda *_: (model, None)  # type: ignore[assignment]
    steps, validations = [], []

    def listen(event: Event) -> None:
        if event.loss is not None:
            steps.append([event.loss, event.learning_rate, event.train_top1])
        if event.val is not None:
            validations.append([event.val.top1, event.val.top5, event.val.mean_class])

    training.train(settings, listen)
    state = load_file(folder / name / "last" / "model.safetensors")
    facts = json.loads((folder / name / "last" / "config.json").read_text())
    return {
        f"{name}.losses": steps,
        f"{name}.validation": validations,
        f"{name}.weights": {k: float(v.double().sum()) for k, v in sorted(state.items())},
        f"{name}.calibration": list(facts["calibration"].values()),
    }


def differences(one: Any, two: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every leaf that is not the same, with its place."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted(one.keys() | two.keys()):
            yield from differences(one.get(key), two.get(key), f"{where}.{key}")
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            yield from differences(a, b, f"{where}[{i}]")
    elif one != two:
        yield where, one, two


def compare(before: Path, after: Path) -> int:
    one, two = (json.loads(file.read_text()) for file in (before, after))
    bad = 0
    for part in sorted(one.keys() | two.keys()):
        found = list(differences(one.get(part), two.get(part)))
        apart = [abs(a - b) for _, a, b in found if isinstance(a, float) and isinstance(b, float)]
        bad += bool(found)
        if found:
            where, a, b = found[0]
            print(
                f"{part}: {len(found)} differ, by {max(apart, default=0):.3g} at most; the first:"
            )
            print(f"  {where}: {a!r}, {b!r}")
        else:
            print(f"{part}: the same")
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("clips", type=Path, help="field21's folder")
    recording.add_argument("--pose-weights", type=Path, required=True)
    recording.add_argument("--to", type=Path, required=True)
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "compare":
        return compare(arguments.before, arguments.after)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        os.environ[CACHE_VARIABLE] = str(Path(name) / "cache")
        content = record(arguments.clips, arguments.pose_weights.resolve(), Path(name))
    arguments.to.write_text(json.dumps(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
