"""The smallest model that has a layout: it predicts a row from the row before it, as often as it has seen them so."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from evalsvc.data.tokens import Record
from evalsvc.spec.layout import VocabularyLayout

Counts = dict[int, Counter[int]]


class BigramWitness:
    """p(next | before) = (count + smoothing) / (count of before + smoothing · rows)."""

    def __init__(self, counts: Counts, rows: int, smoothing: float = 1e-3) -> None:
        self.counts = counts
        self.rows_count = rows
        self.smoothing = smoothing

    @classmethod
    def trained(cls, layout: VocabularyLayout, records: Sequence[Record], rows: int) -> "BigramWitness":
        counts: Counts = {}
        for record in records:
            for before, after in pairwise(layout.sequence(record.text_ids, record.image_codes).ids):
                counts.setdefault(before, Counter())[after] += 1
        return cls(counts, rows)

    def probability(self, before: int, group: Sequence[int]) -> float:
        seen = self.counts.get(before)
        if seen is None:
            return len(group) / self.rows_count
        found = seen[group[0]] if len(group) == 1 else sum(count for row, count in seen.items() if row in group)
        return (found + self.smoothing * len(group)) / (seen.total() + self.smoothing * self.rows_count)

    def sums(self, layout: VocabularyLayout, sequences: Sequence[Sequence[int]]) -> dict[str, list[float]]:
        kinds = ("text", "image", "special")
        names = [*(f"{what}_{kind}" for what in ("n", "nll", "within") for kind in kinds), "image_mass"]
        sums: dict[str, list[float]] = {name: [0.0] * len(sequences) for name in names}
        blocks = {"text": layout.text_ids, "image": layout.image_range or range(0)}
        for index, sequence in enumerate(sequences):
            for before, after in pairwise(sequence):
                kind = next((kind for kind, block in blocks.items() if after in block), "special")
                nll = -math.log(self.probability(before, [after]))
                sums[f"n_{kind}"][index] += 1
                sums[f"nll_{kind}"][index] += nll
                if kind in blocks:
                    sums[f"within_{kind}"][index] += nll + math.log(self.probability(before, blocks[kind]))
        return sums

    def next_log_masses(self, prefixes: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[self._log(prefix[-1], group) for group in groups] for prefix in prefixes]

    def _log(self, before: int, group: Sequence[int]) -> float:
        return math.log(self.probability(before, group)) if group else -math.inf
