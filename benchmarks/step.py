"""Seconds of one training step of `mini` on random clips: as it is, compiled, recomputing.

python benchmarks/step.py [--batch-size 16]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch

from pevl_cli.data.batches import BatchPlan
from pevl_cli.labels import LabelSet
from pevl_cli.model.features import Batch
from pevl_cli.model.pevl import PeVL
from pevl_cli.training.settings import load_settings
from pevl_cli.training.trainer import Trainer

VARIANTS = {
    "as it is": {},
    "compiled": {"run.compile": True},
    "recomputing activations": {"run.checkpointing": True},
    "float32": {"run.precision": "fp32"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--config", default="mini")
    parser.add_argument(
        "--rows", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="ROW"
    )
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    names = tuple(f"action {i}" for i in range(20))
    base = None
    for name in arguments.rows:
        settings = load_settings(
            arguments.config,
            {
                "data.dataset": ".",
                "optim.batch_size": arguments.batch_size,
                "run.device": arguments.device,
                "run.tracker": "none",
                **VARIANTS[name],
            },
        )
        torch.manual_seed(0)
        trainer = Trainer(PeVL(settings.model), LabelSet(names, names), settings)
        plan = BatchPlan([i % 20 for i in range(64)], arguments.batch_size, 8, 1, 0.0, 0)
        batches = clips(settings.model.image_size, arguments.batch_size)
        started = time.perf_counter()
        trainer.step(batches, plan, 1, 0)
        first = time.perf_counter() - started
        times = []
        for i in range(1, 8):
            started = time.perf_counter()
            trainer.step(batches, plan, 1, i)
            times.append(time.perf_counter() - started)
        base = base or min(times)
        print(
            f"{name:24} {min(times):6.2f} s a step, {min(times) / base:4.2f} of the first row; "
            f"the first step {first:.1f} s",
            flush=True,
        )


def clips(size: int, count: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(0)
    while True:
        shape = (count, 16, 3, size, size)
        frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        joints = torch.rand(count, 48, 17, 3, generator=generator)
        joints[..., 2] = 1
        yield Batch(frames, joints, torch.ones(count, dtype=torch.bool))


if __name__ == "__main__":
    main()
