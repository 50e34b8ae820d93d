"""Completions: what a checkpoint says to a few fixed prompts, beside what the run's base says to them.

Each prompt is continued greedily and by seeded draws, over all ids of the table: a model that has forgotten its text
may well answer with an image, whose ids are then shown as such.

The base judges what the checkpoint wrote by its own loss, within text ids and given the prompt. It knows no images, and
what it would make of text behind one says nothing of the text; so it is given the text that a completion begins with,
up to the first id that is none, and nothing where that is the first id of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, product, takewhile
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from evalsvc.data.tokenizer import TextTokenizer, render
from evalsvc.errors import DataChanged, InvalidData, InvalidRequest, NonFinite
from evalsvc.files.artifacts import Artifact
from evalsvc.metrics.intervals import MIN_ITEMS
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.spec.bounds import MAX_ID, MAX_TEXT, Seed, first_repeated, shortened
from evalsvc.spec.protocol import MetricValue, Protocol, digest
from evalsvc.spec.sampling import MAX_SEED, SamplingParams
from evalsvc.tasks.completions.measures import (
    GREEDY,
    SEEDED,
    describe,
    describe_loss,
    measure,
    measure_metrics,
    prompt_numbers,
)
from evalsvc.tasks.suspicions import cut_inputs
from evalsvc.tasks.task import Context, Plan, TaskResult
from evalsvc.tasks.text_task import TextTask, base_rotary

if TYPE_CHECKING:
    from evalsvc.models import Transformer
    from evalsvc.spec.layout import VocabularyLayout

ESTIMATOR = "completions/2"
"""In the protocol of the metrics: how completions are counted. Another version is another series: version 1 gave
`image_share` an error over completions, of which several continue one prompt, and shares of 0 or 1 an error of 0."""

DRAWING = "completions/1"
"""In the protocol of the items: how ids are drawn."""

TABLE_1 = (
    "Simply put, the theory of relativity states that",
    "Translate English to French:\n"
    "sea otter => loutre de mer\n"
    "peppermint => menthe poivrée\n"
    "plush girafe => girafe peluche\n"
    "cheese =>",
)
"""The prompts of Table 1 of Zhang, McKinzie, Gan, Shankar, Toshev, "Pre-trained Language Models Do Not Help
Auto-regressive Text-to-Image Generation" (arXiv 2311.16201)."""

MAX_DRAWN = 10_000_000
"""Ids that a checkpoint draws at most, all prompts and completions together."""


class Completions(TextTask):
    """Fixed prompts continued by the checkpoint and by its base."""

    kind: ClassVar[str] = "completions"

    prompts: tuple[Annotated[str, Field(max_length=MAX_TEXT)], ...] = Field(
        default=TABLE_1, min_length=1, max_length=1000
    )
    """What to continue [the two prompts of Table 1 of arXiv 2311.16201]."""
    max_tokens: int = Field(default=48, ge=1, le=1 << 16)
    """Ids to draw at most; a completion ends earlier where it draws the end of the text."""
    samples: int = Field(default=2, ge=0, le=10_000)
    """Seeded completions of each prompt, beside the greedy one."""
    temperature: float = 1.0
    """Of the seeded ones; divides the logits."""
    top_k: int | None = Field(default=None, ge=1, le=MAX_ID)
    """Draw from this many likeliest ids [all]."""
    top_p: float | None = None
    """Draw from the fewest likeliest ids with this probability [all]."""
    seed: Seed = 0
    """Of the first seeded one; the next has the next seed."""

    @model_validator(mode="after")
    def _check(self) -> Completions:
        if (twice := first_repeated(self.prompts)) is not None:
            raise ValueError(f"the prompt {shortened(twice)} is given twice; leave one of them out")
        if self.temperature == 0 and self.samples:
            raise ValueError("seeded completions at temperature 0 are the greedy one; set samples to 0")
        drawn = len(self.prompts) * (self.samples + 1) * self.max_tokens
        if drawn > MAX_DRAWN:
            raise ValueError(
                f"{len(self.prompts):,} prompts with {self.samples + 1:,} completions of {self.max_tokens:,} ids are "
                f"{drawn:,} ids, at most {MAX_DRAWN:,} are drawn; lower `samples` or `max_tokens`"
            )
        if self.seed + max(self.samples - 1, 0) > MAX_SEED:
            raise ValueError(
                f"seed is {self.seed}, and each of the {self.samples:,} `samples` has the next one; give a smaller one"
            )
        try:
            self._seeded(self.seed)
        except InvalidRequest as error:
            raise ValueError(error.message) from None
        return self

    def ways(self) -> dict[str, SamplingParams]:
        """How each prompt is continued, by name."""
        seeds = range(self.seed, self.seed + self.samples)
        return {GREEDY: SamplingParams(temperature=0), **{f"seed {seed}": self._seeded(seed) for seed in seeds}}

    def _seeded(self, seed: int) -> SamplingParams:
        return SamplingParams(self.temperature, self.top_k, self.top_p, seed=seed)

    def plan(self, context: Context) -> Plan:
        """One shard. Nothing is drawn, but tokenizer, layouts and prompts are checked.

        Raises:
            InvalidData: there is no tokenizer, it is not that of the checkpoint or of its base, or a prompt is empty.
        """
        tokenizer = self.text_tokenizer(context)
        if context.base is not None:
            self.require_same_text(context, context.base)
        self._encode(tokenizer)
        sources = _sources(context, context.base)
        completions = len(self.prompts) * len(self.ways()) * len(sources)
        return Plan([{"tokenizer": tokenizer.digest, "sources": sources, "units": completions}], "completions")

    def run(self, context: Context, shard: Mapping[str, Any]) -> Mapping[str, Any]:
        """An item for each prompt and way, how many prompts were cut, and what the protocol says of them.

        Raises:
            DataChanged: the tokenizer or the run's base is not what was planned.
            InvalidData: `max_tokens` leaves no room for a prompt.
            NonFinite: names the checkpoint and the prompt.
        """
        base = context.base if "base" in shard["sources"] else None
        if _sources(context, base) != shard["sources"]:
            raise DataChanged("the run has another base since this evaluation was planned; evaluate again")
        tokenizer = self.text_tokenizer(context)
        if tokenizer.digest != shard["tokenizer"]:
            raise DataChanged(f"{tokenizer.path} has changed since this evaluation was planned; evaluate again")
        layout, whole = context.layout(), self._encode(tokenizer)
        max_length = self.max_length or self._model(context).config.seq_len
        prompts = [self._cut(ids, max_length) for ids in whole]
        own = self._complete(context, tokenizer, prompts, context.report)
        protocol = {
            "task": self.kind,
            "estimator": ESTIMATOR,
            "max_tokens": self.max_tokens,
            "tokenizer": tokenizer.digest,
            "bos": self.bos,
            "end_of_text": self._end_of_text(tokenizer),
            "layout": layout.digest,
            **self.protocol(context.rotary()),
        }
        items = self._items(own, prompts, protocol)
        if base is not None:
            others = self._complete(base, tokenizer, prompts, partial(_report_after, context.report, len(own)))
            self._compare(items, own, others)
            self._judge(items, base, prompts, own, others)
        ways = len(self.ways())
        for first in range(0, len(items), ways):
            items[first] |= prompt_numbers(items[first : first + ways])
        return {
            "items": items,
            "cut": sum(len(kept) < len(ids) for kept, ids in zip(prompts, whole, strict=True)),
            "chance": layout.image.size / layout.rows if layout.image and layout.rows else None,
            "base": None if base is None else base.digest(),
            "base_layout": None if base is None else base.layout().digest,
            "base_rotary": {} if base is None else base_rotary(base),
            "base_text_ids": 0 if base is None else base.layout().text.size,
            "protocol": {**protocol, "prompts": digest([self.prompts, prompts])},
        }

    def merge(self, context: Context, shards: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> TaskResult:
        """The share of image ids, how many greedy completions are the base's, and all of them as one text.

        Every error is over prompts: completions of one prompt are one group. Fewer than `MIN_ITEMS` prompts give
        numbers and no verdict.
        """
        [output] = outputs
        items = output["items"]
        notes = {
            "completions": len(items),
            "prompts_cut": output["cut"],
            "ids_drawn": sum(item["drawn"] for item in items),
        }
        if len(self.prompts) < MIN_ITEMS:
            notes["errors"] = (
                f"standard errors are over prompts, and those of {len(self.prompts)} prompts bear no comparison; give "
                f"{MIN_ITEMS} or more `prompts`"
            )
        sources = shards[0]["sources"]
        page = "\n".join(_page(items, sources)) + "\n"
        details = {"prompts": len(self.prompts), "ways": list(self.ways()), **sources}
        artifact = Artifact("completions", "completions.txt", "text/plain; charset=utf-8", page.encode(), details)
        remedy = "lower `max_tokens`, or raise `max_length` if the model bears it"
        warnings = list(cut_inputs(self.name, "prompts", output["cut"], len(self.prompts), remedy))
        return TaskResult(list(self._metrics(output)), items, notes, [artifact], warnings)

    def _encode(self, tokenizer: TextTokenizer) -> list[list[int]]:
        """The prompts as ids of the tokenizer, `bos` first."""
        for name, value in (("bos", self.bos), ("end_of_text", self.end_of_text)):
            if value is not None and value >= tokenizer.size:
                raise InvalidData(
                    f"{name} is {value}; the tokenizer {tokenizer.path} has the ids 0…{tokenizer.size - 1}"
                )
        prefix = [] if self.bos is None else [self.bos]
        prompts = [[*prefix, *tokenizer.encode(prompt)] for prompt in self.prompts]
        if [] in prompts:
            raise InvalidData(
                f"prompt {prompts.index([]) + 1} is empty, and a model continues nothing without an id; give `bos`, or "
                "a prompt with text"
            )
        return prompts

    def _cut(self, ids: list[int], max_length: int) -> list[int]:
        """The end of a prompt that leaves room for the completion; `bos` stays where it is."""
        room = max_length - self.max_tokens
        kept = ids[:0] if self.bos is None else ids[:1]
        if room <= len(kept):
            raise InvalidData(
                f"max_tokens is {self.max_tokens} of {max_length} tokens, which leaves no room for a prompt; lower it, "
                "or raise max_length if the model bears it"
            )
        return ids if len(ids) <= room else kept + ids[len(ids) - room + len(kept) :]

    def _model(self, context: Context) -> Transformer:
        return context.model(dtype=self.dtype, rotary_inv_freq_dtype=self.rotary_inv_freq_dtype)

    def _end_of_text(self, tokenizer: TextTokenizer) -> int | None:
        return tokenizer.end_of_text if self.end_of_text is None else self.end_of_text

    def _complete(
        self,
        context: Context,
        tokenizer: TextTokenizer,
        prompts: Sequence[Sequence[int]],
        report: Callable[[int], None],
    ) -> list[Completion]:
        """Every prompt in all ways, prompt by prompt."""
        from evalsvc.sampling import Continuation, complete

        layout, model = context.layout(), self._model(context)
        rows = layout.text_ids
        wanted = [
            # The noise is the text's: it stays when prompts are added before it.
            Continuation(text, tuple(rows[token] for token in ids), self.max_tokens)
            for text, ids in zip(self.prompts, prompts, strict=True)
        ]
        end = self._end_of_text(tokenizer)
        ends = frozenset() if end is None else frozenset({rows[end]})
        by_way: list[list[list[int]]] = []
        try:
            for params in self.ways().values():
                before = len(by_way) * len(prompts)
                progress = partial(_report_after, report, before)
                budget = context.batch_tokens
                by_way.append(complete(model, wanted, params, batch_tokens=budget, end=ends, report=progress))
        except NonFinite as error:
            raise NonFinite(f"{context.checkpoint.label}: {error.message}") from None
        drawn = (way[index] for index in range(len(prompts)) for way in by_way)
        return [Completion(ids, render(ids, layout, tokenizer), layout) for ids in drawn]

    def _items(
        self, own: Sequence[Completion], prompts: Sequence[Sequence[int]], protocol: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """What the checkpoint wrote. Of two items with one `protocol` only the weights differ that drew them.

        The first indices are those of the greedy ones, so that they pair with those of a task with other draws.
        """
        asked = product(enumerate(zip(self.prompts, prompts, strict=True)), enumerate(self.ways().items()))
        drawn = {**protocol, "estimator": DRAWING}
        end = None if protocol["end_of_text"] is None else own[0].layout.text.offset + protocol["end_of_text"]
        return [
            {
                "index": way_index * len(prompts) + prompt_index,
                "prompt": prompt,
                "way": way,
                "protocol": Protocol({**drawn, "prompt": list(ids), "sampling": params.to_json()}).id,
                "text": one.text,
                "ids": one.ids,
                "drawn": len(one.ids),
                "image_ids": one.image_ids,
                **measure(one.ids, end),
                "base": None,
                "base_ids": None,
            }
            for ((prompt_index, (prompt, ids)), (way_index, (way, params))), one in zip(asked, own, strict=True)
        ]

    def _compare(self, items: Sequence[dict[str, Any]], own: Sequence[Completion], base: Sequence[Completion]) -> None:
        """`same_as_base`, 0 or 1, is of the greedy ones: seeded ones differ as soon as anything has moved."""
        for item, one, other in zip(items, own, base, strict=True):
            item |= {"base": other.text, "base_ids": other.ids}
            if item["way"] == GREEDY:
                item["same_as_base"] = int(one.from_text == other.from_text)

    def _judge(
        self,
        items: Sequence[dict[str, Any]],
        base: Context,
        prompts: Sequence[Sequence[int]],
        own: Sequence[Completion],
        others: Sequence[Completion],
    ) -> None:
        """The base's loss in nats on what the checkpoint wrote and on what it wrote itself, and of how many ids.

        Raises:
            NonFinite: names the base and the prompt.
        """
        from evalsvc.scoring import Request, score

        rows = base.layout().text_ids
        texts = [completion.leading_text(len(rows)) for completion in chain(own, others)]
        asked = [index for index, text in enumerate(texts) if text]
        contexts = [tuple(rows[token] for token in ids) for ids in prompts for _ in self.ways()] * 2
        requests = [Request(contexts[index], tuple(rows[token] for token in texts[index])) for index in asked]
        try:
            scores = score(self._model(base), base.layout(), requests, base.batch_tokens) if requests else []
        except NonFinite as error:
            raise NonFinite(f"{base.checkpoint.label}: {error.message}") from None
        losses = dict.fromkeys(range(len(texts)), 0.0)
        losses |= {index: -one.logprob_within for index, one in zip(asked, scores, strict=True)}
        for index, item in enumerate(items):
            for name, place in (("base", index), ("base_own", index + len(own))):
                item |= {f"{name}_nll": losses[place], f"{name}_scored": len(texts[place])}

    def _metrics(self, output: Mapping[str, Any]) -> Iterator[MetricValue]:
        items, ways = output["items"], [params.to_json() for params in self.ways().values()]
        prompts = [item["prompt"] for item in items]
        share = ratio_of_sums([item["image_ids"] for item in items], [item["drawn"] for item in items], prompts)
        if share is not None and output["chance"] is not None:
            protocol = Protocol({**output["protocol"], "sampling": ways})
            yield MetricValue(
                f"{self.name}/image_share",
                share.value,
                share.stderr,
                share.n,
                "fraction",
                "none",
                protocol,
                output["chance"],
                ("image_ids", "drawn"),
                groups=share.groups,
                grouped_by=None if share.groups is None else "prompt",
            )
        same = [item["same_as_base"] for item in items if "same_as_base" in item]
        if (mean := ratio_of_sums(same, [1] * len(same))) is not None:
            compared = {"base": output["base"], **output["base_rotary"]}
            protocol = Protocol({**output["protocol"], "sampling": ways[:1], **compared})
            yield MetricValue(
                f"{self.name}/same_as_base",
                mean.value,
                mean.stderr,
                mean.n,
                "fraction",
                "none",
                protocol,
                items=("same_as_base",),
            )
        groups = {GREEDY: ways[:1], **({SEEDED: ways[1:]} if ways[1:] else {})}
        protocols = {group: {**output["protocol"], "sampling": drawn} for group, drawn in groups.items()}
        base = {**{name: output[name] for name in ("base", "base_layout")}, **output["base_rotary"]}
        yield from measure_metrics(self.name, items, protocols, base, output["base_text_ids"])


@dataclass(frozen=True)
class Completion:
    ids: list[int]
    """What was drawn, rows of the table."""
    text: str
    layout: VocabularyLayout

    @property
    def image_ids(self) -> int:
        return sum(row in (self.layout.image_range or ()) for row in self.ids)

    @property
    def from_text(self) -> list[int]:
        """The ids counted from the first text row, so that text is equal under other layouts too."""
        return [row - self.layout.text.offset for row in self.ids]

    def leading_text(self, size: int) -> list[int]:
        """What text it begins with, as ids of the tokenizer, of those that are text to a base with `size` of them."""
        known = min(size, self.layout.text.size)
        return list(takewhile(lambda token: 0 <= token < known, self.from_text))


def _sources(context: Context, base: Context | None) -> dict[str, str]:
    """Whose completions there are."""
    return {"checkpoint": context.checkpoint.label, **({} if base is None else {"base": base.checkpoint.label})}


def _report_after(report: Callable[[int], None], before: int, done: int) -> None:
    report(before + done)


def _page(items: Sequence[Mapping[str, Any]], sources: Mapping[str, str]) -> Iterator[str]:
    """Lines to read: prompt by prompt, the base's completion above the checkpoint's."""
    yield from (f"{name:<10}  {label}" for name, label in sources.items())
    for prompt, ways in groupby(items, lambda item: item["prompt"]):
        yield f"\n\n{prompt}"
        for item in ways:
            if item["base"] is not None:
                loss = describe_loss(item["base_own_nll"], item["base_own_scored"], len(item["base_ids"]))
                yield from _completed("base", item["way"], item["base"], loss)
            yield from _completed("checkpoint", item["way"], item["text"], describe(item))


def _completed(whose: str, way: str, text: str, numbers: str) -> Iterator[str]:
    yield f"\n  {whose}, {way}: {numbers}"
    yield indent(text, "  | ", lambda line: True)
