"""Made poses in the forms of other tools, and clips of the real data; shared by tests of pose/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pevl_cli.data.manifest import Item, read_manifest

BODY = np.random.default_rng(1).uniform(40, 90, (17, 2))


def people(*places: float) -> np.ndarray:
    """One frame: a body at each place, (P, 17, 3)."""
    return np.array([np.c_[BODY + np.array([x, 0]), np.full(17, 0.9)] for x in places]).reshape(
        -1, 17, 3
    )


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def mmpose(frames: list[np.ndarray]) -> list[dict[str, Any]]:
    return [
        {
            "frame_id": t,
            "instances": [
                {"keypoints": p[:, :2].tolist(), "keypoint_scores": p[:, 2].tolist()} for p in frame
            ],
        }
        for t, frame in enumerate(frames)
    ]


def field(shared: Path, count: int) -> list[Item]:
    manifest = read_manifest(shared / "data" / "field")
    return list(manifest.items)[:: len(manifest.items) // count][:count]
