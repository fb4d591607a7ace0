"""What tests of the command share: the result of a run, and the tiny checkpoint's labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pevl_cli.labels import LabelSet

LABELS = LabelSet(
    ("jump", "turn", "split", "kick", "roll", "walk", "sit"),
    ("a high jump", "a full turn", "a split leap", "a kick", "a roll", "walking", "sitting down"),
    "{text}, a video of gymnastic action",
)
# Of the model in `tiny_checkpoint`; the frames and joints of the real ones.
SIZES = {"video_frames": 16, "pose_frames": 48, "joints": 17, "dropout": 0.0}


@dataclass(frozen=True)
class Done:
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        loaded: list[dict[str, Any]] = json.loads(self.out)
        return loaded


Pevl = Callable[..., Done]


def one_line(text: str) -> str:
    assert text.count("\n") == 1 and text.endswith("\n"), text
    assert "Traceback" not in text
    return text.strip()
