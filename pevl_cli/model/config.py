"""The configuration of a PeVL model: flat, frozen, and stored with the weights."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

Similarity = Literal["vs", "ps", "fw", "concat"]
HEATMAP_PX = 112  # side of a joint's heatmap (Sec. 4.3.5)


class ModelConfig(BaseModel):
    """Sizes, parts and inputs of a model. Every part of the paper can be switched off.

    The defaults are those of the paper. ``similarities``: "vs" video-sentence, "ps" pose-sentence,
    "fw" frames-words (Table 6), or only "concat": the concatenated features of the used streams
    after one linear layer (the simple fusion of Tables 4 and 7; with video only, the projection of
    the baseline in Table 4).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    # Kind of the towers: CLIP's, SigLIP 2's or Perception Encoder's.
    tower: Literal["clip", "siglip", "pe"] = "clip"
    # sizes of the towers
    embed_dim: int
    width: int
    layers: int
    heads: int
    patch_size: int
    image_size: int = 224
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    context_length: int = 77
    vocab_size: int = 49408
    quick_gelu: bool = True
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    trained_grid: int = 0  # tower "pe": patches along a side in its training
    tokenizer: Literal["clip", "words", "pieces", "gemma"] = "clip"
    # From pixels to patch tokens: CLIP's linear map, or the frozen layers of the bundled pose
    # network before its head, followed by convolutions.
    stem: Literal["patch", "pose", "i3d"] = "patch"
    train_stem: bool = False  # train I3D, too; a pose stem's network is always frozen
    # Initial class token of a frame: a learned vector (CLIP), or this plus the mean of the frame's
    # patches and the body token (`mini/body_token.py`).
    class_token: Literal["learned", "body"] = "learned"
    base: Literal["clip", "none"] = "clip"  # initial weights of the towers
    train_base: bool = False  # False: the weights of the base are frozen
    # inputs
    video_frames: int = 16
    pose_frames: int = 48
    layout: str = "coco17"
    joints: int = 17
    allow_missing_joints: bool = False  # missing joints of a skeleton = not visible
    pose_layers: int | None = None  # number of shared blocks for the pose; None = all
    # "body", "streams": features of the whole body as well; "heatmap": Table 9, pose only.
    pose_features: Literal["xy", "body", "streams", "heatmap"] = "xy"
    # Tokens that make a frame's pose feature F: all in use, or, as in pevl-mini and checkpoints of
    # format 2, the class token, into which V2P's background then flows.
    frame_pool: Literal["tokens", "class"] = "tokens"
    pose_pool: Literal["mean", "max"] = "mean"  # pooling of frame features into the clip's
    # "full": the middle square of the frame (as in the paper); "follow": this square moved to the
    # actor and enlarged until it contains the whole body; "body": a square around the body.
    crop: Literal["full", "follow", "body"] = "full"
    # Similarities at test are means over 1 or 3 crops of each clip, the paper's "three spatial
    # crops", and with flip_at_test also over its mirror image, unless a label has left/right.
    views_at_test: Literal[1, 3] = 1
    flip_at_test: bool = False
    # parts
    video: bool = True
    pose: bool = True
    text: bool = True  # False: one learned vector per class instead of its text
    classes: int = 0  # number of classes if text is False
    video_adapters: bool = True
    pose_adapters: bool = True
    text_adapters: bool = True
    p2v: bool = True
    v2p: bool = True
    p2v_layers: tuple[int, ...] = ()  # P2V after these blocks (0 = first) and after the last
    refinement_loss: bool = True
    refinement_weight: float = 0.1  # λ_R
    similarities: tuple[Similarity, ...] = ("vs", "ps", "fw")
    semantic_loss: bool = True
    # Negatives of a clip in training: the labels of its batch (as in the paper), or all labels.
    contrast: Literal["batch", "labels"] = "batch"
    fine_temperature: float = 0.01
    branch_loss_weight: float = 0.0  # weight of each similarity's own contrastive loss
    dropout: float = 0.0

    @model_validator(mode="after")
    def _parts_fit(self) -> ModelConfig:
        if not (self.video or self.pose):
            raise ValueError("a model needs video or pose")
        if not self.text and self.classes < 1:
            raise ValueError("without text, classes must be the number of classes")
        if not self.used_similarities:
            raise ValueError(f"none of the similarities {self.similarities} fits the other parts")
        if self.video_frames * 3 != self.pose_frames:
            raise ValueError("pose_frames must be three times video_frames")
        if self.image_size % self.patch_size:
            raise ValueError("image_size must be a multiple of patch_size")
        if self.width % self.heads or self.text_width % self.text_heads:
            raise ValueError("heads must divide width")
        if self.video and self.stem != "patch" and self.patch_size != 32:
            raise ValueError(f"stem '{self.stem}' needs patch_size 32")
        if self.video and self.stem == "i3d" and self.video_frames % 8:
            raise ValueError("stem 'i3d' needs a multiple of 8 video_frames")
        if not 0 <= self.used_pose_layers <= self.layers:
            raise ValueError(f"pose_layers must be from 0 to {self.layers}")
        if self.pose and not self.used_pose_layers and not self.has_body_features:
            raise ValueError("pose_layers=0 needs pose_features 'body' or 'streams'")
        if self.pose and self.pose_features == "heatmap" and self.video and self.p2v:
            raise ValueError("p2v needs joint tokens, which pose_features 'heatmap' lacks")
        if self.tower != "clip" and (self.stem != "patch" or self.class_token != "learned"):
            raise ValueError(f"tower '{self.tower}' needs stem 'patch' and class_token 'learned'")
        if self.tower != "clip" and self.pose and self.frame_pool == "class":
            raise ValueError("frame_pool 'class' needs tower 'clip'")
        if self.tower == "siglip" and self.embed_dim != self.width:
            raise ValueError("tower 'siglip' has no projection: embed_dim must be width")
        if self.tower == "pe" and (self.trained_grid < 1 or self.width // self.heads % 4):
            raise ValueError("tower 'pe' needs trained_grid, and width/heads a multiple of 4")
        if self.base == "clip" and self.stem != "patch":
            raise ValueError("base 'clip' needs stem 'patch'")
        if self.base == "none" and not self.train_base:
            raise ValueError("base 'none' has no weights to freeze: set train_base=true")
        if any(not 0 <= layer < self.layers for layer in self.p2v_layers):
            raise ValueError(f"p2v_layers must name blocks from 0 to {self.layers - 1}")
        return self

    @property
    def used_similarities(self) -> tuple[Similarity, ...]:
        """The similarities for which the model has the modalities."""
        needs: dict[Similarity, bool] = {
            "vs": self.video,
            "ps": self.pose,
            "fw": self.pose and self.text,
            "concat": True,
        }
        return tuple(s for s in self.similarities if needs[s])

    @property
    def has_body_token(self) -> bool:
        """Whether a body token is added to the class token of each video frame."""
        return self.class_token == "body" and self.video and self.pose

    @property
    def has_body_features(self) -> bool:
        """Whether tokens have features of the whole body, so that no attention has to find them."""
        return self.pose_features in {"body", "streams"}

    @property
    def used_pose_layers(self) -> int:
        """Number of shared blocks that the pose encoder uses."""
        return self.layers if self.pose_layers is None else self.pose_layers

    @property
    def heatmap_patch(self) -> int:
        """Side of a heatmap's patches in px: patch_size if it divides HEATMAP_PX, otherwise 16."""
        return 16 if HEATMAP_PX % self.patch_size else self.patch_size

    @property
    def grid(self) -> int:
        """Number of patches along one side of a frame."""
        return self.image_size // self.patch_size


# Common fields of configs. HALF: activation and normalisation of the towers other than CLIP's.
HALF: dict[str, Any] = {
    "quick_gelu": False,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
PE_TEXT: dict[str, Any] = {
    **HALF,
    "text_width": 1024,
    "text_layers": 24,
    "text_heads": 16,
    "context_length": 32,
}
MINI: dict[str, Any] = {
    "layers": 2,
    "heads": 4,
    "patch_size": 32,
    "text_heads": 4,
    "context_length": 32,
    "class_token": "body",
    "flip_at_test": True,
    "base": "none",
    "train_base": True,
    # An untrained text encoder gives similar features for all texts. Weights from their tiny
    # differences would be 0 for some pairs of labels.
    "semantic_loss": False,
    "contrast": "labels",
    "fine_temperature": 0.1,
    "dropout": 0.1,
    "branch_loss_weight": 0.5,
}
CONFIGS = {
    "vit-b-16": ModelConfig(
        name="vit-b-16", embed_dim=512, width=768, layers=12, heads=12, patch_size=16
    ),
    "vit-l-14": ModelConfig(
        name="vit-l-14",
        embed_dim=768,
        width=1024,
        layers=24,
        heads=16,
        patch_size=14,
        text_width=768,
        text_heads=12,
    ),
    # Perception Encoder (Bolya et al. 2025)
    "pe-core-b-16": ModelConfig(
        name="pe-core-b-16",
        tower="pe",
        embed_dim=1024,
        width=768,
        layers=12,
        heads=12,
        patch_size=16,
        trained_grid=14,
        **PE_TEXT,
    ),
    "pe-core-l-14": ModelConfig(
        name="pe-core-l-14",
        tower="pe",
        embed_dim=1024,
        width=1024,
        layers=24,
        heads=16,
        patch_size=14,
        image_size=336,
        trained_grid=24,
        **PE_TEXT,
    ),
    # SigLIP 2 (Tschannen et al. 2025)
    "siglip2-b-16": ModelConfig(
        name="siglip2-b-16",
        tower="siglip",
        embed_dim=768,
        width=768,
        layers=12,
        heads=12,
        patch_size=16,
        text_width=768,
        text_heads=12,
        context_length=64,
        vocab_size=256000,
        tokenizer="gemma",
        **HALF,
    ),
    "mini": ModelConfig(
        name="mini",
        embed_dim=128,
        width=128,
        image_size=192,
        text_width=128,
        text_layers=2,
        vocab_size=8192,
        tokenizer="words",
        stem="pose",
        crop="follow",
        quick_gelu=False,
        pose_features="body",
        **MINI,
    ),
    "mini-i3d": ModelConfig(
        name="mini-i3d",
        embed_dim=192,
        width=192,
        image_size=160,
        text_width=192,
        text_layers=1,
        tokenizer="pieces",
        stem="i3d",
        layout="coco13",
        joints=13,
        crop="body",
        pose_features="streams",
        pose_layers=0,
        pose_pool="max",
        **HALF,
        **MINI,
    ),
}
