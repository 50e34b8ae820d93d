"""The token sequences that a task `loss` reads, in the order of its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from evalsvc.data.tokens import Record, TokenData, read_pairs, read_tokens
from evalsvc.tasks.image_codes import ImageCoder
from evalsvc.tasks.loss.shards import GENERAL_TEXT, DataShard, TextShard
from evalsvc.tasks.loss.spec import Loss
from evalsvc.tasks.loss.work import LossWork
from evalsvc.tasks.task import Context


@dataclass(frozen=True)
class LossSequences:
    """The first sequences of a part of a loss task's data."""

    general: bool
    """Whether the part is the task's `general_text`."""
    ids: list[list[int]]
    """Rows of the model's table; the first row of a sequence is not predicted."""
    total: int
    """Number of sequences behind the task's metrics."""
    protocol: Mapping[str, object]
    """Protocol of the part's metrics."""


def loss_sequences(context: Context, task: Loss, n: int) -> Iterator[LossSequences]:
    """Read at most `n` sequences of each part of a task's data; images are encoded by the task's decoder.

    Raises the errors of reading the data.
    """
    path, tokenizer = context.dataset(task.data), _tokenizer(context, task)
    bos = context.layout().text.beginning(task.bos)
    work = LossWork(task)
    shards = work.plan(context).shards
    protocols = {type(shard): shard.protocol for shard in shards}
    if task.images is None:
        data = read_tokens(path, tokenizer, bos, context.readable)
        yield _part(context, work, data, data.records[: task.limit], n, protocols[DataShard])
    else:
        pairs = read_pairs(path, context.images(task.images), tokenizer, bos, context.readable)
        assert task.decoder is not None, "images come with a decoder"
        decoder = context.decoder(task.decoder, task.decoder_config, task.decoder_ema)
        coder = ImageCoder(decoder, task.size, task.crop, task.filter)
        codes = coder.encode(context, pairs.source, pairs.images[: task.limit][:n])
        records = pairs.texts.records[: task.limit]
        coded = [replace(record, image_codes=row) for record, row in zip(records, codes, strict=False)]
        yield _part(context, work, pairs.texts, [*coded, *records[len(coded) :]], n, protocols[DataShard])
    if task.general_text is not None:
        data = read_tokens(context.dataset(task.general_text), tokenizer, bos, context.readable)
        texts = data.texts(task.general_text_limit, GENERAL_TEXT)
        yield replace(_part(context, work, data, texts, n, protocols[TextShard]), general=True)


def _tokenizer(context: Context, task: Loss) -> str | None:
    return context.layout().text.tokenizer if task.tokenizer is None else context.dataset(task.tokenizer)


def _part(
    context: Context, work: LossWork, data: TokenData, records: Sequence[Record], n: int, protocol: Mapping[str, object]
) -> LossSequences:
    ids = [sequence.ids for sequence in work.sequences(context.layout(), data, records[:n])]
    return LossSequences(False, ids, len(records), protocol)
