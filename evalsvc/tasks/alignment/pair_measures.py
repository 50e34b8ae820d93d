"""Measuring pairs in an embedding table, before any layer has read them: the part of `alignment` that needs torch.

A caption is the mean of its ids' rows and an image the mean of its codes' rows: bags of words, both of length one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.data.tokens import TokenData
from evalsvc.errors import InvalidData
from evalsvc.metrics.contrastive import (
    PermutationTest,
    clip_loss,
    excess_similarity,
    fit_scale,
    hits_at,
    mean_off_diagonal,
    permutation_test,
)
from evalsvc.metrics.table_rows import Nearest, nearest_rows, subspace_overlap
from evalsvc.models.language_model import LanguageModel
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.tasks.alignment.spec import Alignment

RANKS = (1, 5, 10)

CENTRINGS = {"neighbour_hits": False, "neighbour_hits_centred": True}
"""Ways of finding the nearest text tokens: by the rows, or by the rows minus the mean of their kind."""

SHOWN = 256
"""Number of codes, the most frequent ones, whose nearest text tokens are shown."""


@dataclass(frozen=True)
class TokenPairs:
    """Captions and images, where the i-th caption belongs to the i-th image."""

    places: tuple[int, ...]
    texts: tuple[Sequence[int], ...]
    """Ids of the tokenizer for each caption, at least one."""
    codes: tuple[Sequence[int], ...]

    def __len__(self) -> int:
        return len(self.places)

    def take(self, chosen: Iterable[int]) -> TokenPairs:
        rows = [(self.places[row], self.texts[row], self.codes[row]) for row in chosen]
        return TokenPairs(*map(tuple, zip(*rows, strict=True)))

    def one_per_image(self) -> TokenPairs:
        """Return the first pair of each image: several captions of one image would each be a right answer."""
        first: dict[tuple[int, ...], int] = {}
        for row, codes in enumerate(self.codes):
            first.setdefault(tuple(codes), row)
        return self.take(first.values())


def pairs_of(data: TokenData, layout: VocabularyLayout, limit: int | None = None) -> TokenPairs:
    """Return the first `limit` records without those that lack text or image."""
    rows = []
    for place, record in enumerate(data.records[:limit]):
        try:
            # A caption is its own ids alone, without the layout's `prompt`, which would move all captions alike.
            layout.sequence(record.text_ids, record.image_codes, in_template=False)
        except InvalidData as error:
            raise InvalidData(f"{data.path}, {record.where} {error.message}") from None
        if record.text_ids and record.image_codes:
            rows.append((place, record.text_ids, record.image_codes))
    if len({tuple(codes) for _, _, codes in rows}) < 2:
        raise InvalidData(
            f"{data.path} has {len(rows)} records with both text and image codes, but needs two of different images; "
            "add pairs"
        )
    places, texts, codes = zip(*rows, strict=True)
    return TokenPairs(places, texts, codes)


def batches(pairs: TokenPairs, size: int, seed: int) -> list[TokenPairs]:
    """Return random batches of `size` pairs, because files are often sorted; fewer pairs are one batch."""
    if len(pairs) <= size:
        return [pairs]

    def draw(row: int) -> bytes:
        return hashlib.sha256(f"{seed} {pairs.places[row]}".encode()).digest()

    order = sorted(range(len(pairs)), key=draw)  # the same on every machine and in every version
    return [pairs.take(order[start : start + size]) for start in range(0, len(order) - size + 1, size)]


@dataclass(frozen=True)
class Tables:
    """The rows of one embedding table, by meaning."""

    text: Tensor
    """Text rows [T, D], in the order of the tokenizer's ids."""
    image: Tensor
    """Image rows [K, D], in the order of the codes."""
    known: int
    """Number of the tokenizer's ids. Later rows of `text` are padding."""
    words: Sequence[int] | None = None
    """The tokenizer's ids that are text, where some are of images or special tokens; None: all."""

    @cached_property
    def candidates(self) -> Tensor:
        return self.text[: self.known] if self.words is None else self.text[list(self.words)]


def words_of(layout: VocabularyLayout, known: int) -> Sequence[int]:
    """Return the tokenizer's ids below `known` whose rows are text."""
    if layout.text_ranges == (layout.text_ids,):
        return range(known)
    ids = (row - layout.text.offset for rows in layout.text_ranges for row in rows)
    return [token for token in ids if token < known]


def tables_of(model: LanguageModel, layout: VocabularyLayout, output: bool, known: int) -> Tables:
    table = model.output_table if output else model.input_table
    text = table[layout.text_ids.start : layout.text_ids.stop]
    image = torch.tensor(layout.image_ids, device=table.device)
    words = words_of(layout, known)
    return Tables(text, table[image], known, None if words == range(known) else words)


def bag_means(table: Tensor, bags: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean of each bag's rows of a table [V, D], normalised to length one, [B, D] float64."""
    flat, starts = flattened(bags)
    ids, places = torch.unique(flat.to(table.device), return_inverse=True)
    means = functional.embedding_bag(places, table[ids].double(), starts.to(table.device), mode="mean")
    return functional.normalize(means, dim=1)


def flattened(bags: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return the ids of all bags one after the other, and the start of each bag."""
    flat = np.concatenate([np.asarray(bag, dtype=np.int64) for bag in bags])
    lengths = torch.tensor([len(bag) for bag in bags])
    return torch.from_numpy(flat), lengths.cumsum(0) - lengths


class Similarities(NamedTuple):
    """Similarities within a batch, all [B, B]; cosines are float64."""

    pairs: Tensor
    """Similarity of image i and text j."""
    texts: Tensor
    images: Tensor
    right: Tensor


def similarities(tables: Tables, batch: TokenPairs) -> Similarities:
    """Return the similarities in a batch. Each distinct bag is computed once, so equal bags are exactly equal."""
    text, text_of = _distinct(batch.texts)
    image, image_of = _distinct(batch.codes)
    texts, images = bag_means(tables.text, text).cpu(), bag_means(tables.image, image).cpu()
    return Similarities(
        (images @ texts.T)[image_of][:, text_of],
        (texts @ texts.T)[text_of][:, text_of],
        (images @ images.T)[image_of][:, image_of],
        text_of[:, None] == text_of,
    )


def _distinct(bags: Sequence[Sequence[int]]) -> tuple[list[tuple[int, ...]], Tensor]:
    known: dict[tuple[int, ...], int] = {}
    places = [known.setdefault(tuple(sorted(bag)), len(known)) for bag in bags]
    return list(known), torch.tensor(places)


@dataclass(frozen=True, kw_only=True)
class OverlapParts:
    """Squared distances of the image rows in use from their mean."""

    inside: Sequence[float]
    """Squared lengths within the subspace of the text rows."""
    whole: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class TableMeasures:
    """Measures of a table on batches of pairs."""

    places: Sequence[int]
    """Index of each pair's record in the data."""
    columns: Mapping[str, Sequence[float]]
    """Numbers per pair, in the order of `places`; their means are those of `metrics.contrastive`."""
    chance: Mapping[str, float]
    hit_chance: Mapping[str, float]
    floor: float
    """Smallest possible loss, where equal texts belong to several images."""
    fitted_scale: float
    """1 / temperature that minimises the loss."""
    tests: Mapping[str, PermutationTest]
    overlap: OverlapParts
    overlap_chance: float
    nearest_tokens: str


def measure(
    tables: Tables,
    parts: Sequence[TokenPairs],
    task: Alignment,
    token_text: Callable[[int], str] = str,
    report: Callable[[], None] = lambda: None,
) -> TableMeasures:
    """Measure a table on batches of pairs, and find the text tokens nearest to image tokens. `token_text` returns what
    a page shows for a text token; `report` is called between steps."""
    batch_similarities = []
    for part in parts:
        report()
        batch_similarities.append(similarities(tables, part))
    near = near_tokens(tables, parts, task.neighbours, report)
    fitted = fit_scale([entry.pairs for entry in batch_similarities])
    columns = _joined([_columns(entry, fitted) for entry in batch_similarities])
    columns |= {name: torch.cat([matrix.diagonal() for matrix in hits]).tolist() for name, hits in near.hits.items()}
    columns["neighbours"] = near.neighbours
    tested = {"pairs": [entry.pairs for entry in batch_similarities], **near.hits}
    tests = {name: permutation_test(parts, task.permutations, task.seed, report) for name, parts in tested.items()}
    overlap = subspace_overlap(tables.image[torch.tensor(near.codes, device=tables.image.device)], tables.candidates)
    chances = _joined(
        {f"at_{k}": hits_at(torch.zeros_like(entry.pairs), entry.right, k).tolist() for k in RANKS}
        for entry in batch_similarities
    )
    return TableMeasures(
        places=[place for part in parts for place in part.places],
        columns=columns,
        chance={name: sum(values) / len(values) for name, values in chances.items()},
        hit_chance={name: near.chance(name) for name in near.hits},
        floor=float(torch.cat([entry.right.sum(1).double().log() for entry in batch_similarities]).mean()),
        fitted_scale=fitted,
        tests=tests,
        overlap=OverlapParts(inside=overlap.inside.tolist(), whole=overlap.whole.tolist()),
        overlap_chance=overlap.directions / tables.image.shape[1],
        nearest_tokens="\n".join(_nearest_page(near, token_text)) + "\n",
    )


@dataclass(frozen=True)
class NearTokens:
    """The nearest text tokens of image tokens, and how often captions name them."""

    codes: list[int]
    """Codes that occur in the images, the most frequent first."""
    images: list[int]
    """Number of images in which each code occurs."""
    nearest: dict[str, Nearest]
    """Nearest text tokens of each code, by the ways in `CENTRINGS`."""
    hits: dict[str, list[Tensor]]
    """Hits of each batch, float64 [B, B]: number of nearest tokens of the codes in image i that occur in text j."""
    neighbours: list[float]
    """Maximum number of hits of each image: its number of neighbours."""

    def chance(self, name: str) -> float:
        """Return the mean share of hits over all pairings of a batch's texts and images."""
        return sum(float(matrix.sum()) / len(matrix) for matrix in self.hits[name]) / sum(self.neighbours)


def near_tokens(
    tables: Tables, parts: Sequence[TokenPairs], count: int, report: Callable[[], None] = lambda: None
) -> NearTokens:
    counts = Counter(code for part in parts for codes in part.codes for code in set(codes))
    codes = sorted(counts, key=lambda code: (-counts[code], code))
    queries = tables.image[torch.tensor(codes, device=tables.image.device)]
    nearest, hits = {}, {}
    for name, centred in CENTRINGS.items():
        near = nearest_rows(queries, tables.candidates, count, centred, report)
        if tables.words is not None:
            near = near._replace(rows=torch.tensor(tables.words, device=near.rows.device)[near.rows])
        nearest[name] = near
        by_code = dict(zip(codes, nearest[name].rows.tolist(), strict=True))
        hits[name] = [_hits(part, by_code) for part in parts]
    per_code = nearest[name].rows.shape[1]
    neighbours = [float(per_code * len(set(codes))) for part in parts for codes in part.codes]
    return NearTokens(codes, [counts[code] for code in codes], nearest, hits, neighbours)


def _columns(batch: Similarities, fitted: float) -> dict[str, list[float]]:
    columns = {
        "loss_fitted": clip_loss(batch.pairs, fitted),
        "cosine_excess": excess_similarity(batch.pairs),
        "cosine_between": mean_off_diagonal(batch.pairs),
        "cosine_text": mean_off_diagonal(batch.texts),
        "cosine_image": mean_off_diagonal(batch.images),
    }
    for k in RANKS:
        columns[f"image_to_text_at_{k}"] = hits_at(batch.pairs, batch.right, k)
        columns[f"text_to_image_at_{k}"] = hits_at(batch.pairs.T, batch.right, k)
    return {name: column.tolist() for name, column in columns.items()}


def _joined(parts: Iterable[dict[str, list[float]]]) -> dict[str, list[float]]:
    every = list(parts)
    return {name: [value for part in every for value in part[name]] for name in every[0]}


def _hits(part: TokenPairs, nearest: Mapping[int, Sequence[int]]) -> Tensor:
    words = {word: place for place, word in enumerate(sorted(set(chain.from_iterable(part.texts))))}
    wanted, present = (torch.zeros(len(part), len(words), dtype=torch.float64) for _ in range(2))
    for row, (text, codes) in enumerate(zip(part.texts, part.codes, strict=True)):
        present[row, [words[word] for word in set(text)]] = 1
        named = [words[word] for code in set(codes) for word in nearest[code] if word in words]
        wanted[row] = torch.bincount(torch.tensor(named, dtype=torch.int64), minlength=len(words)).double()
    return wanted @ present.T


def _nearest_page(near: NearTokens, token_text: Callable[[int], str]) -> Iterator[str]:
    codes = near.codes
    yield f"nearest text tokens of the {min(SHOWN, len(codes))} most frequent of {len(codes)} image tokens"
    yield "by the cosine of the rows, and of the rows less the mean of their kind (centred)"
    for row, (code, count) in enumerate(zip(codes[:SHOWN], near.images, strict=False)):
        yield f"\n‹image {code}›  in {count} images"
        for name, label in (("neighbour_hits", "rows"), ("neighbour_hits_centred", "centred")):
            nearest = near.nearest[name]
            neighbours = zip(nearest.rows[row].tolist(), nearest.cosines[row].tolist(), strict=True)
            yield f"  {label:<8}" + "  ".join(f"‹{token_text(word)}› {cosine:.2f}" for word, cosine in neighbours)
