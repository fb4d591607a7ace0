"""The cost of a model: parameters and multiply-adds, by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from pevl_cli.labels import LabelSet
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.features import Batch
from pevl_cli.model.pevl import PeVL

# First component of a parameter's name -> part; other parameters are shared.
PARTS = {
    "video_adapters": "video",
    "pose_embedding": "pose",
    "pose_adapters": "pose",
    "text_adapters": "text",
    "class_vectors": "text",
    "text": "text",
    "p2v": "refinement",
    "v2p": "refinement",
}


@dataclass(frozen=True)
class Cost:
    """Numbers by part, and for "all" parts together."""

    parameters: dict[str, int]
    tunable: dict[str, int]  # trainable parameters
    gflops: dict[str, float]  # 10⁹ multiply-adds, for one view of one clip


def compute_cost(config: ModelConfig, labels: LabelSet) -> Cost:
    """Count parameters and multiply-adds on torch's meta device, without computing.

    "shared": the blocks that video and pose share (Sec. 4.1). "text": the multiply-adds of all
    texts of the label set, as in the paper's Table 7, though texts are encoded only once.
    """
    with torch.device("meta"):
        model = PeVL(config)
    parameters: Counter[str] = Counter()
    tunable: Counter[str] = Counter()
    for key, parameter in model.named_parameters():
        part = PARTS.get(key.split(".")[0], "shared")
        parameters[part] += parameter.numel()
        tunable[part] += parameter.numel() * parameter.requires_grad
    for counts in (parameters, tunable):
        counts["all"] = sum(counts.values())
    gflops = {}
    if config.video:
        gflops["video"] = _gflops(model, video=True)
    if config.pose:
        gflops["pose"] = _gflops(model, pose=True)
    if config.video and config.pose:
        both = _gflops(model, video=True, pose=True)
        gflops["refinement"] = both - gflops["video"] - gflops["pose"]
    if config.text:
        gflops["text"] = _gflops(model, texts=labels.prompts)
    gflops["all"] = sum(gflops.values())
    return Cost(dict(parameters), dict(tunable), gflops)


def _gflops(
    model: PeVL, video: bool = False, pose: bool = False, texts: Sequence[str] = ()
) -> float:
    config = model.config
    size = config.image_size
    frames = joints = None
    if video:
        frames = torch.zeros(1, config.video_frames, 3, size, size, device="meta")
    if pose:
        joints = torch.ones(1, config.pose_frames, config.joints, 3, device="meta")
    with FlopCounterMode(display=False) as counter:
        # Training mode with gradients: the counter does not count fused kernels.
        model.train()
        if video or pose:
            model.encode(Batch(frames, joints))
        if texts:
            model.encode_text(texts)
    return counter.get_total_flops() / 2e9  # torch counts a multiply-add as two
