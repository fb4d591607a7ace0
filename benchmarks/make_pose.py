"""Train the small pose network that ships with pevl: people of video frames, labelled by a teacher.

    python benchmarks/pose_pictures.py FIELD --teacher yolo11n-pose.pt --out DIR
    python benchmarks/make_pose.py train --teacher yolo11n-pose.pt --out DIR
    python benchmarks/make_pose.py ship --out DIR --to pevl_cli/assets/pose/pevl-pose.pt

FIELD is a data set's folder. `train` continues where it was stopped. The weights start at random;
they learn the teacher's answers and the features of its stages.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import ultralytics.engine.trainer as engine
from ultralytics import YOLO
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import PoseModel

from pevl_cli.cache import atomic_write

TRAINED_PX = 192
ARCHITECTURE = "yolo11n-pose.yaml"
STAGE_ENDS = 4, 6, 10, 13, 16, 19, 22  # of the architecture's layers


class Staged(DistillationModel):  # type: ignore[misc]
    """ultralytics' distillation, at the end of every stage and at each place of the head.

    The student's features are compared with the teacher's as they are, without a projector.
    """

    apart = False

    def loss(self, batch: dict[str, Any], preds: Any = None) -> Any:
        if not self.training:
            return super().loss(batch, preds)
        picture = batch["img"]
        with torch.no_grad():
            taught, wanted = self._run(self.teacher_model, picture, None)
        learnt, given = self._run(self.student_model, picture, taught)
        losses = [
            F.mse_loss(learnt[i].float(), taught[i].float()) / taught[i].float().var()
            for i in STAGE_ENDS
        ]
        sure = wanted["scores"].float().sigmoid()  # (B, 1, places)
        losses.append(
            F.binary_cross_entropy_with_logits(given["scores"].float(), sure) / sure.mean()
        )
        for name, weight in (("boxes", 1.0), ("kpts", 4.0)):  # joints are what is wanted
            gap = (given[name].float() - wanted[name].float()).abs()
            losses.append((gap.mean(1, keepdim=True) * sure).sum() / sure.sum() * weight)
        regular, items = self.student_model.loss(batch, given)
        distilled = torch.stack(losses).sum()[None]
        items["dis_loss"] = distilled.detach()
        return torch.cat([regular, distilled * self.dis * len(picture)]), items

    def _run(self, model: Any, x: Any, taught: dict[int, torch.Tensor] | None) -> Any:
        """What each stage gives, and the head's numbers for each place."""
        ends: dict[int, torch.Tensor] = {}
        seen: list[Any] = []
        for layer in model.model[:-1]:
            if layer.f != -1:
                places = [layer.f] if isinstance(layer.f, int) else layer.f
                inputs = [x if place == -1 else seen[place] for place in places]
                x = inputs[0] if isinstance(layer.f, int) else inputs
            x = layer(x)
            if layer.i in STAGE_ENDS:
                ends[layer.i] = x
                if taught is not None and self.apart:
                    half = len(x) // 2
                    x = torch.cat([taught[layer.i][:half], x[half:].detach()])
            seen.append(x)
        head = model.model[-1]
        return ends, head.forward_head([seen[place] for place in head.f], **head.one2many)


class Apart(Staged):
    """Each stage sees for one half of the batch what the teacher's stages before gave, for the
    other half the student's own, and changes itself only: shallow problems, soon learnt."""

    apart = True


def train(arguments: argparse.Namespace) -> None:
    """Each stage apart from the others first, then all together."""
    start = arguments.start or arguments.out / "apart.pt"
    if arguments.start and not start.is_file():
        raise SystemExit(f"{start}: there is no such file to start from")
    if not start.exists():
        _learn(arguments, "apart", Apart, ARCHITECTURE, arguments.epochs_apart, lr0=3e-3)
        _keep(arguments.out / "apart", start, arguments.image_size)
    _learn(arguments, "run", Staged, str(start), arguments.epochs, arguments.learning_rate)


def _learn(
    arguments: argparse.Namespace,
    name: str,
    distillation: type[Staged],
    start: str,
    epochs: int,
    lr0: float,
) -> None:
    """ultralytics' trainer, which goes on where it was stopped."""
    device = "0" if torch.cuda.is_available() else "cpu"
    if device == "cpu":  # the trainer has half precision for GPUs only; here it is twice as fast

        def half(enabled: bool, device: str = "cpu") -> Any:
            return torch.autocast("cpu", torch.bfloat16) if arguments.half else nullcontext()

        engine.autocast = half
    engine.DistillationModel = distillation
    last = arguments.out / name / "weights" / "last.pt"
    model = YOLO(str(last) if last.exists() else start)

    def prepare(trainer: Any) -> None:
        torch.set_num_threads(arguments.threads)  # ultralytics leaves one core out
        # A quarter less time on a CPU; the pictures follow the weights.
        trainer.model.to(memory_format=torch.channels_last)

    model.add_callback("on_train_start", prepare)
    if last.exists():
        model.train(resume=True)
        return
    model.train(
        data=str(arguments.out / "data.yaml"),
        project=str(arguments.out.resolve()),
        name=name,
        exist_ok=True,
        imgsz=arguments.image_size,
        epochs=epochs,
        batch=arguments.batch,
        nbs=arguments.batch,  # a step for every batch
        device=device,
        workers=arguments.workers,
        cache="ram",
        pretrained=start.endswith(".pt"),
        distill_model=str(arguments.teacher.resolve()),
        dis=2.0,
        amp=False,
        optimizer="AdamW",
        lr0=lr0,
        lrf=0.02,
        cos_lr=True,
        warmup_epochs=0 if start.endswith(".pt") else 1,
        warmup_bias_lr=0.0,  # its 0.1 throws weights away that one goes on from
        weight_decay=0.01,
        degrees=30,  # beside the quarter turns
        translate=0.1,
        scale=0.35,
        fliplr=0.5,
        hsv_h=0.1,  # far: the teacher tells what it sees, whatever the picture
        hsv_s=0.9,
        hsv_v=0.6,
        mosaic=0.3,
        pose=20.0,  # joints are harder than boxes ...
        kobj=2.0,  # ... and so is which of them are out of the picture
        close_mosaic=max(epochs // 6, 1),
        plots=False,
        val=True,
        save_period=-1,
    )


def ship(arguments: argparse.Namespace) -> None:
    arguments.to.parent.mkdir(parents=True, exist_ok=True)
    _keep(arguments.out / "run", arguments.to, arguments.image_size, arguments.average)
    size = arguments.to.stat().st_size
    print(f"{arguments.to}: {size / 1e6:.1f} MB, {YOLO(str(arguments.to)).task}")


def _keep(run: Path, to: Path, image_size: int, other: Path | None = None) -> None:
    """The averaged weights at half precision, without anything that tells of this machine; the mean
    of them and those of an ``other`` network, if any."""
    stored = torch.load(run / "weights" / "last.pt", map_location="cpu", weights_only=False)
    trained = stored.get("ema") or stored["model"]
    trained = getattr(trained, "student_model", trained)  # without it once a run is over
    # A new one with these weights: what is trained carries paths and options.
    model = PoseModel(ARCHITECTURE, nc=1, verbose=False)
    state = trained.float().state_dict()
    if other is not None:
        before = torch.load(other, map_location="cpu", weights_only=False)["model"]
        for name, value in before.float().state_dict().items():
            if value.is_floating_point():
                state[name] = (state[name] + value) / 2
    model.load_state_dict(state)
    model.requires_grad_(False).half().names = {0: "person"}
    model.args = {"task": "pose", "imgsz": image_size}
    kept = {"model": model, "train_args": dict(model.args), "license": "AGPL-3.0"}
    with atomic_write(to) as temporary:
        torch.save(kept, temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(required=True)
    trained = steps.add_parser("train")
    trained.add_argument("--teacher", type=Path, required=True)
    trained.add_argument("--epochs-apart", type=int, default=9)
    trained.add_argument("--epochs", type=int, default=10)
    trained.add_argument("--learning-rate", type=float, default=1.5e-3, help="of all together")
    trained.add_argument("--start", type=Path, help="weights to go on from, instead of apart")
    trained.add_argument("--batch", type=int, default=32)
    trained.add_argument("--image-size", type=int, default=TRAINED_PX)
    trained.add_argument("--threads", type=int, default=torch.get_num_threads())
    trained.add_argument("--workers", type=int, default=1)
    trained.add_argument("--half", action="store_true", help="bfloat16 on a CPU that has it")
    trained.set_defaults(do=train)
    shipped = steps.add_parser("ship")
    shipped.add_argument("--to", type=Path, required=True)
    shipped.add_argument("--image-size", type=int, default=TRAINED_PX)
    shipped.add_argument("--average", type=Path, help="a network it went on from")
    shipped.set_defaults(do=ship)
    for step in (trained, shipped):
        step.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
