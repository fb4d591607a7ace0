"""Settings of the detection of the actor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PoseSettings:
    """Settings of the detection of people and of the actor; part of the pose cache's key."""

    image_size_px: int = 384  # long side of the detector's input; 640 px takes three times as long
    confidence: float = (
        0.05  # minimum confidence of a box; low, because tracks are scored as a whole
    )
    start_confidence: float = 0.3  # the actor's track needs one box with this confidence
    bridge_s: float = 0.7  # gaps up to this long between two detections are interpolated
    batch: int = 8  # images per call of the network
    refine: bool = True  # detect again in enlarged, rotated crops if the actor is lost or small
    small_share: float = 0.4  # an actor below this share of the frame's long side is small
    cut_out_px: int = 256  # long side of the detector's input for crops


# The bundled network is fast, accurate only for large bodies, and gives confidences of about 0.3
# where no person is.
BUNDLED_SETTINGS = PoseSettings(
    image_size_px=256, start_confidence=0.4, small_share=2.0, cut_out_px=192
)
