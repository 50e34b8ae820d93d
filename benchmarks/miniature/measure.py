"""What the miniature reached: losses by token type, and how often its samples show the digit that they should."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.data.captions import Caption
from evalsvc.decoders import ImageDecoder, to_uint8
from evalsvc.features.digit_classifier import DigitClassifier
from evalsvc.models import Transformer
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, generate
from evalsvc.spec.layout import VocabularyLayout
from topics import encode

BATCH = 100
LENGTH = 64
"""Codes an image."""


def pad(sequences: list[list[int]], pad_id: int) -> Tensor:  # [B, T] int64
    """Return the sequences as rows, padded on the right, where no real token sees the padding."""
    width = max(map(len, sequences))
    return torch.tensor([ids + [pad_id] * (width - len(ids)) for ids in sequences])


@torch.no_grad()
def losses(
    model: Transformer, layout: VocabularyLayout, records: list[tuple[list[int], list[int] | None]]
) -> dict[str, float]:
    """Nats per token over all ids, by the type of the target: `text`, `image`, and `all` with the markers."""
    sums, counts = dict.fromkeys(("text", "image", "all"), 0.0), dict.fromkeys(("text", "image", "all"), 0)
    assert layout.pad_id is not None
    for start in range(0, len(records), BATCH):
        ids = pad(
            [layout.sequence(*record, in_template=False).ids for record in records[start : start + BATCH]],
            layout.pad_id,
        )
        targets = ids[:, 1:]
        nll = functional.cross_entropy(model(ids[:, :-1]).transpose(1, 2), targets, reduction="none")
        for kind, chosen in _kinds(layout, targets).items():
            sums[kind] += float(nll[chosen].double().sum())
            counts[kind] += int(chosen.sum())
    return {kind: sums[kind] / counts[kind] for kind in sums if counts[kind]}


def _kinds(layout: VocabularyLayout, targets: Tensor) -> dict[str, Tensor]:
    blocks = {"text": layout.text_ids, "image": layout.image_range}
    kinds = {name: (targets >= rows.start) & (targets < rows.stop) for name, rows in blocks.items() if rows is not None}
    return {**kinds, "all": targets.ne(layout.special_ids["pad"])}


@dataclass(frozen=True)
class Reader:
    """From captions to the share of samples that are read as what the caption names."""

    layout: VocabularyLayout
    tokenizer: Path
    decoder: ImageDecoder
    classifier: DigitClassifier

    def sample(self, model: Transformer, captions: tuple[Caption, ...], guidance: float = 1.0) -> Tensor:
        """Images uint8 [len(captions), 3, 32, 32] at temperature 1."""
        texts = encode(self.tokenizer, [caption.text for caption in captions])
        prompts = [
            Prompt(caption.id, tuple(self.layout.prompt(text, LENGTH).ids))
            for caption, text in zip(captions, texts, strict=True)
        ]
        unconditional = tuple(self.layout.prompt(None, LENGTH).ids) if guidance != 1 else None
        params = SamplingParams(guidance_scale=guidance)
        assert self.layout.image_ids is not None
        spec = SamplerSpec(self.layout.image_ids, LENGTH, params, batch=BATCH, unconditional=unconditional)
        codes = torch.zeros(len(prompts), spec.length, dtype=torch.int64)
        for samples in generate(model, prompts, spec):
            codes[list(samples.indices)] = samples.codes
        return to_uint8(self.decoder.decode(codes))

    def agreement(self, model: Transformer, captions: tuple[Caption, ...], guidance: float = 1.0) -> float:
        labels = torch.tensor([caption.label for caption in captions])
        read = self.classifier.predict(self.sample(model, captions, guidance))
        return float((read == labels).float().mean())
