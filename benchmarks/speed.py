"""Seconds from file to answer with vit-b-16, beside the forward alone of Hugging Face's X-CLIP.

    pip install -e .[benchmark]
    python benchmarks/speed.py VIDEO --pose-weights yolo11n-pose.pt

Both models have random weights: the time is the same, and nothing need be downloaded. Ours decodes
the file, looks for the person (its pose cache is not used) and runs the model; X-CLIP base, 16
frames at 224 px, only runs its video tower. Medians of alternating runs on a warm process.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from pevl_cli.data.samples import make_sample
from pevl_cli.labels import read_labels
from pevl_cli.media.video import sample_clip
from pevl_cli.model.config import CONFIGS
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.sgmc import mean_similarity
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.recognise import Recogniser


def xclip_video_tower() -> tuple[torch.nn.Module, torch.Tensor]:
    from transformers import XCLIPConfig, XCLIPModel, XCLIPTextConfig, XCLIPVisionConfig

    vision = XCLIPVisionConfig(
        patch_size=16,
        num_frames=16,
        image_size=224,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
    )
    model = XCLIPModel(XCLIPConfig(text_config=XCLIPTextConfig(), vision_config=vision)).eval()
    return model, torch.randn(1, 16, 3, 224, 224)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--pose-weights")
    parser.add_argument("--labels", default="gym99")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["PEVL_CACHE"] = tempfile.mkdtemp()
    torch.manual_seed(0)

    labels = read_labels(arguments.labels)
    model = PeVL(CONFIGS["vit-b-16"])
    detector = PoseDetector(arguments.pose_weights)
    reference = {}
    recognisers = {}
    for precision in ("fp32", "auto"):
        copy = PeVL(model.config)
        copy.load_state_dict(model.state_dict())
        recognisers[precision] = Recogniser(copy, labels, "random", detector, precision=precision)
        recognisers[precision].encode(labels)
    xclip, pixels = xclip_video_tower()

    times: dict[str, list[float]] = {}

    def clock(name: str, started: float) -> float:
        now = time.perf_counter()
        times.setdefault(name, []).append(now - started)
        return now

    for _ in range(arguments.runs + 1):
        for precision, recogniser in recognisers.items():
            name = f"pevl {recogniser.precision}"
            begun = now = time.perf_counter()
            clip = sample_clip(arguments.video)
            now = clock(f"{name}: decode", now)
            actor = detector.actor(clip, use_cache=False)
            now = clock(f"{name}: pose", now)
            sample = make_sample(clip, actor, model.config)
            reference[precision] = mean_similarity(recogniser.match([sample], labels).values)
            clock(f"{name}: model", now)
            clock(f"{name}: all", begun)
        begun = time.perf_counter()
        with torch.inference_mode():
            xclip.get_video_features(pixel_values=pixels)
        clock("X-CLIP base forward, fp32", begun)

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"torch {torch.__version__}, median of {arguments.runs} warm runs")
    medians = {name: statistics.median(t[1:]) for name, t in times.items()}
    xclip_s = medians["X-CLIP base forward, fp32"]
    for name, seconds in medians.items():
        print(f"{name:28} {seconds:6.2f} s   {seconds / xclip_s:5.2f} of X-CLIP")
    difference = (reference["fp32"] - reference["auto"]).abs().max().item()
    temperature = float(model.temperature)
    scores = [(reference[p] / temperature).softmax(-1) for p in ("fp32", "auto")]
    print(
        f"{recognisers['auto'].precision} against fp32: largest difference of a similarity "
        f"{difference:.5f}, of a score {(scores[0] - scores[1]).abs().max().item():.5f} "
        f"({len(labels)} labels)"
    )


if __name__ == "__main__":
    main()
