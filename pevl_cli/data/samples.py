"""From a clip and its actor to the model's input: cropped frames, and the joints in them.

A clip is decoded once for both streams: joints come from all 48 sampled frames, the video frames
are the middle frames of 16 triples (the paper's "downsample the pose to the video's index"). Every
geometric change uses the same matrix for frames and joints.

Shapes: T video frames, S pose frames, J joints; see `pevl_cli/model/__init__.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from pevl_cli.errors import PevlError
from pevl_cli.media.video import Clip, sample_clip
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.features import Batch
from pevl_cli.pose.actor import Actor
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.skeletons import LAYOUTS, to_layout
from pevl_cli.pose.stored import StoredPoses

# A joint with a lower score counts as not visible.
VISIBLE_SCORE = 0.3
# Side of a square / longer side of the actor's box over the whole clip. View: the model's square
# input. Kept: the region around it, which shifted, rotated and scaled views need.
VIEW_MARGIN = 1.25
KEPT_MARGIN = 1.6


@dataclass(frozen=True)
class Sample:
    """One decoded clip: the scaled region around the actor, and the joints in it."""

    path: Path
    frames: np.ndarray | None  # (T, h, w, 3) uint8 RGB, the region; None = poses only
    joints: np.ndarray  # (S, J, 3) float32: x, y in px of the region, score in [0, 1]
    size: tuple[int, int]  # w, h of the region, px
    side_px: float  # side of the model's square view, in px of the region
    start_s: float
    end_s: float
    seen: int  # number of pose frames in which the actor is seen
    people: int  # maximum number of people in one frame
    box: (
        list[float] | None
    )  # around the actor in all frames: x1, y1, x2, y2, px of the upright video
    warnings: tuple[str, ...]
    upright: bool = False  # the video is taller than wide


def read_sample(
    path: str | Path,
    config: ModelConfig,
    detector: PoseDetector | None,
    start_s: float | None = None,
    end_s: float | None = None,
    stored: StoredPoses | None = None,
) -> Sample:
    """Decode a clip, or its part from start_s to end_s, detect the actor and crop the region.

    ``stored`` poses of the clip replace the detector. Without both, or when no person is detected,
    the region is the whole frame and no joint is visible.

    PevlError when the video cannot be read, and for a pose-only model when no person is detected.
    """
    clip = sample_clip(path, config.pose_frames, start_s, end_s)
    if stored is not None:
        actor: Actor | None = stored.actor_in(clip)
    else:
        actor = detector.actor(clip) if detector is not None else None
    if not config.video and (actor is None or not actor.seen.any()):
        raise PevlError(f"{path}: no person was detected, and this model uses poses only.")
    return make_sample(clip, actor, config)


def make_sample(clip: Clip, actor: Actor | None, config: ModelConfig) -> Sample:
    """Crop a clip's region, scaled so that the side of a view is ``image_size`` px.

    ``actor`` None: the region is the whole frame, and no joint is visible. PevlError when the
    actor's layout lacks joints of the model.
    """
    height, width = clip.frames.shape[1:3]
    scale = width / clip.width  # px of a decoded frame per px of the video
    warnings = list(clip.warnings)
    joints = np.zeros((config.pose_frames, config.joints, 3), np.float32)
    box = None
    seen = 0
    if actor is not None:
        box = actor.box
        whole = to_layout(actor.joints, actor.layout, config.layout, config.allow_missing_joints)
        joints = _interpolate(whole, _fractional_frames(clip.frame_of))
        joints[..., :2] *= scale
        seen = int(actor.seen[clip.frame_of].sum())
        if box is None:
            warnings.append("no person was detected: the answer uses the video frames only")
        elif actor.people > 1:
            warnings.append(
                f"{actor.people} people in one frame: tracked the person in box "
                f"{[round(v) for v in box]} for {seen} of {config.pose_frames} frames"
            )
    region = _Region.fit(config, width, height, None if box is None else [v * scale for v in box])
    frames = None
    if config.video:
        indexed = clip.frame_of[1::3]  # the middle frames of the triples
        # A large frame is averaged first: warpAffine skips pixels when it shrinks.
        frames = np.stack([_warp(_shrink(clip.frames[i], region.scale), region) for i in indexed])
    joints[..., :2] = joints[..., :2] * region.scale + region.region_from_frame[:, 2]
    return Sample(
        path=clip.path,
        frames=frames,
        joints=joints,
        size=region.size,
        side_px=float(config.image_size),
        start_s=clip.start_s,
        end_s=clip.end_s,
        seen=seen,
        people=actor.people if actor is not None else 0,
        box=box,
        warnings=tuple(warnings),
        upright=clip.height > clip.width,
    )


def pose_sample(path: Path, stored: StoredPoses, config: ModelConfig) -> Sample:
    """The sample of a clip that has poses only.

    The model's S frames are evenly spaced over the clip's frames; joints are interpolated linearly
    between two frames. PevlError when no person is visible, or the layout lacks joints of the
    model.
    """
    actor = stored.actor()
    if not actor.seen.any():
        raise PevlError(f"{path}: no person is visible in '{stored.name}'.")
    whole = to_layout(actor.joints, actor.layout, config.layout, config.allow_missing_joints)
    count = config.pose_frames
    frame = np.clip((np.arange(count) + 0.5) / count * len(whole) - 0.5, 0, len(whole) - 1)
    joints = _interpolate(whole, frame)
    region = _Region.fit(config, *stored.canvas, actor.box)
    joints[..., :2] = joints[..., :2] * region.scale + region.region_from_frame[:, 2]
    return Sample(
        path=path,
        frames=None,
        joints=joints,
        size=region.size,
        side_px=float(config.image_size),
        start_s=0.0,
        end_s=0.0,
        seen=int((joints[..., 2] > 0).any(-1).sum()),
        people=actor.people,
        box=actor.box,
        warnings=(),
        upright=stored.canvas[1] > stored.canvas[0],
    )


def _fractional_frames(frame_of: np.ndarray) -> np.ndarray:
    """The fractional frame, 0 to U - 1, at each of the S sampled times, (S,) float.

    frame_of (S,) int. In a short or slow video, several times share a frame: without interpolation
    a moving body would stand still and then jump.
    """
    times = np.arange(len(frame_of))
    middle = np.bincount(frame_of, times) / np.bincount(frame_of)
    return np.interp(times, middle, np.arange(len(middle)))


def _interpolate(joints: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Joints (T, J, 3) at fractional frames (S,) -> (S, J, 3) float32.

    A joint that is not visible in both neighbouring frames is taken from the nearer frame.
    """
    low = np.floor(frame).astype(int)
    high = np.minimum(low + 1, len(joints) - 1)
    share = (frame - low)[:, None, None].astype(np.float32)
    near = joints[np.where(share[:, 0, 0] < 0.5, low, high)]
    both = np.minimum(joints[low][..., 2:], joints[high][..., 2:]) >= VISIBLE_SCORE
    mixed = joints[low] * (1 - share) + joints[high] * share
    return np.where(both, mixed, near).astype(np.float32)


@dataclass(frozen=True)
class _Region:
    """The part of a frame that a sample keeps, and its scale."""

    scale: float  # px of the region per px of the frame
    region_from_frame: np.ndarray  # (2, 3): px of the frame to px of the region
    size: tuple[int, int]  # w, h of the region, px

    @classmethod
    def fit(cls, config: ModelConfig, width: int, height: int, box: list[float] | None) -> _Region:
        # CLIP's centre crop: 224 of 256 pixels of the short side.
        side = min(width, height) * 0.875
        centre = width / 2, height / 2
        kept_w, kept_h = float(width), float(height)
        if config.crop != "full" and box is not None:
            x1, y1, x2, y2 = box
            around = max(x2 - x1, y2 - y1, 16.0) * VIEW_MARGIN
            centre = (x1 + x2) / 2, (y1 + y2) / 2
            # Around the actor, inside the frame, and large enough for the body.
            side = max(side, around) if config.crop == "follow" else around
            centre = _clamp(centre[0], side, width), _clamp(centre[1], side, height)
            kept_w = kept_h = side * KEPT_MARGIN / VIEW_MARGIN
        scale = config.image_size / side
        matrix = np.array(
            [
                [scale, 0, (kept_w / 2 - centre[0]) * scale],
                [0, scale, (kept_h / 2 - centre[1]) * scale],
            ],
            np.float32,
        )
        size = (max(round(kept_w * scale), 1), max(round(kept_h * scale), 1))
        return cls(scale, matrix, size)


def _clamp(centre: float, side: float, length: float) -> float:
    """The nearest centre at which a view lies inside the frame; the middle for a larger view."""
    return min(max(centre, side / 2), length - side / 2) if side < length else length / 2


def _shrink(frame: np.ndarray, scale: float) -> np.ndarray:
    """Shrink the frame (h, w, 3) by the integer factor floor(1 / scale), if that is above 1."""
    factor = max(1, int(1 / scale))
    if factor == 1:
        return frame
    height, width = frame.shape[:2]
    return cv2.resize(frame, (width // factor, height // factor), interpolation=cv2.INTER_AREA)


def _warp(frame: np.ndarray, region: _Region) -> np.ndarray:
    """Crop the region (h, w, 3) from a frame after `_shrink`."""
    factor = max(1, int(1 / region.scale))
    matrix = region.region_from_frame.copy()
    matrix[:, :2] *= factor
    warped: np.ndarray = cv2.warpAffine(frame, matrix, region.size, flags=cv2.INTER_LINEAR)
    return warped


def view(
    sample: Sample, config: ModelConfig, crop: int | None = None, mirrored: bool = False
) -> Batch:
    """A square view as a batch of one, shapes as in `cut_view`.

    ``crop`` None: the middle. 0, 1, 2: the middle one of three crops along the longer side of the
    video, the first and the last. Those of a whole frame have its full short side, as in AIM.
    """
    if crop is None:
        return cut_view(sample, config, np.zeros(2), 1.0, 0.0, mirrored)
    size = np.array(sample.size, np.float64)
    scale = 1.0
    if config.crop == "full" or sample.box is None:
        scale = sample.side_px / size.min()
    free = size - sample.side_px / scale
    shift = np.zeros(2)
    shift[int(sample.upright)] = free[int(sample.upright)] / 2 * (0, -1, 1)[crop]
    return cut_view(sample, config, shift, scale, 0.0, mirrored)


def collate(batches: list[Batch]) -> Batch:
    """Concatenate batches along N, in their order: frames (N, T, 3, H, W), joints (N, S, J, 3).

    If some have ``observed``, those without it have no video.
    """
    observed = next((b.observed for b in batches if b.observed is not None), None)
    if observed is not None:
        blank = tuple(torch.zeros_like(part) for part in observed)
        batches = [
            b if b.observed is not None else Batch(None, b.joints, torch.tensor([False]), blank)
            for b in batches
        ]
        columns = zip(*(b.observed or () for b in batches), strict=True)
        observed = tuple(torch.cat(column) for column in columns)
    frames = [b.frames for b in batches if b.frames is not None]
    joints = [b.joints for b in batches if b.joints is not None]
    has_video = [torch.tensor([True]) if b.has_video is None else b.has_video for b in batches]
    some_without = any(b.has_video is not None for b in batches)
    return Batch(
        torch.cat(frames) if frames else None,
        torch.cat(joints) if joints else None,
        torch.cat(has_video) if some_without else None,
        observed,
    )


def cut_view(
    sample: Sample,
    config: ModelConfig,
    shift: np.ndarray,
    scale: float,
    turn_deg: float,
    mirrored: bool,
    times: np.ndarray | None = None,
    aspect: float = 1.0,
) -> Batch:
    """Crop a square view from the region, with one matrix for frames and joints.

    ``shift`` (2,): offset of the centre in px of the region. ``aspect``: factor of the ratio of
    width to height, before the turn. ``times`` (S,) int: the pose frame at
    each time, by default all in order. Returns a batch of one: frames (1, T, 3, image_size,
    image_size) uint8, joints (1, S, J, 3) with x, y in [0, 1] inside the view and visibility 0 or
    1. For a clip without video, frames are zeros and ``has_video`` is False; for a model without
    video both are None.
    """
    side = config.image_size
    middle = np.array(sample.size) / 2 + shift
    zoom = side / sample.side_px * scale
    matrix = cv2.getRotationMatrix2D((float(middle[0]), float(middle[1])), turn_deg, zoom)
    matrix[:, 2] += side / 2 - middle
    if aspect != 1:
        stretch = np.diag([aspect**0.5, aspect**-0.5])
        moved = matrix[:, :2] @ (middle - stretch @ middle)
        matrix = np.column_stack([matrix[:, :2] @ stretch, matrix[:, 2] + moved])
    if mirrored:
        matrix[0] *= -1
        matrix[0, 2] += side
    times = np.arange(len(sample.joints)) if times is None else times
    joints = sample.joints[times]
    points = joints[..., :2] @ matrix[:, :2].T + matrix[:, 2]
    visible = joints[..., 2] >= VISIBLE_SCORE
    if mirrored:
        swap = LAYOUTS[config.layout].mirror
        points, visible = points[:, swap], visible[:, swap]
    normalised = np.concatenate([points / side, visible[..., None]], -1).astype(np.float32)
    normalised[~visible] = 0
    frames = has_video = None
    if config.video and sample.frames is None:
        frames = torch.zeros(1, config.video_frames, 3, side, side, dtype=torch.uint8)
        has_video = torch.tensor([False])
    elif config.video and sample.frames is not None:
        views = np.stack(
            [
                cv2.warpAffine(sample.frames[i], matrix, (side, side), flags=cv2.INTER_LINEAR)
                for i in times[1::3] // 3
            ]
        )
        frames = torch.from_numpy(views).permute(0, 3, 1, 2)[None].contiguous()
    return Batch(frames, torch.from_numpy(normalised)[None], has_video)
