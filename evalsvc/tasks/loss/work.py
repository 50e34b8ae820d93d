"""The loss task on a worker: what is read and checked, summed in shards, and merged into metrics."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

from evalsvc.data.tokens import PairData, Record, TokenData, read_pairs, read_tokens
from evalsvc.errors import DataChanged, InvalidData
from evalsvc.spec.layout import TokenSequence, VocabularyLayout
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.image_codes import ImageCoder, require_codebook
from evalsvc.tasks.loss.metrics import general_text_metrics, loss_items, loss_metrics, with_totals
from evalsvc.tasks.loss.profile import (
    Grid,
    Profile,
    add_up,
    find_grid,
    profile_artifacts,
    profile_metrics,
    require_identity,
)
from evalsvc.tasks.loss.spec import Loss
from evalsvc.tasks.loss.teacher_forcing import ProfileSums, sequence_sums
from evalsvc.tasks.loss.yardsticks import Targets, scarce, unigram_metrics
from evalsvc.tasks.sequence_groups import at_border, group_of_each, group_order, groups_of_records
from evalsvc.tasks.suspicions import AT_FIRST, UNTRAINED_IMAGES, cut_inputs, worse_than_guessing
from evalsvc.tasks.task import Context, Plan, TaskResult, TaskWarning, Work

Value = TypeVar("Value")

ESTIMATOR = "ratio-of-sums/2"
"""In the protocol: how sums become metrics. Another version is another series; version 2 has errors over groups."""

TOKENS_PER_SHARD = 1 << 18
"""Of automatic shards: seconds on a GPU, below an hour for open_lm-1b on two cores."""

DATA, GENERAL_TEXT = "data", "general_text"
"""Parts of a task, of which each shard belongs to one."""


class LossWork(Work[Loss, Mapping[str, Any], Mapping[str, Any]]):
    """Plan, run and merge a loss task."""

    def plan(self, context: Context) -> Plan[Mapping[str, Any]]:
        """Cut the data into contiguous ranges, every record checked against the layout. No image is encoded.

        Where sequences belong together, the ranges are of the data in the order of their groups, and no group is in two
        of them. The shards of general text come behind those of the data.

        Raises:
            InvalidData: names the record; or the decoder's codebook is not the layout's.
            AssetMissing: the decoder is not there.
        """
        layout = context.layout()
        data, pairs = self._read(context, layout)
        coder = self._coder(context, layout)
        records = data.records[: self.task.limit]
        if coder is not None:
            # All images have the same number of codes, and whichever they are, they fit.
            records = tuple(replace(record, image_codes=array("i", bytes(4 * coder.codes))) for record in records)
        groups = groups_of_records(records) if pairs is None else group_of_each(pairs.images[: self.task.limit])
        lengths, unigrams = _survey(layout, data, records, groups)
        if coder is not None:
            del unigrams["image"]  # known when the images are encoded
        counts = {len(record.image_codes) for record in records if record.image_codes}
        grid, no_grid = find_grid(counts, self.task.image_columns, data.path)
        protocol = self._protocol(context, layout, data, self.task.limit)
        if coder is not None and pairs is not None:
            protocol |= {**coder.identity(), "images": pairs.source.digest(pairs.images[: self.task.limit])}
        common = {
            "part": DATA,
            "digest": data.digest,
            "protocol": protocol,
            "ids": _id_counts(layout),
            "unigrams": unigrams,
            "grid": grid,
            "no_grid": no_grid,
        }
        shards = []
        for part in self._ranges(lengths, groups):
            images = {} if pairs is None else {"images": pairs.source.digest(_chosen(pairs.images, part))}
            shards.append({**part, **common, **images})
        return Plan([*shards, *self._plan_general(context, layout)], "sequences")

    def _plan_general(self, context: Context, layout: VocabularyLayout) -> list[dict[str, Any]]:
        if self.task.general_text is None:
            return []
        data, records = self._read_general(context, layout)
        groups = groups_of_records(records)
        lengths, unigrams = _survey(layout, data, records, groups)
        common = {
            "part": GENERAL_TEXT,
            "digest": data.digest,
            "protocol": self._protocol(context, layout, data, self.task.general_text_limit),
            "unigrams": unigrams,
        }
        return [{**part, **common} for part in self._ranges(lengths, groups)]

    def run(self, context: Context, shard: Mapping[str, Any]) -> Mapping[str, Any]:
        """Sums per sequence, see `teacher_forcing.COLUMNS`, and how many sequences were cut to the layout's length.

        `profile` has the sums by place, see `ProfileSums`; of pairs, `empty` counts empty captions, `codes` has codes.

        Raises:
            DataChanged: the data, the images or the decoder are not what was planned.
            NonFinite: names the checkpoint, the record and the first part of the model that is at fault.
        """
        layout, groups = context.layout(), shard.get("groups")
        if shard["part"] == GENERAL_TEXT:
            data, records = self._read_general(context, layout)
            _require_planned(data, shard)
            return self._score(context, layout, data, _chosen(records, shard), None, groups)
        data, pairs = self._read(context, layout)
        _require_planned(data, shard)
        records = _chosen(data.records, shard)
        coder = self._coder(context, layout)
        more: dict[str, Any] = {}
        if coder is not None and pairs is not None:
            images = _chosen(pairs.images, shard)
            coder.require_planned(pairs.source, images, shard["images"], shard["protocol"]["decoder"])
            codes = coder.encode(context, pairs.source, images)
            records = tuple(replace(record, image_codes=row) for record, row in zip(records, codes, strict=True))
            targets = Targets(layout.image_range)
            for sequence in _sequences(layout, data, records):
                targets.add(sequence.ids)
            more = {"empty": sum(not text for text in _chosen(pairs.captions, shard)), "codes": targets.pack()}
        grid = shard["grid"]
        return {**self._score(context, layout, data, records, grid and (grid[0], grid[1]), groups), **more}

    def _score(
        self,
        context: Context,
        layout: VocabularyLayout,
        data: TokenData,
        records: Sequence[Record],
        grid: Grid | None,
        groups: Sequence[int] | None,
    ) -> dict[str, Any]:
        sequences = list(_sequences(layout, data, records))
        model = context.model(dtype=self.task.dtype, rotary_inv_freq_dtype=self.task.rotary_inv_freq_dtype)
        names = [f"{data.path}, {record.where}" for record in records]
        profile = ProfileSums(layout, grid, groups) if self.task.profile else None
        sums = sequence_sums(context, model, layout, [sequence.ids for sequence in sequences], names, profile)
        placed = {} if profile is None else {"profile": profile.to_json()}
        return {"cut": sum(sequence.cut > 0 for sequence in sequences), "sums": sums, **placed}

    def merge(self, context: Context, shards: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> TaskResult:
        """Return the metrics, without data or checkpoint. Raises InternalError where losses do not add up."""
        data, general = (_Part.of(part, shards, outputs) for part in (DATA, GENERAL_TEXT))
        assert data is not None, "there are no data without records"
        ids, protocol = data.shard["ids"], data.protocol
        found = loss_metrics(self.task.name, data.sums, ids, protocol, data.groups)
        unigrams = _unigrams(data)
        protocols = dict.fromkeys(unigrams, protocol)
        if general is not None:
            both, groups = (general.protocol, protocol), (general.groups, data.groups)
            found += general_text_metrics(self.task.name, general.sums, data.sums, ids, both, groups)
            unigrams[GENERAL_TEXT] = general.shard["unigrams"]["text"]
            protocols[GENERAL_TEXT] = general.protocol
        found += unigram_metrics(self.task.name, unigrams, {**ids, GENERAL_TEXT: ids["text"]}, protocols)
        artifacts = []
        if self.task.profile:
            grid = data.shard["grid"] and tuple(data.shard["grid"])
            found += profile_metrics(
                self.task.name, data.profile, self.task.profile_metrics, ids["all"], protocol.content, grid
            )
            profile = {**data.profile, **(general.renamed_profile() if general else {})}
            artifacts = profile_artifacts(profile, grid, {"choices": ids, "unigrams": unigrams})
        more = (None, None) if general is None else (general.sums, general.groups)
        items = loss_items(data.sums, more[0], (data.groups, more[1]))
        notes = {**_notes(data, general), **({"unigrams": said} if (said := scarce(unigrams)) else {})}
        warnings = [*self._suspicions(context, found), *self._cut(data, general)]
        return TaskResult(found, items, notes, artifacts, warnings)

    def _suspicions(self, context: Context, metrics: Sequence[MetricValue]) -> Iterator[TaskWarning]:
        yield from worse_than_guessing(metrics, [f"{self.task.name}/image_within"], UNTRAINED_IMAGES)
        if context.is_first:
            text = [f"{self.task.name}/text_within", f"{self.task.name}/general_text_within"]
            yield from worse_than_guessing(metrics, text, AT_FIRST)

    def _cut(self, data: _Part, general: _Part | None) -> Iterator[TaskWarning]:
        remedy = "give a layout with a greater `length`, or shorter texts"
        yield from cut_inputs(f"{self.task.name}/total", "sequences", data.cut, len(data.sums["n_text"]), remedy)
        if general is not None:
            total = len(general.sums["n_text"])
            yield from cut_inputs(f"{self.task.name}/general_text", "general texts", general.cut, total, remedy)

    def _ranges(self, lengths: Sequence[int], groups: Sequence[int] | None) -> Iterator[dict[str, Any]]:
        """What each shard says of its records, for records with so many tokens in these groups.

        `start` and `stop` are places in the data, or where there are groups, in the order of these; then `order` has
        the records' indices, and `groups` the group of each.
        """
        count = min(self.task.shards or math.ceil(sum(lengths) / TOKENS_PER_SHARD), len(lengths))
        bounds = [len(lengths) * index // count for index in range(count + 1)]
        if groups is None:
            yield from ({"start": start, "stop": stop, "units": stop - start} for start, stop in pairwise(bounds))
            return
        order = group_order(groups)
        labels = [groups[index] for index in order]
        for start, stop in pairwise(dict.fromkeys(at_border(labels, bound) for bound in bounds)):
            ordered = {"order": order[start:stop], "groups": labels[start:stop]}
            yield {"start": start, "stop": stop, "units": stop - start, **ordered}

    def _read(self, context: Context, layout: VocabularyLayout) -> tuple[TokenData, PairData | None]:
        path = context.dataset(self.task.data)
        tokenizer = layout.text.tokenizer if self.task.tokenizer is None else context.dataset(self.task.tokenizer)
        if self.task.images is None:
            return read_tokens(path, tokenizer, self.task.bos, context.readable), None
        pairs = read_pairs(path, context.images(self.task.images), tokenizer, self.task.bos, context.readable)
        return pairs.texts, pairs

    def _read_general(self, context: Context, layout: VocabularyLayout) -> tuple[TokenData, Sequence[Record]]:
        assert self.task.general_text is not None, "there is no part of general text without it"
        tokenizer = layout.text.tokenizer if self.task.tokenizer is None else context.dataset(self.task.tokenizer)
        data = read_tokens(context.dataset(self.task.general_text), tokenizer, self.task.bos, context.readable)
        return data, data.texts(self.task.general_text_limit, "general_text")

    def _coder(self, context: Context, layout: VocabularyLayout) -> ImageCoder | None:
        if self.task.decoder is None:
            return None
        decoder = context.decoder(self.task.decoder, self.task.decoder_config, self.task.decoder_ema)
        require_codebook(layout, decoder, self.task.decoder)
        return ImageCoder(decoder, self.task.size, self.task.crop, self.task.filter)

    def _protocol(
        self, context: Context, layout: VocabularyLayout, data: TokenData, limit: int | None
    ) -> dict[str, Any]:
        tokenized = data.tokenizer_digest is not None
        return {
            "task": self.task.kind,
            "estimator": ESTIMATOR,
            "data": data.digest,
            # A limit that leaves nothing out is none.
            "limit": None if limit is None or limit >= len(data.records) else limit,
            "layout": layout.digest,
            "dtype": self.task.dtype,
            "rotary_inv_freq_dtype": self.task.rotary_inv_freq_dtype,
            **context.rotary(),
            **({"tokenizer": data.tokenizer_digest, "bos": self.task.bos} if tokenized else {}),
        }


def _sequences(layout: VocabularyLayout, data: TokenData, records: Sequence[Record]) -> Iterator[TokenSequence]:
    for record in records:
        try:
            yield layout.sequence(record.text_ids, record.image_codes)
        except InvalidData as error:
            raise InvalidData(f"{data.path}, {record.where} {error.message}") from None


def _chosen(values: Sequence[Value], shard: Mapping[str, Any]) -> Sequence[Value]:
    """Those of the shard's records, in its order."""
    if "order" in shard:
        return [values[index] for index in shard["order"]]
    return values[int(shard["start"]) : int(shard["stop"])]


def _survey(
    layout: VocabularyLayout, data: TokenData, records: Sequence[Record], groups: Sequence[int] | None
) -> tuple[list[int], dict[str, dict[str, Any]]]:
    """The length of each record's sequence, and the unigram losses of all their targets by type."""
    lengths = []
    targets = {"text": Targets(layout.text_ids), "image": Targets(layout.image_range)}
    for sequence in _sequences(layout, data, records):
        lengths.append(len(sequence.ids))
        for some in targets.values():
            some.add(sequence.ids)
    if max(lengths) < 2:
        raise InvalidData(f"{data.path}: no sequence has two tokens, and the first of a sequence is not predicted")
    return lengths, {kind: some.unigrams(kind == "image", groups) for kind, some in targets.items()}


def _require_planned(data: TokenData, shard: Mapping[str, Any]) -> None:
    if data.digest != shard["digest"]:
        raise DataChanged.since_planned(data.path)


@dataclass(frozen=True)
class _Part:
    """The data, or the general text: what came of all of its shards."""

    shard: Mapping[str, Any]
    """The first."""
    outputs: Sequence[Mapping[str, Any]]
    sums: Mapping[str, Sequence[float]]
    """Per sequence, in the order of the data."""
    groups: Sequence[int] | None
    """Of each sequence, in the order of the data; None: every sequence is independent."""
    profile: Profile

    @classmethod
    def of(cls, part: str, shards: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> _Part | None:
        """None: the task has no such part. Raises InternalError where its losses do not add up."""
        own = [(shard, output) for shard, output in zip(shards, outputs, strict=True) if shard["part"] == part]
        if not own:
            return None
        some = [output for _, output in own]
        columns = {name: [v for output in some for v in output["sums"][name]] for name in some[0]["sums"]}
        groups = None
        if "order" in own[0][0]:
            order = [index for shard, _ in own for index in shard["order"]]
            columns = {name: _in_data_order(values, order) for name, values in columns.items()}
            groups = _in_data_order([group for shard, _ in own for group in shard["groups"]], order)
        sums = with_totals(columns)
        profile = add_up([output["profile"] for output in some if "profile" in output])
        require_identity(profile, sums)
        return cls(own[0][0], some, sums, groups, profile)

    @property
    def cut(self) -> int:
        return sum(output["cut"] for output in self.outputs)

    @property
    def protocol(self) -> Protocol:
        return Protocol(self.shard["protocol"])

    def renamed_profile(self) -> Profile:
        return {group.replace("text", self.shard["part"]): bins for group, bins in self.profile.items()}


def _in_data_order(values: Sequence[Value], order: Sequence[int]) -> list[Value]:
    """Put values that came in this order of records into that of the data."""
    return [values[place] for place in sorted(range(len(order)), key=order.__getitem__)]


def _unigrams(data: _Part) -> dict[str, Any]:
    """Those of the plan, and of the codes of images that were encoded since."""
    unigrams = dict(data.shard["unigrams"])
    if "codes" in data.outputs[0]:
        targets = Targets(range(data.shard["ids"]["image"]))
        for output in data.outputs:
            targets.add_packed(output["codes"])
        # The codes come in the order of the shards, in which groups ascend.
        unigrams["image"] = targets.unigrams(True, None if data.groups is None else sorted(data.groups))
    return unigrams


def _notes(data: _Part, general: _Part | None) -> dict[str, Any]:
    notes: dict[str, Any] = {
        "sequences": len(data.sums["n_text"]),
        "sequences_cut": data.cut,
        "tokens": int(sum(data.sums["n_total"])),
    }
    if data.groups is not None:
        notes["sequence_groups"] = len(set(data.groups))
    if "empty" in data.outputs[0]:
        notes["captions_empty"] = sum(output["empty"] for output in data.outputs)
    if data.shard["no_grid"]:
        notes["image_grid"] = data.shard["no_grid"]
    if general is not None:
        notes["general_texts"] = len(general.sums["n_text"])
        if general.groups is not None:
            notes["general_text_groups"] = len(set(general.groups))
        notes["general_texts_cut"] = general.cut
        notes["general_text_tokens"] = int(sum(general.sums["n_text"]))
    return notes


def _id_counts(layout: VocabularyLayout) -> dict[str, int]:
    """How many ids a model that knows nothing chooses from, by where it chooses."""
    counts = {"all": layout.rows, "text": layout.text.size, "image": layout.image.size if layout.image else None}
    return {where: count for where, count in counts.items() if count is not None}
