"""From a clip and its actor to the model's input: cut-out frames, and the joints in them.

One decoding serves both streams: joints come from all 48 sampled frames, pictures from the middle
ones of 16 triples (the paper's "downsample the pose to the video's index"). Every geometric change
moves pictures and joints by the same matrix.

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
# Sides of squares, in sides of the actor's box over the whole clip: a view, and the region that is
# kept around it for shifted views and for turned and scaled variations.
VIEW_MARGIN = 1.25
KEPT_MARGIN = 1.6


@dataclass(frozen=True)
class Sample:
    """One decoded clip: the region around its actor, scaled, and the joints in it."""

    path: Path
    frames: np.ndarray | None  # (T, h, w, 3) uint8 RGB, the kept region; None = poses only
    joints: np.ndarray  # (S, J, 3) float32: x, y in pixels of the kept region, score in [0, 1]
    size: tuple[int, int]  # w, h of the kept region, px
    side_px: float  # side of the model's square view, in pixels of the kept region
    start_s: float
    end_s: float
    seen: int  # pose frames, of S, in which the actor is seen
    people: int  # at once, at most
    box: list[float] | None  # the actor's x1, y1, x2, y2 over the clip, px of the upright picture
    warnings: tuple[str, ...]


def read_sample(
    path: str | Path,
    config: ModelConfig,
    detector: PoseDetector | None,
    start_s: float | None = None,
    end_s: float | None = None,
    stored: StoredPoses | None = None,
) -> Sample:
    """Decode a clip, or its part from start_s to end_s, detect its actor and cut out the view.

    ``stored`` poses of the clip take the detector's place. Without either, or where nobody is
    found, the whole picture is kept and no joint is visible.

    PevlError where the video cannot be read, and for a clip without an actor where the model takes
    poses only.
    """
    clip = sample_clip(path, config.pose_frames, start_s, end_s)
    if stored is not None:
        actor: Actor | None = stored.actor_in(clip)
    else:
        actor = detector.actor(clip) if detector is not None else None
    if not config.video and (actor is None or not actor.seen.any()):
        raise PevlError(f"{path}: nobody was found in it, and this model takes poses only.")
    return make_sample(clip, actor, config)


def make_sample(clip: Clip, actor: Actor | None, config: ModelConfig) -> Sample:
    """Cut a clip's region out, scaled so that a view has ``image_size`` pixels a side.

    ``actor`` None: the region of the whole picture, and no visible joint. PevlError where the
    model's joints cannot be had from the actor's layout.
    """
    height, width = clip.frames.shape[1:3]
    scale = width / clip.width  # of the decoded frames
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
            warnings.append("nobody was found: the answer comes from the frames alone")
        elif actor.people > 1:
            warnings.append(
                f"{actor.people} people at once: tracked the one in box "
                f"{[round(v) for v in box]} for {seen} of {config.pose_frames} frames"
            )
    region = _Region.fit(config, width, height, None if box is None else [v * scale for v in box])
    frames = None
    if config.video:
        indexed = clip.frame_of[1::3]  # the middle ones of the triples
        # A large picture is averaged first: a warp that shrinks it skips pixels.
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
    )


def pose_sample(path: Path, stored: StoredPoses, config: ModelConfig) -> Sample:
    """The sample of a clip that has poses only.

    The model's S frames lie evenly over the clip's; between two frames joints move on a straight
    line. PevlError where nobody is seen, or the model's joints cannot be had from the layout.
    """
    actor = stored.actor()
    if not actor.seen.any():
        raise PevlError(f"{path}: nobody is seen in '{stored.name}'.")
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
    )


def _fractional_frames(frame_of: np.ndarray) -> np.ndarray:
    """The place of each of the S sampled times among the U distinct frames, (S,) float.

    frame_of (S,) int. A short or slow video shows one frame at several times: with whole frames a
    moving body would stand still and jump.
    """
    times = np.arange(len(frame_of))
    middle = np.bincount(frame_of, times) / np.bincount(frame_of)
    return np.interp(times, middle, np.arange(len(middle)))


def _interpolate(joints: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Joints (T, J, 3) at fractional frames (S,) -> (S, J, 3) float32.

    A joint that is not visible in both neighbouring frames is that of the nearer one.
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
    """The part of a picture that is kept, scaled."""

    scale: float  # pixels of the region per pixel of the picture
    region_from_frame: np.ndarray  # (2, 3): pixels of the picture to those of the region
    size: tuple[int, int]  # w, h in pixels of the region

    @classmethod
    def fit(cls, config: ModelConfig, width: int, height: int, box: list[float] | None) -> _Region:
        # CLIP's centre crop: 224 of 256 pixels of the short side.
        side = min(width, height) * 0.875
        centre = width / 2, height / 2
        kept_w, kept_h = float(width), float(height)
        if config.crop == "follow" and box is not None:
            x1, y1, x2, y2 = box
            around = max(x2 - x1, y2 - y1, 16.0) * VIEW_MARGIN
            centre = (x1 + x2) / 2, (y1 + y2) / 2
            # As near to the actor as the picture's border allows, and large enough for the body.
            side = max(side, around)
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
    """The nearest centre at which a view lies in the picture; the middle if it is too large."""
    return min(max(centre, side / 2), length - side / 2) if side < length else length / 2


def _shrink(frame: np.ndarray, scale: float) -> np.ndarray:
    """The frame (h, w, 3) divided by the largest whole factor that a ``scale`` below 1 contains."""
    factor = max(1, int(1 / scale))
    if factor == 1:
        return frame
    height, width = frame.shape[:2]
    return cv2.resize(frame, (width // factor, height // factor), interpolation=cv2.INTER_AREA)


def _warp(frame: np.ndarray, region: _Region) -> np.ndarray:
    """The region (h, w, 3) of a frame that `_shrink` has shrunk."""
    factor = max(1, int(1 / region.scale))
    matrix = region.region_from_frame.copy()
    matrix[:, :2] *= factor
    warped: np.ndarray = cv2.warpAffine(frame, matrix, region.size, flags=cv2.INTER_LINEAR)
    return warped


def view(sample: Sample, config: ModelConfig, place: int = 0, mirrored: bool = False) -> Batch:
    """A square view as a batch of one: ``place`` 0 the middle, 1 and 2 to either side of it."""
    free = np.array(sample.size, np.float32) - sample.side_px
    shift = np.where(free == free.max(), free / 2, 0) * (0, -1, 1)[place]
    return cut_view(sample, config, shift, 1.0, 0.0, mirrored)


def collate(batches: list[Batch]) -> Batch:
    """Several batches as one, in their order."""
    frames = [b.frames for b in batches if b.frames is not None]
    joints = [b.joints for b in batches if b.joints is not None]
    has_video = [torch.tensor([True]) if b.has_video is None else b.has_video for b in batches]
    named = any(b.has_video is not None for b in batches)
    return Batch(
        torch.cat(frames) if frames else None,
        torch.cat(joints) if joints else None,
        torch.cat(has_video) if named else None,
    )


def cut_view(
    sample: Sample,
    config: ModelConfig,
    shift: np.ndarray,
    scale: float,
    turn_deg: float,
    mirrored: bool,
    times: np.ndarray | None = None,
) -> Batch:
    """Cut a square view out of the kept region, by one matrix for pictures and joints.

    ``shift`` (2,) of its centre in pixels of the region; ``times`` (S,) int: the pose frame shown
    at each time, by default all in order. -> a batch of one: frames (1, T, 3, image_size,
    image_size) uint8, joints (1, S, J, 3) with x, y in [0, 1] inside the view and visibility 0 or
    1. Without video frames are zeros and ``has_video`` is False; None for a model without video.
    """
    side = config.image_size
    middle = np.array(sample.size) / 2 + shift
    zoom = side / sample.side_px * scale
    matrix = cv2.getRotationMatrix2D((float(middle[0]), float(middle[1])), turn_deg, zoom)
    matrix[:, 2] += side / 2 - middle
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
