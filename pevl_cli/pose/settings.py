"""Settings of the search for the actor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PoseSettings:
    """How people are detected and the actor is found; part of the pose cache's key."""

    image_size_px: int = 384  # long side of the detector's input; 640 px takes three times as long
    confidence: float = 0.05  # least confidence of a box; low, because whole tracks are judged
    start_confidence: float = 0.3  # the actor's track needs one box with this confidence
    bridge_s: float = 0.7  # gaps up to this long between two detections are interpolated
    batch: int = 8  # pictures per call of the network
    refine: bool = True  # detect again, enlarged and rotated, where the actor is lost or small
    small_share: float = 0.4  # an actor below this share of the picture's long side is small
    cut_out_px: int = 256  # long side of the detector's input for cut-outs


# The bundled network is fast, precise only for large bodies, and a third confident where nobody is.
BUNDLED_SETTINGS = PoseSettings(
    image_size_px=256, start_confidence=0.4, small_share=2.0, cut_out_px=192
)
