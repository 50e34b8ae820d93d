"""The miniature's text: Python's own documentation topics, and the tokenizer that is trained on them."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

VOCABULARY = 512
HELD_OUT_TOPICS = 9
CHUNK = 128
"""Tokens of a held-out sequence."""
SHORTEST_CHUNK = 16
"""A shorter rest of a topic is left out: its first tokens would be most of it."""


def write_topics(path: Path, seed: int) -> None:
    """The topics of the running Python, split by topic. They differ between Python versions, so the file is kept."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = {names[index] for index in order[:HELD_OUT_TOPICS]}
    content = {
        "source": f"pydoc_data.topics of Python {platform.python_version()}, PSF licence",
        "train": {name: topics[name] for name in names if name not in held_out},
        "heldout": {name: topics[name] for name in names if name in held_out},
    }
    path.write_text(json.dumps(content, indent=0, ensure_ascii=False) + "\n")


def read_topics(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def train_tokenizer(texts: list[str], path: Path) -> None:
    """Byte-level BPE; every string of characters has ids, so no token stands for the unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))


def encode(tokenizer: Path, texts: list[str]) -> list[list[int]]:
    opened = Tokenizer.from_file(str(tokenizer))
    return [encoding.ids for encoding in opened.encode_batch(texts, add_special_tokens=False)]


def stream(tokenizer: Path, texts: list[str]) -> Tensor:  # [N] int64
    """All texts, one after the other."""
    return torch.tensor([token for ids in encode(tokenizer, texts) for token in ids])


def chunks(tokenizer: Path, texts: list[str]) -> Iterator[list[int]]:
    """The texts cut into sequences of at most CHUNK tokens, none over the end of a text."""
    for ids in encode(tokenizer, texts):
        for start in range(0, len(ids), CHUNK):
            if len(ids) - start >= SHORTEST_CHUNK:
                yield ids[start : start + CHUNK]
