"""The whole model: encoders with adapters, refinement, similarities, loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pevl_cli.model.adapters import Block, adapter_pairs, make_adapters
from pevl_cli.model.config import ModelConfig, Similarity
from pevl_cli.model.features import Batch, Features, Texts
from pevl_cli.model.losses import label_contrast_loss, nt_xent, semantic_guided_loss
from pevl_cli.model.pose_embedding import HeatmapEmbedding, PoseEmbedding
from pevl_cli.model.precision import convert_matrices, full_precision, half_precision
from pevl_cli.model.sgmc import Similarities, combine, fine_similarity, has_modality
from pevl_cli.model.tokeniser import tokenise
from pevl_cli.model.towers import make_image_tower, make_text_tower
from pevl_cli.model.ucmr import PoseGuidedVideo, VideoEnrichedPose, body_weights

# log 100: the largest log 1/τ, as in CLIP.
MAX_LOGIT_SCALE = 4.6052
IN_FLOAT32 = ("pose_embedding", "join")  # parts that `cast` leaves as they are


class PeVL(nn.Module):
    """Pose-enhanced vision-language model; ``config`` sets its parts.

    Source: PeVL, Sec. 3.
    """

    image_mean: Tensor
    image_std: Tensor
    prototypes: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # recompute the blocks' activations in the backward pass
        self.compute_dtype = torch.float32  # of matrix products, see `cast`
        width, quarter = config.width, config.width // 4
        self.visual = make_image_tower(config)  # video and pose share its blocks (Sec. 4.1)
        self.text = make_text_tower(config) if config.text else None
        if config.text:
            bottleneck = config.text_width // 2
            self.text_adapters = make_adapters(
                config.text_layers if config.text_adapters else 0,
                ("attention", "mlp"),
                config.text_width,
                bottleneck,
            )
        else:
            self.class_vectors = nn.Parameter(torch.randn(config.classes, config.embed_dim))
        if config.video:
            self.video_adapters = make_adapters(
                config.layers if config.video_adapters else 0, ("attention", "mlp"), width, quarter
            )
        if config.pose:
            heatmap = config.pose_features == "heatmap"
            self.pose_embedding = (HeatmapEmbedding if heatmap else PoseEmbedding)(config)
            self.pose_adapters = make_adapters(
                config.used_pose_layers if config.pose_adapters else 0,
                ("time", "attention", "mlp"),
                width,
                quarter,
            )
        two_streams = config.video and config.pose
        if two_streams and config.p2v:
            layers = sorted({*config.p2v_layers, config.layers - 1})
            self.p2v = nn.ModuleDict({str(i): PoseGuidedVideo(width, config.heads) for i in layers})
        if two_streams and config.v2p:
            self.v2p = VideoEnrichedPose(width, config.heads)
        if "concat" in config.used_similarities:
            streams = config.video + config.pose
            self.join = nn.Linear(streams * config.embed_dim, config.embed_dim)
        # log 1/τ, as in CLIP: of the contrast with texts, and of Eq. (3).
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.refinement_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.register_buffer("image_mean", torch.tensor(config.image_mean), persistent=False)
        self.register_buffer("image_std", torch.tensor(config.image_std), persistent=False)
        # Mean V of each label's training clips (C, e), unit length; None without a checkpoint's.
        self.register_buffer("prototypes", None)
        if not config.train_base:
            self.visual.requires_grad_(False)
            if self.text is not None:
                self.text.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.logit_scale.device

    @property
    def temperature(self) -> Tensor:
        """τ of the contrast with texts, scalar."""
        return 1 / self.logit_scale.exp()

    @torch.no_grad()
    def limit_temperatures(self) -> None:
        """Limit 1/τ to 100, as CLIP does after each training step."""
        for scale in (self.logit_scale, self.refinement_scale):
            scale.clamp_(max=MAX_LOGIT_SCALE)

    def cast(self, dtype: torch.dtype) -> PeVL:
        """Compute the matrix products of towers and refinements in ``dtype``; see `precision`."""
        self.compute_dtype = dtype
        for name, part in self.named_children():
            if name not in IN_FLOAT32:
                convert_matrices(part, dtype)
        return self

    # -- encoders ---------------------------------------------------------------------------

    def encode_text(self, prompts: Sequence[str]) -> Texts:
        """C prompts -> sentences (C, e) and words (C, L, e), of unit length.

        With ``text=False``: the learned class vectors, without words; prompts are ignored.
        """
        if self.text is None:
            vectors = F.normalize(self.class_vectors, dim=-1)
            no_words = vectors.new_zeros(len(vectors), 1, dtype=torch.bool)
            return Texts(vectors, vectors[:, None], no_words)
        ids = tokenise(prompts, self.config).to(self.device)
        adapters = adapter_pairs(self.text_adapters, self.config.text_layers)
        with half_precision(self.device, self.compute_dtype):
            sentences, words, mask = self.text(ids, adapters)
        return Texts(F.normalize(sentences, dim=-1), F.normalize(words, dim=-1), mask)

    def encode_video(self, frames: Tensor) -> Tensor:
        """Frames (N, T, 3, H, W), uint8 or in [0, 1] -> class and patch tokens (N, T, n, d)."""
        with half_precision(self.device, self.compute_dtype):
            tokens, _, _ = self._encode(frames, None, None)
        assert tokens is not None
        return tokens

    @torch.no_grad()
    def observe(self, batch: Batch) -> Batch:
        """The batch with ``observed``, in half precision, in place of frames."""
        if batch.frames is None:
            return batch
        with half_precision(self.device, self.compute_dtype):
            observed = self.visual.observe(self._normalise(batch.frames))
        return replace(batch, frames=None, observed=tuple(part.half() for part in observed))

    def encode(self, batch: Batch) -> Features:
        """Both streams with their refinements, in the joint space. Sec. 3.1 and 3.2.

        ValueError when the batch has no modality that the model uses.
        """
        with half_precision(self.device, self.compute_dtype):
            return self._features(batch)

    def _features(self, batch: Batch) -> Features:
        config, visual = self.config, self.visual
        frames = (batch.observed or batch.frames) if config.video else None
        joints = batch.joints if config.pose else None
        video, pose, body = self._encode(frames, joints, batch.has_video)
        if video is None and pose is None:
            raise ValueError(f"the batch has neither modality that model '{config.name}' uses")
        both = video is not None and pose is not None
        refined = video
        if video is not None and body is not None:
            refined = self.p2v[str(config.layers - 1)](video, body)
        v = p = f = seen = joined = video_before = pose_before = None
        if video is not None and refined is not None:
            v = F.normalize(visual.frame_feature(refined).mean(1), dim=-1)
            video_before = visual.frame_feature(video).mean(1) if both else None
        if pose is not None and joints is not None:
            seen = joints[..., 2].amax(-1) > 0
            use = self._tokens_in_use(pose, joints)
            if both:
                pose_before = _pool(self._pool_frames(pose, use), seen, config.pose_pool)
            if refined is not None and video is not None and config.v2p:
                source = video if config.frame_pool == "class" else refined
                patches = source[:, :, visual.prefix_tokens :]
                pose, use = self._enrich(pose, use, patches, batch.has_video)
            per_frame = self._pool_frames(pose, use)
            f = F.normalize(per_frame, dim=-1)
            p = F.normalize(_pool(per_frame, seen, config.pose_pool), dim=-1)
        if "concat" in config.used_similarities:
            joined = self._join(v, p, batch.has_video)
        has_video = batch.has_video if v is not None else None
        return Features(v, p, f, seen, has_video, joined, video_before, pose_before)

    def _join(self, v: Tensor | None, p: Tensor | None, has_video: Tensor | None) -> Tensor | None:
        """Both streams' features after one linear layer (N, e); None if a stream is absent."""
        if v is not None and p is not None and has_video is not None:
            v = v * has_video[:, None]
        streams = [x for x in (v, p) if x is not None]
        if len(streams) < self.config.video + self.config.pose:
            return None
        with full_precision(self.device):
            return F.normalize(self.join(torch.cat(streams, -1)), dim=-1)

    def _tokens_in_use(self, pose: Tensor, joints: Tensor) -> Tensor:
        """The class token and the visible joints; of a heatmap all patches: (N, S, G) bool."""
        use = pose.new_ones(pose.shape[:3], dtype=torch.bool)
        if self.config.pose_features != "heatmap":
            use[..., 1:] = joints[..., 2] > 0
        return use

    def _pool_frames(self, pose: Tensor, use: Tensor) -> Tensor:
        """F before it is normalised: pose tokens (N, S, G, d) in use (N, S, G) -> (N, S, e)."""
        if self.config.frame_pool == "class":
            return self.visual.frame_feature(pose[:, :, :1])
        return self.visual.pooled_feature(pose, use)

    def _enrich(
        self, pose: Tensor, use: Tensor, patches: Tensor, has_video: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """V2P at the 16 indexed frames of 48, and the background as last token. Sec. 3.2.2.

        pose (N, S, G, d), in use (N, S, G), patches (N, T, P, d) -> (N, S, G + 1, d) and
        (N, S, G + 1). The background is in use where V2P made one.

        Differs: "group all pixels that belong to the corresponding pose tokens" is read as what
        Eq. (2) does: each query gathers from all patches by its own weights.
        """
        indexed = pose[:, 1::3]
        background = self.v2p.background.to(pose.dtype).expand_as(indexed[:, :, :1])
        tokens = torch.cat([indexed, background], 2)
        if self.config.frame_pool == "class":
            added = self.v2p(indexed, patches)
            added = torch.cat([added[:, :, :1] + added[:, :, -1:], added[:, :, 1:]], 2)
        else:  # the class token is no query
            added = F.pad(self.v2p(indexed[:, :, 1:], patches), (0, 0, 1, 0))
        enriched = (
            tokens.new_ones(len(tokens), dtype=torch.bool) if has_video is None else has_video
        )
        refined = tokens + added * enriched[:, None, None, None]
        rest = F.pad(pose, (0, 0, 0, 1))
        triples = torch.stack([rest[:, 0::3], refined, rest[:, 2::3]], 2)
        made = use.new_zeros(*use.shape[:2], 1)
        made[:, 1::3] = enriched[:, None, None]
        return rearrange(triples, "n t three g d -> n (t three) g d"), torch.cat([use, made], 2)

    def _encode(
        self,
        frames: Tensor | tuple[Tensor, ...] | None,
        joints: Tensor | None,
        has_video: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Tokens of both streams after the shared blocks, and the body mask M of Eq. (1):
        (N, T, n, d), (N, S, G, d) and (N, T, P); each None if its modality is absent. ``frames``:
        also what `observe` made of them.

        Clips without video are not encoded, so that they do not change batch statistics; their
        tokens are 0.
        """
        config = self.config
        blocks = self.visual.transformer.blocks
        pose = body = None
        if joints is not None:
            joints = joints.to(self.pose_embedding.norm.weight.dtype)
            with full_precision(joints.device):  # half precision would move a joint
                pose = self.pose_embedding(joints)
            count = config.used_pose_layers
            flat = rearrange(pose, "n s g d -> (n s) g d")
            for block, adapters in zip(
                blocks[:count], adapter_pairs(self.pose_adapters, count), strict=True
            ):
                pose, flat = self._checkpointed(self._pose_block, block, adapters, pose)
            if frames is not None and config.p2v:
                last = blocks[count - 1] if count else None
                body = body_weights(last, flat, joints, (config.grid, config.grid))
        if frames is None:
            return None, pose, None
        with_video = None if has_video is None else has_video.nonzero()[:, 0]
        all_bodies = body
        parts = (frames,) if isinstance(frames, Tensor) else frames
        t = frames.shape[1] if isinstance(frames, Tensor) else config.video_frames
        indexed = None if joints is None else joints[:, 1::3]  # the joints at the video frames
        if with_video is not None:
            parts = tuple(part[with_video] for part in parts)
            body = None if body is None else body[with_video]
            indexed = None if indexed is None else indexed[with_video]
        n, places = len(parts[0]), self.visual.positional_embedding
        if not n:
            assert has_video is not None
            return places.new_zeros(len(has_video), t, *places.shape), pose, all_bodies
        if isinstance(frames, Tensor):
            parts = self.visual.observe(self._normalise(parts[0]))
        x = self.visual.embed([part.to(places.dtype) for part in parts], indexed)
        for i, (block, adapters) in enumerate(
            zip(blocks, adapter_pairs(self.video_adapters, config.layers), strict=True)
        ):
            x = self._checkpointed(block, x, adapters, None, self.visual.rotary)
            if i in config.p2v_layers and i < config.layers - 1 and body is not None and config.p2v:
                x = rearrange(x, "(n t) p d -> n t p d", n=n)
                x = rearrange(self.p2v[str(i)](x, body), "n t p d -> (n t) p d")
        video = rearrange(x, "(n t) p d -> n t p d", n=n, t=t)
        if with_video is not None and has_video is not None:
            zeros = video.new_zeros(len(has_video), *video.shape[1:])
            video = zeros.index_copy(0, with_video, video)
        return video, pose, all_bodies

    def _checkpointed(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the function; with ``checkpointing``, recompute it in the backward pass."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)

    def _normalise(self, frames: Tensor) -> Tensor:
        """Frames (N, T, 3, H, W), uint8 or in [0, 1] -> the tower's normalised input."""
        x = frames.to(torch.float32) / 255 if frames.dtype == torch.uint8 else frames.float()
        x = (x - self.image_mean[:, None, None]) / self.image_std[:, None, None]
        return x.to(self.visual.positional_embedding.dtype)

    def _pose_block(
        self,
        block: Block,
        adapters: nn.ModuleDict | None,
        x: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Attention of each token over frames, then within each frame, then the MLP.

        x (N, S, G, d) -> (N, S, G, d), and the tokens (N·S, G, d) before the attention within
        frames.
        """
        n, s = x.shape[:2]
        series = rearrange(x, "n s g d -> (n g) s d")
        attended = rearrange(block.attend(series), "(n g) s d -> n s g d", n=n)
        x = x + attended if adapters is None else x + attended + adapters["time"](attended)
        flat = rearrange(x, "n s g d -> (n s) g d")
        return rearrange(block(flat, adapters), "(n s) g d -> n s g d", s=s), flat

    # -- matching -----------------------------------------------------------------------------

    def similarities(self, features: Features, texts: Texts) -> dict[Similarity, Tensor]:
        """The used similarities, each (N, C) in [-1, 1], float32."""
        with_sentences = {"vs": features.video, "ps": features.pose, "concat": features.joined}
        values: dict[Similarity, Tensor] = {}
        with full_precision(self.device):
            for kind in self.config.used_similarities:
                feature = with_sentences.get(kind)
                if feature is not None:
                    values[kind] = feature @ texts.sentences.T
                elif kind == "fw" and features.frames is not None:
                    values[kind] = fine_similarity(
                        features.frames,
                        texts.words,
                        features.seen,
                        texts.word_mask,
                        self.config.fine_temperature,
                    )
        return {kind: value.float() for kind, value in values.items()}

    def forward(self, batch: Batch, texts: Texts) -> Tensor:
        """Similarity S of each clip with each label, (N, C) in [-1, 1]."""
        features = self.encode(batch)
        return texts.by_label(combine(self.similarities(features, texts), features))

    def match(self, batch: Batch, texts: Texts) -> Similarities:
        """The B similarities of each clip with each label, (N, B, C), and V (N, e).

        NaN if the clip lacks the modality of a similarity: no video, no visible joint. S is the
        mean over B without NaN.
        """
        features = self.encode(batch)
        parts = []
        for kind, value in self.similarities(features, texts).items():
            use = has_modality(kind, features, value)[:, None]
            # NaN from damaged weights becomes infinity, as NaN means "no modality".
            numbers = texts.by_label(value).nan_to_num(torch.inf, torch.inf, torch.inf)
            parts.append(numbers.where(use, torch.nan))
        video = None if features.video is None else features.video.float()
        if video is not None and features.has_video is not None:
            video = video.where(features.has_video[:, None], torch.nan)
        return Similarities(torch.stack(parts, 1), video)

    def loss(
        self,
        batch: Batch,
        texts: Texts,
        labels: Tensor,
        gather: Callable[[Features], Features] = lambda features: features,
        clips: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """L_t + λ·L_R, scalar, and S (N, C) of each clip with each text, detached; float32.

        ``labels`` (N,) int: indices of texts. ``clips`` (N,) int: equal numbers for one clip that
        occurs twice; None: all are different. Clips are contrasted with each other: if several
        processes have a part of the batch each, ``gather`` returns the features of all processes,
        with gradients, and ``labels`` and ``clips`` are those of all clips.

        Source: PeVL Eq. (3) to (6), Sec. 3.4.
        """
        features = gather(self.encode(batch))
        with full_precision(self.device):
            return self._loss(features, texts, labels, clips)

    def _loss(
        self, features: Features, texts: Texts, labels: Tensor, clips: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        parts = self.similarities(features, texts)
        combined = combine(parts, features)
        between_texts = texts.sentences @ texts.sentences.T
        if not config.semantic_loss:
            between_texts = torch.zeros_like(between_texts)  # equal weights (vanilla contrast)
        between_texts = between_texts.float().detach()
        temperature = self.temperature

        def contrast(similarity: Tensor, use: Tensor) -> Tensor:
            true = labels[use]
            if config.contrast == "labels":
                return label_contrast_loss(similarity[use], between_texts, true, temperature)
            between_clips = between_texts[true][:, true]
            return semantic_guided_loss(similarity[use][:, true], between_clips, true, temperature)

        total = contrast(combined, torch.ones_like(labels, dtype=torch.bool))
        if config.branch_loss_weight:
            for kind, part in parts.items():
                use = has_modality(kind, features, part)
                if use.any():
                    total = total + config.branch_loss_weight * contrast(part, use)
        if config.refinement_loss:
            scale = 1 / self.refinement_scale.exp()
            use = torch.ones_like(labels, dtype=torch.bool)  # clips with both modalities
            if features.seen is not None:
                use = use & features.seen.any(1)
            if features.has_video is not None:
                use = use & features.has_video
            for before, after, refines in (
                (features.video_before, features.video, config.p2v),
                (features.pose_before, features.pose, config.v2p),
            ):
                if before is not None and after is not None and refines and use.any():
                    same = None if clips is None else clips[use]
                    refinement = nt_xent(before[use].float(), after[use].float(), scale, same)
                    total = total + config.refinement_weight * refinement
        return total, combined.detach()


def _pool(values: Tensor, use: Tensor, kind: Literal["mean", "max"]) -> Tensor:
    """Mean or maximum over the frames with ``use`` (N, S): (N, S, e) -> (N, e); if none, over all.

    Differs: the paper uses the mean. The maximum keeps the short moment in which two tennis strokes
    differ (tennis4, benchmarks/README.md).
    """
    use = (use | ~use.any(1, keepdim=True))[..., None]
    if kind == "max":
        return values.masked_fill(~use, -torch.inf).amax(1)
    return (values * use).sum(1) / use.sum(1)
