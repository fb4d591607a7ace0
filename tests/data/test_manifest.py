"""Own data as a folder or a CSV: what is read, what is held out, and what is refused."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from random import Random

import pytest

from pevl_cli.data.manifest import Item, Manifest, hold_out, read_manifest
from pevl_cli.errors import PevlError


def files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table(root: Path, text: str, name: str = "clips.csv") -> Path:
    path = root / name
    path.write_text(text, encoding="utf-8")
    return path


def paths(manifest: Manifest, root: Path) -> list[tuple[str, str]]:
    return [(i.path.relative_to(root).as_posix(), i.label) for i in manifest.items]


# -- folders ---------------------------------------------------------------------------------------


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    names = [f"{c}/{i}.mp4" for c in ("jumping_jack", "squat") for i in range(10)]
    names += ["squat/deep/11.MOV", "squat/notes.txt", ".hidden/a.mp4", "readme.mp4"]
    manifest = read_manifest(files(tmp_path, *names))
    listed = paths(manifest, tmp_path)
    assert ("squat/deep/11.MOV", "squat") in listed and len(listed) == 21
    assert manifest.labels.names == ("jumping_jack", "squat")
    assert manifest.labels.texts == ("jumping jack", "squat")
    held = [i.label for i in manifest.in_split("val")]
    # A fifth of 10 and of 11, rounded up.
    assert (held.count("jumping_jack"), held.count("squat")) == (2, 3)
    assert len(manifest.in_split("train")) == 16
    assert len(manifest.split_notes) == 1 and "5 of 21" in manifest.split_notes[0]


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Training", "validation")])
def test_a_folder_of_split_folders(tmp_path: Path, train: str, val: str) -> None:
    names = [f"{train}/{c}/{i}.mp4" for c in "ab" for i in range(3)]
    manifest = read_manifest(files(tmp_path, *names, f"{val}/a/9.mp4", "test/b/8.mp4"))
    assert [i.split for i in manifest.items].count("train") == 6
    assert [(i.label, i.path.name) for i in manifest.in_split("val")] == [("a", "9.mp4")]
    assert [(i.label, i.path.name) for i in manifest.in_split("test")] == [("b", "8.mp4")]
    assert sorted(manifest.labels.names) == ["a", "b"]
    assert manifest.warnings == ()


def test_a_folder_with_a_manifest_in_it(tmp_path: Path) -> None:
    files(tmp_path, "a/1.mp4", "b/1.mp4", "c/1.mp4")
    table(tmp_path, "path,label,split\na/1.mp4,x,train\nb/1.mp4,y,train\n", "manifest.csv")
    assert paths(read_manifest(tmp_path), tmp_path) == [("a/1.mp4", "x"), ("b/1.mp4", "y")]


# -- CSV -------------------------------------------------------------------------------------------


def test_a_csv_with_every_column(tmp_path: Path) -> None:
    text = (
        "\ufefflabel, path ,text,group,split,start_s,end_s,camera\n"
        'kick,k/1.mp4,"a kick, left foot",anna,train,0.5,2,north\n'
        "\n"
        "jump_up,j/2.mp4,,ben,Validation,,,\n"
        "kick,/far/3.mp4,,cleo,testing,1e1,20.25,\n"
    )
    manifest = read_manifest(table(tmp_path, text))
    kick, jump, far = manifest.items
    assert kick == Item(tmp_path / "k/1.mp4", "kick", "train", "anna", 0.5, 2.0, "k/1@0.5-2")
    assert jump == Item(tmp_path / "j/2.mp4", "jump_up", "val", "ben", None, None, "j/2")
    assert (far.path, far.split, far.start_s, far.end_s) == (
        Path("/far/3.mp4"),
        *("test", 10.0, 20.25),
    )
    assert manifest.labels.names == ("kick", "jump_up")
    assert manifest.labels.texts == ("a kick, left foot", "jump up")
    assert manifest.warnings == ()


def test_a_text_may_break_lines_and_hold_any_character(tmp_path: Path) -> None:
    text = 'path,label,text\n1.mp4,a,"one\ntwo"\n2.mp4,b,semi\u2028colon\n3.mp4,b,\n'
    manifest = read_manifest(table(tmp_path, text))
    assert len(manifest.items) == 3
    assert [" ".join(t.split()) for t in manifest.labels.texts] == ["one two", "semi colon"]


HEAD = "path,label,text,split,start_s,end_s\n"


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("", 1, "path and label"),
        ("file,label\na,b\n", 1, "path"),
        ("path,group\na,b\n", 1, "label"),
        (HEAD + "1.mp4,a,,,,\n,b,,,,\n", 3, "empty"),
        (HEAD + "1.mp4,a,,,,\n\n2.mp4,,,,,\n", 4, "empty"),
        (HEAD + "1.mp4,a,,dev,,\n", 2, "dev"),
        (HEAD + "1.mp4,a,,,soon,\n", 2, "start_s 'soon'"),
        (HEAD + "1.mp4,a,,,,-1\n", 2, "end_s '-1'"),
        (HEAD + "1.mp4,a,,,nan,\n", 2, "start_s 'nan'"),
        (HEAD + "1.mp4,a,,,,inf\n", 2, "end_s 'inf'"),
        (HEAD + "1.mp4,a,,,3,2\n", 2, "end_s"),
        (HEAD + "1.mp4,a,one,,,\n2.mp4,a,two,,,\n", 3, "different text"),
        # A comma without quotes around it: the text would be cut short, unseen.
        ("path,label,text\n1.mp4,a,one, two\n2.mp4,b,\n", 2, ""),
    ],
)
def test_a_wrong_line_is_reported(tmp_path: Path, text: str, line: int, expected: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(PevlError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert str(path) in message and f"line {line}" in message and expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,label\n", "no clips"),
        ("path,label\n1.mp4,a\n2.mp4,a\n", "only the label 'a'"),
        ("path,label,split\n1.mp4,a,train\n2.mp4,b,\n", "some"),
        ("path,label,split\n1.mp4,a,val\n2.mp4,b,test\n", "train"),
        ("path,label\n1.mp4," + "x" * 200_000 + "\n2.mp4,b\n", ""),
    ],
    ids=["no clips", "one label", "half a split", "no train", "a cell without end"],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, text: str, expected: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(PevlError, match=expected or None) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)


def test_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(PevlError, match="no such folder or CSV"):
        read_manifest(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PevlError, match="no clips found"):
        read_manifest(tmp_path / "empty")
    (tmp_path / "film.mp4").write_bytes(bytes(range(256)))
    with pytest.raises(PevlError, match="UTF-8 CSV"):
        read_manifest(tmp_path / "film.mp4")
    with pytest.raises(PevlError, match="only the label 'squat'"):
        read_manifest(files(tmp_path / "one", "squat/1.mp4", "squat/2.mp4"))


# -- splits ----------------------------------------------------------------------------------------


def test_the_seed_decides_what_is_held_out(tmp_path: Path) -> None:
    root = files(tmp_path, *(f"{c}/{i:02}.mp4" for c in "abc" for i in range(20)))

    def held(seed: int) -> set[Path]:
        return {i.path for i in read_manifest(root, seed).in_split("val")}

    assert held(3) == held(3)
    assert held(3) != held(4)


def test_a_group_never_crosses_the_split_that_is_made(tmp_path: Path) -> None:
    rows = [f"{c}{g}{k}.mp4,{c},{g}" for c in "ab" for g in "uvwxyz" for k in range(2)]
    manifest = read_manifest(table(tmp_path, "\n".join(["path,label,group", *rows])), seed=5)
    splits = defaultdict(set)
    for item in manifest.items:
        splits[item.group].add(item.split)
    assert all(len(s) == 1 for s in splits.values())
    assert 2 <= sum(s == {"val"} for s in splits.values()) <= 3
    assert {i.label for i in manifest.in_split("val")} == {"a", "b"}
    assert len(manifest.split_notes) == 1 and "groups" in manifest.split_notes[0]


@pytest.mark.parametrize("seed", range(12))
def test_a_class_keeps_clips_to_train_on(seed: int) -> None:
    """Held-out groups of one class may be most of another's."""
    random = Random(seed)
    groups = {c: random.sample("pqrstu", random.randint(2, 4)) for c in "abcd"}
    counts = {(c, g): random.randint(1, 3) for c in groups for g in groups[c]}
    items = [
        Item(Path(f"{c}{g}{k}.mp4"), c, group=g) for (c, g), n in counts.items() for k in range(n)
    ]
    divided = hold_out(items, seed)
    assert [(i.path, i.label, i.group) for i in divided] == [
        (i.path, i.label, i.group) for i in items
    ]
    assert {i.label for i in divided if i.split == "train"} == set(groups)
    assert any(i.split == "val" for i in divided)
    crossing = {i.group for i in divided if i.split == "train"} & {
        i.group for i in divided if i.split == "val"
    }
    assert not crossing


def test_a_single_clip_of_a_class_is_for_training() -> None:
    items = [Item(Path("1.mp4"), "rare"), *(Item(Path(f"{i}.mp4"), "b") for i in range(5))]
    divided = hold_out(items, 0)
    assert divided[0].split == "train"
    assert sum(i.split == "val" for i in divided) == 1


def test_a_group_in_two_given_splits_is_told(tmp_path: Path) -> None:
    text = "path,label,group,split\n1.mp4,a,anna,train\n2.mp4,b,anna,val\n3.mp4,b,ben,train\n"
    manifest = read_manifest(table(tmp_path, text))
    assert [i.split for i in manifest.items] == ["train", "val", "train"], "as the file has it"
    assert len(manifest.warnings) == 1
    assert "1 group" in manifest.warnings[0] and "'anna'" in manifest.warnings[0]


def test_several_phrasings_in_a_table(tmp_path: Path) -> None:
    text = "path,label,text\n1.mp4,a,one | two\n2.mp4,a,one | two\n3.mp4,b,three\n"
    labels = read_manifest(table(tmp_path, text)).labels
    assert labels.texts == ("one", "three") and labels.others == (("two",), ())
    text = "path,label,text\n1.mp4,a,one | two\n2.mp4,a,one\n3.mp4,b,three\n"
    with pytest.raises(PevlError, match=r"line 3.*different text"):
        read_manifest(table(tmp_path, text))


def test_clips_are_held_out_at_random_where_asked() -> None:
    items = [
        Item(Path(f"{i}.mp4"), "ab"[i % 2], group="one" if i < 10 else "two") for i in range(20)
    ]
    by_group = hold_out(items, 0)
    for group in ("one", "two"):
        assert len({i.split for i in by_group if i.group == group}) == 1
    at_random = hold_out(items, 0, by="random")
    assert sum(i.split == "val" for i in at_random) == 4
    assert any(
        len({i.split for i in at_random if i.group == group}) == 2 for group in ("one", "two")
    )


def test_a_folder_beside_those_of_the_splits_is_no_action(tmp_path: Path) -> None:
    for name in ("train/a/1.mp4", "train/b/1.mp4", "val/a/2.mp4", "raw/a/3.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(PevlError, match="'raw' is beside 'train'"):
        read_manifest(tmp_path)


def test_the_title_is_that_of_the_file_or_of_the_folder(
    moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CSV in the working folder had none, and two CSVs in one folder had the same."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{moves / 'stay' / f'{k}.mp4'},stay" for k in range(2)]
    rows += [f"{moves / 'run_on' / f'{k}.mp4'},run_on" for k in range(2)]
    for name in ("my_set.csv", "manifest.csv"):
        Path(name).write_text("\n".join(["path,label", *rows]))
    assert read_manifest(Path("my_set.csv")).title == "my_set"
    assert read_manifest(Path("manifest.csv")).title == tmp_path.name
    assert read_manifest(Path(".")).title == tmp_path.name
    assert read_manifest(moves).title == "moves"
