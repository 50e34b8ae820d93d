"""What an embedding table knows of pairs before any layer has read them: the part of `alignment` that needs torch.

A caption is the mean of its ids' rows, an image that of its codes' rows: bags of words, both of length one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.data.tokenizer import TextTokenizer, render
from evalsvc.metrics.contrastive import (
    clip_loss,
    excess_similarity,
    fit_scale,
    hits_at,
    mean_off_diagonal,
    permutation_test,
)
from evalsvc.metrics.row_geometry import Nearest, nearest_rows, subspace_overlap
from evalsvc.models import Transformer
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.tasks.alignment.shards import OverlapParts, TableMeasures
from evalsvc.tasks.alignment.spec import Alignment
from evalsvc.tasks.alignment.token_pairs import TokenPairs

RANKS = (1, 5, 10)
"""Of the retrieval: how many of the nearest candidates are looked at."""

CENTRINGS = {"neighbour_hits": False, "neighbour_hits_centred": True}
"""Ways in which text tokens are nearest: by the rows, or by the rows less the mean of their kind."""

SHOWN = 256
"""Codes whose nearest text tokens are shown, the most frequent ones."""


@dataclass(frozen=True)
class Tables:
    """The rows of one embedding table, by what they mean."""

    text: Tensor
    """[T, D], in the order of the tokenizer's ids."""
    image: Tensor
    """[K, D], in the order of the codes."""
    known: int
    """Ids of the tokenizer; rows of `text` from here on are padding."""

    @property
    def candidates(self) -> Tensor:
        """The text rows that can be nearest to something."""
        return self.text[: self.known]


def tables_of(model: Transformer, layout: VocabularyLayout, output: bool, known: int) -> Tables:
    """Of the input table, or of the output table; the layout has images."""
    table = (model.output if output else model.tok_embeddings).weight.detach()
    text = table[layout.text_ids.start : layout.text_ids.stop]
    image = torch.tensor(layout.image_ids, device=table.device)
    return Tables(text, table[image], known)


def bag_means(
    table: Tensor,  # [V, D]
    bags: Sequence[Sequence[int]],
) -> Tensor:  # [B, D] float64, where the table is
    """The mean of each bag's rows, of length one."""
    flat, starts = flattened(bags)
    ids, places = torch.unique(flat.to(table.device), return_inverse=True)
    means = functional.embedding_bag(places, table[ids].double(), starts.to(table.device), mode="mean")
    return functional.normalize(means, dim=1)


def flattened(bags: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The bags' ids one after the other, and where each bag begins; both int64."""
    flat = np.concatenate([np.asarray(bag, dtype=np.int64) for bag in bags])
    lengths = torch.tensor([len(bag) for bag in bags])
    return torch.from_numpy(flat), lengths.cumsum(0) - lengths


class Similarities(NamedTuple):
    """Of a batch, all [B, B]; cosines are float64."""

    pairs: Tensor
    """Of image i and text j."""
    texts: Tensor
    images: Tensor
    right: Tensor
    """bool: text j is as right for image i as its own, since it has the same ids."""


def similarities(tables: Tables, batch: TokenPairs) -> Similarities:
    """Equal bags have equal similarities to the last bit: each is computed once."""
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
    """The bags that differ, and which of them each is, [B]: the order of a bag's ids is nothing to its mean."""
    known: dict[tuple[int, ...], int] = {}
    places = [known.setdefault(tuple(sorted(bag)), len(known)) for bag in bags]
    return list(known), torch.tensor(places)


def measure(
    tables: Tables,
    parts: Sequence[TokenPairs],
    task: Alignment,
    scale: float | None = None,
    report: Callable[[], None] = lambda: None,
) -> tuple[TableMeasures, NearTokens]:
    """Measure a table on batches of pairs, and find the text tokens that are nearest to image tokens.

    `loss_fitted` is at the temperature that makes it smallest, `loss` at the factor `scale`. `report` is called between
    steps.
    """
    found = []
    for part in parts:
        report()
        found.append(similarities(tables, part))
    near = _near_tokens(tables, parts, task.neighbours, report)
    fitted = fit_scale([one.pairs for one in found])
    columns = _joined([_columns(one, fitted, scale) for one in found])
    columns |= {name: torch.cat([one.diagonal() for one in hits]).tolist() for name, hits in near.hits.items()}
    columns["neighbours"] = near.neighbours
    tested = {"pairs": [one.pairs for one in found], **near.hits}
    tests = {name: permutation_test(one, task.permutations, task.seed, report) for name, one in tested.items()}
    overlap = subspace_overlap(tables.image[torch.tensor(near.codes, device=tables.image.device)], tables.candidates)
    measures = TableMeasures(
        places=[place for part in parts for place in part.places],
        columns=columns,
        chance={name: sum(values) / len(values) for name, values in _joined(map(_chances, found)).items()},
        hit_chance={name: near.chance(name) for name in near.hits},
        floor=float(torch.cat([one.right.sum(1).double().log() for one in found]).mean()),
        fitted_scale=fitted,
        tests=tests,
        overlap=OverlapParts(inside=overlap.inside.tolist(), whole=overlap.whole.tolist()),
        overlap_chance=overlap.directions / tables.image.shape[1],
    )
    return measures, near


@dataclass(frozen=True)
class NearTokens:
    """The nearest text tokens of image tokens, and how often they are named in captions."""

    codes: list[int]
    """Those that occur, the most frequent first."""
    images: list[int]
    """In how many images each does."""
    nearest: dict[str, Nearest]
    """Of each code, in each of the ways `CENTRINGS`."""
    hits: dict[str, list[Tensor]]
    """Of each batch float64 [B, B]: how many of the nearest tokens of the codes in image i occur in text j."""
    neighbours: list[float]
    """Of each image how many there are: what `hits` could be at most."""

    def chance(self, name: str) -> float:
        """The share of hits, the mean over all ways to put the texts of a batch to its images."""
        return sum(float(one.sum()) / len(one) for one in self.hits[name]) / sum(self.neighbours)


def _near_tokens(tables: Tables, parts: Sequence[TokenPairs], count: int, report: Callable[[], None]) -> NearTokens:
    counts = Counter(code for part in parts for codes in part.codes for code in set(codes))
    codes = sorted(counts, key=lambda code: (-counts[code], code))
    queries = tables.image[torch.tensor(codes, device=tables.image.device)]
    nearest, hits = {}, {}
    for name, centred in CENTRINGS.items():
        nearest[name] = nearest_rows(queries, tables.candidates, count, centred, report)
        by_code = dict(zip(codes, nearest[name].rows.tolist(), strict=True))
        hits[name] = [_hits(part, by_code) for part in parts]
    each = nearest[name].rows.shape[1]
    neighbours = [float(each * len(set(own))) for part in parts for own in part.codes]
    return NearTokens(codes, [counts[code] for code in codes], nearest, hits, neighbours)


def _columns(one: Similarities, fitted: float, scale: float | None) -> dict[str, list[float]]:
    columns = {
        "loss_fitted": clip_loss(one.pairs, fitted),
        "cosine_excess": excess_similarity(one.pairs),
        "cosine_between": mean_off_diagonal(one.pairs),
        "cosine_text": mean_off_diagonal(one.texts),
        "cosine_image": mean_off_diagonal(one.images),
    }
    if scale is not None:
        columns["loss"] = clip_loss(one.pairs, scale)
    for k in RANKS:
        columns[f"image_to_text_at_{k}"] = hits_at(one.pairs, one.right, k)
        columns[f"text_to_image_at_{k}"] = hits_at(one.pairs.T, one.right, k)
    return {name: column.tolist() for name, column in columns.items()}


def _chances(one: Similarities) -> dict[str, list[float]]:
    nothing = torch.zeros_like(one.pairs)
    return {f"at_{k}": hits_at(nothing, one.right, k).tolist() for k in RANKS}


def _joined(parts: Iterable[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Columns of several batches, one after the other."""
    every = list(parts)
    return {name: [value for part in every for value in part[name]] for name in every[0]}


def _hits(part: TokenPairs, nearest: Mapping[int, Sequence[int]]) -> Tensor:
    """float64 [B, B]: how many of the nearest tokens of the codes in image i occur in text j."""
    words = {word: place for place, word in enumerate(sorted(set(chain.from_iterable(part.texts))))}
    wanted, there = (torch.zeros(len(part), len(words), dtype=torch.float64) for _ in range(2))
    for row, (text, codes) in enumerate(zip(part.texts, part.codes, strict=True)):
        there[row, [words[word] for word in set(text)]] = 1
        named = [words[word] for code in set(codes) for word in nearest[code] if word in words]
        wanted[row] = torch.bincount(torch.tensor(named, dtype=torch.int64), minlength=len(words)).double()
    return wanted @ there.T


def nearest_page(near: NearTokens, layout: VocabularyLayout, tokenizer: TextTokenizer | None) -> Iterator[str]:
    """Lines to read: of the most frequent codes the nearest text tokens, with their cosines."""
    codes = near.codes
    yield f"nearest text tokens of the {min(SHOWN, len(codes))} most frequent of {len(codes)} image tokens"
    yield "by the cosine of the rows, and of the rows less the mean of their kind (centred)"
    for row, (code, count) in enumerate(zip(codes[:SHOWN], near.images, strict=False)):
        yield f"\n‹image {code}›  in {count} images"
        for name, label in (("neighbour_hits", "rows"), ("neighbour_hits_centred", "centred")):
            nearest = near.nearest[name]
            found = zip(nearest.rows[row].tolist(), nearest.cosines[row].tolist(), strict=True)
            shown = (f"{_shown(word, layout, tokenizer)} {cosine:.2f}" for word, cosine in found)
            yield f"  {label:<8}" + "  ".join(shown)


def _shown(word: int, layout: VocabularyLayout, tokenizer: TextTokenizer | None) -> str:
    """A text token as text, with its blanks; its id where that says nothing."""
    text = "" if tokenizer is None else render([layout.text.offset + word], layout, tokenizer)
    if not text:
        return f"‹text {word}›"
    return f"‹{text if text.isprintable() else text.encode('unicode_escape').decode()}›"
