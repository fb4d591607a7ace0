"""Clips on which each joint is painted in its own colour."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pevl_cli.data.augmentation import Augmentation
from pevl_cli.media.video import Clip
from pevl_cli.model.config import CONFIGS, ModelConfig
from pevl_cli.model.features import Batch
from pevl_cli.pose.actor import Actor
from pevl_cli.pose.skeletons import LAYOUTS

S, T, J = 48, 16, 17
MIRROR = LAYOUTS["coco17"].mirror
# Far apart from each other and from the grey of the background.
COLOURS = np.array(
    [(r, g, b) for r in (0, 127, 255) for g in (0, 127, 255) for b in (0, 255)][:J], np.uint8
)
# Two columns of joints, a body's height of 160 px, corners of the box included.
BODY = np.array([(x, y) for y in range(0, 180, 20) for x in (0, 60)][:J], np.float32)
STILL = Augmentation(
    mirror=False,
    scale=0,
    turn_deg=0,
    shift=0,
    shortest=1,
    brightness=0,
    contrast=0,
    colour=0,
    grey=0,
    erase=0,
    joint_noise=0,
    joint_dropout=0,
    stream_dropout=0,
)


def config_of(crop: str, image_size: int = 192) -> ModelConfig:
    return CONFIGS["mini"].model_copy(update={"crop": crop, "image_size": image_size})


def painted(
    width: int = 480,
    height: int = 360,
    at: tuple[float, float] = (180, 110),
    step: tuple[float, float] = (0, 0),
    shrunk: float = 1.0,
) -> tuple[Clip, Actor]:
    """A clip of a body at ``at``, moving by ``step`` a frame, in a file larger by 1 / shrunk."""
    joints = np.zeros((S, J, 3), np.float32)
    frames = np.full((S, height, width, 3), 60, np.uint8)
    for f in range(S):
        joints[f, :, :2] = BODY + at + np.array(step) * f
        joints[f, :, 2] = 0.9
        for (x, y, _), colour in zip(joints[f], COLOURS.tolist(), strict=True):
            cv2.circle(frames[f], (round(float(x)), round(float(y))), 7, colour, -1)
    joints[..., :2] = joints[..., :2].round() / shrunk
    every = np.arange(S)
    clip = Clip(
        *(Path("made-up.mp4"), round(width / shrunk), round(height / shrunk)),
        *(every / 25, every, every, frames, 0.0, S / 25, S),
    )
    boxes = np.concatenate([joints[..., :2].min(1), joints[..., :2].max(1)], -1)
    return clip, Actor(joints, boxes, np.ones(S, bool), np.zeros(S, bool), people=1)


def misplaced(batch: Batch, colours: np.ndarray = COLOURS) -> list[str]:
    """Joints inside the view that do not stand in the middle of their dot."""
    assert batch.frames is not None and batch.joints is not None
    pictures = batch.frames[0].permute(0, 2, 3, 1).numpy().astype(int)
    size = pictures.shape[1]
    wrong, looked = [], 0
    for t, (frame, joints) in enumerate(zip(pictures, batch.joints[0, 1::3], strict=True)):
        for j, (x, y, visible) in enumerate(joints.tolist()):
            x, y = x * size, y * size
            if not visible or not (8 <= x < size - 8 and 8 <= y < size - 8):
                continue
            looked += 1
            rows, columns = np.nonzero(abs(frame - colours[j].astype(int)).max(-1) < 60)
            near = np.hypot(columns - x, rows - y) < 6
            if not near.any():
                wrong.append(f"frame {t} joint {j}: no dot near")
            elif np.hypot(columns[near].mean() - x, rows[near].mean() - y) > 1.3:
                wrong.append(f"frame {t} joint {j}: away from its dot")
    assert looked > 40, "hardly any joint is in the view"
    return wrong
