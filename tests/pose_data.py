"""Poses of other tools, as PYSKL stores them, for tests."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np


def annotation(name: str, label: int | None = 0, joints: int = 17, frames: int = 9) -> Any:
    rng = np.random.default_rng(len(name))
    return {
        "frame_dir": name,
        "label": label,
        "img_shape": (240, 320),
        "original_shape": (240, 320),
        "total_frames": frames,
        "keypoint": rng.uniform(10, 200, (1, frames, joints, 2)).astype(np.float16),
        "keypoint_score": np.full((1, frames, joints), 0.9, np.float16),
    }


def learnable(tmp_path: Path, joints: int = 15) -> Path:
    """Two classes that differ in which half of the body moves."""
    rng, annotations = np.random.default_rng(0), []
    for i in range(24):
        one = annotation(f"c{i:02d}", i % 2, joints, 20)
        body = np.random.default_rng(7).uniform(60, 160, (joints, 2)) + rng.normal(0, 3, 2)
        points = np.repeat(body[None], 20, 0)
        half = slice(0, joints // 2) if i % 2 else slice(joints // 2, joints)
        points[:, half, 0] += 40 * np.sin(np.arange(20) / 2 + rng.uniform(0, 6))[:, None]
        one["keypoint"] = points[None].astype(np.float16)
        annotations.append(one)
    splits = {
        "train": [f"c{i:02d}" for i in range(16)],
        "val": [f"c{i:02d}" for i in range(16, 20)],
        "test": [f"c{i:02d}" for i in range(20, 24)],
    }
    file = tmp_path / "halves.pkl"
    file.write_bytes(pickle.dumps({"split": splits, "annotations": annotations}))
    (tmp_path / "halves.txt").write_text("upper half\nlower half\n")
    return file
