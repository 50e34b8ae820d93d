"""Teacher-forced loss by token type: how well a checkpoint models text, image and special tokens apart.

The total of an image–caption pair hides the text, of which there is one token to thirty; every loss therefore comes
per type, over all ids and within the ids of its own type, and with the probability that leaks from text to image.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from evalsvc.data import PairData, Record, TokenData, read_pairs, read_tokens
from evalsvc.errors import DataChanged, InvalidData
from evalsvc.images import Crop, Filter
from evalsvc.layout import TokenSequence, VocabularyLayout
from evalsvc.metrics.ratio import Ratio, perplexity, ratio_of_sums
from evalsvc.protocol import Direction, MetricValue, Protocol
from evalsvc.tasks.task import AssetName, Context, DataPath, Plan, Task, TaskResult

if TYPE_CHECKING:
    from evalsvc.tasks.image_codes import ImageCoder

ESTIMATOR = "ratio-of-sums/1"
"""In the protocol: how sums become metrics. Another version is another series."""

TOKENS_PER_SHARD = 1 << 18
"""Of automatic shards: seconds on a GPU, below an hour for open_lm-1b on two cores."""

NATS = "nats/token"


class Loss(Task):
    """Negative log-likelihood of given sequences."""

    kind: ClassVar[str] = "loss"

    data: DataPath
    """Sequences, one a record: a JSONL file with `text_ids` or `text`, and `image_codes`, or a safetensors file.
    With `images`, captions that each name one of them: COCO annotations, CSV or JSONL."""
    images: DataPath | None = None
    """Images that are encoded by `decoder` and put beside their captions: a folder, or a safetensors file."""
    decoder: AssetName | None = None
    """The image tokenizer that the run was trained with: the name of an asset or the path of its checkpoint."""
    decoder_config: AssetName | None = None
    """Its configuration: a registered name such as `movqgan-67M`, or the path of a YAML file [what lies beside the
    checkpoint]."""
    decoder_ema: bool = False
    """Use its averaged weights."""
    size: int | None = Field(default=None, ge=2)
    """Side of the images in pixels [the decoder's]."""
    crop: Crop = "center"
    """`center` cuts the square in the middle, `none` squeezes the whole image to a square."""
    filter: Filter = "lanczos"
    """Of the resampling to `size`."""
    tokenizer: DataPath | None = None
    """The `tokenizer.json` for records that hold `text` [the layout's]."""
    bos: int | None = Field(default=None, ge=0)
    """Id of the tokenizer that is put before the ids of a `text`."""
    limit: int | None = Field(default=None, ge=1)
    """Use the first so many sequences only."""
    shards: int | None = Field(default=None, ge=1)
    """Parts to cut the work into [one per 262,144 tokens]; moves no number."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and activations; logits and losses are float32 in any case."""
    rotary_inv_freq_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """To what the rotary frequencies were rounded in training [found from the run's configuration]."""

    @model_validator(mode="after")
    def _check_images(self) -> Loss:
        if (self.images is None) != (self.decoder is None):
            missing, given = ("decoder", "images") if self.decoder is None else ("images", "decoder")
            raise ValueError(f"`{given}` is given without `{missing}`; images need a decoder that encodes them")
        return self

    def plan(self, context: Context) -> Plan:
        """Cut the data into contiguous ranges, every record checked against the layout. No image is encoded.

        Raises:
            InvalidData: names the record; or the decoder's codebook is not the layout's.
            AssetMissing: the decoder is not there.
        """
        layout = context.layout()
        data, pairs = self._read(context, layout)
        coder = self._coder(context, layout)
        records = data.records[: self.limit]
        if coder is not None:
            # All images have the same number of codes, and whichever they are, they fit.
            records = tuple(replace(record, image_codes=array("i", bytes(4 * coder.codes))) for record in records)
        lengths = [len(sequence.ids) for sequence in _sequences(layout, data, records)]
        if max(lengths) < 2:
            raise InvalidData(f"{data.path}: no sequence has two tokens, and the first of a sequence is not predicted")
        protocol = self._protocol(layout, data)
        if coder is not None and pairs is not None:
            protocol |= {**coder.identity(), "images": pairs.source.digest(pairs.images[: self.limit])}
        common = {"digest": data.digest, "protocol": protocol, "ids": _id_counts(layout)}
        count = min(self.shards or math.ceil(sum(lengths) / TOKENS_PER_SHARD), len(records))
        bounds = [len(records) * index // count for index in range(count + 1)]
        shards = []
        for start, stop in pairwise(bounds):
            images = {} if pairs is None else {"images": pairs.source.digest(pairs.images[start:stop])}
            shards.append({"start": start, "stop": stop, "units": stop - start, **common, **images})
        return Plan(shards, "sequences")

    def run(self, context: Context, shard: Mapping[str, Any]) -> Mapping[str, Any]:
        """Sums per sequence, see `teacher_forcing.COLUMNS`, and how many sequences were cut to the layout's length.

        Of pairs also `empty`, how many captions are empty.

        Raises:
            DataChanged: the data, the images or the decoder are not what was planned.
            NonFinite: names the checkpoint, the record and the first part of the model that is at fault.
        """
        from evalsvc.tasks.teacher_forcing import sequence_sums

        layout = context.layout()
        data, pairs = self._read(context, layout)
        if data.digest != shard["digest"]:
            raise DataChanged(f"{data.path} has changed since this evaluation was planned; evaluate again")
        start, stop = int(shard["start"]), int(shard["stop"])
        records = data.records[start:stop]
        coder = self._coder(context, layout)
        if coder is not None and pairs is not None:
            coder.require_planned(pairs.source, pairs.images[start:stop], shard["images"], shard["protocol"]["decoder"])
            codes = coder.encode(context, pairs.source, pairs.images[start:stop])
            records = tuple(replace(record, image_codes=row) for record, row in zip(records, codes, strict=True))
        sequences = list(_sequences(layout, data, records))
        model = context.model(dtype=self.dtype, rotary_inv_freq_dtype=self.rotary_inv_freq_dtype)
        names = [f"{data.path}, {record.where}" for record in records]
        sums = sequence_sums(context, model, layout, [sequence.ids for sequence in sequences], names)
        empty = {} if pairs is None else {"empty": sum(not text for text in pairs.captions[start:stop])}
        return {"cut": sum(sequence.cut > 0 for sequence in sequences), "sums": sums, **empty}

    def merge(self, context: Context, shards: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> TaskResult:
        """The metrics. Needs neither data nor checkpoint: either may be gone by now."""
        names = outputs[0]["sums"]
        sums = _with_totals({name: [value for output in outputs for value in output["sums"][name]] for name in names})
        metrics = _metrics(self.name, sums, shards[0]["ids"], Protocol(shards[0]["protocol"]))
        notes = {
            "sequences": len(sums["n_text"]),
            "sequences_cut": sum(output["cut"] for output in outputs),
            "tokens": int(sum(sums["n_total"])),
        }
        if "empty" in outputs[0]:
            notes["captions_empty"] = sum(output["empty"] for output in outputs)
        return TaskResult(metrics, _items(sums), notes)

    def _read(self, context: Context, layout: VocabularyLayout) -> tuple[TokenData, PairData | None]:
        path = context.dataset(self.data)
        tokenizer = layout.text.tokenizer if self.tokenizer is None else context.dataset(self.tokenizer)
        if self.images is None:
            return read_tokens(path, tokenizer, self.bos), None
        pairs = read_pairs(path, context.dataset(self.images), tokenizer, self.bos)
        return pairs.texts, pairs

    def _coder(self, context: Context, layout: VocabularyLayout) -> ImageCoder | None:
        if self.decoder is None:
            return None
        from evalsvc.tasks.image_codes import ImageCoder, require_codebook

        decoder = context.decoder(self.decoder, self.decoder_config, self.decoder_ema)
        require_codebook(layout, decoder, self.decoder)
        return ImageCoder(decoder, self.size, self.crop, self.filter)

    def _protocol(self, layout: VocabularyLayout, data: TokenData) -> dict[str, Any]:
        tokenized = data.tokenizer_digest is not None
        return {
            "task": self.kind,
            "estimator": ESTIMATOR,
            "data": data.digest,
            # A limit that leaves nothing out is none.
            "limit": None if self.limit is None or self.limit >= len(data.records) else self.limit,
            "layout": layout.digest,
            "dtype": self.dtype,
            "rotary_inv_freq_dtype": self.rotary_inv_freq_dtype,
            **({"tokenizer": data.tokenizer_digest, "bos": self.bos} if tokenized else {}),
        }


def _sequences(layout: VocabularyLayout, data: TokenData, records: Sequence[Record]) -> Iterator[TokenSequence]:
    for record in records:
        try:
            yield layout.sequence(record.text_ids, record.image_codes)
        except InvalidData as error:
            raise InvalidData(f"{data.path}, {record.where} {error.message}") from None


def _id_counts(layout: VocabularyLayout) -> dict[str, int]:
    """How many ids a model that knows nothing chooses from, by where it chooses."""
    counts = {"all": layout.rows, "text": layout.text.size, "image": layout.image.size if layout.image else None}
    return {where: count for where, count in counts.items() if count is not None}


def _metrics(
    task: str, sums: Mapping[str, Sequence[float]], ids: Mapping[str, int], protocol: Protocol
) -> list[MetricValue]:
    """Every metric that has tokens to rest on."""
    losses = {kind: (f"nll_{kind}", f"n_{kind}", ids["all"]) for kind in ("text", "image", "special", "total")}
    for kind in ("text", "image"):
        losses[f"{kind}_within"] = (f"within_{kind}", f"n_{kind}", ids.get(kind, 0))
    metrics = []
    for name, (total, count, choices) in losses.items():
        if loss := ratio_of_sums(sums[total], sums[count]):
            items = total, count
            metrics.append(_value(f"{task}/{name}", loss, NATS, "lower", protocol, math.log(choices), items))
            exp = perplexity(loss)
            metrics.append(_value(f"{task}/{name}_perplexity", exp, "perplexity", "lower", protocol, float(choices)))
    mass = ratio_of_sums(sums["image_mass"], sums["n_text"])
    if mass is not None and "image" in ids:
        baseline, items = ids["image"] / ids["all"], ("image_mass", "n_text")
        metrics.append(_value(f"{task}/image_mass", mass, "probability", "none", protocol, baseline, items))
    return metrics


def _with_totals(sums: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """The sums, and the losses and counts of all types together, per sequence."""

    def total(name: str) -> list[float]:
        parts = (sums[f"{name}_{kind}"] for kind in ("text", "image", "special"))
        return [sum(row) for row in zip(*parts, strict=True)]

    return {**sums, "nll_total": total("nll"), "n_total": total("n")}


def _value(
    name: str,
    ratio: Ratio,
    unit: str,
    direction: Direction,
    protocol: Protocol,
    baseline: float,
    items: tuple[str, ...] = (),
) -> MetricValue:
    return MetricValue(name, ratio.value, ratio.stderr, ratio.n, unit, direction, protocol, baseline, items)


def _items(sums: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Sums and counts of each sequence; what is zero for want of such tokens is left out."""
    items = []
    for index in range(len(sums["n_text"])):
        item: dict[str, Any] = {"index": index}
        for kind in ("text", "image", "special", "total"):
            if count := int(sums[f"n_{kind}"][index]):
                item |= {f"n_{kind}": count, f"nll_{kind}": sums[f"nll_{kind}"][index]}
                if kind in ("text", "image"):
                    item[f"within_{kind}"] = sums[f"within_{kind}"][index]
                if kind == "text":
                    item["image_mass"] = sums["image_mass"][index]
        items.append(item)
    return items
