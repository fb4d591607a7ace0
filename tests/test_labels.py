from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import need_shared

from pevl_cli import labels as module
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.labels import DEFAULT_PROMPT, LabelSet, bundled_label_sets, parse_labels, read_labels

BUNDLED = {
    "diving48": (48, "diving action"),
    "gym288": (288, "gymnastic action"),
    "gym99": (99, "gymnastic action"),
    "haa500": (500, "atomic human action"),
    "kinetics400": (400, "human action"),
    "smarthome": (31, "daily living action"),
}
PACKAGE_PARENT = Path(module.__file__).parents[1]


def official(*parts: str) -> str:
    return need_shared("data", "annotations", *parts).read_text(encoding="utf-8")


def write(folder: Path, data: bytes, name: str = "mine.txt") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# --- bundled sets ---------------------------------------------------------------------------------


def test_bundled_sets_are_listed() -> None:
    assert set(BUNDLED) <= set(bundled_label_sets())


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_set(name: str) -> None:
    count, action = BUNDLED[name]
    labels = read_labels(name)
    assert len(labels) == count
    assert labels.prompt == f"{{text}}, a video of {action}"
    # Equal texts have equal features; the encoder's tokenizer ignores case.
    assert len({text.lower() for text in labels.texts}) == count
    assert len(set(labels.prompts)) == count
    assert all(prompt.endswith(f", a video of {action}") for prompt in labels.prompts)
    assert not labels.mentions_left_or_right


@pytest.mark.parametrize("name", bundled_label_sets())
def test_bundled_texts_are_clean(name: str) -> None:
    for text in read_labels(name).texts:
        assert not re.search(r"\s\s|\s,|_|,,|\d\.\d|[^\x20-\x7e]", text), text


@pytest.mark.parametrize("name", ["gym99", "gym288"])
def test_gym_order(name: str) -> None:
    lines = official("finegym", f"{name}_categories.txt").splitlines()
    expected = [line.split(";", 3)[3].strip() for line in lines]
    ours = read_labels(name).names
    # The official list repeats some names; ours mark the dismounts.
    assert [label.removesuffix(" (dismount)") for label in ours] == expected
    for label, line in zip(ours, lines, strict=True):
        if label.endswith(" (dismount)"):
            assert "set: 35;" in line and expected.count(label.removesuffix(" (dismount)")) == 2


def test_diving48_order() -> None:
    vocabulary = json.loads(official("diving48", "Diving48_vocab.json"))
    assert list(read_labels("diving48").names) == ["+".join(parts) for parts in vocabulary]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("haa500", ("haa500", "haa500_classes.txt")),
        ("smarthome", ("smarthome", "classes_CS.txt")),
        ("kinetics400", ("kinetics400", "label_map_k400.txt")),
    ],
)
def test_order(name: str, parts: tuple[str, ...]) -> None:
    assert list(read_labels(name).names) == official(*parts).splitlines()


@pytest.mark.parametrize(
    ("name", "label", "text"),
    [
        (
            "gym99",
            "(VT) round-off, flic-flac with 0.5 turn on, stretched salto forward with 0.5 turn off",
            "vault, round-off, flic-flac with half a turn on, "
            "stretched salto forward with half a turn off",
        ),
        (
            "gym99",
            "(BB) salto backward tucked (dismount)",
            "balance beam dismount, salto backward tucked",
        ),
        (
            "diving48",
            "Reverse+15som+35Twis+FREE",
            "reverse dive, one and a half somersaults, three and a half twists, free position",
        ),
        (
            "diving48",
            "Forward+Dive+NoTwis+STR",
            "forward dive, no somersault, no twist, straight position",
        ),
        ("haa500", "blowingkisses", "blowing kisses"),
        ("haa500", "yawning", "yawning"),
        ("smarthome", "Cook.Cleandishes", "cooking, cleaning dishes"),
        ("kinetics400", "dying hair", "dyeing hair"),
    ],
)
def test_bundled_texts(name: str, label: str, text: str) -> None:
    labels = read_labels(name)
    assert labels.texts[labels.names.index(label)] == text


@pytest.mark.parametrize("name", ["gym99", "gym288"])
def test_gym_texts_keep_the_official_amounts(name: str) -> None:
    words = {"0.25": "quarter", "0.5": "half a ", "0.75": "three quarters", "1": "one "}
    words |= {"1.5": "one and a half ", "2": "two ", "2.5": "two and a half ", "3": "three "}
    words |= {"3.5": "three and a half ", "4": "four "}
    labels = read_labels(name)
    for label, text in zip(labels.names, labels.texts, strict=True):
        for amount in re.findall(r"([\d.]+) (?:turn|twist|spin)", label):
            assert words[amount] in text, (label, text)


# --- where labels are searched ------------------------------------------------------------------


def test_bare_name_with_suffix_is_bundled_when_there_is_no_such_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(read_labels("gym99.txt")) == 99
    assert len(read_labels(Path("gym99"))) == 99


@pytest.mark.parametrize("name", ["gym99", "gym99.txt"])
def test_a_file_wins_over_a_bundled_set(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, b"mine\n", name)
    assert read_labels(name).names == ("mine",)
    assert read_labels(tmp_path / name).names == ("mine",)


def test_a_file_with_a_suffix_does_not_hide_the_bare_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, b"mine\n", "gym99.txt")
    assert len(read_labels("gym99")) == 99


def test_a_folder_does_not_hide_a_bundled_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gym99").mkdir()
    assert len(read_labels("gym99")) == 99


def test_a_name_with_a_folder_is_never_bundled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PevlError, match="no label file"):
        read_labels("./gym99")
    with pytest.raises(PevlError, match="no label file"):
        read_labels(tmp_path / "gym99.txt")


@pytest.mark.parametrize(
    ("given", "close"), [("gym9", "gym99"), ("GYM99", "gym99"), ("kinetics", "kinetics400")]
)
def test_unknown_name_gives_the_closest(given: str, close: str) -> None:
    with pytest.raises(PevlError) as caught:
        read_labels(given)
    message = str(caught.value)
    assert f"'{given}'" in message and f"did you mean '{close}'?" in message
    assert all(name in message for name in BUNDLED)


def test_unknown_name_without_a_close_one() -> None:
    with pytest.raises(PevlError) as caught:
        read_labels("zzzzzz")
    assert "did you mean" not in str(caught.value)
    assert "smarthome" in str(caught.value)


def test_bundled_sets_are_found_in_a_wheel_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "labels"
    beside.mkdir()
    write(beside, b"beside\n", "some.txt")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "pevl_cli" / "labels.py"))
    assert read_labels("some").names == ("beside",)

    inside = tmp_path / "pevl_cli" / "assets" / "labels"
    inside.mkdir(parents=True)
    write(inside, b"inside\n", "other.txt")
    assert bundled_label_sets() == ["other"]
    assert read_labels("other").names == ("inside",)


# --- the format -----------------------------------------------------------------------------------


def test_plain_labels_texts_and_comments() -> None:
    labels = parse_labels(
        "# what it is\n\n split jump \nsissone\tsissonne, legs apart \n  # a note\n", "f"
    )
    assert labels.names == ("split jump", "sissone")
    assert labels.texts == ("split jump", "sissonne, legs apart")
    assert labels.prompt == DEFAULT_PROMPT
    assert labels.prompts == [
        "split jump, a video of action",
        "sissonne, legs apart, a video of action",
    ]


@pytest.mark.parametrize("line", ["# prompt: a {text} dive", "#Prompt :a {text} dive  "])
def test_prompt_line(line: str) -> None:
    assert parse_labels(f"{line}\nback\n", "f").prompts == ["a back dive"]


def test_other_braces_are_left_alone() -> None:
    labels = LabelSet(("a", "b"), ("{0} {text}", "{"), "{x} {text} }")
    assert labels.prompts == ["{x} {0} {text} }", "{x} { }"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_bom_and_line_ends(newline: str, tmp_path: Path) -> None:
    text = newline.join(["\ufeff# prompt: {text}!", "café", "b\tc", ""])
    labels = read_labels(write(tmp_path, text.encode()))
    assert labels.names == ("café", "b")
    assert labels.prompts == ["café!", "c!"]


def test_unicode_line_separators_do_not_end_a_line() -> None:
    assert parse_labels("a\u2028b\n", "f").names == ("a\u2028b",)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a\n# c\n\nb\na\n", 5, "label 'a' is already on line 1"),
        ("a\r\nb\r\na\tother\r\n", 3, "label 'a' is already on line 1"),
        ("a\n\ttext\n", 2, "no label before the TAB"),
        ("a\n  \ttext\n", 2, "no label before the TAB"),
        ("a\nb\t\n", 2, "no text after the TAB"),
        ("a\nb\t  \n", 2, "no text after the TAB"),
        ("a\nb\tc\tc\n", 2, "the same phrasing twice"),
        ("a\nb\tc\t\n", 2, "no text after the TAB"),
        ("# x\n# prompt: a video\na\n", 2, "must contain {text} exactly once"),
        ("# x\n# prompt:\na\n", 2, "must contain {text} exactly once"),
        ("# prompt: {text} {text}\na\n", 1, "must contain {text} exactly once"),
        ("# prompt: {text}\na\n# prompt: {text} b\n", 3, "the first is on line 1"),
    ],
)
def test_format_errors_name_file_and_line(text: str, line: int, says: str, tmp_path: Path) -> None:
    path = write(tmp_path, text.encode())
    with pytest.raises(PevlError) as caught:
        read_labels(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}: ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize("data", [b"", b"\n \n\t\n", b"# only a comment\n", b"\xef\xbb\xbf"])
def test_no_labels(data: bytes, tmp_path: Path) -> None:
    path = write(tmp_path, data)
    with pytest.raises(PevlError, match="contains no labels") as caught:
        read_labels(path)
    assert str(path) in str(caught.value)


# --- files that are not label files---------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "line", "says"),
    [
        (
            "a\nb\ncafé\n".encode("latin-1"),
            3,
            "byte 0xe9 is not UTF-8; hint: save the file as UTF-8",
        ),
        ("a\r\ncafé\r\nb\r\n".encode("latin-1"), 2, "byte 0xe9 is not UTF-8"),
        ("a\ncafé".encode()[:-1], 2, "byte 0xc3 is not UTF-8"),
        ("a\nb\n".encode("utf-16"), 1, "UTF-16, not UTF-8; hint: save it as UTF-8"),
        ("\ufeffa\nb\n".encode("utf-16-be"), 1, "UTF-16, not UTF-8"),
        ("jump\r\nsaut é\n".encode("utf-16-le"), 1, "UTF-16, not UTF-8"),
        ("jump\nsaut é\n".encode("utf-16-be"), 1, "UTF-16, not UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 2, "byte 0x1a, this is a binary file"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41\xff\xd8", 1, "this is a binary file"),
        (b"a\nb\n\0\n", 3, "byte 0x00, this is a binary file"),
        (b"a\nb\x1b[31m\n", 2, "byte 0x1b, this is a binary file"),
    ],
)
def test_wrong_encoding(data: bytes, line: int, says: str, tmp_path: Path) -> None:
    path = write(tmp_path, data)
    with pytest.raises(PevlError) as caught:
        read_labels(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert says in str(caught.value)


def test_a_huge_text_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 4)
    assert len(read_labels(write(tmp_path, b"a\nb\n"))) == 2
    with pytest.raises(PevlError, match="too large for a label file"):
        read_labels(write(tmp_path, b"a\nb\nc\n"))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PevlError, match="is a folder; hint: give a text file"):
        read_labels(tmp_path)


def test_below_a_file_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(PevlError, match="no label file"):
        read_labels(write(tmp_path, b"a\n") / "gym99")


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by chmod, which does not stop root.
    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    path = write(tmp_path, b"a\n")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PevlError, match=r"cannot read .*mine\.txt \(Permission denied\)"):
        read_labels(path)


def test_a_path_too_long_is_an_error_for_the_user() -> None:
    with pytest.raises(PevlError):
        read_labels("x" * 10_000)


# --- LabelSet -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "texts", "prompt", "says"),
    [
        (("a", "b"), ("a",), DEFAULT_PROMPT, "2 labels and 1 texts"),
        ((), (), DEFAULT_PROMPT, "at least one label"),
        (("a", "b", "a"), ("1", "2", "3"), DEFAULT_PROMPT, "label 'a' occurs twice"),
        (("a",), ("a",), "a video", "must contain {text} exactly once"),
    ],
)
def test_label_set_is_checked(
    names: tuple[str, ...], texts: tuple[str, ...], prompt: str, says: str
) -> None:
    with pytest.raises(PevlError) as caught:
        LabelSet(names, texts, prompt)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("raise left arm", "x", True),
        ("x", "Right hook", True),
        ("x", "turn,right", True),
        ("raise_left_arm", "x", True),
        ("raiseLeftArm", "x", True),
        ("right2", "x", True),
        ("upright row", "copyright", False),
        ("leftover", "bright", False),
        ("forward", "sideward", False),
    ],
)
def test_names_a_side(name: str, text: str, expected: bool) -> None:
    assert LabelSet(("plain", name), ("plain", text)).mentions_left_or_right is expected


# --- the rest -------------------------------------------------------------------------------------


def test_exit_codes() -> None:
    assert PevlError("x").exit_code == 1
    assert UsageError("x").exit_code == 2
    assert isinstance(UsageError("x"), PevlError)


def test_importing_labels_stays_light() -> None:
    code = (
        "import sys, pevl_cli.labels as m; m.read_labels('gym99');"
        "print(sorted({'torch', 'numpy', 'open_clip', 'av'} & set(sys.modules)))"
    )
    # From the package's folder, so that it need not be installed.
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE_PARENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_several_phrasings_of_a_label() -> None:
    labels = parse_labels("squat\npush-up\tpush-up\tpress-up\ta press, left hand\n", "f")
    assert labels.names == ("squat", "push-up")
    assert labels.texts == ("squat", "push-up")
    assert labels.others == ((), ("press-up", "a press, left hand"))
    assert labels.prompts == ["squat, a video of action", "push-up, a video of action"]
    assert labels.phrasings[0] == labels.prompts[:1]
    assert [p.split(",")[0] for p in labels.phrasings[1]] == ["push-up", "press-up", "a press"]
    assert labels.mentions_left_or_right, "one phrasing is enough"
    assert parse_labels("a\nb\tc\n", "f").others == (), "nothing to hold"
    with pytest.raises(PevlError, match="phrasings"):
        LabelSet(("a", "b"), ("a", "b"), others=(("c",),))


def test_a_label_is_found_by_name_text_or_another_phrasing() -> None:
    labels = LabelSet(
        ("push_up", "plank", "dip"),
        ("a push-up on the floor", "plank", "push up"),
        others=(("press-up",), (), ("Plank",)),
    )
    assert [labels.find(p) for p in ("push_up", "Push-Up", "a push-up on the floor")] == [0, 0, 0]
    assert labels.find("Press Up") == 0
    assert labels.find("plank") == 1, "a name counts before another label's phrasing"
    assert labels.find("squat") is None
