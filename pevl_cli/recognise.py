"""From a video to action names: what `pevl classify` does, as a library.

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

from pevl_cli.cache import atomic_write, cache_folder, file_digest
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
    """One label with how likely it is."""

    label: str
    score: float  # in [0, 1], see `Calibration`
    similarity: float  # S of Eq. (4), in [-1, 1]


@dataclass(frozen=True)
class Person:
    """The person whose joints were used. 0 frames and no box without one, or without a detector."""

    frames_seen: int  # of the sampled frames
    frames: int  # that were sampled
    box: list[float] | None  # x1, y1, x2, y2 in pixels of the upright video, over all frames


@dataclass(frozen=True)
class Answer:
    """The labels of one video, or of its part from start_s to end_s."""

    video: str
    start_s: float
    end_s: float
    predictions: list[Prediction]  # best first
    person: Person
    warnings: list[str]
    threshold: float | None = None  # a first score below it means: none of these labels

    @property
    def none_of_these(self) -> bool:
        """Whether the first score is below the threshold; False without one."""
        return self.threshold is not None and self.predictions[0].score < self.threshold

    def as_dict(self) -> dict[str, Any]:
        """The JSON record of `pevl classify`."""
        return asdict(self) | {"none_of_these": self.none_of_these}


class Recogniser:
    """A loaded model with its pose detector, ready for many videos.

    ``labels`` are those the model was trained on, None for plain CLIP. ``key`` names the weights in
    the cache of encoded texts. Without a ``calibration`` scores have the temperature of training.
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
        views: int = 1,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> Answer:
        """Name the action in a video, or in its part from start_s to end_s.

        ``labels``: a label set, a label file or bundled set, a list of names, or None for the
        checkpoint's own. ``top_k`` = 0 gives all of them. ``views`` = 3 averages three cut-outs.

        PevlError when the labels or the video cannot be used; UsageError for plain CLIP without
        labels, and for a model of poses without a detector.
        """
        label_set = self._label_set(labels)
        self.encode(label_set)  # labels may be refused, which must not wait for decoding
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
            warnings=[*sample.warnings, *self._untrained_labels_warning(label_set)],
            threshold=self.calibration.threshold,
        )

    def match(
        self, samples: Sequence[Sample], labels: LabelSet, views: int = 1, batch: int = 16
    ) -> Similarities:
        """Similarities of N samples with C labels; see `match_samples`."""
        return match_samples(
            self.model,
            samples,
            self.encode(labels),
            views,
            batch,
            with_detector=self.detector is not None,
            flip_at_test=flips_at_test(self.model, labels),
        )

    def scores(self, similarities: Similarities, labels: LabelSet) -> Tensor:
        """The score of each of these labels, (N, C) in [0, 1], float64 on the CPU."""
        near = similarities.prototype_similarity(self.prototypes(labels))
        return self.calibration.scores(similarities.values, near)

    def prototypes(self, labels: LabelSet) -> Tensor | None:
        """Prototypes of these labels, (C, e) on the CPU; NaN for a label that was not trained on.

        None for a model without any.
        """
        if self.model.prototypes is None:
            return None
        if self._prototypes is None or self._prototypes[0] != labels:
            stored = self.model.prototypes.float().cpu()
            nothing = torch.full_like(stored[0], torch.nan)
            numbers = self._trained_numbers(labels)
            rows = [nothing if i is None else stored[i] for i in numbers]
            self._prototypes = labels, torch.stack(rows)
        return self._prototypes[1]

    def _trained_numbers(self, labels: LabelSet) -> list[int | None]:
        """Each label's number in the checkpoint, by name or text; None for one not trained on."""
        trained = self.labels
        if trained is None:
            return [None] * len(labels)
        numbers = []
        for name, text in zip(labels.names, labels.texts, strict=True):
            number = trained.find(name)
            numbers.append(trained.find(text) if number is None else number)
        return numbers

    def _untrained_labels_warning(self, labels: LabelSet) -> list[str]:
        """A warning, or none, about labels that a model without CLIP was not trained on."""
        if self.labels is None or self.model.config.base == "clip":
            return []
        numbers = self._trained_numbers(labels)
        unknown = [name for name, i in zip(labels.names, numbers, strict=True) if i is None]
        if not unknown:
            return []
        return [
            f"this checkpoint never learnt {len(unknown)} of the {len(labels)} labels (such as "
            f"'{unknown[0]}'), so its scores mean little; hint: train it on them, or use --clip"
        ]

    def read(
        self, video: str | Path, start_s: float | None = None, end_s: float | None = None
    ) -> Sample:
        """The sample of a video: decoded, joints detected, cut out. PevlError if unreadable."""
        if not self.model.config.video and self.detector is None:
            raise UsageError("this model takes poses only, so it cannot be used with --no-pose.")
        return read_sample(video, self.model.config, self.detector, start_s, end_s)

    @torch.inference_mode()
    def encode(self, labels: LabelSet) -> Texts:
        """Encoded label texts, from memory or the cache on disk where they were encoded before.

        PevlError for other labels than the trained ones where a model has no text encoder.
        """
        if self._texts is not None and self._texts[0] == labels:
            return self._texts[1]
        if self.model.text is None and self.labels is not None:
            pairs = zip_longest(self.labels.names, labels.names)
            for i, (trained, other) in enumerate(pairs, 1):
                if trained != other:
                    raise PevlError(
                        "this checkpoint was trained without texts for fixed classes and takes no "
                        f"other labels: label {i} is '{other}', it has '{trained}' there."
                    )
        digest = hashlib.blake2b(digest_size=16)
        for group in ([self._key, self.precision], *labels.phrasings):
            digest.update("\0".join(group).encode() + b"\n\0")
        file = cache_folder("texts") / f"{digest.hexdigest()}.safetensors"
        texts = _read_texts(file)
        if texts is None:
            texts = encode_labels(self.model, labels)
            with atomic_write(file) as temporary:
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
        # A bare name of a label that was trained on stands for the texts it was trained with.
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
        return None  # damaged: encoded again


def load(
    checkpoint_name: str | Path | None = None,
    clip: str | None = None,
    pose_weights: str | Path | None = None,
    use_pose: bool = True,
    device: str = "auto",
    precision: str = "auto",
) -> Recogniser:
    """A recogniser from a checkpoint, by default the bundled one; or plain CLIP, zero-shot.

    ``checkpoint_name``: a folder, or a bundled name. ``clip``: CLIP weights, NAME:TAG of open_clip
    or a file; alone they give plain CLIP without pose, with a checkpoint they are its base.
    ``pose_weights``: a YOLO-pose file or name. ``use_pose`` = False leaves the detector out.
    ``device``: "auto", "cpu", "cuda", ...; ``precision``: "auto", "fp32", "bf16" or "fp16".

    PevlError for weights that are missing or do not fit; UsageError for a device or a precision
    that this machine has not.
    """
    device = choose_device(device)
    if clip is not None and checkpoint_name is None:
        name = "vit-l-14" if "l-14" in clip.lower() else "vit-b-16"
        state, config, digest = load_clip(clip, plain_clip(CONFIGS[name]))
        model = PeVL(config)
        absent, unknown = model.load_state_dict(state, strict=False)
        assert not unknown and set(absent) <= {"logit_scale", "refinement_scale"}, absent
        model.logit_scale.data.fill_(MAX_LOGIT_SCALE)
        return Recogniser(model, None, digest, None, device, precision)
    folder = checkpoint.find(checkpoint_name or DEFAULT_CHECKPOINT)
    config = checkpoint.read_facts(folder).model
    needs_joints = config.pose or config.crop != "full"
    detector = PoseDetector(pose_weights, device=device) if use_pose and needs_joints else None
    if detector is not None:
        detector.digest()  # its weights may be missing, which must not wait for the model
    model, facts = checkpoint.load(folder, clip)
    key = file_digest(folder / "model.safetensors") + file_digest(folder / "config.json")
    return Recogniser(model, facts.label_set, key, detector, device, precision, facts.calibration)


def plain_clip(config: ModelConfig) -> ModelConfig:
    """The config of CLIP itself: no adapters, no pose, the whole picture."""
    return config.model_copy(
        update={
            "pose": False,
            "crop": "full",
            "video_adapters": False,
            "text_adapters": False,
            "similarities": ("vs",),
        }
    )
