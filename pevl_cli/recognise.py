"""From a video to action names: what `pevl classify` does, as a library.

from pevl_cli import recognise
answer = recognise.load("pevl-mini").classify("clip.mp4", "my_labels.txt")
print(answer.predictions[0].label)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pevl_cli.cache import atomic_write, cache_folder, file_digest
from pevl_cli.data.samples import Sample, read_sample
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.hardware import PRECISIONS, choose_device, choose_precision
from pevl_cli.labels import LabelSet, read_labels
from pevl_cli.matching import encode_labels, flips_at_test, match_samples
from pevl_cli.model import checkpoint
from pevl_cli.model.calibration import Calibration
from pevl_cli.model.clip_weights import load_clip
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.features import Texts
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.sgmc import Similarities, mean_similarity
from pevl_cli.pose.detector import PoseDetector

DEFAULT_CHECKPOINT = "pevl-mini"


@dataclass(frozen=True)
class Prediction:
    """One label with its score and its similarity."""

    label: str
    score: float  # in [0, 1], see `Calibration`
    similarity: float  # S of Eq. (4), in [-1, 1]


@dataclass(frozen=True)
class Person:
    """The actor: the person whose joints were used.

    Without a detector, or when no person was detected: 0 frames seen, no box.
    """

    frames_seen: int  # sampled frames in which the person was detected
    frames: int  # number of sampled frames
    box: list[float] | None  # x1, y1, x2, y2 in px of the upright video, around all frames


@dataclass(frozen=True)
class Answer:
    """The predictions for one video, or for its part from start_s to end_s."""

    video: str
    start_s: float
    end_s: float
    predictions: list[Prediction]  # best first
    person: Person
    warnings: list[str]
    threshold: float | None = None  # a best score below it means: none of these labels

    @property
    def none_of_these(self) -> bool:
        """Whether the best score is below the threshold; False when there is no threshold."""
        return self.threshold is not None and self.predictions[0].score < self.threshold

    def as_dict(self) -> dict[str, Any]:
        """The JSON record of `pevl classify`."""
        return asdict(self) | {"none_of_these": self.none_of_these}


class Recogniser:
    """A loaded model with its pose detector, ready for many videos.

    ``labels``: the labels that the model was trained on, None for plain CLIP. ``key``: identifies
    the weights in the cache of encoded texts. Without a ``calibration``, scores use the temperature
    of training.
    """

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
        self._key = key
        self._texts: tuple[LabelSet, Texts] | None = None
        self._prototypes: tuple[LabelSet, Tensor] | None = None

    def classify(
        self,
        video: str | Path,
        labels: LabelSet | str | Path | Sequence[str] | None = None,
        top_k: int = 5,
        views: int | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> Answer:
        """Name the action in a video, or in its part from start_s to end_s.

        ``labels``: a label set, a label file or bundled set, a list of names, or None for the
        labels of the checkpoint. ``top_k`` = 0 returns all labels. ``views``: number of crops, 1 or
        3, whose similarities are averaged; None: the model's.

        PevlError when the labels or the video cannot be used; UsageError for plain CLIP without
        labels, and for a pose-only model without a detector.
        """
        label_set = self._label_set(labels)
        self.encode(label_set)  # before decoding, which takes long: the labels may be rejected
        sample = self.read(video, start_s, end_s)
        similarities = self.match([sample], label_set, views)
        similarity = mean_similarity(similarities.values)[0]
        scores = self.scores(similarities, label_set)[0]
        order = similarity.argsort(descending=True)[: top_k or None].tolist()
        return Answer(
            video=str(video),
            start_s=sample.start_s,
            end_s=sample.end_s,
            predictions=[
                Prediction(label_set.names[i], float(scores[i]), float(similarity[i]))
                for i in order
            ],
            person=Person(sample.seen, self.model.config.pose_frames, sample.box),
            warnings=[
                *sample.warnings,
                *self.views_warning(views),
                *self._untrained_labels_warning(label_set),
            ],
            threshold=self.calibration.threshold,
        )

    def match(
        self,
        samples: Sequence[Sample],
        labels: LabelSet,
        views: int | None = None,
        batch: int = 16,
    ) -> Similarities:
        """Similarities of N samples with C labels, (N, B, C); see `match_samples`."""
        return match_samples(
            self.model,
            samples,
            self.encode(labels),
            views or self.model.config.views_at_test,
            batch,
            with_detector=self.detector is not None,
            flip_at_test=flips_at_test(self.model, labels),
        )

    def scores(self, similarities: Similarities, labels: LabelSet) -> Tensor:
        """Calibrated scores of N clips for C labels, (N, C) in [0, 1], float64 on the CPU."""
        near = similarities.prototype_similarity(self.prototypes(labels))
        return self.calibration.scores(similarities.values, near)

    def prototypes(self, labels: LabelSet) -> Tensor | None:
        """Prototypes of the labels, (C, e) on the CPU; NaN for a label that was not trained on.

        None for a model without prototypes.
        """
        if self.model.prototypes is None:
            return None
        if self._prototypes is None or self._prototypes[0] != labels:
            stored = self.model.prototypes.float().cpu()
            missing = torch.full_like(stored[0], torch.nan)
            numbers = self._trained_numbers(labels)
            rows = [missing if i is None else stored[i] for i in numbers]
            self._prototypes = labels, torch.stack(rows)
        return self._prototypes[1]

    def _trained_numbers(self, labels: LabelSet) -> list[int | None]:
        """Number of each label in the checkpoint, found by name or text; None if not trained on."""
        trained = self.labels
        if trained is None:
            return [None] * len(labels)
        numbers = []
        for name, text in zip(labels.names, labels.texts, strict=True):
            number = trained.find(name)
            numbers.append(trained.find(text) if number is None else number)
        return numbers

    def views_warning(self, views: int | None) -> list[str]:
        """A warning if the scores were fitted with another number of crops; otherwise empty."""
        fitted = self.model.config.views_at_test
        if views in (None, fitted) or not self.calibration.split:
            return []
        return [
            f"scores and threshold were fitted with --views {fitted}; with --views {views} they "
            "can be a little too high or too low"
        ]

    def _untrained_labels_warning(self, labels: LabelSet) -> list[str]:
        """A warning if a model without CLIP was not trained on some labels; otherwise empty."""
        if self.labels is None or self.model.config.base == "clip":
            return []
        numbers = self._trained_numbers(labels)
        unknown = [name for name, i in zip(labels.names, numbers, strict=True) if i is None]
        if not unknown:
            return []
        return [
            f"this checkpoint was not trained on {len(unknown)} of the {len(labels)} labels (such "
            f"as '{unknown[0]}'), so its scores mean little; hint: train it on them, or use --clip"
        ]

    def read(
        self, video: str | Path, start_s: float | None = None, end_s: float | None = None
    ) -> Sample:
        """The sample of a video: decoded, actor detected, cropped. PevlError if it is unreadable;
        UsageError for a pose-only model without a detector.
        """
        if not self.model.config.video and self.detector is None:
            raise UsageError("this model uses poses only; it cannot be used with --no-pose.")
        return read_sample(video, self.model.config, self.detector, start_s, end_s)

    @torch.inference_mode()
    def encode(self, labels: LabelSet) -> Texts:
        """The C encoded label texts, from memory or the cache on disk if they were encoded before.

        PevlError when a model without a text encoder gets other labels than the trained ones.
        """
        if self._texts is not None and self._texts[0] == labels:
            return self._texts[1]
        if self.model.text is None and self.labels is not None:
            pairs = zip_longest(self.labels.names, labels.names)
            for i, (trained, other) in enumerate(pairs, 1):
                if trained != other:
                    raise PevlError(
                        "this checkpoint was trained without texts and only takes the labels it "
                        f"was trained on: label {i} is '{other}', in the checkpoint '{trained}'."
                    )
        digest = hashlib.blake2b(digest_size=16)
        for group in ([self._key, self.precision], *labels.phrasings):
            digest.update("\0".join(group).encode() + b"\n\0")
        file = cache_folder("texts") / f"{digest.hexdigest()}.safetensors"
        texts = _read_texts(file)
        if texts is None:
            texts = encode_labels(self.model, labels)
            with suppress(PevlError), atomic_write(file) as temporary:  # a read-only cache
                parts = {k: v for k, v in vars(texts).items() if v is not None}
                save_file({k: v.clone().contiguous().cpu() for k, v in parts.items()}, temporary)
        texts = texts.to(self.device)
        self._texts = (labels, texts)
        return texts

    def _label_set(self, labels: LabelSet | str | Path | Sequence[str] | None) -> LabelSet:
        if labels is None:
            if self.labels is None:
                raise UsageError("plain CLIP has no labels; hint: give some with --labels FILE.")
            return self.labels
        if isinstance(labels, LabelSet):
            chosen = labels
        elif isinstance(labels, str | Path):
            chosen = read_labels(labels)
        else:
            chosen = LabelSet(tuple(labels), tuple(labels))
        if self.labels is None:
            return chosen
        # For a trained label that is given by its name only, use the texts of the training.
        trained = self.labels
        bare = chosen.texts == chosen.names and not chosen.others
        rows = [row for name in chosen.names if (row := trained.find(name)) is not None]
        if bare and len(rows) == len(chosen):
            others = tuple(trained.others[i] for i in rows) if trained.others else ()
            texts = tuple(trained.texts[i] for i in rows)
            return replace(chosen, texts=texts, prompt=trained.prompt, others=others)
        return chosen


def _read_texts(file: Path) -> Texts | None:
    if not file.exists():
        return None
    try:
        return Texts(**load_file(file))
    except (SafetensorError, OSError, TypeError):
        return None  # damaged: the caller encodes the texts again


def load(
    checkpoint_name: str | Path | None = None,
    clip: str | None = None,
    pose_weights: str | Path | None = None,
    use_pose: bool = True,
    device: str = "auto",
    precision: str = "auto",
) -> Recogniser:
    """A recogniser from a checkpoint, by default the bundled one; or plain CLIP, zero-shot.

    ``checkpoint_name``: a folder, or a bundled name. ``clip``: CLIP weights, as `load_clip` takes
    them; without a checkpoint they give plain CLIP without pose, with a checkpoint they are its
    base. ``pose_weights``: a YOLO-pose file or name. ``use_pose`` = False: no detector.
    ``device``: "auto", "cpu", "cuda", ...; ``precision``: "auto", "fp32", "bf16" or "fp16".

    PevlError for weights that are missing or do not fit; UsageError for a device or precision that
    this machine does not support.
    """
    device = choose_device(device)
    if clip is not None and checkpoint_name is None:
        weights = load_clip(clip)
        model = PeVL(plain_clip(weights.config))
        missing, unknown = model.load_state_dict(weights.state, strict=False)
        assert not unknown and set(missing) <= {"logit_scale", "refinement_scale"}, missing
        model.logit_scale.data.fill_(weights.logit_scale)
        # The same weights with another activation give other features.
        key = weights.digest + model.config.model_dump_json()
        return Recogniser(model, None, key, None, device, precision)
    folder = checkpoint.find(checkpoint_name or DEFAULT_CHECKPOINT)
    config = checkpoint.read_facts(folder).model
    needs_joints = config.pose or config.crop != "full"
    detector = PoseDetector(pose_weights, device=device) if use_pose and needs_joints else None
    if detector is not None:
        detector.digest()  # before the model is loaded: the weights may be missing
    model, facts = checkpoint.load(folder, clip)
    key = file_digest(folder / "model.safetensors") + file_digest(folder / "config.json")
    return Recogniser(model, facts.label_set, key, detector, device, precision, facts.calibration)


def plain_clip(config: ModelConfig) -> ModelConfig:
    """The config of plain CLIP: no adapters, no pose, CLIP's centre crop."""
    return config.model_copy(
        update={
            "pose": False,
            "crop": "full",
            "video_adapters": False,
            "text_adapters": False,
            "similarities": ("vs",),
        }
    )
