"""The alignment task: whether image tokens lie near the text of their captions in the embedding table.

A caption is the mean of its tokens' rows, an image the mean of its codes' rows. The task measures how well captions and
images find each other in the checkpoint's table.
Source: Zhang, McKinzie, Gan, Shankar, Toshev, "Pre-trained Language Models Do Not Help Auto-regressive Text-to-Image
Generation" (arXiv 2311.16201), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from evalsvc.data.tokenizer import TextTokenizer, read_tokenizer, render
from evalsvc.data.tokens import TokenData, read_tokens
from evalsvc.errors import DataChanged, InvalidData
from evalsvc.files.artifacts import Artifact
from evalsvc.metrics.ratio import Ratio, ratio_of_sums
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.protocol import Direction, MetricValue, Protocol
from evalsvc.tasks.alignment.pair_measures import (
    CENTRINGS,
    TableMeasures,
    batches,
    measure,
    pairs_of,
    tables_of,
    words_of,
)
from evalsvc.tasks.alignment.spec import Alignment
from evalsvc.tasks.task import Context, Plan, Shard, TaskResult, Work

ESTIMATOR = "alignment/2"
"""Version of the computation from rows to metrics, in the protocol. Another version is another series."""


@dataclass(frozen=True, kw_only=True)
class AlignmentShard(Shard):
    digest: str
    candidates: int
    """Number of text rows that stand for a token; the other rows are padding."""
    records: int
    complete: int
    pairs: int
    protocol: Mapping[str, Any]


class AlignmentWork(Work[Alignment, AlignmentShard, TableMeasures]):
    def plan(self, context: Context) -> Plan[AlignmentShard]:
        layout = context.layout()
        if layout.image is None:
            raise InvalidData(
                f"task {self.task.name!r} needs image tokens, but the checkpoint's layout has no image block; post the "
                "checkpoint with a layout that has one"
            )
        data = self._read(context, layout)
        records = pairs_of(data, layout, self.task.limit)
        pairs = records.one_per_image()
        tokenizer = self._tokenizer(context, layout)
        shard = AlignmentShard(
            units=1,
            digest=data.digest,
            candidates=len(words_of(layout, layout.text.size if tokenizer is None else tokenizer.size)),
            records=min(len(data.records), self.task.limit or len(data.records)),
            complete=len(records),
            pairs=len(pairs),
            protocol=self._protocol(layout, data, len(pairs)),
        )
        return Plan([shard], "tables")

    def run(self, context: Context, shard: AlignmentShard) -> TableMeasures:
        layout = context.layout()
        data = self._read(context, layout)
        if data.digest != shard.digest:
            raise DataChanged.since_planned(data.path)
        pairs = pairs_of(data, layout, self.task.limit).one_per_image()
        tokenizer = self._tokenizer(context, layout)
        model = context.model(dtype=self.task.dtype, rotary_inv_freq_dtype="auto")
        known = layout.text.size if tokenizer is None else tokenizer.size
        tables = tables_of(model, layout, self.task.table == "output", known)
        measures = measure(
            tables,
            batches(pairs, self.task.batch, self.task.seed),
            self.task,
            token_text=lambda word: _token_text(word, layout, tokenizer),
            report=lambda: context.report(0),
        )
        context.report(1)
        return measures

    def merge(self, context: Context, shards: Sequence[AlignmentShard], outputs: Sequence[TableMeasures]) -> TaskResult:
        """Return the metrics. Needs neither data nor checkpoint, which may be deleted by now."""
        [shard], [measures] = shards, outputs
        items = [
            {"index": place, **{name: values[row] for name, values in measures.columns.items()}}
            for row, place in enumerate(measures.places)
        ]
        page = measures.nearest_tokens.encode()
        artifact = Artifact("nearest_tokens", "nearest_tokens.txt", "text/plain; charset=utf-8", page)
        notes: dict[str, object] = {
            "records_without_a_pair": shard.records - shard.complete,
            "images_again": shard.complete - shard.pairs,
            "pairs": len(measures.places),
            "pairs_left_out": shard.pairs - len(measures.places),
            "batch": shard.protocol["batch"],
            "loss_floor": measures.floor,
            "fitted_scale": measures.fitted_scale,
            "permutations": {name: asdict(test) for name, test in measures.tests.items()},
        }
        if not measures.fitted_scale:
            notes["loss_fitted"] = (
                "pairs are no more alike than others, so that the loss is smallest at the factor 0, where it is ln "
                "batch for every pair: the loss has no standard error; p_value is the test"
            )
        return TaskResult(list(self._metrics(shard, measures)), items, notes, [artifact])

    def _metrics(self, shard: AlignmentShard, measures: TableMeasures) -> Iterator[MetricValue]:
        columns, chance, candidates = measures.columns, measures.chance, {"candidates": shard.candidates}

        def value(
            name: str, ratio: Ratio, unit: str, direction: Direction, baseline: float | None, **protocol: object
        ) -> MetricValue:
            content = Protocol({**shard.protocol, **protocol})
            return ratio.as_metric(f"{self.task.name}/{name}", unit, direction, content, baseline)

        def mean(
            keys: tuple[str, ...], unit: str, direction: Direction, baseline: float | None = None, **protocol: object
        ) -> MetricValue:
            name, *over = keys
            ratio = ratio_of_sums(columns[name], columns[over[0]] if over else [1.0] * len(columns[name]))
            assert ratio is not None, "there are two pairs at least, and every weight is positive"
            return replace(value(name, ratio, unit, direction, baseline, **protocol), items=keys)

        def p_value(name: str, test: str, **protocol: object) -> MetricValue:
            ratio = Ratio(measures.tests[test].p, None, len(measures.places))
            how = {"permutations": self.task.permutations, "seed": self.task.seed, **protocol}
            return value(name, ratio, "probability", "none", None, **how)

        nothing_known = math.log(shard.protocol["batch"])
        fitted = mean(("loss_fitted",), "nats/pair", "lower", nothing_known, temperature="fitted")
        # At the factor 0 every pair has the loss ln B whatever its similarities, so the standard error is meaningless.
        yield fitted if measures.fitted_scale else replace(fitted, stderr=None, items=())
        for name in columns:
            if "_to_" in name:
                yield mean((name,), "fraction", "higher", chance[name[name.index("at_") :]])
        yield mean(("cosine_excess",), "cosine", "higher", 0.0)
        for name in ("cosine_between", "cosine_text", "cosine_image"):
            yield mean((name,), "cosine", "none")
        yield p_value("p_value", "pairs")
        for name, centred in CENTRINGS.items():
            how = {"neighbours": self.task.neighbours, **candidates, "centred": centred}
            yield mean((name, "neighbours"), "fraction", "higher", measures.hit_chance[name], **how)
            yield p_value(name.replace("hits", "p_value"), name, **how)
        # The error is over codes; the directions of the text are treated as fixed.
        overlap = ratio_of_sums(measures.overlap.inside, measures.overlap.whole)
        if overlap is not None:
            yield value("subspace_overlap", overlap, "fraction", "none", measures.overlap_chance, **candidates)

    def _read(self, context: Context, layout: VocabularyLayout) -> TokenData:
        # A caption is the mean of its own ids: what stands before every text would move all captions alike.
        path = context.dataset(self.task.data)
        return read_tokens(path, self._tokenizer_path(context, layout), "none", context.readable)

    def _tokenizer_path(self, context: Context, layout: VocabularyLayout) -> str | None:
        return layout.text.tokenizer if self.task.tokenizer is None else context.dataset(self.task.tokenizer)

    def _tokenizer(self, context: Context, layout: VocabularyLayout) -> TextTokenizer | None:
        path = self._tokenizer_path(context, layout)
        if path is None:
            return None
        tokenizer = read_tokenizer(path, context.readable)
        tokenizer.require_fits(layout.text)
        return tokenizer

    def _protocol(self, layout: VocabularyLayout, data: TokenData, pairs: int) -> dict[str, object]:
        return {
            "task": self.task.kind,
            "estimator": ESTIMATOR,
            "data": data.digest,
            # A limit that excludes nothing is recorded as None.
            "limit": None if self.task.limit is None or self.task.limit >= len(data.records) else self.task.limit,
            "layout": layout.digest,
            "table": self.task.table,
            "dtype": self.task.dtype,
            "batch": min(self.task.batch, pairs),
            # All pairs form one batch, whatever the seed.
            **({"batches_seed": self.task.seed} if pairs > self.task.batch else {}),
        }


def _token_text(word: int, layout: VocabularyLayout, tokenizer: TextTokenizer | None) -> str:
    text = "" if tokenizer is None else render([layout.text.offset + word], layout, tokenizer)
    if not text:
        return f"text {word}"
    return text if text.isprintable() else text.encode("unicode_escape").decode()
