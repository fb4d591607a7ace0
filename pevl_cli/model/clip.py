"""CLIP's two towers, with open_clip's parameter names, and its weights and tokenizer.

All knowledge of open_clip stands here. Its towers are not used as they are, because adapters act
inside a block and pose tokens pass through the same blocks; a test compares with open_clip's own
`encode_image` and `encode_text` to the last bit.
"""

from __future__ import annotations

import hashlib
import logging
import re
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from pevl_cli.errors import PevlError
from pevl_cli.model.config import ModelConfig
from pevl_cli.skeletons import LAYOUTS
from pevl_cli.yolo import pose_network_layers

# A weights file does not say its geometry: the config does, in open_clip's name for it.
OPEN_CLIP_NAMES = {"vit-b-16": "ViT-B-16", "vit-l-14": "ViT-L-14"}
# Which layers of the pose network make patch tokens: index, channels.
STEM_MEANS = {4: 128, 6: 128, 10: 256}
STEM_PEAKS = {2: 64, 4: 128}
STEM_CHANNELS = sum(STEM_MEANS.values()) + sum(STEM_PEAKS.values())
# A hand holds things so much beyond the wrist, in forearms.
REACH = 0.4


class QuickGELU(nn.Module):
    """The approximation that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Adapter(nn.Module):
    """Bottleneck whose second layer starts at zero, so that it starts as nothing. Source: AIM."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(nn.functional.gelu(self.down(x)))


class Block(nn.Module):
    """One transformer block of CLIP, in two halves for the adapters to act between."""

    def __init__(self, width: int, heads: int, quick_gelu: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=QuickGELU() if quick_gelu else nn.GELU(),
                c_proj=nn.Linear(4 * width, width),
            )
        )
        self.drop = nn.Dropout(dropout)

    def attend(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, n, d) -> what the tokens tell each other, before it is added to x."""
        x = self.ln_1(x)
        out: Tensor = self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]
        return self.drop(out)

    def class_attention(self, x: Tensor) -> Tensor:
        """How much the first token attends to each token: (B, n, d) -> (B, n), mean of heads."""
        heads, width = self.attn.num_heads, self.attn.embed_dim
        qkv = nn.functional.linear(self.ln_1(x), self.attn.in_proj_weight, self.attn.in_proj_bias)
        q, k, _ = rearrange(qkv, "b n (three h c) -> three b h n c", three=3, h=heads)
        logits = q[:, :, :1] @ k.transpose(-1, -2) / (width // heads) ** 0.5
        return logits.softmax(-1).mean(1)[:, 0]

    def forward(
        self, x: Tensor, adapters: nn.ModuleDict | None, mask: Tensor | None = None
    ) -> Tensor:
        """The block with AIM's two adapters: after the attention, beside the MLP (scale 0.5)."""
        attended = self.attend(x, mask)
        x = x + attended
        if adapters is not None:
            x = x + adapters["attention"](attended)
        return self.feed(x, adapters)

    def feed(self, x: Tensor, adapters: nn.ModuleDict | None) -> Tensor:
        normed = self.ln_2(x)
        x = x + self.drop(self.mlp(normed))
        return x if adapters is None else x + 0.5 * adapters["mlp"](normed)


class Transformer(nn.Module):
    """Only to keep open_clip's names: `transformer.resblocks.0...`."""

    resblocks: nn.ModuleList

    def __init__(
        self, width: int, layers: int, heads: int, quick_gelu: bool, dropout: float
    ) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            Block(width, heads, quick_gelu, dropout) for _ in range(layers)
        )
        for block in self.blocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.get_parameter("c_fc.weight"), std=(2 * width) ** -0.5)
            out = block.mlp.get_parameter("c_proj.weight")
            nn.init.normal_(out, std=width**-0.5 * (2 * layers) ** -0.5)

    @property
    def blocks(self) -> list[Block]:
        return list(self.resblocks)  # type: ignore[arg-type]


class Conv3dStem(nn.Module):
    """Patch tokens without CLIP's pretraining: (N, 3, T, H, W) -> (N, d, T, H/16, W/16).

    Four small convolutions know that neighbouring pixels and frames belong together, which a
    single 16 × 16 linear patch has to learn from far more clips than a coach has.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [3, 24, 48, 96, width]
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [
                nn.Conv3d(sizes[i], sizes[i + 1], 3, stride=(1, 2, 2), padding=1, bias=False),
                nn.BatchNorm3d(sizes[i + 1]),
                nn.GELU(),
            ]
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last_3d)

    def forward(self, x: Tensor) -> Tensor:
        # Channels last: a fifth less time on a CPU, where the convolutions take half of a step.
        out: Tensor = self.layers(x.contiguous(memory_format=torch.channels_last_3d))
        return out


class PoseStem(nn.Module):
    """Patch tokens by a network that knows bodies: (N, 3, T, H, W) -> (N, d, T, H/32, W/32).

    The layers before a YOLO11n-pose network's head, which training fills with the package's own
    weights and leaves as they are: where a few hundred clips tell what is done, they cannot also
    tell what a body is. Several layers, brought onto the last one's grid by their mean and, of
    those where a ball is still to be seen, their maximum, are mixed by convolutions over space
    and time.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        # What the tower's pictures were normalised by: this network takes them in [0, 1].
        self.register_buffer("mean", torch.tensor(config.image_mean)[:, None, None], False)
        self.register_buffer("std", torch.tensor(config.image_std)[:, None, None], False)
        self.layers = pose_network_layers().requires_grad_(False)
        self.mix = nn.Sequential(
            nn.Conv3d(STEM_CHANNELS, width, 1, bias=False),
            nn.BatchNorm3d(width),
            nn.GELU(),
            nn.Dropout3d(min(2 * dropout, 0.9)),
            nn.Conv3d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm3d(width),
            nn.GELU(),
            nn.Dropout3d(dropout),
            nn.Conv3d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm3d(width),
            nn.GELU(),
        )

    def train(self, mode: bool = True) -> PoseStem:
        super().train(mode)
        self.layers.eval()  # their statistics are those of the pose network's own training
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Also the maps (N·T, C, h, w) they are made of, twice as fine where the layers are."""
        n, side = x.shape[0], x.shape[-1] // 32
        frames = rearrange(x, "n c t h w -> (n t) c h w") * self.std + self.mean
        frames = frames.contiguous(memory_format=torch.channels_last)
        maps, seen = [], []
        with torch.no_grad():
            for i, layer in enumerate(self.layers):
                frames = layer(frames)
                size = min(2 * side, frames.shape[-1])
                if i in STEM_MEANS:
                    maps.append(nn.functional.adaptive_avg_pool2d(frames, size))
                    seen.append(nn.functional.adaptive_avg_pool2d(maps[-1], side))
                if i in STEM_PEAKS:
                    maps.append(nn.functional.adaptive_max_pool2d(frames, size))
                    seen.append(nn.functional.adaptive_max_pool2d(maps[-1], side))
        out: Tensor = self.mix(rearrange(torch.cat(seen, 1), "(n t) d r c -> n d t r c", n=n))
        return out, maps


class BodyToken(nn.Module):
    """What the pictures show where the body is: maps (N·T, C, h, w) and joints (N, T, J, 3) ->
    (N, T, d).

    Every joint, and the place beyond each wrist where a ball or a racket is, looks up the stem's
    maps; convolutions over time mix the whole body. Which few of a picture's patches tell what is
    done need not be learnt then, for which a few hundred clips are too few. Joints that are not
    seen show nothing.
    """

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        names = LAYOUTS[config.layout].names
        self.hands = [
            (names.index(f"{side}_elbow"), names.index(f"{side}_wrist"))
            for side in ("left", "right")
        ]
        part = width // 2
        self.drop = nn.Dropout(dropout)
        self.look = nn.Linear(channels, part)
        self.norm = nn.LayerNorm(part)
        layers: list[nn.Module] = []
        sizes = [(len(names) + len(self.hands)) * part, 2 * width, width, width]
        for i, kernel in enumerate((1, 3, 3)):
            layers += [
                nn.Conv1d(sizes[i], sizes[i + 1], kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm1d(sizes[i + 1]),
                nn.GELU(),
                nn.Dropout(min(2 * dropout, 0.9)),
            ]
        self.mix = nn.Sequential(*layers[:-2])

    def forward(self, maps: Sequence[Tensor], joints: Tensor) -> Tensor:
        n = joints.shape[0]
        visible = joints[..., 2:].float()
        # What an unseen joint's coordinates happen to hold (even NaN) must not matter.
        point = torch.where(visible > 0, joints[..., :2].float(), 0)
        elbows, wrists = (list(part) for part in zip(*self.hands, strict=True))
        hands = point[:, :, wrists] + REACH * (point[:, :, wrists] - point[:, :, elbows])
        point = torch.cat([point, hands], 2)
        visible = torch.cat([visible, visible[:, :, wrists] * visible[:, :, elbows]], 2)
        grid = rearrange(2 * point - 1, "n t j xy -> (n t) j 1 xy")
        seen = [nn.functional.grid_sample(m.float(), grid, align_corners=False) for m in maps]
        there = rearrange(torch.cat(seen, 1), "(n t) c j 1 -> n t j c", n=n)
        there = self.norm(self.look(self.drop(there.to(self.look.weight.dtype))))
        parts = nn.functional.gelu(there) * visible.to(there.dtype)
        out: Tensor = self.mix(rearrange(parts, "n t j c -> n (j c) t"))
        return out.transpose(1, 2)


class VisualTower(nn.Module):
    """CLIP's image tower up to the blocks, and its final norm and projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.pooled = config.class_token != "learned"
        scale = width**-0.5
        if config.stem == "patch":
            size = config.patch_size
            self.conv1: nn.Module = nn.Conv2d(3, width, size, size, bias=False)
        elif config.stem == "pose":
            # Poses alone leave no trace of it, and need no second network.
            self.conv1 = PoseStem(config) if config.video else nn.Identity()
        else:
            self.conv1 = Conv3dStem(width)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(config.grid**2 + 1, width))
        self.body: BodyToken | None = None
        if config.looks_at_body:
            self.body = BodyToken(STEM_CHANNELS if config.stem == "pose" else width, config)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width, config.layers, config.heads, config.quick_gelu, config.dropout
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, config.embed_dim))

    def embed(self, frames: Tensor, joints: Tensor | None = None) -> Tensor:
        """Normalised frames (N, T, 3, H, W) -> tokens (N·T, 1 + P, d), the class token first.

        ``joints`` (N, T, J, 3) are for a tower that looks at the body."""
        n = frames.shape[0]
        maps: list[Tensor] = []
        if isinstance(self.conv1, Conv3dStem | PoseStem):
            patches = self.conv1(rearrange(frames, "n t c h w -> n c t h w"))
            if isinstance(self.conv1, PoseStem):
                patches, maps = patches
            patches = rearrange(patches, "n d t r c -> (n t) d r c")
        else:
            patches = self.conv1(rearrange(frames, "n t c h w -> (n t) c h w"))
        x = patches.flatten(2).permute(0, 2, 1)
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        if self.pooled:
            first = first + x.mean(1, keepdim=True)
        if self.body is not None and joints is not None:
            body = self.body(maps or [patches], joints).to(x.dtype)
            first = first + rearrange(body, "n t d -> (n t) 1 d")
        x = torch.cat([first, x], 1) + self.positional_embedding.to(x.dtype)
        assert len(x) == n * frames.shape[1]
        out: Tensor = self.ln_pre(x)
        return out

    def project(self, tokens: Tensor) -> Tensor:
        """CLIP's final norm and projection into the joint space: (…, d) -> (…, e)."""
        out: Tensor = self.ln_post(tokens) @ self.proj
        return out


class TextTower(nn.Module):
    """CLIP's text tower with a place for adapters."""

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
        """Token ids (C, L) -> sentences (C, e), words (C, L, e), which are words (C, L) bool.

        The sentence is the end-of-text token, which has the highest id; the words stand between
        the start and it.
        """
        length = ids.shape[1]
        x = self.token_embedding(ids)
        x = x + self.positional_embedding[:length].to(x.dtype)
        # Made here and not kept: an average over training of its infinities would be NaN.
        mask = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        for block, pair in zip(self.transformer.blocks, adapters, strict=True):
            x = block(x, pair, mask)
        x = self.ln_final(x)
        end = ids.argmax(-1)
        sentences = x[torch.arange(len(x), device=x.device), end] @ self.text_projection
        place = torch.arange(length, device=ids.device)[None]
        return sentences, x @ self.text_projection, (place > 0) & (place < end[:, None])


def tokenise(texts: Sequence[str], config: ModelConfig) -> Tensor:
    """Texts -> token ids (C, L), cut to the longest text, padded with 0.

    "clip" is CLIP's own byte-pair vocabulary. "words" gives every word of a model trained from
    scratch one of ``vocab_size`` places by its hash: no file, no import, any language.
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
    """Weights of both towers from "NAME:TAG" of open_clip, or from a local file with them.

    Returns the state (`visual.…` and `text.…`), the config with that model's activation and
    normalisation, and the hash of the weights. PevlError when they cannot be had or do not fit.
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
    logging.disable(logging.ERROR)  # its and the hub's lines; what matters is told below
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained=pretrained, force_quick_gelu=config.quick_gelu and path.is_file()
        )
    except Exception as error:  # open_clip and the hub client raise many kinds
        reason = (str(error).strip() or "no reason given").splitlines()[0].split(". ")[0]
        reason = f"{type(error).__name__}: {reason}"
        raise PevlError(
            f"{source}: CLIP weights could not be loaded ({reason}). Without network, download "
            "open_clip's file (a state dict or safetensors) elsewhere and name it."
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    normalise = preprocess.transforms[-1]
    quick = any("QuickGELU" in type(m).__name__ for m in model.modules())
    state = _our_names(model.state_dict())
    fitted = config.model_copy(
        update={
            "quick_gelu": quick,
            "image_mean": tuple(float(v) for v in normalise.mean),
            "image_std": tuple(float(v) for v in normalise.std),
        }
    )
    _check_shapes(state, fitted, source)
    return state, fitted, state_digest(state)


def _check_shapes(state: dict[str, Tensor], config: ModelConfig, source: str) -> None:
    with torch.device("meta"):
        towers = {"visual": VisualTower(config), "text": TextTower(config)}
    wanted = {f"{t}.{k}": v.shape for t, m in towers.items() for k, v in m.state_dict().items()}
    for key in sorted(wanted.keys() | state.keys()):
        if key not in wanted or key not in state or wanted[key] != state[key].shape:
            raise PevlError(f"{source}: does not fit config '{config.name}' (weight '{key}').")


def _our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip keeps the text tower at the top level; here it stands under `text.`."""
    ours = {}
    for key, value in state.items():
        if key.startswith("visual."):
            ours[key] = value
        elif key not in {"logit_scale", "logit_bias"}:
            ours[f"text.{key.removeprefix('text.')}"] = value
    return {k: v for k, v in ours.items() if not k.endswith("attn_mask")}


def state_digest(state: dict[str, Tensor]) -> str:
    """Hash of names and values, the same on every machine."""
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()
