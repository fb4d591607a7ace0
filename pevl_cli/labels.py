"""Label files: the actions to tell apart, and the sentence that the text encoder reads for each.

Knows nothing of models or videos, and imports the standard library only, so that a wrong label
file is reported before anything slow is loaded.

A label file is UTF-8 text with one label a line. Blank lines and lines that start with `#` are
skipped. A TAB separates a label from a text that describes it better than its name, and further
TABs from other phrasings of it:

    # prompt: {text}, a video of gymnastic action
    split jump
    (FX) sissone<TAB>floor exercise, sissonne, legs apart on the diagonal to the floor
    push-up<TAB>push-up<TAB>press-up<TAB>pushing the body up from the floor

The prompt line is optional and may stand once; `{text}` is replaced by the label's text. Training
draws one phrasing at a time, and a clip's similarity with a label is the mean over all of them.
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
# Not str.splitlines: it would also split at form feeds and the like, and editors count otherwise.
_LINE_END = re.compile(r"\r\n|\r|\n")
_CONTROL_BYTE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# A video given as the label file by mistake must not be read into memory whole.
_MAX_BYTES = 16 * 2**20

_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")
# Whole words, where `_` and digits end a word as well: `raise_left_arm`, `left2`.
_SIDE = re.compile(r"(?<![^\W\d_])(?:left|right)(?![^\W\d_])", re.IGNORECASE)


@dataclass(frozen=True)
class LabelSet:
    """Actions to tell apart; label number i is `names[i]`.

    ``others`` are further phrasings of each label, or empty where no label has any.

    Raises PevlError when names and texts differ in number, there are none, a name repeats, or the
    prompt does not hold `{text}` exactly once.
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
                raise PevlError(f"label '{name}' is given twice: remove or rename one of them")
            seen.add(name)
        if self.prompt.count(_SLOT) != 1:
            raise PevlError(f"the prompt '{self.prompt}' must hold {_SLOT} exactly once")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def prompts(self) -> list[str]:
        """One sentence for each label, in label order: the prompt with the text filled in."""
        return [self._prompt(text) for text in self.texts]

    @property
    def phrasings(self) -> list[list[str]]:
        """All sentences for each label: its prompt, then those of the other phrasings."""
        others = self.others or ((),) * len(self)
        return [
            [self._prompt(text) for text in (first, *more)]
            for first, more in zip(self.texts, others, strict=True)
        ]

    def _prompt(self, text: str) -> str:
        # Not str.format: texts and prompts may hold braces of their own.
        return self.prompt.replace(_SLOT, text)

    def find(self, phrase: str) -> int | None:
        """The label that has this name, this text or this other phrasing; None if none has.

        Case, spaces, hyphens and underscores make no difference: `push_up` and `pushup` are
        "Push-up". Names count before texts, texts before other phrasings.
        """
        return _places(self).get(_plain(phrase))

    @property
    def names_a_side(self) -> bool:
        """Whether any name or text says left or right; a mirror image would have another label."""
        said = (*self.names, *self.texts, *(text for more in self.others for text in more))
        return any(_SIDE.search(_CAMEL_CASE.sub(" ", s)) for s in said)


@lru_cache(maxsize=16)
def _places(labels: LabelSet) -> dict[str, int]:
    """Plain phrase -> label; asked for each clip."""
    places: dict[str, int] = {}
    said = (
        *enumerate(labels.names),
        *enumerate(labels.texts),
        *((i, text) for i, more in enumerate(labels.others) for text in more),
    )
    for i, text in said:
        places.setdefault(_plain(text), i)
    return places


def _plain(phrase: str) -> str:
    return re.sub(r"[\s_-]+", "", phrase.casefold())


def read_labels(source: str | Path) -> LabelSet:
    """Read a label file, or a bundled label set by its bare name.

    A file that exists always wins: `./gym99`, `gym99.txt` and even `gym99` are read from disk when
    they are there. Otherwise a bare name, with or without `.txt`, is a bundled set: `gym99` and
    `gym99.txt` both give Gym99. A name with a folder in it is never a bundled set, and a folder
    called `gym99` does not hide one.

    Raises PevlError for a name that is neither, a folder, an unreadable file, a file that is not
    UTF-8 text, and for all that `parse_labels` refuses.
    """
    given = os.fspath(source)
    path = Path(given)
    # The name as it was typed: `./gym99` is no bare name, though Path would make it one.
    name = given.removesuffix(".txt")
    if name in bundled_label_sets() and not path.is_file():
        path = _bundled_folder() / f"{name}.txt"
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PevlError(_unknown(given, path.stem)) from error
    except OSError as error:
        # Opening a folder fails with another error on each system; Path.is_dir may raise itself.
        if os.path.isdir(path):
            raise PevlError(
                f"'{given}' is a folder: give a text file with one label a line"
            ) from error
        reason = error.strerror or type(error).__name__
        raise PevlError(
            f"cannot read the label file {given} ({reason}): check that you may read it"
        ) from error
    return parse_labels(_decode(data, given), given)


def parse_labels(text: str, source: str) -> LabelSet:
    """Read the text of a label file; `source` names it in errors.

    Raises PevlError, with the line number, for a label that repeats, nothing before or after a
    TAB, a phrasing that repeats, and a prompt that repeats or lacks `{text}`; and for a file of no
    labels.
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
                    f"{where}: a second prompt, the first is on line {prompt_line}: keep one"
                )
            prompt, prompt_line = match[1].strip(), number
            if prompt.count(_SLOT) != 1:
                raise PevlError(
                    f"{where}: the prompt '{prompt}' must hold {_SLOT} exactly once, "
                    f"as in '# prompt: {DEFAULT_PROMPT}'"
                )
        if not stripped or stripped.startswith("#"):
            continue

        # Cut before stripping, or a TAB with nothing behind it would go unnoticed.
        fields = [field.strip() for field in line.split("\t")]
        name, *phrasings = fields
        if not name:
            raise PevlError(f"{where}: no label before the TAB: write label<TAB>text")
        if not all(phrasings):
            raise PevlError(f"{where}: no text after the TAB: write one, or remove the TAB")
        if len(set(phrasings)) < len(phrasings):
            raise PevlError(f"{where}: the same phrasing twice: remove one of them")
        if name in line_of:
            raise PevlError(
                f"{where}: label '{name}' is already on line {line_of[name]}: "
                f"remove or rename one of them"
            )
        line_of[name] = number
        texts.append(phrasings[0] if phrasings else name)
        others.append(tuple(phrasings[1:]))

    if not texts:
        raise PevlError(f"{source} holds no labels: write one label a line")
    return LabelSet(
        tuple(line_of),
        tuple(texts),
        DEFAULT_PROMPT if prompt is None else prompt,
        tuple(others) if any(others) else (),
    )


def bundled_labels(name: str) -> LabelSet:
    """A bundled set, whatever file of its name is on disk."""
    return read_labels(_bundled_folder() / f"{name}.txt")


def bundled_label_sets() -> list[str]:
    """Names of the label sets that come with pevl, sorted."""
    return sorted(path.stem for path in _bundled_folder().glob("*.txt"))


def _bundled_folder() -> Path:
    package = Path(__file__).parent
    in_wheel = package / "assets" / "labels"
    # An editable install does not see what the wheel build puts into the package.
    return in_wheel if in_wheel.is_dir() else package.parent / "labels"


def _unknown(given: str, stem: str) -> str:
    bundled = bundled_label_sets()
    close = difflib.get_close_matches(stem.lower(), bundled, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return (
        f"no label file or bundled label set '{given}': {hint}"
        f"Give the path of a label file or one of {', '.join(bundled)}"
    )


def _decode(data: bytes, source: str) -> str:
    if _is_utf16(data):
        raise PevlError(f"{source}, line 1: the file is UTF-16, not UTF-8: save it as UTF-8")
    if match := _CONTROL_BYTE.search(data):
        raise PevlError(
            f"{source}, line {_line_number(data, match.start())}: byte 0x{match[0][0]:02x}, "
            f"this is a binary file: give a text file with one label a line"
        )
    if len(data) > _MAX_BYTES:
        raise PevlError(f"{source} is over {_MAX_BYTES // 2**20} MiB, too large for a label file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PevlError(
            f"{source}, line {_line_number(data, error.start)}: byte 0x{data[error.start]:02x} "
            f"is not UTF-8: save the file as UTF-8"
        ) from error


def _is_utf16(data: bytes) -> bool:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    if b"\0" not in data:
        return False
    # Without a BOM: two bytes at a time give printable text, and each line end is such a pair.
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
    # latin-1 gives every byte a character, so this works on bytes of any encoding.
    return len(_LINE_END.split(data[:offset].decode("latin-1")))
