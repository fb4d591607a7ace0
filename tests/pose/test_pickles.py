"""Pickles of poses: read as data, refused when they would run something."""

from __future__ import annotations

import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pose_data import annotation

from pevl_cli.data.sets.pyskl import read_pyskl
from pevl_cli.errors import PevlError
from pevl_cli.pose.pickles import read_pickle, write_pickle


def stored(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


class Harmful:
    """What an attacker's pickle does: it names a function to call."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return subprocess.check_call, (["touch", str(self.mark)],)


def test_a_pickle_that_would_run_a_program_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    content = {"split": {}, "annotations": [annotation("a") | {"extra": Harmful(mark)}]}
    file = stored(tmp_path / "poses.pkl", content)
    with pytest.raises(PevlError, match=r"poses.pkl: asks for subprocess.check_call"):
        read_pickle(file)
    assert not mark.exists()
    pickle.loads(file.read_bytes())  # it would have
    assert mark.exists()


@pytest.mark.parametrize(
    "harmless", [Path("a"), range(3), slice(1), np.random.default_rng(0).bit_generator]
)
def test_whatever_is_not_numpy_or_a_container_is_refused_by_name(
    tmp_path: Path, harmless: object
) -> None:
    file = stored(tmp_path / "poses.pkl", [annotation("a") | {"extra": harmless}])
    with pytest.raises(PevlError, match=r"asks for [\w.]+, which is not data"):
        read_pickle(file)


class Forged:
    """What an attacker writes by hand: a call of something that is allowed, with a state."""

    def __init__(self, function: object, arguments: tuple[object, ...], state: object) -> None:
        self.parts = (function, arguments, state)

    def __reduce__(self) -> tuple[object, ...]:
        return self.parts


RECORDS = (3, "|", None, ("a",), {"a": (np.dtype("f4"), 0)}, 8, 8, 0)


@pytest.mark.parametrize(
    "forged",
    [
        np.array([object.__doc__, 1], object),
        np.zeros(2, [("a", "f4"), ("b", "f4")]),
        Forged(np.dtype, ("V8", False, True), RECORDS),
        Forged(np.dtype, ("f4", False, True), RECORDS),
        Forged(np.dtype, ("O8", False, True), None),
        Forged(np.ndarray, ((1,), "O"), None),
        Forged(np.ndarray, ((1,), np.dtype("f8"), b"A" * 8), None),
    ],
)
def test_memory_cannot_be_forged_by_arrays(tmp_path: Path, forged: object) -> None:
    """Objects and records hold pointers, which a file must not set."""
    file = stored(tmp_path / "poses.pkl", [annotation("a") | {"extra": forged}])
    with pytest.raises(PevlError, match=r"poses.pkl"):
        read_pickle(file)


def test_arrays_scalars_and_sets_are_data(tmp_path: Path) -> None:
    extra = {"extra": [{1, 2}, frozenset("a"), np.float32(3), np.int64(4), b"x", None, (1,)]}
    file = stored(tmp_path / "poses.pkl", [annotation("a") | extra])
    (read,), splits = read_pickle(file)
    assert read["extra"] == extra["extra"] and splits == {}
    np.testing.assert_array_equal(read["keypoint"], annotation("a")["keypoint"])


def test_protocol_two_of_old_numpy_is_read(tmp_path: Path) -> None:
    file = tmp_path / "old.pkl"
    text = pickle.dumps([annotation("a")], protocol=2)
    file.write_bytes(text.replace(b"numpy._core", b"numpy.core"))
    assert len(read_pickle(file)[0]) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a pickle"),
        (b"no pickle", "cannot be read as a pickle"),
        ({"a": 1}, "not in PYSKL's form"),
        ([{"frame_dir": "a"}], "annotation 0 has no 'keypoint'"),
        ([annotation("a"), annotation("a")], "'a' is listed twice"),
        ([annotation("a") | {"keypoint": np.zeros((9, 17, 2))}], r"has shape \(9, 17, 2\)"),
        ([annotation("a") | {"keypoint": [[[[1]], [[1, 2]]]]}], "not in PYSKL's form"),
        ({"split": ["a"], "annotations": [annotation("a")]}, "not in PYSKL's form"),
        ([], "it contains no clip"),
    ],
)
def test_other_files_are_told_apart(tmp_path: Path, content: object, message: str) -> None:
    file = tmp_path / "poses.pkl"
    file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    with pytest.raises(PevlError, match=message):
        read_pickle(file)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "poses.pkl"
    write_pickle(file, [annotation("a"), annotation("b", 1)], {"train": ["a"], "val": ["b"]})
    annotations, splits = read_pickle(file)
    assert [a["frame_dir"] for a in annotations] == ["a", "b"]
    assert splits == {"train": ["a"], "val": ["b"]}


# -- as a data set --------------------------------------------------------------------------------


def dataset(tmp_path: Path, splits: dict[str, list[str]]) -> Path:
    names = [f"c{i}" for i in range(6)]
    annotations = [annotation(n, i % 2) for i, n in enumerate(names)]
    return stored(tmp_path / "moves_train.pkl", {"split": splits, "annotations": annotations})


def test_labels_by_number_and_splits_by_name(tmp_path: Path) -> None:
    file = dataset(tmp_path, {"train": ["c0", "c1", "c2"], "val": ["c3"]})
    with pytest.raises(PevlError, match="name them with --labels"):
        read_pyskl(file)
    (tmp_path / "moves.txt").write_text("kick\njump\n")
    manifest = read_pyskl(file)
    assert [(i.name, i.label, i.split) for i in manifest.items] == [
        *(("c0", "kick", "train"), ("c1", "jump", "train"), ("c2", "kick", "train")),
        ("c3", "jump", "val"),
    ]
    assert "moves.txt" in manifest.warnings[0]
    assert "2 of 6 clips are in no split" in manifest.warnings[1]
    short = tmp_path / "short.txt"
    short.write_text("kick\n")
    with pytest.raises(PevlError, match=r"'c1' has label 1, and .*short.txt names 1 labels"):
        read_pyskl(file, str(short))


@pytest.mark.parametrize("label", [[0], "kick", None, float("nan"), -1])
def test_labels_that_are_no_numbers_are_told(tmp_path: Path, label: object) -> None:
    (tmp_path / "moves.txt").write_text("kick\njump\n")
    file = stored(tmp_path / "moves.pkl", [annotation("a") | {"label": label}])
    with pytest.raises(PevlError, match="'a' has label"):
        read_pyskl(file)


def test_one_of_several_splits_has_to_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "moves.txt").write_text("kick\njump\n")
    splits = {"xsub_train": ["c0", "c1"], "xsub_val": ["c2"], "xview_train": ["c3", "c4"]}
    file = dataset(tmp_path, splits)
    with pytest.raises(PevlError, match="several splits: xsub, xview; choose one with --fold"):
        read_pyskl(file)
    chosen = read_pyskl(file, fold="xsub")
    assert {i.name: i.split for i in chosen.items} == {"c0": "train", "c1": "train", "c2": "val"}
    with pytest.raises(PevlError, match="is a fold 'xset'"):
        read_pyskl(file, fold="xset")
    numbered = dataset(tmp_path, {"train1": ["c0"], "test1": ["c1"], "train2": ["c1"]})
    assert [i.split for i in read_pyskl(numbered, fold="1").items] == ["train", "test"]


def test_without_splits_some_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "moves.txt").write_text("kick\njump\n")
    manifest = read_pyskl(dataset(tmp_path, {}))
    assert {i.split for i in manifest.items} == {"train", "val"}
    assert "2 of 6 clips are held out" in manifest.split_notes[0]
