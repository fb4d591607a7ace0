"""What the joints of each skeleton are, and one skeleton as another one."""

from __future__ import annotations

import numpy as np
import pytest

from pevl_cli.errors import PevlError
from pevl_cli.pose.skeletons import LAYOUTS, to_layout


def joints(layout: str) -> np.ndarray:
    """Two frames in which every joint has a place and a score of its own."""
    count = len(LAYOUTS[layout].names)
    return np.random.default_rng(0).random((2, count, 3)).astype(np.float32)


def test_the_same_names_keep_their_joints() -> None:
    coco = joints("coco17")
    fewer = to_layout(coco, "coco17", "coco13")
    for i, name in enumerate(LAYOUTS["coco13"].names):
        np.testing.assert_array_equal(fewer[:, i], coco[:, LAYOUTS["coco17"].names.index(name)])


def test_a_neck_is_between_the_shoulders_and_as_sure_as_the_less_sure_one() -> None:
    coco = joints("coco17")
    neck = to_layout(coco, "coco17", "jhmdb15")[:, LAYOUTS["jhmdb15"].names.index("neck")]
    left, right = (
        coco[:, LAYOUTS["coco17"].names.index(f"{side}_shoulder")] for side in ("left", "right")
    )
    np.testing.assert_allclose(neck[:, :2], (left + right)[:, :2] / 2, rtol=1e-6)
    np.testing.assert_array_equal(neck[:, 2], np.minimum(left, right)[:, 2])


def test_a_joint_that_cannot_be_had_is_told_with_both_lists() -> None:
    with pytest.raises(PevlError, match="left_eye") as error:
        to_layout(joints("smarthome13"), "smarthome13", "coco17")
    for name in LAYOUTS["smarthome13"].names:
        assert name in str(error.value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_mirror_image_of_a_mirror_image_is_the_thing(name: str) -> None:
    layout = LAYOUTS[name]
    mirror = layout.mirror
    assert [mirror[i] for i in mirror] == list(range(len(layout.names)))
    for joint, other in zip(layout.names, mirror, strict=True):
        assert layout.names[other] == joint.replace("left", "r_").replace("right", "left").replace(
            "r_", "right"
        )
    assert len(set(layout.names)) == len(layout.names) == int(name[-2:])


@pytest.mark.parametrize("name", LAYOUTS)
def test_edges_join_joints_that_are_there(name: str) -> None:
    layout = LAYOUTS[name]
    edges = layout.edge_indices
    assert all(a != b for a, b in edges)
    assert len({frozenset(e) for e in edges}) == len(edges) >= len(layout.names) - 3
    mirrored = {frozenset((layout.mirror[a], layout.mirror[b])) for a, b in edges}
    assert mirrored == {frozenset(e) for e in edges}, "one side is drawn otherwise"


def test_joints_stand_in_the_order_of_each_source() -> None:
    short = {"shoulder": "sho", "elbow": "elb", "wrist": "wri", "knee": "kne", "ankle": "ank"}

    def abbreviated(layout: str) -> str:
        names = [n.replace("right_", "R").replace("left_", "L") for n in LAYOUTS[layout].names]
        for full, brief in short.items():
            names = [n.replace(full, brief) for n in names]
        return " ".join(names)

    arms, legs = "Lsho Rsho Lelb Relb Lwri Rwri", "Lhip Rhip Lkne Rkne Lank Rank"
    assert abbreviated("coco17") == f"nose Leye Reye Lear Rear {arms} {legs}"
    assert abbreviated("coco13") == f"nose {arms} {legs}"
    assert abbreviated("smarthome13") == (
        "Rank Lank Rkne Lkne Rhip Lhip Rwri Lwri Relb Lelb Rsho Lsho head"
    )
    assert abbreviated("jhmdb15") == (
        "neck belly face Rsho Lsho Rhip Lhip Relb Lelb Rkne Lkne Rwri Lwri Rank Lank"
    )


def test_joints_that_a_skeleton_lacks_may_count_as_not_seen() -> None:
    body = joints("jhmdb15")
    converted = to_layout(body, "jhmdb15", "coco17", allow_missing=True)
    names = LAYOUTS["coco17"].names
    seen = {name for i, name in enumerate(names) if converted[..., i, 2].any()}
    assert seen == set(names) - {"left_eye", "right_eye", "left_ear", "right_ear"}
    knee = LAYOUTS["jhmdb15"].names.index("left_knee")
    assert np.array_equal(converted[..., names.index("left_knee"), :], body[..., knee, :])
