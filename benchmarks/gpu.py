"""Speed, memory and hot spots of a config on a GPU: training steps and inference.

    python benchmarks/gpu.py [--config vit-b-16] [--to figures.json]

Towers have random weights and clips random pixels: neither changes the time. A share of the peak
is a share of what a large bfloat16 matrix product reaches on the same card in the same run.
`--tiny` runs the same code on the CPU with a tiny model, to test this script.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step import clips
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pevl_cli.data.batches import BatchPlan
from pevl_cli.labels import LabelSet
from pevl_cli.model.config import CONFIGS, ModelConfig
from pevl_cli.model.features import Batch
from pevl_cli.model.pevl import PeVL
from pevl_cli.training.settings import load_settings
from pevl_cli.training.trainer import Trainer

LABELS = tuple(f"action number {i}" for i in range(48))  # as many as Diving48 has
GIB = 1 << 30
TINY: dict[str, Any] = {
    "embed_dim": 32,
    "width": 48,
    "layers": 2,
    "heads": 3,
    "image_size": 32,
    "text_width": 32,
    "text_layers": 2,
    "text_heads": 2,
}
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="vit-b-16", choices=CONFIGS)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--to", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.tiny else "cuda")
    config = CONFIGS[arguments.config]
    if arguments.tiny:
        config = config.model_copy(update=TINY)
    if arguments.tiny:
        print("a tiny model on the CPU, to test this script: its figures mean nothing")
    name = platform.machine() if arguments.tiny else torch.cuda.get_device_name()
    figures: Figures = {"device": name, "torch": torch.__version__, "config": config.name}
    print(f"{config.name} on {name}, torch {torch.__version__}, bfloat16", flush=True)
    peak = matrix_product_flops(device, 512 if arguments.tiny else 8192)
    figures["peak_tflops"] = peak / 1e12
    print(f"a large matrix product: {peak / 1e12:.1f} TFLOP/s", flush=True)
    figures["training"] = [training(config, device, 8, peak)]
    largest = largest_batch(config, device, limit=16 if arguments.tiny else 1024)
    if largest > 8:
        figures["training"].append(training(config, device, largest, peak))
    for row in figures["training"]:
        show("training", row)
    figures["inference"] = [inference(config, device, size, peak) for size in (1, 8, 64)]
    for row in figures["inference"]:
        show("inference", row)
    figures["hot_spots"] = hot_spots(config, device)
    print("where a training step of 8 clips spends its time:")
    for spot in figures["hot_spots"]:
        print(f"  {spot['share']:6.1%}  {spot['name']}")
    if arguments.to is not None:
        arguments.to.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def show(kind: str, row: Figures) -> None:
    print(
        f"{kind}, {row['batch']:4} clips at once: {row['clips_per_s']:8.2f} clips/s, "
        f"{row['share_of_peak']:6.1%} of the peak, {row['memory_gib']:6.2f} GiB",
        flush=True,
    )


def matrix_product_flops(device: torch.device, size: int) -> float:
    """Multiplications and additions a second of a bfloat16 product of square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, device, 10)


def seconds_of(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Mean seconds of a call, after a first one that is not counted."""
    call()
    synchronise(device)
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronise(device)
    return (time.perf_counter() - started) / repeats


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def forget_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device) -> int:
    """Bytes of the GPU's memory at their peak; 0 on the CPU."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def flops_of(call: Callable[[], Any]) -> float:
    """Multiplications and additions of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def make_step(config: ModelConfig, device: torch.device, size: int) -> Callable[[], None]:
    """A function that makes one training step on ``size`` random clips."""
    given = {
        "data.dataset": ".",
        "optim.batch_size": size,
        "run.device": device.type,
        "run.precision": "bf16",
        "run.tracker": "none",
    }
    settings = load_settings(config.name, given).model_copy(update={"model": config})
    torch.manual_seed(0)
    trainer = Trainer(PeVL(config), LabelSet(LABELS, LABELS), settings)
    plan = BatchPlan([i % len(LABELS) for i in range(size)], size, 1, 1, 0.0, 0)
    batches = clips(config.image_size, size)
    batch = next(batches).to(device)

    def step() -> None:
        trainer.step(iter([batch]), plan, 1, 0)

    return step


def training(config: ModelConfig, device: torch.device, size: int, peak: float) -> Figures:
    """Clips a second, share of the peak and memory of training steps."""
    forget_memory(device)
    step = make_step(config, device, size)
    seconds = seconds_of(step, device, 5)
    memory = peak_memory(device)
    return row_of(size, seconds, flops_of(step), peak, memory)


def row_of(size: int, seconds: float, flops: float, peak: float, memory: int) -> Figures:
    return {
        "batch": size,
        "clips_per_s": size / seconds,
        "share_of_peak": flops / seconds / peak,
        "memory_gib": memory / GIB,
    }


def largest_batch(config: ModelConfig, device: torch.device, limit: int) -> int:
    """The largest batch of 8, 16, 24, 32, 48, ... clips whose training step fits; 0 if none."""
    fits = 0
    for size in sorted({8 << i for i in range(12)} | {24 << i for i in range(12)}):
        if size > limit:
            break
        forget_memory(device)
        try:
            make_step(config, device, size)()
        except torch.OutOfMemoryError:
            break
        fits = size
    return fits


@torch.inference_mode()
def inference(config: ModelConfig, device: torch.device, size: int, peak: float) -> Figures:
    """Clips a second, share of the peak and memory of matching clips with encoded labels."""
    forget_memory(device)
    model = PeVL(config).cast(torch.bfloat16).to(device).eval()
    texts = model.encode_text(LABELS)
    batch = next(clips(config.image_size, size)).to(device)
    batch = Batch(batch.frames, batch.joints)

    def match() -> None:
        model.match(batch, texts)

    seconds = seconds_of(match, device, 5)
    memory = peak_memory(device)
    return row_of(size, seconds, flops_of(match), peak, memory)


def hot_spots(config: ModelConfig, device: torch.device, count: int = 10) -> list[Figures]:
    """The operators that take most of a training step of 8 clips."""
    step = make_step(config, device, 8)
    step()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        step()
        synchronise(device)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = sorted(profiler.key_averages(), key=lambda row: -float(getattr(row, key)))
    total = sum(float(getattr(row, key)) for row in rows)
    return [{"name": row.key, "share": float(getattr(row, key)) / total} for row in rows[:count]]


if __name__ == "__main__":
    main()
