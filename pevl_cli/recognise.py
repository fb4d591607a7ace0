"""The way from a video to names: what `pevl classify` does, as a library.

from pevl_cli import recognise
answer = recognise.load("pevl-mini").classify("clip.mp4", "my_labels.txt")
print(answer.predictions[0].label)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pevl_cli.cache import cache_folder, file_digest, write_aside
from pevl_cli.data.samples import Sample, read_sample
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.hardware import PRECISIONS, choose_device, choose_precision
from pevl_cli.labels import LabelSet, read_labels
from pevl_cli.matching import encode_labels, flips_at_test, match_samples
from pevl_cli.model import checkpoint
from pevl_cli.model.calibration import Calibration
from pevl_cli.model.clip import load_clip
from pevl_cli.model.config import CONFIGS, ModelConfig
from pevl_cli.model.features import Texts
from pevl_cli.model.pevl import MAX_LOGIT_SCALE, PeVL
from pevl_cli.model.sgmc import Similarities, mean_similarity
from pevl_cli.pose.detector import PoseDetector

DEFAULT_CHECKPOINT = "pevl-mini"


@dataclass(frozen=True)
class Prediction:
    label: str
    score: float  # in [0, 1], as fitted at the end of training: `model.sgmc.scores`
    similarity: float  # S of Eq. (4), in [-1, 1]


@dataclass(frozen=True)
class Person:
    """The actor: in how many of the sampled frames he or she was found, and where, in pixels.

    0 frames and no box where nobody was found, or nobody was looked for.
    """

    frames_seen: int
    frames: int
    box: list[float] | None


@dataclass(frozen=True)
class Answer:
    video: str
    start_s: float
    end_s: float
    predictions: list[Prediction]  # best first
    person: Person
    warnings: list[str]
    threshold: float | None = None  # the score from which on the first prediction is believed

    @property
    def none_of_these(self) -> bool:
        """Whether the clip shows none of the labels, as far as the model can tell."""
        return self.threshold is not None and self.predictions[0].score < self.threshold

    def as_dict(self) -> dict[str, Any]:
        """The JSON record of `pevl classify`."""
        return asdict(self) | {"none_of_these": self.none_of_these}


class Recogniser:
    """A loaded model with its pose detector, ready for many videos."""

    def __init__(
        self,
        model: PeVL,
        labels: LabelSet | None,
        key: str,
        detector: PoseDetector | None,
        device: str = "cpu",
        precision: str = "auto",
        calibration: Calibration | None = None,
    ) -> None:
        self.device = device
        self.precision = choose_precision(precision, device, model.config.base == "clip")
        self.model = model.cast(PRECISIONS[self.precision]).to(device).eval()
        self.labels, self.detector = labels, detector
        as_trained = Calibration(temperature=float(self.model.temperature.detach()))
        self.calibration = calibration or as_trained
        self.loaded_by: dict[str, Any] = {}  # what `load` was given, for another process
        self._key = key
        self._texts: tuple[LabelSet, Texts] | None = None
        self._prototypes: tuple[LabelSet, Tensor] | None = None

    def classify(
        self,
        video: str | Path,
        labels: LabelSet | str | Path | Sequence[str] | None = None,
        top_k: int = 5,
        views: int = 1,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> Answer:
        """Name the action in a video, or in its part from start_s to end_s.

        ``labels``: a label set, a file or bundled name, a list of names, or None for the
        checkpoint's own. ``views=3`` averages three cut-outs. PevlError says why when it cannot.
        """
        label_set = self._label_set(labels)
        self.encode(label_set)  # what is wrong with labels is told before a video is decoded
        sample = self.read(video, start_s, end_s)
        found = self.match([sample], label_set, views)
        similarity, sure = mean_similarity(found.values)[0], self.scores(found, label_set)[0]
        order = similarity.argsort(descending=True)[: top_k or None].tolist()
        return Answer(
            video=str(video),
            start_s=sample.start_s,
            end_s=sample.end_s,
            predictions=[
                Prediction(label_set.names[i], float(sure[i]), float(similarity[i])) for i in order
            ],
            person=Person(sample.seen, self.model.config.pose_frames, sample.box),
            warnings=[*sample.warnings, *self._never_learnt(label_set)],
            threshold=self.calibration.threshold,
        )

    def match(
        self, samples: Sequence[Sample], labels: LabelSet, views: int = 1, batch: int = 16
    ) -> Similarities:
        """How samples match labels."""
        flip_at_test = flips_at_test(self.model, labels)
        looked = self.detector is not None
        texts = self.encode(labels)
        return match_samples(self.model, samples, texts, views, batch, looked, flip_at_test)

    def scores(self, similarities: Similarities, labels: LabelSet) -> Tensor:
        """How sure each of these labels is, (N, C) in [0, 1]."""
        near = similarities.prototype_similarity(self.prototypes(labels))
        return self.calibration.scores(similarities.values, near)

    def prototypes(self, labels: LabelSet) -> Tensor | None:
        """What these labels look like, (C, e) on the CPU; NaN of one that was never learnt."""
        if self.model.prototypes is None:
            return None
        if self._prototypes is None or self._prototypes[0] != labels:
            own = self.model.prototypes.float().cpu()
            never = torch.full_like(own[0], torch.nan)
            rows = [never if i is None else own[i] for i in self._own(labels)]
            self._prototypes = labels, torch.stack(rows)
        return self._prototypes[1]

    def _own(self, labels: LabelSet) -> list[int | None]:
        """For each label that which the checkpoint learnt it as, by name or text; None: never."""
        own = self.labels
        if own is None:
            return [None] * len(labels)
        found = []
        for name, text in zip(labels.names, labels.texts, strict=True):
            place = own.find(name)
            found.append(own.find(text) if place is None else place)
        return found

    def _never_learnt(self, labels: LabelSet) -> list[str]:
        """A warning where a model that has read nothing but its own labels is asked for others."""
        if self.labels is None or self.model.config.base == "clip":
            return []
        places = self._own(labels)
        unknown = [name for name, i in zip(labels.names, places, strict=True) if i is None]
        if not unknown:
            return []
        return [
            f"this checkpoint never learnt {len(unknown)} of the {len(labels)} labels (such as "
            f"'{unknown[0]}'), so its scores mean little: train it on them, or use --clip"
        ]

    def read(
        self, video: str | Path, start_s: float | None = None, end_s: float | None = None
    ) -> Sample:
        """Decode, find the actor and cut out: all that comes before the model."""
        if not self.model.config.video and self.detector is None:
            raise UsageError("this model looks at poses only, and cannot be used with --no-pose.")
        return read_sample(video, self.model.config, self.detector, start_s, end_s)

    @torch.inference_mode()
    def encode(self, labels: LabelSet) -> Texts:
        """Encoded label texts: from memory, from disk, or encoded now and kept in both."""
        if self._texts is not None and self._texts[0] == labels:
            return self._texts[1]
        digest = hashlib.blake2b(digest_size=16)
        for group in ([self._key, self.precision], *labels.phrasings):
            digest.update("\0".join(group).encode() + b"\n\0")
        file = cache_folder("texts") / f"{digest.hexdigest()}.safetensors"
        texts = _read_texts(file)
        if self.model.text is None and self.labels is not None:
            for i, (own, other) in enumerate(zip_longest(self.labels.names, labels.names), 1):
                if own != other:
                    raise PevlError(
                        "this checkpoint was trained without texts for fixed classes and takes no "
                        f"other labels: label {i} is '{other}', it has '{own}' there."
                    )
        if texts is None:
            texts = encode_labels(self.model, labels)
            with write_aside(file) as temporary:
                parts = {k: v for k, v in vars(texts).items() if v is not None}
                save_file({k: v.clone().contiguous().cpu() for k, v in parts.items()}, temporary)
        texts = texts.to(self.device)
        self._texts = (labels, texts)
        return texts

    def _label_set(self, labels: LabelSet | str | Path | Sequence[str] | None) -> LabelSet:
        if labels is None:
            if self.labels is None:
                raise UsageError("plain CLIP has no labels of its own: name some with --labels.")
            return self.labels
        if isinstance(labels, LabelSet):
            chosen = labels
        elif isinstance(labels, str | Path):
            chosen = read_labels(labels)
        else:
            chosen = LabelSet(tuple(labels), tuple(labels))
        if self.labels is None:
            return chosen
        # A label the checkpoint was trained on, by whatever phrasing, keeps the texts it was
        # trained with.
        own = self.labels
        bare = chosen.texts == chosen.names and not chosen.others
        rows = [row for name in chosen.names if (row := own.find(name)) is not None]
        if bare and len(rows) == len(chosen):
            others = tuple(own.others[i] for i in rows) if own.others else ()
            return replace(
                chosen, texts=tuple(own.texts[i] for i in rows), prompt=own.prompt, others=others
            )
        return chosen


def _read_texts(file: Path) -> Texts | None:
    if not file.exists():
        return None
    try:
        return Texts(**load_file(file))
    except (SafetensorError, OSError, TypeError):
        return None  # damaged: made again


def load(
    checkpoint_name: str | Path | None = None,
    clip: str | None = None,
    pose_weights: str | Path | None = None,
    use_pose: bool = True,
    device: str = "auto",
    precision: str = "auto",
) -> Recogniser:
    """A recogniser from a checkpoint folder or a bundled name; or plain CLIP, zero-shot.

    ``clip`` alone (NAME:TAG of open_clip, or a file) gives plain CLIP without pose; together with
    a checkpoint it says where that checkpoint's CLIP weights are.
    """
    device = choose_device(device)
    given = {
        "checkpoint_name": checkpoint_name,
        "clip": clip,
        "pose_weights": pose_weights,
        "use_pose": use_pose,
        "device": device,
        "precision": precision,
    }
    if clip is not None and checkpoint_name is None:
        name = "vit-l-14" if "l-14" in clip.lower() else "vit-b-16"
        state, config, digest = load_clip(clip, plain_clip(CONFIGS[name]))
        model = PeVL(config)
        model.load_state_dict(state, strict=False)  # the rest is temperatures, at CLIP's value
        model.logit_scale.data.fill_(MAX_LOGIT_SCALE)
        made = Recogniser(model, None, digest, None, device, precision)
        made.loaded_by = given
        return made
    folder = checkpoint.find(checkpoint_name or DEFAULT_CHECKPOINT)
    facts = checkpoint.read_facts(folder)
    needed = facts.model.pose or facts.model.crop != "full"
    detector = PoseDetector(pose_weights, device=device) if use_pose and needed else None
    if detector is not None:
        detector.digest()  # weights that cannot be had are told once, before the model is loaded
    model, facts = checkpoint.load(folder, clip)
    key = file_digest(folder / "model.safetensors") + file_digest(folder / "config.json")
    labels, fitted = facts.label_set, facts.calibration
    made = Recogniser(model, labels, key, detector, device, precision, fitted)
    made.loaded_by = given
    return made


def plain_clip(config: ModelConfig) -> ModelConfig:
    """CLIP itself: no adapters, no pose, the whole picture."""
    return config.model_copy(
        update={
            "pose": False,
            "crop": "full",
            "video_adapters": False,
            "text_adapters": False,
            "similarities": ("vs",),
        }
    )
