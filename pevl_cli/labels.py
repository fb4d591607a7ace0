"""Label files: the actions to recognise, and the sentence that the text encoder reads for each.

Knows nothing about models or videos, and imports the standard library only, so that an error in a
label file is reported before anything slow is loaded.

A label file is UTF-8 text with one label per line. Blank lines and lines that start with `#` are
skipped. After a TAB follows a text that describes the action better than the label,
and after each further TAB another phrasing:

    # prompt: {text}, a video of gymnastic action
    split jump
    (FX) sissone<TAB>floor exercise, sissonne, legs apart on the diagonal to the floor
    push-up<TAB>push-up<TAB>press-up<TAB>pushing the body up from the floor

The prompt line is optional and may occur once; `{text}` is replaced by the label's text. Training
draws one phrasing at a time; a clip's similarity with a label is the mean over all its phrasings.
"""

from __future__ import annotations

import codecs
import difflib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pevl_cli.errors import PevlError

DEFAULT_PROMPT = "{text}, a video of action"

_SLOT = "{text}"
_PROMPT_LINE = re.compile(r"#\s*prompt\s*:(.*)", re.IGNORECASE)
# Not str.splitlines: it also splits at form feeds and similar characters, which editors do not
# count as line ends.
_LINE_END = re.compile(r"\r\n|\r|\n")
_CONTROL_BYTE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# A video given as the label file by mistake must not be read into memory whole.
_MAX_BYTES = 16 * 2**20

_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")
# Whole words; `_` and digits also end a word: `raise_left_arm`, `left2`.
_SIDE = re.compile(r"(?<![^\W\d_])(?:left|right)(?![^\W\d_])", re.IGNORECASE)


@dataclass(frozen=True)
class LabelSet:
    """The actions to recognise; label number i is `names[i]`.

    ``names``, ``texts`` and ``others`` have one entry per label. ``others`` are further phrasings
    of each label; the whole tuple is empty when no label has further phrasings.

    Raises PevlError when the numbers of names and texts differ or are 0, when a name repeats, and
    when the prompt does not contain `{text}` exactly once.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    prompt: str = DEFAULT_PROMPT
    others: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) != len(self.texts):
            raise PevlError(
                f"a label set needs one text for each label, "
                f"but has {len(self.names)} labels and {len(self.texts)} texts"
            )
        if self.others and len(self.others) != len(self.names):
            raise PevlError("a label set needs a list of other phrasings for each label, or none")
        if not self.names:
            raise PevlError("a label set needs at least one label")
        seen: set[str] = set()
        for name in self.names:
            if name in seen:
                raise PevlError(f"label '{name}' occurs twice; hint: remove or rename one")
            seen.add(name)
        if self.prompt.count(_SLOT) != 1:
            raise PevlError(f"the prompt '{self.prompt}' must contain {_SLOT} exactly once")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def prompts(self) -> list[str]:
        """One sentence per label, in label order: the prompt with the label's text."""
        return [self._prompt(text) for text in self.texts]

    @property
    def phrasings(self) -> list[list[str]]:
        """All sentences of each label: its prompt, then those of the other phrasings."""
        others = self.others or ((),) * len(self)
        return [
            [self._prompt(text) for text in (first, *more)]
            for first, more in zip(self.texts, others, strict=True)
        ]

    def _prompt(self, text: str) -> str:
        # Not str.format: texts and prompts may contain other braces.
        return self.prompt.replace(_SLOT, text)

    def find(self, phrase: str) -> int | None:
        """The number of the label with this name, text or other phrasing; None if there is none.

        Case, spaces, hyphens and underscores are ignored: `push_up` and `pushup` match "Push-up".
        Names take precedence over texts, texts over other phrasings.
        """
        return _numbers(self).get(_normalised(phrase))

    @property
    def mentions_left_or_right(self) -> bool:
        """Whether any name or phrasing contains "left" or "right", so that mirroring a clip may
        change its label.
        """
        phrases = (*self.names, *self.texts, *(text for more in self.others for text in more))
        return any(_SIDE.search(_CAMEL_CASE.sub(" ", phrase)) for phrase in phrases)


@lru_cache(maxsize=16)
def _numbers(labels: LabelSet) -> dict[str, int]:
    """Normalised phrase -> label number. Cached: each clip needs it."""
    numbers: dict[str, int] = {}
    phrases = (
        *enumerate(labels.names),
        *enumerate(labels.texts),
        *((i, text) for i, more in enumerate(labels.others) for text in more),
    )
    for i, text in phrases:
        numbers.setdefault(_normalised(text), i)
    return numbers


def _normalised(phrase: str) -> str:
    return re.sub(r"[\s_-]+", "", phrase.casefold())


def read_labels(source: str | Path) -> LabelSet:
    """Read a label file, or a bundled label set by its bare name.

    An existing file takes precedence: `./gym99`, `gym99.txt` and even `gym99` are read from disk
    where they exist. Otherwise a bare name, with or without `.txt`, is a bundled set: `gym99` and
    `gym99.txt` both give Gym99. A name with a folder in it is never a bundled set, and a folder
    named `gym99` does not hide one.

    Raises PevlError for a name that is neither a file nor a bundled set, a folder, an unreadable
    file, a file that is not UTF-8 text, and for everything that `parse_labels` rejects.
    """
    name_or_path = os.fspath(source)
    path = Path(name_or_path)
    # The name as typed: Path would turn `./gym99` into the bare name `gym99`.
    name = name_or_path.removesuffix(".txt")
    if name in bundled_label_sets() and not path.is_file():
        path = _bundled_folder() / f"{name}.txt"
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PevlError(_unknown_message(name_or_path, path.stem)) from error
    except OSError as error:
        # Opening a folder raises another error on each system, and Path.is_dir may itself raise.
        if os.path.isdir(path):
            raise PevlError(
                f"'{name_or_path}' is a folder; hint: give a text file with one label per line"
            ) from error
        reason = error.strerror or type(error).__name__
        raise PevlError(
            f"cannot read the label file {name_or_path} ({reason}); hint: check its permissions"
        ) from error
    return parse_labels(_decode(data, name_or_path), name_or_path)


def parse_labels(text: str, source: str) -> LabelSet:
    """Parse the text of a label file; ``source`` is its name in errors.

    Raises PevlError, with the line number, for a repeated label, an empty field before or after a
    TAB, a repeated phrasing, and a prompt that is repeated or lacks `{text}`; and for a file
    without labels.
    """
    line_of: dict[str, int] = {}
    texts: list[str] = []
    others: list[tuple[str, ...]] = []
    prompt: str | None = None
    prompt_line = 0

    for number, line in enumerate(_LINE_END.split(text.removeprefix("\ufeff")), start=1):
        where = f"{source}, line {number}"
        stripped = line.strip()
        if match := _PROMPT_LINE.match(stripped):
            if prompt is not None:
                raise PevlError(
                    f"{where}: a second prompt, the first is on line {prompt_line}; hint: keep one"
                )
            prompt, prompt_line = match[1].strip(), number
            if prompt.count(_SLOT) != 1:
                raise PevlError(
                    f"{where}: the prompt '{prompt}' must contain {_SLOT} exactly once, "
                    f"as in '# prompt: {DEFAULT_PROMPT}'"
                )
        if not stripped or stripped.startswith("#"):
            continue

        # Split before stripping, which would remove a TAB that nothing follows.
        fields = [field.strip() for field in line.split("\t")]
        name, *phrasings = fields
        if not name:
            raise PevlError(f"{where}: no label before the TAB; hint: write label<TAB>text")
        if not all(phrasings):
            raise PevlError(f"{where}: no text after the TAB; hint: add one, or remove the TAB")
        if len(set(phrasings)) < len(phrasings):
            raise PevlError(f"{where}: the same phrasing twice; hint: remove one")
        if name in line_of:
            raise PevlError(
                f"{where}: label '{name}' is already on line {line_of[name]}; "
                "hint: remove or rename one"
            )
        line_of[name] = number
        texts.append(phrasings[0] if phrasings else name)
        others.append(tuple(phrasings[1:]))

    if not texts:
        raise PevlError(f"{source} contains no labels; hint: write one label per line")
    return LabelSet(
        tuple(line_of),
        tuple(texts),
        DEFAULT_PROMPT if prompt is None else prompt,
        tuple(others) if any(others) else (),
    )


def bundled_labels(name: str) -> LabelSet:
    """The bundled label set ``name``, also when such a file exists. PevlError if unknown."""
    return read_labels(_bundled_folder() / f"{name}.txt")


def bundled_label_sets() -> list[str]:
    """Names of the label sets that are bundled with pevl, sorted."""
    return sorted(path.stem for path in _bundled_folder().glob("*.txt"))


def _bundled_folder() -> Path:
    package = Path(__file__).parent
    in_wheel = package / "assets" / "labels"
    # An editable install lacks the files that the wheel build puts into the package.
    return in_wheel if in_wheel.is_dir() else package.parent / "labels"


def _unknown_message(name: str, stem: str) -> str:
    bundled = bundled_label_sets()
    close = difflib.get_close_matches(stem.lower(), bundled, n=1)
    nearest = f"did you mean '{close[0]}'? " if close else ""
    return (
        f"no label file or bundled label set '{name}'; hint: {nearest}"
        f"Give the path of a label file or one of {', '.join(bundled)}"
    )


def _decode(data: bytes, source: str) -> str:
    if _is_utf16(data):
        raise PevlError(f"{source}, line 1: the file is UTF-16, not UTF-8; hint: save it as UTF-8")
    if match := _CONTROL_BYTE.search(data):
        raise PevlError(
            f"{source}, line {_line_number(data, match.start())}: byte 0x{match[0][0]:02x}, "
            "this is a binary file; hint: give a text file with one label per line"
        )
    if len(data) > _MAX_BYTES:
        raise PevlError(f"{source} is over {_MAX_BYTES // 2**20} MiB, too large for a label file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PevlError(
            f"{source}, line {_line_number(data, error.start)}: byte 0x{data[error.start]:02x} "
            "is not UTF-8; hint: save the file as UTF-8"
        ) from error


def _is_utf16(data: bytes) -> bool:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    if b"\0" not in data:
        return False
    # Without a byte order mark: the decoded text is printable, and each line end has two bytes.
    for codec in ("utf-16-le", "utf-16-be"):
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        printable = all(c.isprintable() or c in "\t\r\n" for c in text)
        if printable and text.count("\n") == data.count(b"\n"):
            return True
    return False


def _line_number(data: bytes, offset: int) -> int:
    # latin-1 decodes every byte, so this counts lines in any encoding.
    return len(_LINE_END.split(data[:offset].decode("latin-1")))
