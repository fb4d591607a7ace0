"""Models by name: those in the package, those that were fetched, and fetching them.

The only file that uses the network, and only when `fetch` is called.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from pevl_cli.cache import atomic_write, cache_folder
from pevl_cli.errors import PevlError, UsageError

BUNDLED = Path(__file__).parent / "assets" / "checkpoints"
RECOMMENDED_WEIGHTS = "yolo11n-pose.pt"
# Made by benchmarks/make_pose.py.
BUNDLED_WEIGHTS = Path(__file__).parent / "assets" / "pose" / "pevl-pose.pt"
WEIGHTS_VARIABLE = "PEVL_POSE_WEIGHTS"


def find_weights(weights: str | Path | None = None) -> Path:
    """The file of the pose detector's weights.

    ``weights``, else ``PEVL_POSE_WEIGHTS``: a path, or a name that `pevl models` lists. A name is
    looked up in the package and among the fetched models; only then it is a file in the working
    folder, like any path. Without either: YOLO11n-pose if it was fetched, else the network in the
    package; the working folder is not searched. PevlError when what was named does not exist;
    nothing is fetched.
    """
    named = weights or os.environ.get(WEIGHTS_VARIABLE)
    wanted = str(named or RECOMMENDED_WEIGHTS)
    if wanted == BUNDLED_WEIGHTS.stem:
        return BUNDLED_WEIGHTS
    path = Path(wanted).expanduser()
    if path.name == wanted:
        fetched = cache_folder("weights") / wanted
        if fetched.is_file():
            return fetched
    if not named:
        return BUNDLED_WEIGHTS
    if path.is_file():
        return path
    source = "--pose-weights" if weights else WEIGHTS_VARIABLE
    raise PevlError(
        f"{path}: no such pose weights file (named by {source}). `pevl models` lists the names and "
        f"what can be fetched; without {source} the bundled weights are used."
    )


def bundled_weights_note(weights: str | Path | None = None) -> str | None:
    """A note for users of the bundled weights who chose none and have not fetched better ones."""
    named = weights or os.environ.get(WEIGHTS_VARIABLE)
    if named or find_weights() != BUNDLED_WEIGHTS:
        return None
    return (
        "joints by the bundled small pose network; a more accurate one (6 MB): pevl models fetch "
        f"{RECOMMENDED_WEIGHTS}"
    )


# Where ultralytics publishes its weights: the list has address, size and SHA-256 of each.
RELEASE = "https://api.github.com/repos/ultralytics/assets/releases/tags/v8.3.0"
CHUNK_BYTES = 1 << 18
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class KnownModel:
    """A model with a name."""

    name: str
    kind: str  # "checkpoint", "pose" or "clip"
    description: str
    licence: str
    megabytes: float  # 10⁶ bytes; an estimate for what is not in the package
    repository: str = ""  # on the Hugging Face hub


# Estimated sizes: the parameters at the precision they are stored in.
YOLO = tuple(
    KnownModel(f"yolo11{size}-pose.pt", "pose", f"YOLO11{size}-pose, {use}", "AGPL-3.0", megabytes)
    for size, megabytes, use in (
        ("n", 6, "the recommended one"),
        ("s", 20, "better on small bodies"),
        ("m", 42, "for a GPU"),
        ("l", 53, "for a GPU"),
        ("x", 118, "the most accurate, for a GPU"),
    )
)
CLIP = (
    KnownModel(
        "ViT-B-16-quickgelu:openai",
        *("clip", "CLIP, for vit-b-16 and zero-shot", "MIT", 599),
        repository="timm/vit_base_patch16_clip_224.openai",
    ),
    KnownModel(
        "ViT-L-14-quickgelu:openai",
        *("clip", "CLIP, for vit-l-14 and zero-shot", "MIT", 1710),
        repository="timm/vit_large_patch14_clip_224.openai",
    ),
)
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# Of the models in the package.
LICENCE = "AGPL-3.0"

Listener = Callable[[int, int], None]  # bytes received, bytes in all


@dataclass(frozen=True)
class ModelEntry:
    """A line of `pevl models`."""

    known: KnownModel
    state: str  # "bundled", "fetched" or "not here"
    path: Path | None


def bundled() -> list[str]:
    """Names of the checkpoints in the package."""
    if not BUNDLED.is_dir():
        return []
    return sorted(p.name for p in BUNDLED.iterdir() if (p / "config.json").is_file())


def list_models() -> list[ModelEntry]:
    """All models with a name, those on this computer first."""
    entries = []
    for name in bundled():
        folder = BUNDLED / name
        size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
        known = KnownModel(name, "checkpoint", "the default checkpoint", LICENCE, size)
        entries.append(ModelEntry(known, "bundled", folder))
    known = KnownModel(
        BUNDLED_WEIGHTS.stem,
        "pose",
        "small, the default until another is fetched",
        LICENCE,
        BUNDLED_WEIGHTS.stat().st_size / 1e6,
    )
    entries.append(ModelEntry(known, "bundled", BUNDLED_WEIGHTS))
    for known in (*YOLO, *CLIP):
        path = _downloaded_path(known)
        entries.append(ModelEntry(known, "not here" if path is None else "fetched", path))
    return sorted(entries, key=lambda entry: entry.path is None)


def fetch(name: str, listener: Listener = lambda done, total: None) -> Path:
    """Fetch a model by its name, check its hash, and return its path.

    A model that was fetched before is only checked. ``listener`` is called with the bytes received
    so far and in all. UsageError for an unknown name; PevlError when the model cannot be fetched,
    or differs in size or hash from what its publisher lists.
    """
    known = {k.name: k for k in (*YOLO, *CLIP)}.get(name)
    if known is None:
        if name in bundled():
            return BUNDLED / name
        if name == BUNDLED_WEIGHTS.stem:
            return BUNDLED_WEIGHTS
        names = ", ".join(k.name for k in (*YOLO, *CLIP))
        raise UsageError(f"{name}: no model of this name; these can be fetched: {names}.")
    return _fetch_yolo(name, listener) if known.kind == "pose" else _fetch_clip(known)


def _downloaded_path(known: KnownModel) -> Path | None:
    """The file of a model that was fetched, else None."""
    if known.kind == "pose":
        file = cache_folder("weights") / known.name
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    for file_name in CLIP_FILES:
        path = try_to_load_from_cache(known.repository, file_name)
        if isinstance(path, str):
            return Path(path)
    return None


# -- YOLO-pose weights -----------------------------------------------------------------------


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
    # torch.hub's downloader prints, and reports no progress to a listener; pooch prints, checks no
    # size, and keeps half a file where no hash is listed.
    with atomic_write(target) as temporary, temporary.open("wb") as file:
        for chunk in _chunks(name, address):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            listener(done, size)
        file.flush()
        if done != size or (wanted and digest.hexdigest() != wanted):
            raise PevlError(
                f"{name}: the file received is not the one its publisher lists ({done:,} of "
                f"{size:,} bytes, SHA-256 {digest.hexdigest()[:12]}, listed "
                f"{wanted[:12] or 'none'}); try again."
            )
    return target


def _chunks(name: str, address: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            while chunk := answer.read(CHUNK_BYTES):
                yield chunk
    except (OSError, HTTPException) as error:
        raise _offline(name, error) from error


# -- CLIP's towers ------------------------------------------------------------------------------


def _fetch_clip(known: KnownModel) -> Path:
    """By the hub's own client, which shows its progress and resumes a broken download."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    name, path = known.name, None
    try:
        for file_name in CLIP_FILES:
            with suppress(RemoteEntryNotFoundError):
                path = Path(hf_hub_download(known.repository, file_name))
                break
    except Exception as error:  # the hub's client raises many kinds
        raise _offline(name, error) from error
    if path is None:
        raise PevlError(f"{name}: {known.repository} has none of {', '.join(CLIP_FILES)}.")
    # The hub keeps a large file under the hash of its content.
    wanted = path.resolve().name
    if len(wanted) == 64 and _sha256(path) != wanted:
        raise PevlError(
            f"{path}: is damaged, its SHA-256 is not {wanted[:12]}; remove it and fetch it again."
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _offline(name: str, error: Exception, fetched: Path | None = None) -> PevlError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    if fetched is not None and fetched.is_file():
        return PevlError(
            f"{name}: was fetched before ({fetched}), but could not be checked: its publisher's "
            f"list cannot be read ({reason})."
        )
    return PevlError(
        f"{name}: could not be fetched ({reason}). Is there a network? On a computer that has one, "
        "`pevl models fetch` it, or download it, and name the file with --pose-weights or --clip."
    )
