"""The loss task on a worker: reads and checks the data, sums losses in shards, and merges them to metrics."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from evalsvc.data.tokens import PairData, Record, TokenData, read_pairs, read_tokens
from evalsvc.errors import DataChanged, InvalidData
from evalsvc.spec.bounds import Beginning
from evalsvc.spec.layout import IdCounts, TokenSequence, VocabularyLayout
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.image_codes import ImageCoder, require_codebook, require_grid
from evalsvc.tasks.loss.metrics import (
    PackedTargets,
    Targets,
    Unigrams,
    general_text_metrics,
    loss_items,
    loss_metrics,
    scarce,
    unigram_metrics,
    with_totals,
)
from evalsvc.tasks.loss.profile import (
    Grid,
    Profile,
    add_up,
    find_grid,
    profile_artifact,
    profile_metrics,
    require_identity,
)
from evalsvc.tasks.loss.spec import Loss
from evalsvc.tasks.loss.teacher_forcing import ProfileSums, sequence_sums
from evalsvc.tasks.result_warnings import AT_FIRST, UNTRAINED_IMAGES, cut_inputs, names_of_tokens, worse_than_guessing
from evalsvc.tasks.sequence_groups import at_border, group_of_each, group_order, groups_of_records
from evalsvc.tasks.task import Context, Plan, Shard, TaskResult, TaskWarning, Work

ESTIMATOR = "ratio-of-sums/2"
"""Version of the computation of metrics from sums, in the protocol. Another version is another series; version 2 has
standard errors over groups."""

TOKENS_PER_SHARD = 1 << 18
"""Tokens of an automatic shard: seconds on a GPU, less than an hour for open_lm-1b on two cores."""


Value = TypeVar("Value")

GENERAL_TEXT = "general_text"
"""Prefix of names that belong to the general text."""


@dataclass(frozen=True, kw_only=True)
class RecordsShard(Shard):
    start: int
    stop: int
    """Range [start, stop) of the data; if there are groups, of the data in the order of groups."""
    order: Sequence[int] | None = None
    """Indices of the records, if there are groups of dependent records."""
    groups: Sequence[int] | None = None
    """Group of each record, ascending."""
    digest: str
    protocol: Mapping[str, Any]
    unigrams: Mapping[str, Unigrams]
    """Losses of a model without context, over all records, by type of target."""

    def chosen(self, values: Sequence[Value]) -> Sequence[Value]:
        return values[self.start : self.stop] if self.order is None else [values[index] for index in self.order]


@dataclass(frozen=True, kw_only=True)
class DataShard(RecordsShard):
    part: Literal["data"] = "data"
    ids: Mapping[str, int]
    """Number of ids that a model that knows nothing chooses from, by type."""
    grid: Grid | None
    no_grid: str | None
    images: str | None = None
    """Digest of the shard's images, if images are encoded."""
    names_tokens: int = 0
    """Number of captions that hold the names of special tokens."""


@dataclass(frozen=True, kw_only=True)
class TextShard(RecordsShard):
    part: Literal["general_text"] = "general_text"


LossShard: TypeAlias = DataShard | TextShard


@dataclass(frozen=True)
class LossOutput:
    cut: int
    sums: Mapping[str, Sequence[float]]
    """Sums per sequence, see `teacher_forcing.COLUMNS`."""
    profile: Mapping[str, Sequence[Sequence[float]]] | None = None
    """Sums by position, see `teacher_forcing.ProfileSums`; None if the task has no profile."""
    empty: int | None = None
    codes: PackedTargets | None = None


AnyShard = TypeVar("AnyShard", DataShard, TextShard)


@dataclass(frozen=True)
class Part(Generic[AnyShard]):
    """The data or the general text, with the outputs of all of its shards."""

    shard: AnyShard
    outputs: Sequence[LossOutput]
    sums: Mapping[str, Sequence[float]]
    """Sums per sequence, in the order of the data."""
    groups: Sequence[int] | None
    """Group of each sequence, in the order of the data; None if every sequence is independent."""
    profile: Profile

    @classmethod
    def of(cls, shards: Sequence[AnyShard], outputs: Sequence[LossOutput]) -> Part[AnyShard]:
        columns = {name: [v for output in outputs for v in output.sums[name]] for name in outputs[0].sums}
        order = [index for shard in shards for index in shard.order or ()]
        groups = [group for shard in shards for group in shard.groups or ()]
        if order:
            columns = {name: _in_data_order(values, order) for name, values in columns.items()}
        sums = with_totals(columns)
        profile = add_up([output.profile for output in outputs if output.profile is not None])
        require_identity(profile, sums)
        return cls(shards[0], outputs, sums, _in_data_order(groups, order) if order else None, profile)

    @property
    def count(self) -> int:
        return len(self.sums["n_text"])

    @property
    def cut(self) -> int:
        return sum(output.cut for output in self.outputs)

    @property
    def protocol(self) -> Protocol:
        return Protocol(self.shard.protocol)


def _in_data_order(values: Sequence[Value], order: Sequence[int]) -> list[Value]:
    return [values[place] for place in sorted(range(len(order)), key=order.__getitem__)]


class LossWork(Work[Loss, LossShard, LossOutput]):
    def plan(self, context: Context) -> Plan[LossShard]:
        """Cut the data into ranges, with no group in two ranges; general text follows. No image is encoded."""
        layout = context.layout()
        data, pairs = self._read(context, layout)
        coder = self._coder(context, layout)
        records = data.records[: self.task.limit]
        if coder is not None:
            # All images have the same number of codes, so any codes will do to check the fit.
            records = tuple(replace(record, image_codes=array("i", bytes(4 * coder.codes))) for record in records)
        groups = groups_of_records(records) if pairs is None else group_of_each(pairs.images[: self.task.limit])
        lengths, fields = self._survey(layout, data, records, groups)
        if coder is not None:
            del fields["unigrams"]["image"]  # known once the images are encoded
        counts = {len(record.image_codes) for record in records if record.image_codes}
        shape = layout.image.grid if layout.image else None
        columns = shape[1] if shape is not None and counts == {shape[0] * shape[1]} else None
        grid, no_grid = find_grid(counts, self.task.image_columns or columns, data.path)
        images = {} if pairs is None else {"images": pairs.source.digest(pairs.images[: self.task.limit])}
        encoded = {} if coder is None else coder.identity()
        protocol = {**self._protocol(context, data, records, self.task.limit), **encoded, **images}
        counts_of_ids = IdCounts.of(layout, apart := context.model_config().heads_apart)
        ids = {"all": counts_of_ids.all, "text": counts_of_ids.text}
        if layout.image is not None:
            ids |= {"image": layout.image.size, **({"image_head": layout.image.size} if apart else {})}
        whole = DataShard(**fields, protocol=protocol, ids=ids, grid=grid, no_grid=no_grid)
        whole = replace(whole, names_tokens=sum(record.names_tokens for record in records))
        shards = list(self._ranges(whole, lengths, groups))
        if pairs is not None:
            shards = [replace(shard, images=pairs.source.digest(shard.chosen(pairs.images))) for shard in shards]
        texts: list[TextShard] = []
        if self.task.general_text is not None:
            general, lines = self._read_general(context, layout)
            groups = groups_of_records(lines)
            lengths, fields = self._survey(layout, general, lines, groups)
            protocol = self._protocol(context, general, lines, self.task.general_text_limit)
            texts = list(self._ranges(TextShard(**fields, protocol=protocol), lengths, groups))
        return Plan([*shards, *texts], "sequences")

    def run(self, context: Context, shard: LossShard) -> LossOutput:
        layout = context.layout()
        if isinstance(shard, TextShard):
            data, records = self._read_general(context, layout)
            _require_planned(data, shard)
            return self._score(context, layout, data, shard.chosen(records), shard)
        data, pairs = self._read(context, layout)
        _require_planned(data, shard)
        coder, records = self._coder(context, layout), shard.chosen(data.records)
        if coder is None or pairs is None:
            return self._score(context, layout, data, records, shard)
        images = shard.chosen(pairs.images)
        coder.require_planned(pairs.source, images, str(shard.images), shard.protocol["decoder"])
        codes = coder.encode(context, pairs.source, images)
        records = tuple(replace(record, image_codes=row) for record, row in zip(records, codes, strict=True))
        targets = Targets(layout.image_range)
        for sequence in self.sequences(layout, data, records):
            targets.add(sequence.ids)
        empty = sum(not text for text in shard.chosen(pairs.captions))
        return replace(self._score(context, layout, data, records, shard), empty=empty, codes=targets.pack())

    def _score(
        self, context: Context, layout: VocabularyLayout, data: TokenData, records: Sequence[Record], shard: LossShard
    ) -> LossOutput:
        sequences = list(self.sequences(layout, data, records))
        model = context.model(dtype=self.task.dtype, rotary_inv_freq_dtype=self.task.rotary_inv_freq_dtype)
        names = [f"{data.path}, {record.where}" for record in records]
        grid = shard.grid if isinstance(shard, DataShard) else None
        profile = ProfileSums(layout, grid, shard.groups) if self.task.profile else None
        sums = sequence_sums(context, model, layout, [sequence.ids for sequence in sequences], names, profile)
        cut = sum(sequence.cut > 0 for sequence in sequences)
        return LossOutput(cut, sums, None if profile is None else profile.columns())

    def merge(self, context: Context, shards: Sequence[LossShard], outputs: Sequence[LossOutput]) -> TaskResult:
        """Return the metrics, without data or checkpoint."""
        # The shards of the data come first.
        of_data = [shard for shard in shards if isinstance(shard, DataShard)]
        texts = [shard for shard in shards if isinstance(shard, TextShard)]
        data = Part.of(of_data, outputs[: len(of_data)])
        general = Part.of(texts, outputs[len(of_data) :]) if texts else None
        ids, protocol = data.shard.ids, data.protocol
        metrics = loss_metrics(self.task.name, data.sums, ids, protocol, data.groups)
        unigrams = _unigrams(data)
        protocols = dict.fromkeys(unigrams, protocol)
        items = loss_items(data.sums, None, (data.groups, None))
        if general is not None:
            protocols_of_texts, groups = (general.protocol, protocol), (general.groups, data.groups)
            metrics += general_text_metrics(self.task.name, general.sums, data.sums, ids, protocols_of_texts, groups)
            unigrams[GENERAL_TEXT] = general.shard.unigrams["text"]
            protocols[GENERAL_TEXT] = general.protocol
            items = loss_items(data.sums, general.sums, (data.groups, general.groups))
        metrics += unigram_metrics(self.task.name, unigrams, {**ids, GENERAL_TEXT: ids["text"]}, protocols)
        artifacts = []
        if self.task.profile:
            grid, groups_of_bins = data.shard.grid, self.task.profile_metrics
            metrics += profile_metrics(self.task.name, data.profile, groups_of_bins, ids, protocol.content, grid)
            of_general = {} if general is None else general.profile
            renamed = {group.replace("text", GENERAL_TEXT): bins for group, bins in of_general.items()}
            artifacts = [profile_artifact({**data.profile, **renamed}, grid, ids, unigrams)]
        notes = {**_notes(data, general), **({"unigrams": said} if (said := scarce(unigrams)) else {})}
        return TaskResult(metrics, items, notes, artifacts, list(self._warnings(context, metrics, data, general)))

    def _warnings(
        self, context: Context, metrics: Sequence[MetricValue], data: Part[DataShard], general: Part[TextShard] | None
    ) -> Iterator[TaskWarning]:
        name, remedy = self.task.name, "use a layout with a greater `length`, or shorter texts"
        yield from worse_than_guessing(metrics, [f"{name}/image_within"], UNTRAINED_IMAGES)
        if context.is_first:
            yield from worse_than_guessing(metrics, [f"{name}/text_within", f"{name}/general_text_within"], AT_FIRST)
        yield from cut_inputs(f"{name}/total", "sequences", data.cut, data.count, remedy)
        yield from names_of_tokens(f"{name}/total", data.shard.names_tokens)
        if general is not None:
            yield from cut_inputs(f"{name}/general_text", "general texts", general.cut, general.count, remedy)

    def _ranges(self, whole: AnyShard, lengths: Sequence[int], groups: Sequence[int] | None) -> Iterator[AnyShard]:
        count = min(self.task.shards or math.ceil(sum(lengths) / TOKENS_PER_SHARD), len(lengths))
        bounds = [len(lengths) * index // count for index in range(count + 1)]
        if groups is None:
            yield from (replace(whole, start=start, stop=stop, units=stop - start) for start, stop in pairwise(bounds))
            return
        order = group_order(groups)
        labels = [groups[index] for index in order]
        for start, stop in pairwise(dict.fromkeys(at_border(labels, bound) for bound in bounds)):
            ordered = replace(whole, order=order[start:stop], groups=labels[start:stop])
            yield replace(ordered, start=start, stop=stop, units=stop - start)

    def _read(self, context: Context, layout: VocabularyLayout) -> tuple[TokenData, PairData | None]:
        path, text, form = context.dataset(self.task.data), self._text(context, layout), layout.prompt_form
        if self.task.images is None:
            return read_tokens(path, *text, context.readable, form), None
        coder = None if form is None else self._coder(context, layout)
        codes = 0 if coder is None else coder.codes
        pairs = read_pairs(path, context.images(self.task.images), *text, context.readable, form, codes)
        return pairs.texts, pairs

    def _read_general(self, context: Context, layout: VocabularyLayout) -> tuple[TokenData, Sequence[Record]]:
        assert self.task.general_text is not None, "there is no part of general text without it"
        data = read_tokens(context.dataset(self.task.general_text), *self._text(context, layout), context.readable)
        return data, data.texts(self.task.general_text_limit, "general_text")

    def _text(self, context: Context, layout: VocabularyLayout) -> tuple[str | None, Beginning | None]:
        tokenizer = layout.text.tokenizer if self.task.tokenizer is None else context.dataset(self.task.tokenizer)
        return tokenizer, layout.text.beginning(self.task.bos)

    def _coder(self, context: Context, layout: VocabularyLayout) -> ImageCoder | None:
        if self.task.decoder is None:
            return None
        decoder = context.decoder(self.task.decoder, self.task.decoder_config, self.task.decoder_ema)
        require_codebook(layout, decoder, self.task.decoder)
        coder = ImageCoder(decoder, self.task.size, self.task.crop, self.task.filter)
        require_grid(layout, coder.grid, coder.fit.size)
        return coder

    def _protocol(
        self, context: Context, data: TokenData, records: Sequence[Record], limit: int | None
    ) -> dict[str, object]:
        tokenized, plain = data.tokenizer_digest is not None, any(record.image_codes is None for record in records)
        prefix = "layout" if self.task.text_prefix == "layout" else data.bos
        return {
            "task": self.task.kind,
            "estimator": ESTIMATOR,
            "data": data.digest,
            # A limit that excludes nothing is recorded as None.
            "limit": None if limit is None or limit >= len(data.records) else limit,
            "layout": context.layout().digest,
            "dtype": self.task.dtype,
            "rotary_inv_freq_dtype": self.task.rotary_inv_freq_dtype,
            **context.rotary(),
            **({"tokenizer": data.tokenizer_digest, "bos": data.bos} if tokenized else {}),
            **({"text_prefix": prefix} if plain else {}),
        }

    def sequences(
        self, layout: VocabularyLayout, data: TokenData, records: Sequence[Record]
    ) -> Iterator[TokenSequence]:
        for record in records:
            try:
                yield layout.sequence(record.text_ids, record.image_codes, self.task.text_prefix == "layout")
            except InvalidData as error:
                raise InvalidData(f"{data.path}, {record.where} {error.message}") from None

    def _survey(
        self, layout: VocabularyLayout, data: TokenData, records: Sequence[Record], groups: Sequence[int] | None
    ) -> tuple[list[int], dict[str, Any]]:
        lengths = []
        targets = {"text": Targets(*layout.text_ranges), "image": Targets(layout.image_range)}
        for sequence in self.sequences(layout, data, records):
            lengths.append(len(sequence.ids))
            for type_targets in targets.values():
                type_targets.add(sequence.ids)
        if max(lengths) < 2:
            raise InvalidData(
                f"{data.path}: no sequence has two tokens, and the first is not predicted; use longer ones"
            )
        unigrams = {kind: each.unigrams(kind == "image", groups) for kind, each in targets.items()}
        whole = {"units": len(records), "start": 0, "stop": len(records)}
        return lengths, {**whole, "digest": data.digest, "unigrams": unigrams}


def _require_planned(data: TokenData, shard: LossShard) -> None:
    if data.digest != shard.digest:
        raise DataChanged.since_planned(data.path)


def _unigrams(data: Part[DataShard]) -> dict[str, Unigrams]:
    unigrams = dict(data.shard.unigrams)
    codes = [output.codes for output in data.outputs if output.codes is not None]
    if codes:
        targets = Targets(range(data.shard.ids["image"]))
        for packed in codes:
            targets.add_packed(packed)
        # The codes are in the order of the shards, in which groups ascend.
        unigrams["image"] = targets.unigrams(True, None if data.groups is None else sorted(data.groups))
    return unigrams


def _notes(data: Part[DataShard], general: Part[TextShard] | None) -> dict[str, int | str]:
    notes: dict[str, int | str] = {
        "sequences": data.count,
        "sequences_cut": data.cut,
        "tokens": int(sum(data.sums["n_total"])),
    }
    if data.groups is not None:
        notes["sequence_groups"] = len(set(data.groups))
    empty = [output.empty for output in data.outputs if output.empty is not None]
    if empty:
        notes["captions_empty"] = sum(empty)
    if data.shard.no_grid:
        notes["image_grid"] = data.shard.no_grid
    if general is not None:
        notes["general_texts"] = general.count
        if general.groups is not None:
            notes["general_text_groups"] = len(set(general.groups))
        notes["general_texts_cut"] = general.cut
        notes["general_text_tokens"] = int(sum(general.sums["n_text"]))
    return notes
