"""The alignment task: whether image tokens lie near the text of their captions in the embedding table.

A caption is the mean of its tokens' rows, an image the mean of its codes' rows. The task measures how well captions and
images find each other in the checkpoint's table, and, on request, after training the image rows for it.
Source: Zhang, McKinzie, Gan, Shankar, Toshev, "Pre-trained Language Models Do Not Help Auto-regressive Text-to-Image
Generation" (arXiv 2311.16201), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from evalsvc import __version__
from evalsvc.data.tokenizer import TextTokenizer, read_tokenizer
from evalsvc.data.tokens import TokenData, read_tokens
from evalsvc.errors import DataChanged, InvalidData, NonFinite
from evalsvc.files.artifacts import Artifact
from evalsvc.metrics.contrastive import plateau
from evalsvc.models.image_rows import TABLES, ImageRows
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.alignment.learned import Learned, learn
from evalsvc.tasks.alignment.pair_measures import Tables, measure, nearest_page, tables_of
from evalsvc.tasks.alignment.results import HALF, part_result, training_protocol
from evalsvc.tasks.alignment.shards import AlignmentOutput, AlignmentShard, LearnedOutput, TableOutput
from evalsvc.tasks.alignment.spec import Alignment
from evalsvc.tasks.alignment.token_pairs import TokenPairs, batches, halves, pairs_of
from evalsvc.tasks.task import Context, Plan, TaskResult, Work

ESTIMATOR = "alignment/2"
"""Version of the computation from rows to metrics, in the protocol. Another version is another series."""


class AlignmentWork(Work[Alignment, AlignmentShard, AlignmentOutput]):
    """Measures the pairs in a table, and trains image rows if the task asks for it."""

    def plan(self, context: Context) -> Plan[AlignmentShard]:
        """Plan a shard for the checkpoint's table and one for the learned rows, and check every record against the
        layout.

        Raises InvalidData if the layout has no image block, there are too few pairs, or a record does not fit.
        """
        layout = context.layout()
        if layout.image is None:
            raise InvalidData(
                f"task {self.task.name!r} needs image tokens, but the checkpoint's layout has no image block; post the "
                "checkpoint with a layout that has one"
            )
        data = self._read(context, layout, self.task.data)
        records = pairs_of(data, layout, self.task.limit)
        pairs = records.one_per_image()
        tokenizer = self._tokenizer(context, layout)
        table = AlignmentShard(
            part="table",
            units=1,
            digest=data.digest,
            candidates=layout.text.size if tokenizer is None else tokenizer.size,
            records=min(len(data.records), self.task.limit or len(data.records)),
            complete=len(records),
            pairs=len(pairs),
            protocol=self._protocol(layout, data, len(pairs)),
        )
        shards = [table]
        if self.task.learn is not None:
            training, left, digest = self._split(context, layout, data, pairs)
            how = {
                "data": digest,
                "candidates": table.candidates,
                **self.task.learn.model_dump(include={"steps", "rate", "seed"}),
                "batch": min(self.task.learn.batch, len(training)),
            }
            protocol = {**self._protocol(layout, data, len(left)), "learned": how}
            shards.append(replace(table, part="learned", units=self.task.learn.steps + 1, protocol=protocol))
        return Plan(shards, "steps")

    def run(self, context: Context, shard: AlignmentShard) -> AlignmentOutput:
        """Measure the table; for the learned part, train its image rows first.

        Raises DataChanged if the data differ from the plan, and NonFinite if training diverges.
        """
        layout = context.layout()
        data = self._read(context, layout, self.task.data)
        if data.digest != shard.digest:
            raise DataChanged.since_planned(data.path)
        pairs = pairs_of(data, layout, self.task.limit).one_per_image()
        if shard.part == "learned":
            return self._learn(context, shard, data, pairs)
        output = self._measure(context, self._tables(context, shard), pairs, None, done=0)
        context.report(1)
        return output

    def merge(
        self, context: Context, shards: Sequence[AlignmentShard], outputs: Sequence[AlignmentOutput]
    ) -> TaskResult:
        """Return the metrics. Needs neither data nor checkpoint, which may be deleted by now."""
        first = shards[0]
        notes: dict[str, object] = {
            "records_without_a_pair": first.records - first.complete,
            "images_again": first.complete - first.pairs,
        }
        metrics: list[MetricValue] = []
        items: dict[int, dict[str, Any]] = {}
        artifacts: list[Artifact] = []
        for shard, output in zip(shards, outputs, strict=True):
            part = part_result(self.task, shard, output)
            for item in part.items:
                items.setdefault(item["index"], {}).update(item)
            metrics += part.metrics
            artifacts += part.artifacts
            notes[shard.part] = part.notes
        return TaskResult(metrics, [items[index] for index in sorted(items)], notes, artifacts)

    def _read(self, context: Context, layout: VocabularyLayout, path: str) -> TokenData:
        # A caption is the mean of its own ids: what stands before every text would move all captions alike.
        return read_tokens(context.dataset(path), self._tokenizer_path(context, layout), "none", context.readable)

    def _tokenizer_path(self, context: Context, layout: VocabularyLayout) -> str | None:
        return layout.text.tokenizer if self.task.tokenizer is None else context.dataset(self.task.tokenizer)

    def _tokenizer(self, context: Context, layout: VocabularyLayout) -> TextTokenizer | None:
        path = self._tokenizer_path(context, layout)
        if path is None:
            return None
        tokenizer = read_tokenizer(path, context.readable)
        tokenizer.require_fits(layout.text)
        return tokenizer

    def _split(
        self, context: Context, layout: VocabularyLayout, data: TokenData, pairs: TokenPairs
    ) -> tuple[TokenPairs, TokenPairs, str]:
        """Return the pairs to train on, the pairs to measure, and the name of the training pairs in the protocol."""
        assert self.task.learn is not None, "nothing is trained without it"
        if self.task.learn.data is not None:
            other = self._read(context, layout, self.task.learn.data)
            return pairs_of(other, layout), pairs, other.digest
        if len(pairs) < 4:
            raise InvalidData(
                f"{data.path} has {len(pairs)} pairs, too few to train on one half and measure the other; set "
                "`learn.data`"
            )
        return *halves(pairs, self.task.learn.seed), HALF

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

    def _tables(self, context: Context, shard: AlignmentShard) -> Tables:
        model = context.model(dtype=self.task.dtype, rotary_inv_freq_dtype="auto")
        return tables_of(model, context.layout(), self.task.table == "output", shard.candidates)

    def _measure(
        self, context: Context, tables: Tables, pairs: TokenPairs, scale: float | None, done: int
    ) -> TableOutput:
        parts = batches(pairs, self.task.batch, self.task.seed)
        measures, near = measure(tables, parts, self.task, scale, lambda: context.report(done))
        layout = context.layout()
        page = nearest_page(near, layout, self._tokenizer(context, layout))
        return TableOutput(**vars(measures), nearest_tokens="\n".join(page) + "\n")

    def _learn(self, context: Context, shard: AlignmentShard, data: TokenData, pairs: TokenPairs) -> LearnedOutput:
        assert self.task.learn is not None, "nothing is trained without it"
        training, left, digest = self._split(context, context.layout(), data, pairs)
        if digest != shard.protocol["learned"]["data"]:
            raise DataChanged.since_planned(str(self.task.learn.data))
        try:
            learned = learn(self._tables(context, shard), training, self.task.learn, context.report)
        except NonFinite as error:
            raise NonFinite(f"{context.checkpoint.label}: {error.message}") from None
        output = self._measure(context, learned.tables, left, learned.scale, done=self.task.learn.steps)
        context.report(self.task.learn.steps + 1)
        return LearnedOutput(
            **vars(output),
            training_pairs=len(training),
            pairs_in_both=training.common(left),
            trained_codes=len(learned.trained),
            scale=learned.scale,
            plateau=plateau(learned.losses),
            losses=learned.losses,
            scales=learned.scales,
            image_rows=self._image_rows(context, shard, learned).to_bytes(),
        )

    def _image_rows(self, context: Context, shard: AlignmentShard, learned: Learned) -> ImageRows:
        layout, values = context.layout(), learned.tables.image
        assert layout.image_ids, "the plan asked for images"
        assert layout.rows, "it is resolved"
        trained = torch.zeros(len(values), dtype=torch.bool)
        trained[learned.trained] = True
        about = {
            "evalsvc": __version__,
            "layout": layout.digest,
            "temperature": repr(1 / learned.scale),
            "norm": "trained rows have the text rows' root mean square length, by one factor for all",
            "length": repr(learned.length),
            "checkpoint": context.digest(),
            "protocol": Protocol(training_protocol(shard.protocol)).id,
        }
        return ImageRows(values, torch.tensor(layout.image_ids), trained, TABLES[self.task.table], layout.rows, about)
