"""CLIP's image and text towers with open_clip's parameter names, its weights and tokeniser.

Only this file uses open_clip. open_clip's tower classes are not used, because adapters are inside
the blocks and pose tokens pass through the same blocks. A test compares the towers with open_clip's
`encode_image` and `encode_text`, bit by bit.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from pevl_cli.errors import PevlError
from pevl_cli.model.adapters import Transformer
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.mini.body_token import BodyToken
from pevl_cli.model.mini.stem import STEM_CHANNELS, PoseStem
from pevl_cli.model.precision import full_precision

# A weights file does not contain its architecture: config -> open_clip's name.
OPEN_CLIP_NAMES = {"vit-b-16": "ViT-B-16", "vit-l-14": "ViT-L-14"}


class VisualTower(nn.Module):
    """CLIP's image tower: embedding, blocks, final norm and projection."""

    prefix_tokens = 1  # class tokens before the patches

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.add_patch_mean = config.class_token == "body"
        scale = width**-0.5
        if config.stem == "patch":
            size = config.patch_size
            self.conv1: nn.Module = nn.Conv2d(3, width, size, size, bias=False)
        else:  # a pose-only model needs no stem
            self.conv1 = PoseStem(config) if config.video else nn.Identity()
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(config.grid**2 + 1, width))
        self.body: BodyToken | None = None
        if config.has_body_token:
            self.body = BodyToken(STEM_CHANNELS if config.stem == "pose" else width, config)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width, config.layers, config.heads, config.quick_gelu, config.dropout
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, config.embed_dim))

    def embed(self, frames: Tensor, joints: Tensor | None = None) -> Tensor:
        """Normalised frames (N, T, 3, H, W) -> tokens (N·T, 1 + P, d), the class token first.

        A tower with a body token uses ``joints`` (N, T, J, 3); without joints no body token is
        added.
        """
        n = frames.shape[0]
        maps: list[Tensor] = []
        if isinstance(self.conv1, PoseStem):
            patches, maps = self.conv1(rearrange(frames, "n t c h w -> n c t h w"))
            patches = rearrange(patches, "n d t r c -> (n t) d r c")
        else:
            patches = self.conv1(rearrange(frames, "n t c h w -> (n t) c h w"))
        # The residual stream, in float32 from here on.
        x = patches.flatten(2).permute(0, 2, 1).to(self.class_embedding.dtype)
        class_token = self.class_embedding.expand(len(x), 1, -1)
        if self.add_patch_mean:
            class_token = class_token + x.mean(1, keepdim=True)
        if self.body is not None and joints is not None:
            body = self.body(maps or [patches], joints).to(x.dtype)
            class_token = class_token + rearrange(body, "n t d -> (n t) 1 d")
        x = torch.cat([class_token, x], 1) + self.positional_embedding
        assert len(x) == n * frames.shape[1]
        out: Tensor = self.ln_pre(x)
        return out

    def project(self, tokens: Tensor) -> Tensor:
        """CLIP's final norm and projection into the joint space, in float32: (…, d) -> (…, e)."""
        with full_precision(tokens.device):
            out: Tensor = self.ln_post(tokens) @ self.proj
        return out

    def frame_feature(self, tokens: Tensor) -> Tensor:
        """The feature of a video frame, from its class and patch tokens: (…, n, d) -> (…, e)."""
        return self.project(tokens[..., 0, :])

    def pooled_feature(self, tokens: Tensor, use: Tensor) -> Tensor:
        """The feature of the tokens in use: (…, n, d), bool (…, n), one of n at least -> (…, e)."""
        share = use / use.sum(-1, keepdim=True)
        return self.project((tokens * share[..., None].to(tokens.dtype)).sum(-2))


class TextTower(nn.Module):
    """CLIP's text tower, with optional adapters."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, length = config.text_width, config.context_length
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width) * 0.01)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.transformer = Transformer(
            width, config.text_layers, config.text_heads, config.quick_gelu, config.dropout
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, config.embed_dim) * width**-0.5)

    def forward(
        self, ids: Tensor, adapters: Sequence[nn.ModuleDict | None]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (C, L) -> sentences (C, e), tokens (C, L, e), word mask (C, L) bool.

        ``adapters``: one entry per block, None = no adapters. The sentence is the end-of-text
        token, which has the highest id; the words are the tokens between start-of-text and
        end-of-text.
        """
        length = ids.shape[1]
        x = self.token_embedding(ids)
        x = x + self.positional_embedding[:length]
        # Not a buffer: averaging its infinities over training steps would give NaN.
        mask = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        for block, pair in zip(self.transformer.blocks, adapters, strict=True):
            x = block(x, pair, mask)
        end = ids.argmax(-1)
        with full_precision(x.device):
            x = self.ln_final(x)
            sentences = x[torch.arange(len(x), device=x.device), end] @ self.text_projection
            words = x @ self.text_projection
        position = torch.arange(length, device=ids.device)[None]
        word_mask = (position > 0) & (position < end[:, None])
        return sentences, words, word_mask


def tokenise(texts: Sequence[str], config: ModelConfig) -> Tensor:
    """Texts -> token ids (C, L) int64; L: length of the longest text; padded with 0.

    Tokeniser "clip" is CLIP's byte-pair vocabulary. "words", for a model trained from scratch, maps
    each word to one of ``vocab_size`` ids by its hash: it needs no file and no import, and works
    for any language. Longer texts are cut to ``context_length``.
    """
    if config.tokenizer == "clip":
        from open_clip.tokenizer import SimpleTokenizer

        ids = SimpleTokenizer(context_length=config.context_length)(list(texts))
    else:
        ids = torch.zeros(len(texts), config.context_length, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            words = re.findall(r"\w+", text.lower())[: config.context_length - 2]
            codes = [2 + zlib.crc32(w.encode()) % (config.vocab_size - 3) for w in words]
            row[: len(words) + 2] = torch.tensor([1, *codes, config.vocab_size - 1])
    longest = int((ids.argmax(-1) + 1).max())
    return ids[:, :longest].contiguous()


def load_clip(source: str, config: ModelConfig) -> tuple[dict[str, Tensor], ModelConfig, str]:
    """Weights of both towers from open_clip's "NAME:TAG", or from a local file.

    Returns the weights (names `visual.…` and `text.…`), the config with that model's activation and
    normalisation, and the hash of the weights. PevlError when they cannot be loaded or do not fit.
    """
    import open_clip

    path = Path(source).expanduser()
    name, _, tag = source.partition(":")
    if path.is_file() and config.name not in OPEN_CLIP_NAMES:
        known = ", ".join(OPEN_CLIP_NAMES)
        raise PevlError(f"{source}: a weights file fits the configs {known}, not '{config.name}'.")
    if path.is_file():
        name, pretrained = OPEN_CLIP_NAMES[config.name], str(path)
    elif tag:
        known = open_clip.list_pretrained_tags_by_model(name)
        if tag not in known:
            models = ", ".join(known) or "none; see open_clip.list_pretrained()"
            raise PevlError(f"{source}: open_clip has no such weights. Tags of {name}: {models}.")
        pretrained = tag
    else:
        raise PevlError(
            f"{source}: neither a weights file nor NAME:TAG, such as ViT-B-16-quickgelu:openai."
        )
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained=pretrained, force_quick_gelu=config.quick_gelu and path.is_file()
        )
    except Exception as error:  # open_clip and the hub client raise many kinds
        reason = (str(error).strip() or "no reason given").splitlines()[0].split(". ")[0]
        reason = f"{type(error).__name__}: {reason}"
        raise PevlError(
            f"{source}: CLIP weights could not be loaded ({reason}). Without a network, copy "
            "open_clip's weights file (a state dict or safetensors) here and give its path."
        ) from error
    normalise = preprocess.transforms[-1]
    quick = any("QuickGELU" in type(m).__name__ for m in model.modules())
    state = from_open_clip_names(model.state_dict())
    config = config.model_copy(
        update={
            "quick_gelu": quick,
            "image_mean": tuple(float(v) for v in normalise.mean),
            "image_std": tuple(float(v) for v in normalise.std),
        }
    )
    _check_shapes(state, config, source)
    return state, config, state_digest(state)


def _check_shapes(state: dict[str, Tensor], config: ModelConfig, source: str) -> None:
    """PevlError when a name or shape of the towers' weights does not fit the config."""
    with torch.device("meta"):
        towers = {"visual": VisualTower(config), "text": TextTower(config)}
    expected = {f"{t}.{k}": v.shape for t, m in towers.items() for k, v in m.state_dict().items()}
    for key in sorted(expected.keys() | state.keys()):
        if key not in expected or key not in state or expected[key] != state[key].shape:
            raise PevlError(f"{source}: does not fit config '{config.name}' (weight '{key}').")


def from_open_clip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert names of open_clip's weights to PeVL's: the text tower gets the prefix `text.`.

    The result has no temperature and no attention mask. Tensors (…) are unchanged.
    """
    renamed = {}
    for key, value in state.items():
        if key.startswith("visual."):
            renamed[key] = value
        elif key not in {"logit_scale", "logit_bias"}:
            renamed[f"text.{key.removeprefix('text.')}"] = value
    return {k: v for k, v in renamed.items() if not k.endswith("attn_mask")}


def state_digest(state: dict[str, Tensor]) -> str:
    """Hash of names and values (as float32), the same on every machine: 16 bytes as hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()
