"""Parameters and multiply-adds of a config, by part, beside the paper's.

python benchmarks/cost.py vit-b-16
"""

from __future__ import annotations

import argparse
from collections import Counter

import torch
from torch.utils.flop_counter import FlopCounterMode

from pevl_cli.labels import read_labels
from pevl_cli.model.config import CONFIGS
from pevl_cli.model.pevl import Batch, PeVL

PARTS = {
    "video_adapters": "video",
    "pose_embedding": "pose",
    "pose_adapters": "pose",
    "text_adapters": "text",
    "p2v": "refinement (UCMR)",
    "v2p": "refinement (UCMR)",
}
# Table 7 of the paper, ViT-B/16.
PAPER_MILLIONS = {"video": 7, "pose": 11, "text": 6, "refinement (UCMR)": 5, "all": 32}
PAPER_GFLOPS = {"video": 275, "pose": 108, "all": 510}


def multiply_adds(model: PeVL, video: bool, pose: bool, text: bool) -> float:
    """Of one view of one clip, in 10⁹; torch counts a multiply-add as two operations."""
    config = model.config
    size = config.image_size
    frames = torch.zeros(1, config.video_frames, 3, size, size) if video else None
    joints = torch.ones(1, config.pose_frames, config.joints, 3) * 0.5 if pose else None
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        if video or pose:
            model.train().encode(Batch(frames, joints))  # train: no fused kernel hides its count
        if text:
            model.encode_text(read_labels("diving48").prompts)
    return counter.get_total_flops() / 2e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", choices=sorted(CONFIGS))
    name = parser.parse_args().config
    model = PeVL(CONFIGS[name])
    tunable: Counter[str] = Counter()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            tunable[PARTS.get(key.split(".")[0], "other")] += parameter.numel()
    tunable["all"] = sum(tunable.values())
    total = sum(p.numel() for p in model.parameters())
    print(f"{name}: {total / 1e6:.1f} M parameters; tunable, in millions:")
    paper = name == "vit-b-16"
    for part, count in tunable.items():
        beside = f"   paper {PAPER_MILLIONS[part]}" if paper and part in PAPER_MILLIONS else ""
        print(f"  {part:20} {count / 1e6:7.2f}{beside}")
    video = multiply_adds(model, True, False, False)
    pose = multiply_adds(model, False, True, False)
    both = multiply_adds(model, True, True, False)
    text = multiply_adds(model, False, False, True)
    print("10⁹ multiply-adds, one view:")
    for part, value in {
        "video": video,
        "pose": pose,
        "refinement (UCMR)": both - video - pose,
        "text, 48 labels": text,
        "all": both + text,
    }.items():
        beside = f"   paper {PAPER_GFLOPS[part]}" if paper and part in PAPER_GFLOPS else ""
        print(f"  {part:20} {value:7.1f}{beside}")


if __name__ == "__main__":
    main()
