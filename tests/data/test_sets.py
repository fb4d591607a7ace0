"""The paper's data sets in their official layouts: trees of tiny videos, and the real lists."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import picture, write_video
from typer.testing import CliRunner

from pevl_cli.cli.app import app
from pevl_cli.data.manifest import Item, Manifest
from pevl_cli.data.sets.disk import Disk
from pevl_cli.data.sets.named import READERS, known_name, read_named
from pevl_cli.data.sets.smarthome import CROSS_VIEW_LABELS
from pevl_cli.errors import PevlError
from pevl_cli.labels import bundled_labels
from pevl_cli.pose.files import read_poses

VIDEO_ID, EVENT = "-abcdefghi_", "E_000010_000040"
INSTANCES = [f"{VIDEO_ID}_{EVENT}_A_{s:04d}_{s + 2:04d}" for s in (0, 2, 4, 6)]


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds of a running square, to be put wherever a video is wanted."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return write_video(path, [picture(40 + 2 * i) for i in range(100)], fps=10)


def put(film: Path, *places: Path) -> None:
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, place)


def lines(path: Path, texts: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(texts) + "\n")


def by_name(manifest: Manifest) -> dict[str, Item]:
    return {item.name: item for item in manifest.items}


# -- trees in the official layouts ----------------------------------------------------------------


def gymnastics(root: Path, film: Path, which: str = "gym99") -> None:
    """Four instances: cut, in their event, in the whole video, and nowhere."""
    put(film, root / "subactions" / f"{INSTANCES[0]}.mp4")
    info = {
        VIDEO_ID: {
            EVENT: {
                "event": 1,
                "timestamps": [[10.2, 40.9]],
                "segments": {
                    "A_0002_0004": {"stages": 3, "timestamps": [[2.1, 2.5], [2.5, 3], [3, 4.25]]},
                    "A_0004_0006": {"stages": 1, "timestamps": [[4.5, 6.75]]},
                },
            }
        }
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "finegym_annotation_info_v1.0.json").write_text(json.dumps(info))
    train = [f"{INSTANCES[0]} 0", f"{INSTANCES[1]} 98"]
    lines(root / "annotations" / f"{which}_train_element_v1.0.txt", train)
    val = [f"{INSTANCES[2]} 5", f"{INSTANCES[3]} 6"]
    lines(root / "annotations" / f"{which}_val_element.txt", val)


def test_gymnastics_are_cut_out_of_what_is_on_disk(tmp_path: Path, film: Path) -> None:
    gymnastics(tmp_path, film)
    put(film, tmp_path / "events" / f"{VIDEO_ID}_{EVENT}.mp4")
    manifest = read_named("gym99", tmp_path)
    items = by_name(manifest)
    names = bundled_labels("gym99").names
    assert (items[INSTANCES[0]].start_s, items[INSTANCES[0]].label) == (None, names[0])
    vault = items[INSTANCES[1]]  # from the first to the last of three stages
    assert (vault.start_s, vault.end_s, vault.label) == (2.1, 4.25, names[98])
    assert vault.path.parent.name == "events"
    rounded = items[INSTANCES[3]]  # not among the times: those of its name
    assert (rounded.start_s, rounded.end_s) == (6.0, 9.0)
    assert "1 clips are cut at whole seconds" in manifest.warnings[0]
    (tmp_path / "events" / f"{VIDEO_ID}_{EVENT}.mp4").unlink()
    assert [i.on_disk for i in read_named("gym99", tmp_path).items] == [True, False, False, False]
    put(film, tmp_path / "videos" / f"{VIDEO_ID}.mkv")  # an ending of the downloader's choice
    whole = by_name(read_named("gym99", tmp_path))[INSTANCES[2]]
    assert (whole.path.name, whole.start_s, whole.end_s) == (f"{VIDEO_ID}.mkv", 14.7, 16.95)


def test_a_gymnastics_list_with_a_bad_line_names_it(tmp_path: Path, film: Path) -> None:
    gymnastics(tmp_path, film)
    lines(tmp_path / "annotations" / "gym99_val_element.txt", [f"{INSTANCES[0]} 99"])
    with pytest.raises(PevlError, match=r"gym99_val_element.txt line 1: .* 0 to 98"):
        read_named("gym99", tmp_path)
    (tmp_path / "annotations" / "gym99_val_element.txt").unlink()
    with pytest.raises(PevlError, match=r"gym99_val_element.txt .* is not in this folder"):
        read_named("gym99", tmp_path)


def diving(root: Path, film: Path) -> None:
    put(film, root / "rgb" / "-mmq0PT-u8k_00155.mp4", root / "rgb" / "_a_00001.mp4")
    for split, clips in {
        "train": [("-mmq0PT-u8k_00155", 0), ("_a_00001", 1), ("_gone_00002", 1)],
        "test": [("_a_00001", 47)],
    }.items():
        text = [{"vid_name": n, "label": k, "start_frame": 0, "end_frame": 48} for n, k in clips]
        (root / f"Diving48_V2_{split}.json").write_text(json.dumps(text))


def test_dives_whose_names_begin_with_a_dash(tmp_path: Path, film: Path) -> None:
    diving(tmp_path, film)
    items = by_name(read_named("diving48", tmp_path))
    first = items["-mmq0PT-u8k_00155"]
    assert first.on_disk and first.label == "Back+15som+05Twis+FREE"
    assert not items["_gone_00002"].on_disk
    vocabulary = [name.split("+") for name in bundled_labels("diving48").names]
    (tmp_path / "Diving48_vocab.json").write_text(json.dumps(vocabulary[::-1]))
    with pytest.raises(PevlError, match=r"label 0 is 'Reverse.*', in pevl's label set it is 'Back"):
        read_named("diving48", tmp_path)


def actions(root: Path, film: Path) -> None:
    put(film, *(root / "video" / "pushup" / f"pushup_{k:03d}.mp4" for k in (0, 1, 16, 17)))
    put(film, root / "video" / "yoga_bridge_000.mp4", root / "video" / "yoga_bridge_019.mp4")
    put(film, root / "youtube" / "abcdefghijk.mp4")
    urls = [
        f"https://www.youtube.com/watch?v=abcdefghijk,{k / 20},{k / 20 + 0.75},0,1"
        for k in range(20)
    ]
    lines(root / "yoga_bridge.txt", urls)


def test_actions_are_split_by_their_number(tmp_path: Path, film: Path) -> None:
    actions(tmp_path, film)
    put(film, tmp_path / "youtube" / "abcdefghijk.mp4")
    manifest = read_named("haa500", tmp_path)
    items = by_name(manifest)
    assert Counter(i.split for i in manifest.items) == manifest.official_counts
    splits = {k: items[f"pushup_{k:03d}"].split for k in (0, 15, 16, 17, 19)}
    assert splits == {0: "train", 15: "train", 16: "val", 17: "test", 19: "test"}
    cut, whole = items["yoga_bridge_000"], items["yoga_bridge_018"]
    assert cut.start_s is None and cut.group == "abcdefghijk"
    assert (whole.path.name, whole.start_s, whole.end_s) == ("abcdefghijk.mp4", 0.9, 1.65)
    assert not items["pushup_002"].on_disk


def skeleton(people: int = 1, frames: int = 20) -> dict[str, object]:
    """Toyota's JSON: x of 13 joints, then y; nobody in the first frame."""
    pose2d = [*(100.0 + 7 * j for j in range(13)), *(50.0 + 11 * j for j in range(13))]
    person = {"pose2d": pose2d, "pose3d": [0.0] * 39}
    return {"njts": 13, "K": [], "frames": [[], *([[person] * people] * (frames - 1))]}


def home(root: Path, film: Path) -> None:
    names = ["Walk_p03_r00_v01_c01", "Walk_p19_r00_v01_c05", "Drink.Fromcup_p02_r00_v01_c02"]
    names += ["Cook.Stir_p04_r00_v01_c03", "Usetablet_p06_r00_v00_c06"]
    put(film, *(root / "mp4" / f"{name}.mp4" for name in names[:3]))
    (root / "skeletonv12").mkdir()
    for name in names:
        (root / "skeletonv12" / f"{name}_pose3d.json").write_text(json.dumps(skeleton()))


def test_smarthome_by_subject_and_by_camera(tmp_path: Path, film: Path) -> None:
    home(tmp_path, film)
    manifest = read_named("smarthome-cs", tmp_path)
    splits = {i.label: i.split for i in manifest.items if i.label != "Walk"}
    assert splits == {"Drink.Fromcup": "test", "Cook.Stir": "train", "Usetablet": "train"}
    assert {i.split for i in manifest.items if i.label == "Walk"} == {"train", "val"}
    assert manifest.poses == tmp_path / "skeletonv12"
    across = read_named("smarthome-cv2", tmp_path)
    assert across.labels.names == CROSS_VIEW_LABELS
    assert {i.name: i.split for i in across.items} == {
        "Walk_p03_r00_v01_c01": "train",
        "Walk_p19_r00_v01_c05": "val",
        "Drink.Fromcup_p02_r00_v01_c02": "test",
        "Usetablet_p06_r00_v00_c06": "train",
    }
    lines(tmp_path / "train_CS.txt", ["Walk_p03_r00_v01_c01.mp4 29", "Walk_p03_r00_v09_c01.mp4 1"])
    listed = by_name(read_named("smarthome-cs", tmp_path))
    assert not listed["Walk_p03_r00_v09_c01"].on_disk
    assert listed["Walk_p03_r00_v09_c01"].label == "Walk"  # whatever its number says


def kinetics(root: Path, film: Path) -> None:
    put(film, root / "train" / "air_drumming" / "-_abcdefghi_000002_000012.mp4")
    put(film, root / "raw" / "bbbbbbbbbbb.webm")
    header = "label,youtube_id,time_start,time_end,split"
    rows = ['"air drumming",-_abcdefghi,2,12,train', "abseiling,bbbbbbbbbbb,0,10,train"]
    lines(root / "train.csv", [header, *rows])
    lines(root / "validate.csv", [header, "abseiling,bbbbbbbbbbb,0,10,val"])


def test_kinetics_clips_and_whole_videos(tmp_path: Path, film: Path) -> None:
    kinetics(tmp_path, film)
    manifest = read_named("kinetics400", tmp_path)
    drums, abseiling, val = manifest.items
    assert (drums.start_s, drums.on_disk) == (None, True)
    assert (abseiling.path.name, abseiling.start_s, abseiling.end_s) == ("bbbbbbbbbbb.webm", 0, 10)
    assert (val.split, manifest.published_split) == ("val", "val")


MAKERS = {
    "gym99": gymnastics,
    "gym288": lambda root, film: gymnastics(root, film, "gym288"),
    "diving48": diving,
    "haa500": actions,
    "smarthome-cs": home,
    "kinetics400": kinetics,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_from_the_folder_to_figures(
    name: str, tmp_path: Path, film: Path, pose_weights: Path
) -> None:
    """Check, poses, one step of training, benchmark."""
    root = tmp_path / "downloaded"
    root.mkdir()
    MAKERS[name](root, film)  # type: ignore[operator]
    missing = tmp_path / "missing.csv"
    completed = CliRunner().invoke(
        app, ["data", "check", name, "--root", str(root), "--output", str(missing)]
    )
    assert completed.exit_code == 0, completed.output
    manifest = read_named(name, root)
    expected = {i.name for i in manifest.items if not i.on_disk and manifest.poses is None}
    with missing.open() as file:
        assert {row["name"] for row in csv.DictReader(file)} == expected
    if name.startswith("gym"):  # one instance of two in train: its whole video is needed
        put(film, root / "events" / f"{VIDEO_ID}_{EVENT}.mp4")
    store = tmp_path / "poses.npz"
    line = ["pose", name, "--root", str(root), "--store", str(store), "--device", "cpu"]
    completed = CliRunner().invoke(app, [*line, "--pose-weights", str(pose_weights)])
    assert completed.exit_code == 0, completed.output
    there = {i.name for i in read_named(name, root).items if i.on_disk}
    assert set(read_poses(store).names) == there
    # Nobody is in these films; one set brings poses of its own.
    poses = [] if name == "smarthome-cs" else ["--poses", str(store)]
    out = tmp_path / "run"
    small = ["width=32", "embed_dim=16", "text_width=16", "vocab_size=300", "image_size=32"]
    given = [f"model.{s}" for s in small] + ["optim.min_steps=1", "run.tracker=none"]
    line = ["train", "--dataset", name, "--root", str(root), "--out", str(out), *poses]
    line += ["--epochs", "1", "--batch-size", "2", "--device", "cpu"]
    completed = CliRunner().invoke(app, [*line, *(x for g in given for x in ("--set", g))])
    assert completed.exit_code == 0, completed.output
    facts = json.loads((out / "run.json").read_text())
    assert facts["data"] == read_named(name, root).name
    assert ("train" in facts["incomplete"]) == bool(read_named(name, root).official_counts)
    figures = tmp_path / "figures.json"
    line = ["benchmark", "--dataset", name, "--root", str(root), *poses]
    line += ["--checkpoint", str(out / "last"), "--device", "cpu", "--output", str(figures)]
    completed = CliRunner().invoke(app, line)
    assert completed.exit_code == 0, completed.output
    outcome = json.loads(figures.read_text())
    assert outcome["split"] == read_named(name, root).published_split
    assert outcome["accuracy"]["count"] >= 1
    if name == "diving48":
        assert outcome["incomplete"] == "test 1 of 1,970 clips"


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("gym99", "gym99_val_element.txt", b"\xff\xfe\x00", "cannot be read as UTF-8 text"),
        ("gym99", "finegym_annotation_info_v1.0.json", b"{", "cannot be read as JSON"),
        ("diving48", "Diving48_V2_test.json", b"{", "cannot be read as JSON"),
        ("diving48", "Diving48_V2_test.json", b'[{"vid_name": "a", "label": -1}]', "label -1"),
        ("diving48", "Diving48_vocab.json", b"[1]", "not Diving48's list of labels"),
        ("haa500", "yoga_bridge.txt", b"url,nan,inf,0,1", "line 1: youtube_url,start,end"),
        ("kinetics400", "train.csv", b"label,youtube_id\na,b\n", "has no column time_end"),
        ("kinetics400", "train.csv", b"youtube_id,time_start,time_end,label\na,1,2\n", "line 2"),
    ],
)
def test_lists_that_are_not_what_they_should_be(
    name: str, file: str, text: bytes, message: str, tmp_path: Path, film: Path
) -> None:
    MAKERS[name](tmp_path, film)  # type: ignore[operator]
    found = next(iter(tmp_path.rglob(file)), tmp_path / file)
    found.write_bytes(text)
    if file.startswith("finegym"):
        put(film, tmp_path / "events" / f"{VIDEO_ID}_{EVENT}.mp4")
    with pytest.raises(PevlError, match=message):
        read_named(name, tmp_path)


def test_times_of_another_form_are_reported(tmp_path: Path, film: Path) -> None:
    gymnastics(tmp_path, film)
    info = next(tmp_path.rglob("finegym_annotation_info_v1.0.json"))
    info.write_text(
        json.dumps({VIDEO_ID: {EVENT: {"timestamps": [], "segments": {"A_0002_0004": {}}}}})
    )
    with pytest.raises(PevlError, match="has no usable times for"):
        read_named("gym99", tmp_path)


def test_pictures_are_taken_where_flow_has_the_same_name(tmp_path: Path, film: Path) -> None:
    diving(tmp_path, film)
    put(film, tmp_path / "flow" / "_a_00001.mp4")
    (tmp_path / "again").symlink_to(tmp_path)  # a link that leads back is not followed for ever
    item = by_name(read_named("diving48", tmp_path))["_a_00001"]
    assert item.path.parent.name == "rgb"


def test_names_and_what_goes_with_them(tmp_path: Path) -> None:
    assert known_name("FineGym") == "gym99" and known_name("smarthome") == "smarthome-cs"
    assert known_name("mine") is None
    completed = CliRunner().invoke(app, ["train", "--dataset", "haa500"])
    assert completed.exit_code == 2 or "--root" in str(completed.exception)
    completed = CliRunner().invoke(app, ["train", "--dataset", "mine", "--root", str(tmp_path)])
    assert "needs the name of a published data set" in str(completed.exception)
    with pytest.raises(PevlError, match="no such folder"):
        Disk(tmp_path / "nowhere")


# -- the real lists -------------------------------------------------------------------------------


def real_lists(shared: Path, root: Path) -> None:
    annotations = shared / "data" / "annotations"
    for folder in ("finegym", "smarthome/splits"):
        for file in (annotations / folder).glob("*.txt"):
            shutil.copy(file, root)


@pytest.mark.parametrize("name", ["gym99", "gym288", "smarthome-cs", "smarthome-cv2"])
def test_the_real_lists_have_the_official_counts(name: str, shared: Path, tmp_path: Path) -> None:
    real_lists(shared, tmp_path)
    manifest = read_named(name, tmp_path)
    assert Counter(item.split for item in manifest.items) == manifest.official_counts
    assert not any(item.on_disk for item in manifest.items)
    assert len({item.label for item in manifest.items}) == len(manifest.labels)


def test_the_real_list_of_actions_says_the_same_splits(shared: Path, tmp_path: Path) -> None:
    file = shared / "data" / "annotations" / "haa500" / "haa500_split_by_index.csv"
    theirs = {}
    with file.open() as rows:
        for row in csv.DictReader(rows):
            theirs[Path(row["file"]).stem] = (int(row["label"]), row["split"])
    ours = read_named("haa500", tmp_path)
    place = {label: i for i, label in enumerate(ours.labels.names)}
    assert {i.name: (place[i.label], i.split) for i in ours.items} == theirs


def test_ten_thousand_clips_are_listed_in_no_time(tmp_path: Path, film: Path) -> None:
    """Looking up each of the clips in the folder again would take minutes."""
    put(film, tmp_path / "rgb" / "v_00000.mp4")
    clips = [{"vid_name": f"v_{i:05d}", "label": i % 48} for i in range(10_000)]
    for split in ("train", "test"):
        (tmp_path / f"Diving48_V2_{split}.json").write_text(json.dumps(clips))
    seen = 0

    class Counted(Disk):
        def video(self, stem: str, folder: str = "") -> Path | None:
            nonlocal seen
            seen += 1
            return super().video(stem, folder)

    manifest = READERS["diving48"](Counted(tmp_path))
    assert seen == len(manifest.items) == 20_000
    assert sum(item.on_disk for item in manifest.items) == 2
    assert np.all([i.label for i in manifest.items[:48]] == list(manifest.labels.names))
