"""Answers and poses as JSON and CSV for other programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pevl_cli.media.timeline import Timeline
from pevl_cli.pose.actor import Actor
from pevl_cli.pose.skeletons import LAYOUTS
from pevl_cli.pose.stored import StoredPoses
from pevl_cli.recognise import Answer


def answers_json(answers: Sequence[Answer]) -> str:
    """JSON text: a list of `Answer.as_dict` records."""
    return json.dumps([a.as_dict() for a in answers], indent=2, ensure_ascii=False)


def answers_csv(answers: Sequence[Answer]) -> str:
    """CSV text with a header and one line per prediction, the best of a video first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *("video", "start_s", "end_s", "rank", "label", "score", "similarity"),
            *("none_of_these", "warnings"),
        ]
    )
    for a in answers:
        for rank, p in enumerate(a.predictions, 1):
            span = [f"{a.start_s:.3f}", f"{a.end_s:.3f}"]
            none = "yes" if a.none_of_these else "no"
            values = [f"{p.score:.6f}", f"{p.similarity:.6f}", none, "; ".join(a.warnings)]
            writer.writerow([a.video, *span, rank, p.label, *values])
    return out.getvalue()


def pose_record(
    video: str, timeline: Timeline, actor: Actor, indices: np.ndarray, frame_of: np.ndarray
) -> dict[str, Any]:
    """The JSON record of T frames of a video; joints in px of the upright video.

    ``actor``: in U distinct frames, with the indices ``indices`` (U,) in the file; ``frame_of``
    (T,): index of the distinct frame of each frame of the record.
    """
    frames = []
    for u in frame_of.tolist():
        joints = actor.joints[u]
        frames.append(
            {
                "index": int(indices[u]),
                "time_s": round(float(timeline.times_s[indices[u]]), 4),
                "joints": [[round(float(v), 3) for v in joint] for joint in joints]
                if actor.seen[u]
                else None,
                "bridged": bool(actor.bridged[u]),
            }
        )
    return {
        "video": video,
        "layout": actor.layout,
        "width": timeline.width,
        "height": timeline.height,
        "frames": frames,
    }


def stored_pose_record(stored: StoredPoses, actor: Actor) -> dict[str, Any]:
    """The same record for stored poses, in px; the times of the frames are unknown (None)."""
    frames = [
        {
            "index": t,
            "time_s": None,
            "joints": np.round(actor.joints[t].astype(float), 3).tolist()
            if actor.seen[t]
            else None,
            "bridged": bool(actor.bridged[t]),
        }
        for t in range(len(actor.seen))
    ]
    size = {"width": stored.width, "height": stored.height}
    return {"video": stored.name, "layout": actor.layout, **size, "frames": frames}


def poses_csv(records: Sequence[dict[str, Any]]) -> str:
    """Records of `pose_record` as CSV: one row per joint, in px of the upright video.

    A frame without the actor has no rows. ``bridged`` is yes where the joints were interpolated;
    ``time_s`` is empty for stored poses.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("video", "frame", "time_s", "joint", "x_px", "y_px", "score", "bridged"))
    for record in records:
        names = LAYOUTS[record["layout"]].names
        for frame in record["frames"]:
            if frame["joints"] is None:
                continue
            bridged = "yes" if frame["bridged"] else "no"
            time_s = "" if frame["time_s"] is None else frame["time_s"]
            for name, joint in zip(names, frame["joints"], strict=True):
                writer.writerow((record["video"], frame["index"], time_s, name, *joint, bridged))
    return out.getvalue()
