"""Models by name: what is in the package, what was fetched, what can be, and fetching it.

The only file that goes out to the network by itself, and only when it is told to.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from pevl_cli.cache import cache_folder, write_aside
from pevl_cli.errors import PevlError, UsageError

USUAL_WEIGHTS = "yolo11n-pose.pt"
# Made by benchmarks/make_pose.py.
BUNDLED_WEIGHTS = Path(__file__).parent / "assets" / "pose" / "pevl-pose.pt"
WEIGHTS_VARIABLE = "PEVL_POSE_WEIGHTS"


def find_weights(weights: str | Path | None = None) -> Path:
    """Where the detector's weights are: those of the argument or of ``PEVL_POSE_WEIGHTS``, a file
    or a bare name; else YOLO11n-pose if it is here, else the small network of this package.

    Names are looked for in the working folder and among what `pevl models fetch` has brought.
    PevlError when what was named is not there; nothing is ever fetched from here.
    """
    named = weights or os.environ.get(WEIGHTS_VARIABLE)
    wanted = str(named or USUAL_WEIGHTS)
    if wanted == BUNDLED_WEIGHTS.stem:
        return BUNDLED_WEIGHTS
    path = Path(wanted).expanduser()
    places = [path] if path.name != wanted else [path, cache_folder("weights") / wanted]
    for place in places:
        if place.is_file():
            return place
    if not named:
        return BUNDLED_WEIGHTS
    source = "--pose-weights" if weights else WEIGHTS_VARIABLE
    raise PevlError(
        f"{path}: there is no such pose weights file (named by {source}). `pevl models` lists what "
        f"is here and what can be fetched; without {source} the package's own are used."
    )


def fallback_note(weights: str | Path | None = None) -> str | None:
    """What to tell where the small network is used because nobody chose and YOLO is not here."""
    named = weights or os.environ.get(WEIGHTS_VARIABLE)
    if named or find_weights() != BUNDLED_WEIGHTS:
        return None
    return (
        "joints by the small pose network of this package; a better one (6 MB): pevl models fetch "
        f"{USUAL_WEIGHTS}"
    )


# Where ultralytics publishes its weights: one answer tells address, size and hash of each.
RELEASE = "https://api.github.com/repos/ultralytics/assets/releases/tags/v8.3.0"
PIECE = 1 << 18  # bytes read at a time
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Known:
    """A model that has a name."""

    name: str
    kind: str  # "checkpoint", "pose" or "clip"
    about: str
    licence: str
    megabytes: float  # of 10⁶ bytes; of what is not here about so many
    repository: str = ""  # on the Hugging Face hub


# Sizes of what is not here are those of its parameters at the precision it is stored in.
YOLO = tuple(
    Known(f"yolo11{size}-pose.pt", "pose", f"YOLO11{size}-pose, {use}", "AGPL-3.0", megabytes)
    for size, megabytes, use in (
        ("n", 6, "the usual one"),
        ("s", 20, "better on small bodies"),
        ("m", 42, "for a GPU"),
        ("l", 53, "for a GPU"),
        ("x", 118, "the best, for a GPU"),
    )
)
CLIP = (
    Known(
        "ViT-B-16-quickgelu:openai",
        *("clip", "CLIP, for vit-b-16 and zero-shot", "MIT", 599),
        repository="timm/vit_base_patch16_clip_224.openai",
    ),
    Known(
        "ViT-L-14-quickgelu:openai",
        *("clip", "CLIP, for vit-l-14 and zero-shot", "MIT", 1710),
        repository="timm/vit_large_patch14_clip_224.openai",
    ),
)
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# Of ours, and so of what is bundled.
LICENCE = "AGPL-3.0"

Listener = Callable[[int, int], None]


@dataclass(frozen=True)
class Entry:
    known: Known
    state: str  # "bundled", "fetched", or "not here"
    place: Path | None


def list_models() -> list[Entry]:
    """All of them, what is here first."""
    entries = []
    for name in bundled():
        folder = BUNDLED / name
        size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
        known = Known(name, "checkpoint", "the usual checkpoint", LICENCE, size)
        entries.append(Entry(known, "bundled", folder))
    known = Known(
        BUNDLED_WEIGHTS.stem,
        "pose",
        "small, used where no other is here",
        LICENCE,
        BUNDLED_WEIGHTS.stat().st_size / 1e6,
    )
    entries.append(Entry(known, "bundled", BUNDLED_WEIGHTS))
    for known in (*YOLO, *CLIP):
        place = _place(known)
        entries.append(Entry(known, "not here" if place is None else "fetched", place))
    return sorted(entries, key=lambda entry: entry.place is None)


def fetch(name: str, listener: Listener = lambda done, total: None) -> Path:
    """Fetch a known model, check its hash, and say where it lies; one that is here is only checked.

    ``listener`` is told how many bytes are there, of how many. UsageError for a name that is not
    known, PevlError when it cannot be fetched or is not what it should be.
    """
    known = {k.name: k for k in (*YOLO, *CLIP)}.get(name)
    if known is None:
        if name in bundled():
            return BUNDLED / name
        if name == BUNDLED_WEIGHTS.stem:
            return BUNDLED_WEIGHTS
        names = ", ".join(k.name for k in (*YOLO, *CLIP))
        raise UsageError(f"{name}: no model of this name can be fetched, but {names}.")
    return _fetch_yolo(name, listener) if known.kind == "pose" else _fetch_clip(known)


def _place(known: Known) -> Path | None:
    """Where a fetched model lies."""
    if known.kind == "pose":
        file = cache_folder("weights") / known.name
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    for file_name in CLIP_FILES:
        found = try_to_load_from_cache(known.repository, file_name)
        if isinstance(found, str):
            return Path(found)
    return None


# -- ultralytics' weights -----------------------------------------------------------------------


def _fetch_yolo(name: str, listener: Listener) -> Path:
    target = cache_folder("weights") / name
    try:
        with urllib.request.urlopen(RELEASE, timeout=TIMEOUT_S) as answer:
            release = json.load(answer)
        asset: dict[str, Any] = next(a for a in release["assets"] if a["name"] == name)
        address, size = str(asset["browser_download_url"]), int(asset["size"])
        wanted = str(asset.get("digest") or "").removeprefix("sha256:")
    except (OSError, HTTPException, ValueError) as error:
        raise _offline(name, error, target) from error
    except (KeyError, StopIteration, TypeError) as error:
        raise PevlError(f"{name}: its publisher no longer lists it ({error!r}).") from error
    same_size = target.is_file() and target.stat().st_size == size
    if same_size and (not wanted or _sha256(target) == wanted):
        return target
    digest, done = hashlib.sha256(), 0
    with write_aside(target) as temporary, temporary.open("wb") as file:
        for piece in _pieces(name, address):
            file.write(piece)
            digest.update(piece)
            done += len(piece)
            listener(done, size)
        file.flush()
        if done != size or (wanted and digest.hexdigest() != wanted):
            raise PevlError(
                f"{name}: what came is not what its publisher lists ({done:,} of {size:,} bytes, "
                f"hash {digest.hexdigest()[:12]}, {wanted[:12] or 'none'} listed); try again."
            )
    return target


def _pieces(name: str, address: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            while piece := answer.read(PIECE):
                yield piece
    except (OSError, HTTPException) as error:
        raise _offline(name, error) from error


# -- CLIP's towers ------------------------------------------------------------------------------


def _fetch_clip(known: Known) -> Path:
    """By the hub's own client, which shows its progress and goes on where it was stopped."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    name, path = known.name, None
    logging.disable(logging.ERROR)  # its line for every new try
    try:
        for file_name in CLIP_FILES:
            with suppress(RemoteEntryNotFoundError):
                path = Path(hf_hub_download(known.repository, file_name))
                break
    except Exception as error:  # the hub's client raises many kinds
        raise _offline(name, error) from error
    finally:
        logging.disable(logging.NOTSET)
    if path is None:
        raise PevlError(f"{name}: {known.repository} has none of {', '.join(CLIP_FILES)}.")
    # The hub keeps a large file under the hash of its content.
    wanted = path.resolve().name
    if len(wanted) == 64 and _sha256(path) != wanted:
        raise PevlError(
            f"{path}: is damaged, as its hash is not {wanted[:12]}; remove it and fetch it again."
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _offline(name: str, error: Exception, here: Path | None = None) -> PevlError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    if here is not None and here.is_file():
        return PevlError(
            f"{name}: lies in {here}, but could not be checked, as its publisher cannot be asked "
            f"({reason})."
        )
    return PevlError(
        f"{name}: could not be fetched ({reason}). Is there a network? On a computer that has one, "
        "`pevl models fetch` it, or download it, and name the file with --pose-weights or --clip."
    )


BUNDLED = Path(__file__).parent / "assets" / "checkpoints"


def bundled() -> list[str]:
    """Names of the checkpoints inside the package."""
    if not BUNDLED.is_dir():
        return []
    return sorted(p.name for p in BUNDLED.iterdir() if (p / "config.json").is_file())
