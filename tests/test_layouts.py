"""Joints of one skeleton as another one's."""

from __future__ import annotations

import numpy as np
import pytest

from pevl_cli.errors import PevlError
from pevl_cli.pose import LAYOUTS, to_layout


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
