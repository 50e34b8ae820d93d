"""The shards of the loss task, their outputs, and the combination of outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from evalsvc.spec.protocol import Protocol
from evalsvc.tasks.loss.metrics import with_totals
from evalsvc.tasks.loss.profile import Grid, Profile, add_up, require_identity
from evalsvc.tasks.loss.unigrams import PackedTargets, Unigrams
from evalsvc.tasks.task import Shard

Value = TypeVar("Value")

GENERAL_TEXT = "general_text"
"""Prefix of names that belong to the general text."""


@dataclass(frozen=True, kw_only=True)
class RecordsShard(Shard):
    """A range of records."""

    start: int
    stop: int
    """Range [start, stop) of the data; if there are groups, of the data in the order of groups."""
    order: Sequence[int] | None = None
    """Indices of the records, if there are groups of dependent records."""
    groups: Sequence[int] | None = None
    """Group of each record, ascending."""
    digest: str
    """Digest of the whole data."""
    protocol: Mapping[str, Any]
    unigrams: Mapping[str, Unigrams]
    """Losses of a model without context, over all records, by type of target."""

    def chosen(self, values: Sequence[Value]) -> Sequence[Value]:
        """Return the values of the shard's records, in the shard's order."""
        return values[self.start : self.stop] if self.order is None else [values[index] for index in self.order]


@dataclass(frozen=True, kw_only=True)
class DataShard(RecordsShard):
    """A range of the data."""

    part: Literal["data"] = "data"
    ids: Mapping[str, int]
    """Number of ids that a model that knows nothing chooses from, by type."""
    grid: Grid | None
    no_grid: str | None
    """Reason why there is no grid."""
    images: str | None = None
    """Digest of the shard's images, if images are encoded."""


@dataclass(frozen=True, kw_only=True)
class TextShard(RecordsShard):
    """A range of the general text."""

    part: Literal["general_text"] = "general_text"


LossShard: TypeAlias = DataShard | TextShard


@dataclass(frozen=True)
class LossOutput:
    """The output of a shard for the merge."""

    cut: int
    """Number of sequences that were cut to the layout's length."""
    sums: Mapping[str, Sequence[float]]
    """Sums per sequence, see `teacher_forcing.COLUMNS`."""
    profile: Mapping[str, Sequence[Sequence[float]]] | None = None
    """Sums by position, see `teacher_forcing.ProfileSums`; None if the task has no profile."""
    empty: int | None = None
    """Number of images with empty captions."""
    codes: PackedTargets | None = None
    """Codes of the images that the shard has encoded."""


AnyShard = TypeVar("AnyShard", DataShard, TextShard)


@dataclass(frozen=True)
class Part(Generic[AnyShard]):
    """The data or the general text, with the outputs of all of its shards."""

    shard: AnyShard
    """First shard."""
    outputs: Sequence[LossOutput]
    sums: Mapping[str, Sequence[float]]
    """Sums per sequence, in the order of the data."""
    groups: Sequence[int] | None
    """Group of each sequence, in the order of the data; None if every sequence is independent."""
    profile: Profile

    @classmethod
    def of(cls, shards: Sequence[AnyShard], outputs: Sequence[LossOutput]) -> Part[AnyShard]:
        """Join shards of one part."""
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
        """Return the number of sequences."""
        return len(self.sums["n_text"])

    @property
    def cut(self) -> int:
        """Return the number of sequences that were cut."""
        return sum(output.cut for output in self.outputs)

    @property
    def protocol(self) -> Protocol:
        return Protocol(self.shard.protocol)


def parts_of(
    shards: Sequence[LossShard], outputs: Sequence[LossOutput]
) -> tuple[Part[DataShard], Part[TextShard] | None]:
    """Return the data, and the general text if the task has one. The shards of the data come first."""
    data = [shard for shard in shards if isinstance(shard, DataShard)]
    texts = [shard for shard in shards if isinstance(shard, TextShard)]
    return Part.of(data, outputs[: len(data)]), Part.of(texts, outputs[len(data) :]) if texts else None


def _in_data_order(values: Sequence[Value], order: Sequence[int]) -> list[Value]:
    return [values[place] for place in sorted(range(len(order)), key=order.__getitem__)]
