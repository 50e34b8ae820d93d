"""Prompts of the image task: captions, selected and tokenised once per worker process, file and layout.

caption → `TextEncoder` (ids of the tokenizer, with the token before a text, or of the layout's `prompt`) →
`VocabularyLayout.prompt` (cut, moved to the rows of text in the model's table, and set into the template)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

from evalsvc.checkpoints.reference import Identity
from evalsvc.data.captions import read_captions, select_captions
from evalsvc.data.files import CACHED_FILES, identify_file
from evalsvc.data.tokens import TextEncoder, stamp_of
from evalsvc.errors import InvalidData
from evalsvc.files.opened import Allow, anywhere
from evalsvc.spec.bounds import Beginning
from evalsvc.spec.images import Selection
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.protocol import canonical_json
from evalsvc.tasks.image_task import named_images


@dataclass(frozen=True)
class PromptRecord:
    id: str
    text: str
    ids: tuple[int, ...]
    """Ids before the first image token."""
    cut: int
    """Number of text ids that did not fit."""
    label: int | None
    image: str | int | None
    unconditional: tuple[int, ...] | None = None
    """Ids that guidance leads away from; None for a layout without a `prompt`, where all prompts have the same."""
    names_tokens: bool = False
    """Whether the caption holds the names of special tokens, which became these tokens."""


@dataclass(frozen=True)
class Prompts:
    path: str
    records: tuple[PromptRecord, ...]
    captions: str
    """Digest of the whole list that the prompts were selected from."""
    tokenizer: str | None = None
    """Digest of the tokenizer for a layout with a `prompt`, whose ids depend on the tokenizer without any caption."""

    def images(self) -> tuple[str | int, ...]:
        return named_images(self.path, [(record.id, record.image) for record in self.records])

    @cached_property
    def digest(self) -> str:
        """Return the digest of the model's inputs, after tokenizer, template and cuts, and of the ids of the noise."""
        total = hashlib.sha256()
        for record in self.records:
            other = [] if record.unconditional is None else [record.unconditional]
            total.update(canonical_json([record.id, record.ids, *other]).encode())
        return total.hexdigest()


@dataclass(frozen=True)
class PromptSpec:
    """The selection of captions, and their conversion to the model's inputs."""

    captions: str | None
    samples: int | None
    select: Selection
    select_seed: int
    tokenizer: str | None
    bos: Beginning | None
    """Decision of the layout about the id before every text."""
    codes: int
    layout: VocabularyLayout = field(compare=False)
    layout_digest: str
    allow: Allow = anywhere


def read_prompts(spec: PromptSpec) -> Prompts:
    captions = None if spec.captions is None else identify_file(Path(spec.captions), "caption file")
    return _read_prompts(spec, captions, stamp_of(spec.tokenizer))


def require_unconditional(prompts: Prompts) -> None:
    if prompts.records[0].unconditional is None:
        raise InvalidData(
            "`guidance_scale` needs an unconditional prompt, but the layout's `prompt` has none; add `unconditional`, "
            "`negative` or `pad` to it, or set `guidance_scale` to 1"
        )


@lru_cache(maxsize=CACHED_FILES)
def _read_prompts(spec: PromptSpec, captions: Identity | None, tokenizer: Identity | None) -> Prompts:
    # The identities are part of the cache's key, so that changed files are read again.
    encode = TextEncoder(spec.captions or "", spec.tokenizer, spec.bos, spec.allow, spec.layout.prompt_form)
    if spec.captions is None:
        try:
            prompt = _prompt(spec, encode, None)
        except InvalidData as error:
            raise InvalidData(f"each image without a caption {error.message}") from None
        images = tuple(replace(prompt, id=str(index)) for index in range(spec.samples or 0))
        return Prompts("unconditional", images, "", encode.digest)
    data = read_captions(spec.captions, spec.allow)
    records = []
    for caption in select_captions(data, spec.select, spec.samples, spec.select_seed):
        try:
            prompt = _prompt(spec, encode, caption.text)
        except InvalidData as error:
            raise InvalidData(f"{data.path}, {caption.where} {error.message}") from None
        records.append(replace(prompt, id=caption.id, text=caption.text, label=caption.label, image=caption.image))
    return Prompts(data.path, tuple(records), data.digest, None if encode.form is None else encode.digest)


def _prompt(spec: PromptSpec, encode: TextEncoder, text: str | None) -> PromptRecord:
    if encode.form is None:
        prompt = spec.layout.prompt(None if text is None else encode(text), spec.codes)
        return PromptRecord("", "", tuple(prompt.ids), prompt.cut, None, None)
    encoded = encode.prompt(text, spec.codes)
    ids, against = (
        None if part is None else tuple(spec.layout.prompt(part, spec.codes).ids)
        for part in (encoded.ids, encoded.against)
    )
    return PromptRecord("", "", ids or (), 0, None, None, against, encoded.names_tokens)
