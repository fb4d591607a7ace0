"""From a clip and its actor to what the model takes: a cut-out, joints in it, and their variations.

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

# A joint the detector is less sure of than this counts as not visible.
VISIBLE_SCORE = 0.3
# The actor's cut-out is his or her box, over the whole clip, enlarged this much ...
VIEW_MARGIN = 1.25
# ... and more than that is kept, for shifted views and for turned and scaled variations.
KEPT_MARGIN = 1.6


@dataclass(frozen=True)
class Sample:
    """One clip, decoded, with the actor found, cut out and scaled; not yet a tensor."""

    path: Path
    frames: np.ndarray | None  # (T, h, w, 3) uint8 RGB, the kept region; None = poses only
    joints: np.ndarray  # (S, J, 3) float32: x, y in pixels of the kept region, score
    size: tuple[int, int]  # w, h of the kept region
    side_px: float  # side of the square that the model sees, in pixels of the kept region
    start_s: float
    end_s: float
    seen: int  # of the S pose frames
    people: int
    box: list[float] | None  # px of the upright picture
    warnings: tuple[str, ...]


def read_sample(
    path: str | Path,
    config: ModelConfig,
    detector: PoseDetector | None,
    start_s: float | None = None,
    end_s: float | None = None,
    stored: StoredPoses | None = None,
) -> Sample:
    """Decode a clip, find its actor and cut out what the model sees.

    A ``stored`` of the clip's poses makes the detector needless. Without either, or where nobody
    is found, the whole picture is kept and the joints are all invisible; a model without video
    refuses it. PevlError as `sample_clip` and the detector raise it, too.
    """
    clip = sample_clip(path, config.pose_frames, start_s, end_s)
    if stored is not None:
        actor: Actor | None = stored.actor_in(clip)
    else:
        actor = detector.actor(clip) if detector is not None else None
    if not config.video and (actor is None or not actor.seen.any()):
        raise PevlError(f"{path}: nobody was found in it, and this model looks at poses only.")
    return make_sample(clip, actor, config)


def make_sample(clip: Clip, actor: Actor | None, config: ModelConfig) -> Sample:
    """Cut the region to keep out of a clip, scaled so that a view is ``image_size`` pixels."""
    height, width = clip.frames.shape[1:3]
    shrunk = width / clip.width
    warnings = list(clip.warnings)
    joints = np.zeros((config.pose_frames, config.joints, 3), np.float32)
    box = None
    seen = 0
    if actor is not None:
        box = actor.box
        whole = to_layout(actor.joints, actor.layout, config.layout, config.allow_missing_joints)
        joints = _between(whole, _places(clip.frame_of))
        joints[..., :2] *= shrunk
        seen = int(actor.seen[clip.frame_of].sum())
        if box is None:
            warnings.append("nobody was found: the answer comes from the picture alone")
        elif actor.people > 1:
            warnings.append(
                f"{actor.people} people at once: followed the one in box "
                f"{[round(v) for v in box]} for {seen} of {config.pose_frames} frames"
            )
    region = _Region.of(config, width, height, None if box is None else [v * shrunk for v in box])
    frames = None
    if config.video:
        indexed = clip.frame_of[1::3]  # the middle ones of the triples
        # A large picture is blurred first, as a shrinking warp skips pixels.
        frames = np.stack(
            [
                _warp(_shrink(clip.frames[i], region.scale), region.move, region.size, region.scale)
                for i in indexed
            ]
        )
    joints[..., :2] = joints[..., :2] * region.scale + region.move[:, 2]
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
    """A clip of which there are poses only: its T frames cover the S that the model takes evenly.

    Between two frames joints move straight. PevlError where nobody is in it, or a joint cannot
    be had.
    """
    actor = stored.actor()
    if not actor.seen.any():
        raise PevlError(f"{path}: nobody is seen in '{stored.name}'.")
    whole = to_layout(actor.joints, actor.layout, config.layout, config.allow_missing_joints)
    count = config.pose_frames
    place = np.clip((np.arange(count) + 0.5) / count * len(whole) - 0.5, 0, len(whole) - 1)
    joints = _between(whole, place)
    region = _Region.of(config, *stored.canvas, actor.box)
    joints[..., :2] = joints[..., :2] * region.scale + region.move[:, 2]
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


def _places(frame_of: np.ndarray) -> np.ndarray:
    """Where among the U distinct frames each of the S sampled times lies, (S,) float.

    A short or slow video shows one frame at several of them: a body that stands still and jumps
    would be seen, where it moves.
    """
    times = np.arange(len(frame_of))
    middle = np.bincount(frame_of, times) / np.bincount(frame_of)
    return np.interp(times, middle, np.arange(len(middle)))


def _between(joints: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Joints (T, J, 3) at fractional frames (S,): the nearest one's where the other is not seen."""
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, len(joints) - 1)
    share = (place - low)[:, None, None].astype(np.float32)
    near = joints[np.where(share[:, 0, 0] < 0.5, low, high)]
    both = np.minimum(joints[low][..., 2:], joints[high][..., 2:]) >= VISIBLE_SCORE
    mixed = joints[low] * (1 - share) + joints[high] * share
    return np.where(both, mixed, near).astype(np.float32)


@dataclass(frozen=True)
class _Region:
    """The part of a picture that is kept, and how its pixels become those of a view."""

    scale: float
    move: np.ndarray  # (2, 3)
    size: tuple[int, int]  # w, h px after scaling

    @classmethod
    def of(cls, config: ModelConfig, width: int, height: int, box: list[float] | None) -> _Region:
        # The paper's: the picture's short side, a little shortened as in CLIP's 256 to 224.
        side = min(width, height) * 0.875
        centre = width / 2, height / 2
        kept_w, kept_h = float(width), float(height)
        if config.crop == "follow" and box is not None:
            x1, y1, x2, y2 = box
            around = max(x2 - x1, y2 - y1, 16.0) * VIEW_MARGIN
            centre = (x1 + x2) / 2, (y1 + y2) / 2
            # Moved to the actor as far as the picture goes, and wide enough to hold the whole body.
            side = max(side, around)
            centre = _inside(centre[0], side, width), _inside(centre[1], side, height)
            kept_w = kept_h = side * KEPT_MARGIN / VIEW_MARGIN
        scale = config.image_size / side
        move = np.array(
            [
                [scale, 0, (kept_w / 2 - centre[0]) * scale],
                [0, scale, (kept_h / 2 - centre[1]) * scale],
            ],
            np.float32,
        )
        size = (max(round(kept_w * scale), 1), max(round(kept_h * scale), 1))
        return cls(scale, move, size)


def _inside(centre: float, side: float, length: float) -> float:
    """The nearest centre at which a view lies in the picture, or the middle where it cannot."""
    return min(max(centre, side / 2), length - side / 2) if side < length else length / 2


def _shrink(frame: np.ndarray, scale: float) -> np.ndarray:
    factor = max(1, int(1 / scale))
    if factor == 1:
        return frame
    height, width = frame.shape[:2]
    return cv2.resize(frame, (width // factor, height // factor), interpolation=cv2.INTER_AREA)


def _warp(frame: np.ndarray, move: np.ndarray, size: tuple[int, int], scale: float) -> np.ndarray:
    """Apply a matrix meant for the unshrunk frame to a frame shrunk by a whole factor."""
    factor = max(1, int(1 / scale))
    matrix = move.copy()
    matrix[:, :2] *= factor
    out: np.ndarray = cv2.warpAffine(frame, matrix, size, flags=cv2.INTER_LINEAR)
    return out


def view(sample: Sample, config: ModelConfig, place: int = 0, mirrored: bool = False) -> Batch:
    """One still view as a batch of one: place 0 the middle, 1 and 2 to either side of it."""
    free = np.array(sample.size, np.float32) - sample.side_px
    shift = np.where(free == free.max(), free / 2, 0) * (0, -1, 1)[place]
    return _cut(sample, config, shift, 1.0, 0.0, mirrored)


def collate(batches: list[Batch]) -> Batch:
    """Batches of one into one batch."""
    frames = [b.frames for b in batches if b.frames is not None]
    joints = [b.joints for b in batches if b.joints is not None]
    known = [torch.tensor([True]) if b.has_video is None else b.has_video for b in batches]
    some = any(b.has_video is not None for b in batches)
    return Batch(
        torch.cat(frames) if frames else None,
        torch.cat(joints) if joints else None,
        torch.cat(known) if some else None,
    )


def _cut(
    sample: Sample,
    config: ModelConfig,
    shift: np.ndarray,
    scale: float,
    turn_deg: float,
    mirrored: bool,
    times: np.ndarray | None = None,
) -> Batch:
    """Cut a square view out of the kept region by one matrix for pictures and joints."""
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
    placed = np.concatenate([points / side, visible[..., None]], -1).astype(np.float32)
    placed[~visible] = 0
    frames = has_video = None
    if config.video and sample.frames is None:
        frames = torch.zeros(1, config.video_frames, 3, side, side, dtype=torch.uint8)
        has_video = torch.tensor([False])
    elif config.video and sample.frames is not None:
        cut = np.stack(
            [
                cv2.warpAffine(sample.frames[i], matrix, (side, side), flags=cv2.INTER_LINEAR)
                for i in times[1::3] // 3
            ]
        )
        frames = torch.from_numpy(cut).permute(0, 3, 1, 2)[None].contiguous()
    return Batch(frames, torch.from_numpy(placed)[None], has_video)
