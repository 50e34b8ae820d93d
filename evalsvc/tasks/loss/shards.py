"""The shards of the loss task, what each of them leaves, and what that is together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from evalsvc.spec.protocol import Protocol
from evalsvc.tasks.loss.metrics import with_totals
from evalsvc.tasks.loss.profile import Grid, Profile, add_up, require_identity
from evalsvc.tasks.loss.yardsticks import PackedTargets, Unigrams
from evalsvc.tasks.task import Shard

Value = TypeVar("Value")

GENERAL_TEXT = "general_text"
"""What belongs to the general text is named so."""


@dataclass(frozen=True, kw_only=True)
class RecordsShard(Shard):
    """A range of records."""

    start: int
    stop: int
    """Places [start, stop) in the data, or where there are groups, in the order of these."""
    order: Sequence[int] | None = None
    """Indices of the records, where there are groups of records that are not independent."""
    groups: Sequence[int] | None = None
    """The group of each record, ascending."""
    digest: str
    """Of the whole data."""
    protocol: Mapping[str, Any]
    unigrams: Mapping[str, Unigrams]
    """Losses of a model without context, of all records, by the type of the targets."""

    def chosen(self, values: Sequence[Value]) -> Sequence[Value]:
        """Return those of the shard's records, in its order."""
        return values[self.start : self.stop] if self.order is None else [values[index] for index in self.order]


@dataclass(frozen=True, kw_only=True)
class DataShard(RecordsShard):
    """A range of the data."""

    part: Literal["data"] = "data"
    ids: Mapping[str, int]
    """How many ids a model that knows nothing chooses from, by where it chooses."""
    grid: Grid | None
    no_grid: str | None
    """Why there is no grid."""
    images: str | None = None
    """Digest of the shard's images, where images are encoded."""


@dataclass(frozen=True, kw_only=True)
class TextShard(RecordsShard):
    """A range of the general text."""

    part: Literal["general_text"] = "general_text"


LossShard: TypeAlias = DataShard | TextShard


@dataclass(frozen=True)
class LossOutput:
    """What a shard leaves for the merge."""

    cut: int
    """Sequences that were cut to the layout's length."""
    sums: Mapping[str, Sequence[float]]
    """Per sequence, see `teacher_forcing.COLUMNS`."""
    profile: Mapping[str, Sequence[Sequence[float]]] | None = None
    """Sums by place, see `teacher_forcing.ProfileSums`; None: the task asks for none."""
    empty: int | None = None
    """Captions of images that are empty."""
    codes: PackedTargets | None = None
    """The codes of images that this shard has encoded."""


AnyShard = TypeVar("AnyShard", DataShard, TextShard)


@dataclass(frozen=True)
class Part(Generic[AnyShard]):
    """The data, or the general text: what came of all of its shards."""

    shard: AnyShard
    """The first."""
    outputs: Sequence[LossOutput]
    sums: Mapping[str, Sequence[float]]
    """Per sequence, in the order of the data."""
    groups: Sequence[int] | None
    """Of each sequence, in the order of the data; None: every sequence is independent."""
    profile: Profile

    @classmethod
    def of(cls, shards: Sequence[AnyShard], outputs: Sequence[LossOutput]) -> Part[AnyShard]:
        """Join shards of one part. Raises InternalError where its losses do not add up."""
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
        """Sequences."""
        return len(self.sums["n_text"])

    @property
    def cut(self) -> int:
        """Sequences that were cut."""
        return sum(output.cut for output in self.outputs)

    @property
    def protocol(self) -> Protocol:
        return Protocol(self.shard.protocol)


def parts_of(
    shards: Sequence[LossShard], outputs: Sequence[LossOutput]
) -> tuple[Part[DataShard], Part[TextShard] | None]:
    """Return the data, and the general text where the task has some; the shards of the data come first."""
    data = [shard for shard in shards if isinstance(shard, DataShard)]
    texts = [shard for shard in shards if isinstance(shard, TextShard)]
    return Part.of(data, outputs[: len(data)]), Part.of(texts, outputs[len(data) :]) if texts else None


def _in_data_order(values: Sequence[Value], order: Sequence[int]) -> list[Value]:
    """Put values that came in this order of records into that of the data."""
    return [values[place] for place in sorted(range(len(order)), key=order.__getitem__)]
