"""Whether image tokens lie where the text of their captions lies: in the embedding table alone, before any layer.

Source of the question: Zhang, McKinzie, Gan, Shankar, Toshev, "Pre-trained Language Models Do Not Help Auto-regressive
Text-to-Image Generation" (arXiv 2311.16201), section 3.2. A caption is the mean of its tokens' rows, an image that of
its codes' rows. How well the two tell which belongs to which is measured for the table as the checkpoint has it, and,
if asked for, after the image rows were trained to tell: what that reaches is how much of text there is in single image
tokens at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from evalsvc import __version__
from evalsvc.data.tokenizer import TextTokenizer, read_tokenizer
from evalsvc.data.tokens import TokenData, read_tokens
from evalsvc.errors import DataChanged, InvalidData, NonFinite
from evalsvc.spec.bounds import MAX_BATCH, Rows, Seed
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.protocol import Protocol
from evalsvc.tasks.alignment.results import HALF, part_result, training_protocol
from evalsvc.tasks.alignment.token_pairs import TokenPairs, batches, halves, pairs_of
from evalsvc.tasks.task import Context, DataPath, Plan, Task, TaskResult

if TYPE_CHECKING:
    from evalsvc.models.image_rows import ImageRows
    from evalsvc.tasks.alignment.learned import Learned
    from evalsvc.tasks.alignment.pair_measures import Tables

ESTIMATOR = "alignment/2"
"""In the protocol: how rows become metrics. Another version is another series: version 1 gave an error of 0 to
`loss_fitted` where the fitted factor is 0, and to shares of 0 or 1."""

AS_IT_IS, LEARNED = "table", "learned"
"""The parts: the table of the checkpoint, and the one with trained image rows."""


class Learning(BaseModel):
    """How image rows are trained; all other rows stay as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data: DataPath | None = None
    """Pairs to train on [a random half of the task's own; the other half then measures]."""
    steps: int = Field(default=1000, ge=1, le=1_000_000)
    """Of Adam."""
    batch: int = Field(default=1024, ge=2, le=MAX_BATCH)
    """Pairs a step; all of them where there are fewer."""
    rate: float = Field(default=0.03, gt=0, le=10)
    """Adam's, for rows in units of the text rows' root mean square entry, and for the logarithm of the temperature."""
    seed: Seed = 0
    """Of the batches, and of the halves."""


class Alignment(Task):
    """Image rows against text rows of an embedding table, by pairs of captions and images."""

    kind: ClassVar[str] = "alignment"

    data: DataPath
    """Pairs, one a record: a JSONL file with `text_ids` or `text`, and `image_codes`, or a safetensors file. Records
    that lack one of both are left out and counted, and so are further captions of an image."""
    tokenizer: DataPath | None = None
    """The `tokenizer.json` for records that hold `text`, and to show tokens [the layout's]."""
    limit: Rows | None = None
    """Use the first so many records only."""
    batch: int = Field(default=1024, ge=2, le=MAX_BATCH)
    """Pairs that are told apart from each other; all of them where there are fewer. What does not fill a batch is left
    out and counted."""
    table: Literal["input", "output"] = "input"
    """Whose rows: the input's embeddings or the output layer's."""
    neighbours: int = Field(default=5, ge=1, le=1000)
    """Nearest text tokens of an image token."""
    permutations: int = Field(default=999, ge=1, le=1_000_000)
    """Random pairings that the pairs are compared with."""
    seed: Seed = 0
    """Of the permutations, and of the batches where there are several."""
    learn: Learning | None = None
    """Also train the image rows, and measure them the same way [no]."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the checkpoint's weights; similarities are float64, and training is in float32."""

    def plan(self, context: Context) -> Plan:
        """One part for the table as it is, one for the learned rows. Every record is checked against the layout.

        Raises:
            InvalidData: the layout has no image block, there are too few pairs, or a record does not fit; names it.
        """
        layout = context.layout()
        if layout.image is None:
            raise InvalidData(
                f"task {self.name!r} needs image tokens, and the checkpoint's layout has no image block; post it with "
                "a layout that has one"
            )
        data = self._read(context, layout, self.data)
        records = pairs_of(data, layout, self.limit)
        pairs = records.one_per_image()
        tokenizer = self._tokenizer(context, layout)
        common = {
            "digest": data.digest,
            # Text rows that stand for a token: tables are padded.
            "candidates": layout.text.size if tokenizer is None else tokenizer.size,
            "records": min(len(data.records), self.limit or len(data.records)),
            "complete": len(records),
            "pairs": len(pairs),
        }
        shards = [{"part": AS_IT_IS, "units": 1, **common, "protocol": self._protocol(layout, data, len(pairs))}]
        if self.learn is not None:
            training, left, digest = self._split(context, layout, data, pairs)
            how = {
                "data": digest,
                "candidates": common["candidates"],
                **self.learn.model_dump(include={"steps", "rate", "seed"}),
                "batch": min(self.learn.batch, len(training)),
            }
            protocol = {**self._protocol(layout, data, len(left)), "learned": how}
            shards.append({"part": LEARNED, "units": self.learn.steps + 1, **common, "protocol": protocol})
        return Plan(shards, "steps")

    def run(self, context: Context, shard: Mapping[str, Any]) -> Mapping[str, Any]:
        """What `pair_measures.measure` finds, and the artifacts; of the learned part also the losses by step.

        Raises:
            DataChanged: the data are not what was planned.
            NonFinite: training went astray; names the checkpoint and the step.
        """
        layout = context.layout()
        data = self._read(context, layout, self.data)
        if data.digest != shard["digest"]:
            raise DataChanged(f"{data.path} has changed since this evaluation was planned; evaluate again")
        pairs = pairs_of(data, layout, self.limit).one_per_image()
        if shard["part"] == LEARNED:
            return self._learn(context, shard, data, pairs)
        found = self._measure(context, self._tables(context, shard), pairs, None, done=0)
        context.report(1)
        return found

    def merge(self, context: Context, shards: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> TaskResult:
        """The metrics. Needs neither data nor checkpoint: either may be gone by now."""
        first = shards[0]
        notes = {
            "records_without_a_pair": first["records"] - first["complete"],
            "images_again": first["complete"] - first["pairs"],
        }
        result = TaskResult([], notes=notes)
        items: dict[int, dict[str, Any]] = {}
        for shard, output in zip(shards, outputs, strict=True):
            prefix = "" if shard["part"] == AS_IT_IS else "learned_"
            found = part_result(self, prefix, shard, output)
            for item in found.items:
                items.setdefault(item["index"], {}).update(item)
            result = TaskResult(
                [*result.metrics, *found.metrics],
                [items[index] for index in sorted(items)],
                {**result.notes, shard["part"]: found.notes},
                [*result.artifacts, *found.artifacts],
            )
        return result

    def _read(self, context: Context, layout: VocabularyLayout, path: str) -> TokenData:
        return read_tokens(context.dataset(path), self._tokenizer_path(context, layout), allow=context.readable)

    def _tokenizer_path(self, context: Context, layout: VocabularyLayout) -> str | None:
        return layout.text.tokenizer if self.tokenizer is None else context.dataset(self.tokenizer)

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
        """The pairs to train on, those to measure with, and what the protocol calls the former."""
        assert self.learn is not None, "nothing is trained without it"
        if self.learn.data is not None:
            other = self._read(context, layout, self.learn.data)
            return pairs_of(other, layout), pairs, other.digest
        if len(pairs) < 4:
            raise InvalidData(
                f"{data.path} has {len(pairs)} pairs, too few to train on one half and measure with the other; give "
                "`learn.data`"
            )
        return *halves(pairs, self.learn.seed), HALF

    def _protocol(self, layout: VocabularyLayout, data: TokenData, pairs: int) -> dict[str, Any]:
        return {
            "task": self.kind,
            "estimator": ESTIMATOR,
            "data": data.digest,
            # A limit that leaves nothing out is none.
            "limit": None if self.limit is None or self.limit >= len(data.records) else self.limit,
            "layout": layout.digest,
            "table": self.table,
            "dtype": self.dtype,
            "batch": min(self.batch, pairs),
            # Of all pairs there is one batch, whatever the seed.
            **({"batches_seed": self.seed} if pairs > self.batch else {}),
        }

    def _tables(self, context: Context, shard: Mapping[str, Any]) -> Tables:
        from evalsvc.tasks.alignment.pair_measures import tables_of

        model = context.model(dtype=self.dtype, rotary_inv_freq_dtype="auto")
        return tables_of(model, context.layout(), self.table == "output", shard["candidates"])

    def _measure(
        self, context: Context, tables: Tables, pairs: TokenPairs, scale: float | None, done: int
    ) -> dict[str, Any]:
        from evalsvc.tasks.alignment.pair_measures import Options, measure, nearest_page

        parts = batches(pairs, self.batch, self.seed)
        options = Options(self.neighbours, self.permutations, self.seed)
        found = measure(tables, parts, options, scale, lambda: context.report(done))
        layout = context.layout()
        page = nearest_page(found.pop("nearest"), layout, self._tokenizer(context, layout))
        return {**found, "nearest_tokens": "\n".join(page) + "\n"}

    def _learn(self, context: Context, shard: Mapping[str, Any], data: TokenData, pairs: TokenPairs) -> dict[str, Any]:
        from evalsvc.metrics.contrastive import plateau
        from evalsvc.tasks.alignment.learned import Training, learn

        assert self.learn is not None, "nothing is trained without it"
        training, left, digest = self._split(context, context.layout(), data, pairs)
        if digest != shard["protocol"]["learned"]["data"]:
            raise DataChanged(f"{self.learn.data} has changed since this evaluation was planned; evaluate again")
        how = Training(self.learn.steps, self.learn.batch, self.learn.rate, self.learn.seed)
        try:
            learned = learn(self._tables(context, shard), training, how, context.report)
        except NonFinite as error:
            raise NonFinite(f"{context.checkpoint.label}: {error.message}") from None
        found = self._measure(context, learned.tables, left, learned.scale, done=self.learn.steps)
        context.report(self.learn.steps + 1)
        return {
            **found,
            "training_pairs": len(training),
            "pairs_in_both": training.common(left),
            "trained_codes": len(learned.trained),
            "scale": learned.scale,
            "plateau": asdict(plateau(learned.losses)),
            "losses": learned.losses,
            "scales": learned.scales,
            "image_rows": self._image_rows(context, shard, learned).to_bytes(),
        }

    def _image_rows(self, context: Context, shard: Mapping[str, Any], learned: Learned) -> ImageRows:
        import torch

        from evalsvc.models.image_rows import TABLES, ImageRows

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
            "protocol": Protocol(training_protocol(shard["protocol"])).id,
        }
        return ImageRows(values, torch.tensor(layout.image_ids), trained, TABLES[self.table], layout.rows, about)
