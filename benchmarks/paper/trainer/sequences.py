"""The sequences of a training: captioned images and plain text, in an order that the seed alone decides.

`data` is one of:

- a folder of shards as `prepare_data.py` writes them: `manifest.jsonl` and tar files of `json.gz` members;
- JSONL or safetensors of pairs, see `evalsvc.data.tokens`;
- safetensors of a *pool*, in which an image has several grids of codes (of crops or distortions) and several captions:
  `codes` [variants, images, codes of an image], `captions` [images, captions of an image, T] and `caption_lengths`
  [images, captions of an image], where ids beyond a caption's length are ignored.

A sequence is drawn as ids of tokenizer and codebook, and the layout makes rows of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from evalsvc.data.tokens import read_tokens
from evalsvc.errors import InvalidData
from evalsvc.files.atomic import write_whole
from evalsvc.spec.layout import VocabularyLayout
from trainer.image_source import Ids, Images
from trainer.recipe import Recipe, Replay
from trainer.shards import Shards

IGNORED = -100
"""Target of positions that predict nothing, as in torch."""
POOL = {"codes", "captions", "caption_lengths"}


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences of a step, padded on the right to the longest."""

    ids: Tensor
    """Rows of the table, [B, T] int64."""
    targets: Tensor
    """Rows that are predicted, [B, T] int64; IGNORED after the end of a sequence."""
    replay_rows: slice
    """Sequences of the batch that are plain text."""

    def to(self, device: str) -> Batch:
        """Return the batch on a device."""
        return Batch(self.ids.to(device), self.targets.to(device), self.replay_rows)


# captioned images


class Pairs(Images):
    """Records of a file of pairs."""

    def __init__(self, path: Path, layout: VocabularyLayout) -> None:
        data = read_tokens(path, layout.text.tokenizer, layout.text.bos)
        self.records = data.records
        self.groups = (len(data.records),)

    def captions(self, image: int) -> Sequence[Ids]:
        ids = self.records[image].text_ids
        return () if ids is None else (ids,)

    def codes(self, image: int, variant: int) -> Ids | None:
        return self.records[image].image_codes


class Pool(Images):
    """Images with several variants and captions."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.grids, self.ids, self.lengths = (tensors[name] for name in ("codes", "captions", "caption_lengths"))
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        if self.grids.ndim != 3 or self.ids.ndim != 3 or self.lengths.shape != self.ids.shape[:2]:
            raise InvalidData(
                f"{path} has the shapes {shapes}; a pool has codes [variants, images, N], captions [images, C, T] and "
                "caption_lengths [images, C]"
            )
        if self.grids.shape[1] != len(self.ids) or not self.grids.numel() or not self.lengths.numel():
            raise InvalidData(f"{path} has the shapes {shapes}; give as many captions as images, and at least one")
        if int(self.lengths.min()) < 0 or int(self.lengths.max()) > self.ids.shape[2]:
            raise InvalidData(f"{path}: caption_lengths must be 0…{self.ids.shape[2]}, the width of captions")
        self.variants = len(self.grids)
        self.groups = (len(self.ids),)

    def captions(self, image: int) -> Sequence[Ids]:
        lengths = self.lengths[image].tolist()
        return [ids[:length] for ids, length in zip(self.ids[image].tolist(), lengths, strict=True)]

    def codes(self, image: int, variant: int) -> Ids | None:
        codes: list[int] = self.grids[variant, image].tolist()
        return codes


def read_images(path: Path, layout: VocabularyLayout) -> Images:
    """Open the captioned images of a recipe. Raises InvalidData."""
    if path.is_dir():
        return Shards(path, layout)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                tensors = {name: file.get_tensor(name).long() for name in names} if names == POOL else None
        except (SafetensorError, OSError):
            raise InvalidData(f"{path} is no safetensors file, or cannot be read; check the path") from None
        if tensors is not None:
            return Pool(path, tensors)
    return Pairs(path, layout)


def write_pool(path: Path, codes: Tensor, captions: Sequence[Sequence[Ids]]) -> None:
    """Write a pool of `codes` [variants, images, N] with the same number of captions for each image."""
    lengths = torch.tensor([[len(ids) for ids in of_image] for of_image in captions])
    ids = torch.zeros(*lengths.shape, int(lengths.max()), dtype=torch.int32)
    for image, of_image in enumerate(captions):
        for place, caption in enumerate(of_image):
            ids[image, place, : len(caption)] = torch.tensor(caption, dtype=torch.int32)
    tensors = {"codes": codes.contiguous(), "captions": ids, "caption_lengths": lengths.to(torch.int32)}
    write_whole(path, save(tensors), mode=0o644)


# plain text


class Text:
    """Plain text as one stream of rows, of which windows are drawn."""

    def __init__(self, replay: Replay, layout: VocabularyLayout) -> None:
        data = read_tokens(replay.text, layout.text.tokenizer, layout.text.bos)
        ids = [token for record in data.texts(None, "replay.text") for token in record.text_ids or ()]
        if len(ids) <= replay.length:
            raise InvalidData(
                f"{replay.text} has {len(ids)} tokens, a window needs {replay.length + 1}; give more text, or lower "
                "`replay.length`"
            )
        if min(ids) < 0 or max(ids) >= layout.text.size:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise InvalidData(f"{replay.text} has the id {wrong}, the layout has {layout.text.size} text ids")
        self.rows = torch.tensor(ids) + layout.text.offset
        self.length = replay.length
        self.share = Fraction(repr(replay.share))

    def count(self, step: int, batch: int) -> int:
        """Return how many of the sequences of a step are text: over all steps, exactly the share."""
        before, after = (int(place * batch * self.share) for place in (step, step + 1))
        return after - before

    def windows(self, count: int, generator: torch.Generator) -> Tensor:  # [count, length + 1]
        """Draw windows that begin anywhere."""
        starts = torch.randint(len(self.rows) - self.length, (count,), generator=generator)
        return self.rows[starts[:, None] + torch.arange(self.length + 1)]


# batches


class Batches:
    """The batches of a training, one after the other. `state` and `load` continue an interrupted order."""

    def __init__(self, recipe: Recipe, layout: VocabularyLayout, images: Images | None, text: Text | None) -> None:
        self.recipe, self.layout, self.images, self.text = recipe, layout, images, text
        # Text has a generator of its own: the order of the images does not depend on the length of the windows.
        self.generator, self.text_generator = (torch.Generator().manual_seed(recipe.batch_seed) for _ in range(2))
        self.queue: list[int] = []
        self.groups: list[int] = []

    def draw(self, step: int) -> Batch:
        """Return the next batch, which is that of `step`."""
        count = self.recipe.batch
        replayed = 0 if self.text is None else self.text.count(step, count)
        sequences = self._images(count - replayed) if replayed < count else []
        if self.text is not None and replayed:
            sequences += self.text.windows(replayed, self.text_generator).tolist()
        return _padded(sequences, slice(count - replayed, count))

    def _images(self, count: int) -> list[list[int]]:
        """Draw images: each one in a random order each time round, each time in one of its variants."""
        assert self.images is not None, "the recipe was checked"
        while len(self.queue) < count:
            self._refill(self.images)
        drawn, self.queue = self.queue[:count], self.queue[count:]
        chosen = torch.randint(self.images.variants, (count,), generator=self.generator).tolist()
        return [self._sequence(self.images, *pair) for pair in zip(drawn, chosen, strict=True)]

    def _refill(self, images: Images) -> None:
        """Append the images of the next group, in random order, to the queue."""
        if not self.groups:
            count = len(images.groups)
            self.groups = torch.randperm(count, generator=self.generator).tolist() if count > 1 else [0]
        group = self.groups.pop(0)
        first = sum(images.groups[:group])
        order = torch.randperm(images.groups[group], generator=self.generator)
        self.queue += (order + first).tolist()

    def _sequence(self, images: Images, image: int, variant: int) -> list[int]:
        captions = images.captions(image)
        place = int(torch.randint(max(len(captions), 1), (), generator=self.generator))
        dropped = bool(torch.rand((), generator=self.generator) < self.recipe.caption_drop)
        text = None if dropped or self.recipe.image_only or not captions else captions[place]
        codes = images.codes(image, variant)
        try:
            return self.layout.sequence(text, codes).ids
        except InvalidData as error:
            raise InvalidData(f"{self.recipe.data}, record {image + 1} {error.message}") from None

    def state(self) -> dict[str, Any]:
        """Return the place in the order, for the file from which a training resumes."""
        return {
            "generator": self.generator.get_state(),
            "text_generator": self.text_generator.get_state(),
            "queue": torch.tensor(self.queue, dtype=torch.int64),
            "groups": torch.tensor(self.groups, dtype=torch.int64),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue at a place that `state` returned."""
        self.generator.set_state(state["generator"])
        self.text_generator.set_state(state["text_generator"])
        self.queue, self.groups = state["queue"].tolist(), state["groups"].tolist()


def _padded(sequences: list[list[int]], replay_rows: slice) -> Batch:
    width = max(map(len, sequences)) - 1
    ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    targets = torch.full_like(ids, IGNORED)
    for row, sequence in enumerate(sequences):
        whole = torch.tensor(sequence)
        ids[row, : len(sequence) - 1] = whole[:-1]
        targets[row, : len(sequence) - 1] = whole[1:]
    return Batch(ids, targets, replay_rows)


def open_batches(recipe: Recipe, layout: VocabularyLayout) -> Batches:
    """Open the data and the text of a recipe. Raises InvalidData."""
    images = None if recipe.data is None else read_images(recipe.data, layout)
    text = None if recipe.replay is None else Text(recipe.replay, layout)
    return Batches(recipe, layout, images, text)
