"""Skeleton layouts: the joints of each pose source, and conversion between layouts by joint names.

Sources: COCO's 17 keypoints, 13 of them without eyes and ears, Toyota Smarthome's joints
(LCRNet), and J-HMDB's puppet joints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pevl_cli.errors import PevlError


@dataclass(frozen=True)
class Layout:
    """A skeleton: the names of its joints in order, and the pairs of joints that form its edges."""

    names: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]

    @property
    def mirror(self) -> list[int]:
        """For each joint the index of its mirror image (itself for nose, neck, ...)."""
        swap = {"left": "right", "right": "left"}
        names = list(self.names)
        return [
            names.index(f"{swap[side]}_{rest}") if (side := n.partition("_")[0]) in swap else i
            for i, n in enumerate(names)
            for rest in [n.partition("_")[2]]
        ]

    @property
    def limbs(self) -> list[list[int]]:
        """Joint indices of the outer part of each limb: elbow and wrist, or knee and ankle."""
        ends = (("elbow", "wrist"), ("knee", "ankle"))
        limbs = [(f"{side}_{a}", f"{side}_{b}") for side in ("left", "right") for a, b in ends]
        return [[self.names.index(n) for n in limb if n in self.names] for limb in limbs]

    @property
    def edge_indices(self) -> list[tuple[int, int]]:
        """The edges as pairs of joint indices."""
        return [(self.names.index(a), self.names.index(b)) for a, b in self.edges]


def _sides(*names: str, first: str = "left") -> tuple[str, ...]:
    order = ("left", "right") if first == "left" else ("right", "left")
    return tuple(f"{side}_{name}" for name in names for side in order)


_LIMBS = tuple(
    (f"{side}_{a}", f"{side}_{b}")
    for side in ("left", "right")
    for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"))
)
_TRUNK = (
    ("left_shoulder", "right_shoulder"),
    ("left_hip", "right_hip"),
    ("left_shoulder", "left_hip"),
    ("right_shoulder", "right_hip"),
)
_BODY = _sides("shoulder", "elbow", "wrist", "hip", "knee", "ankle")

LAYOUTS = {
    "coco17": Layout(
        ("nose", *_sides("eye", "ear"), *_BODY),
        (*_LIMBS, *_TRUNK, ("nose", "left_eye"), ("nose", "right_eye")),
    ),
    "coco13": Layout(
        ("nose", *_BODY),
        (*_LIMBS, *_TRUNK, ("nose", "left_shoulder"), ("nose", "right_shoulder")),
    ),
    "smarthome13": Layout(
        (*_sides("ankle", "knee", "hip", "wrist", "elbow", "shoulder", first="right"), "head"),
        (*_LIMBS, *_TRUNK, ("head", "left_shoulder"), ("head", "right_shoulder")),
    ),
    "jhmdb15": Layout(
        (
            *("neck", "belly", "face"),
            *_sides("shoulder", "hip", "elbow", "knee", "wrist", "ankle", first="right"),
        ),
        (*_LIMBS, *_TRUNK, ("face", "neck"), ("neck", "belly")),
    ),
}


def to_layout(
    joints: np.ndarray, source: str, target: str, allow_missing: bool = False
) -> np.ndarray:
    """Joints (…, J, 3) x, y, score of layout ``source`` -> (…, J', 3) of layout ``target``.

    Joints are matched by name. Nose, face and head replace each other; a neck is the middle of the
    shoulders, a belly the middle of shoulders and hips. A joint that ``source`` lacks is 0 (not
    visible) with ``allow_missing``; otherwise PevlError lists both layouts.
    """
    if source == target:
        return joints
    names = list(LAYOUTS[source].names)
    columns = []
    for name in LAYOUTS[target].names:
        same = {"nose", "face", "head"} if name in {"nose", "face", "head"} else {name}
        parts = [n for n in names if n in same] or [
            f"{side}_{part}"
            for part in {"neck": ["shoulder"], "belly": ["shoulder", "hip"]}.get(name, [])
            for side in ("left", "right")
        ]
        if not parts or not set(parts) <= set(names):
            if allow_missing:
                columns.append(np.zeros_like(joints[..., 0, :]))
                continue
            raise PevlError(
                f"layout {source} ({', '.join(names)}) has no joint for '{name}' of layout "
                f"{target} ({', '.join(LAYOUTS[target].names)})."
            )
        chosen = joints[..., [names.index(n) for n in parts], :]
        # The score of a middle point is the lowest score of its joints.
        middle = np.concatenate([chosen[..., :2].mean(-2), chosen[..., 2:].min(-2)], -1)
        columns.append(middle)
    return np.stack(columns, -2)


def find_layout(count: int, where: object) -> str:
    """The first of `LAYOUTS` with ``count`` joints. PevlError if there is none."""
    for name, layout in LAYOUTS.items():
        if len(layout.names) == count:
            return name
    known = ", ".join(f"{n} ({len(k.names)})" for n, k in LAYOUTS.items())
    raise PevlError(f"{where}: no known layout has {count} joints; known layouts: {known}.")
