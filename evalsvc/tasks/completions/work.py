"""The completions task: fixed prompts, completed by a checkpoint and by the run's base.

Each prompt is completed greedily and by seeded draws, over all ids of the table: a model that has forgotten its text
may answer with an image.

The base judges the checkpoint's completions by its own loss, within text ids and given the prompt. The base has no
image ids, so only the text up to the first other id is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, product, takewhile
from typing import Any

from evalsvc.data.tokenizer import TextTokenizer, render
from evalsvc.errors import DataChanged, InvalidData, NonFinite
from evalsvc.files.artifacts import Artifact
from evalsvc.metrics.intervals import MIN_ITEMS
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.sampling import Continuation, complete
from evalsvc.scoring import Request, score
from evalsvc.spec.documents.text_reports import CompletionsReport
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.protocol import MetricValue, Protocol, digest
from evalsvc.tasks.completions.measures import SEEDED, Item, measure, measure_metrics, prompt_numbers
from evalsvc.tasks.completions.spec import GREEDY, Completions
from evalsvc.tasks.result_warnings import cut_inputs
from evalsvc.tasks.task import Context, Plan, Shard, TaskResult
from evalsvc.tasks.text_work import TextWork, base_rotary

ESTIMATOR = "completions/2"
"""Version of the computation of metrics, in their protocol. Another version is another series."""

DRAWING = "completions/1"
"""Version of the drawing of ids, in the protocol of the items."""


@dataclass(frozen=True, kw_only=True)
class CompletionsShard(Shard):
    """A shard with all completions of all prompts."""

    tokenizer: str
    """Digest of the tokenizer."""
    sources: Mapping[str, str]
    """Labels of the `checkpoint`, and of the `base` if the run has one."""


@dataclass(frozen=True, kw_only=True)
class CompletionsOutput:
    """The output of the shard."""

    items: Sequence[Item]
    """Items sorted by prompt, with all completions of a prompt together."""
    cut: int
    """Number of prompts that were cut."""
    chance: float | None
    """Share of image ids among the table's ids."""
    base: str | None
    """Digest of the base."""
    base_layout: str | None
    base_rotary: Mapping[str, str]
    base_text_ids: int
    protocol: Mapping[str, Any]

    @property
    def base_protocol(self) -> dict[str, str | None]:
        """Return the protocol's content for a base that judges completions."""
        return {"base": self.base, "base_layout": self.base_layout, **self.base_rotary}


class CompletionsWork(TextWork[Completions, CompletionsShard, CompletionsOutput]):
    """Draws completions, and scores them by the base."""

    def plan(self, context: Context) -> Plan[CompletionsShard]:
        """Plan one shard, and check tokenizer, layouts and prompts."""
        tokenizer = self.text_tokenizer(context)
        if context.base is not None:
            self.require_same_text(context, context.base)
        self._encode(context, tokenizer)
        sources = _sources(context, context.base)
        completions = len(self.task.prompts) * len(self.task.ways()) * len(sources)
        shard = CompletionsShard(units=completions, tokenizer=tokenizer.digest, sources=sources)
        return Plan([shard], "completions")

    def run(self, context: Context, shard: CompletionsShard) -> CompletionsOutput:
        """Complete every prompt in every way, by the checkpoint and by the base."""
        base = context.base if "base" in shard.sources else None
        if _sources(context, base) != shard.sources:
            raise DataChanged("the run's base has changed since this evaluation was planned; evaluate again")
        tokenizer = self.text_tokenizer(context)
        if tokenizer.digest != shard.tokenizer:
            raise DataChanged.since_planned(tokenizer.path)
        layout, whole = context.layout(), self._encode(context, tokenizer)
        max_length = self.task.max_length or self.model(context).config.seq_len
        prompts = [self._cut(ids, max_length, self.bos(context, tokenizer)) for ids in whole]
        completions = self._complete(context, tokenizer, prompts, context.report)
        protocol = self._protocol(context, tokenizer)
        items = self._items(completions, prompts, protocol, self._end_of_text(tokenizer))
        if base is not None:
            base_completions = self._complete(
                base, tokenizer, prompts, partial(_report_after, context.report, len(completions))
            )
            items = self._judged(
                _compared(items, completions, base_completions), base, prompts, completions, base_completions
            )
        return CompletionsOutput(
            items=items,
            cut=sum(len(kept) < len(ids) for kept, ids in zip(prompts, whole, strict=True)),
            chance=layout.image.size / layout.rows if layout.image and layout.rows else None,
            base=None if base is None else base.digest(),
            base_layout=None if base is None else base.layout().digest,
            base_rotary={} if base is None else base_rotary(base),
            base_text_ids=0 if base is None else base.layout().text.size,
            protocol={**protocol, "prompts": digest([self.task.prompts, prompts])},
        )

    def merge(
        self, context: Context, shards: Sequence[CompletionsShard], outputs: Sequence[CompletionsOutput]
    ) -> TaskResult:
        """Return the share of image ids, the number of greedy completions that equal the base's, and all completions
        as a report."""
        [shard], [output] = shards, outputs
        items, ways = output.items, len(self.task.ways())
        notes: dict[str, object] = {
            "completions": len(items),
            "prompts_cut": output.cut,
            "ids_drawn": sum(item.drawn for item in items),
        }
        if len(self.task.prompts) < MIN_ITEMS:
            notes["errors"] = (
                f"standard errors are over prompts, and {len(self.task.prompts)} prompts are too few for a comparison; "
                f"set {MIN_ITEMS} or more `prompts`"
            )
        rows = [item.row() for item in items]
        report = CompletionsReport.model_validate({"base": None, **shard.sources, "completions": rows})
        details = {"prompts": len(self.task.prompts), "ways": list(self.task.ways()), **shard.sources}
        content = report.model_dump_json(indent=1).encode()
        artifact = Artifact("completions", "completions.json", "application/json", content, details)
        remedy = "lower `max_tokens`, or raise `max_length` if the model allows it"
        warnings = list(cut_inputs(self.task.name, "prompts", output.cut, len(self.task.prompts), remedy))
        prompts = [prompt_numbers(items[first : first + ways]) for first in range(0, len(items), ways)]
        for row, numbers in zip(rows[::ways], prompts, strict=True):
            row |= numbers
        return TaskResult(list(self._metrics(output, prompts)), rows, notes, [artifact], warnings)

    def _protocol(self, context: Context, tokenizer: TextTokenizer) -> dict[str, object]:
        return {
            "task": self.task.kind,
            "estimator": ESTIMATOR,
            "max_tokens": self.task.max_tokens,
            "tokenizer": tokenizer.digest,
            "bos": self.bos(context, tokenizer),
            "end_of_text": self._end_of_text(tokenizer),
            "layout": context.layout().digest,
            **self.protocol(context.rotary()),
        }

    def _encode(self, context: Context, tokenizer: TextTokenizer) -> list[list[int]]:
        if self.task.end_of_text is not None and self.task.end_of_text >= tokenizer.size:
            raise InvalidData(
                f"end_of_text is {self.task.end_of_text}; the tokenizer {tokenizer.path} only has the ids "
                f"0…{tokenizer.size - 1}"
            )
        bos = self.bos(context, tokenizer)
        prompts = [tokenizer.encode(prompt, bos) for prompt in self.task.prompts]
        if [] in prompts:
            raise InvalidData(
                f"prompt {prompts.index([]) + 1} is empty, and a model needs at least one id; set `bos`, or write "
                "a prompt with text"
            )
        return prompts

    def _cut(self, ids: list[int], max_length: int, bos: int | None) -> list[int]:
        """Return the end of a prompt that leaves room for the completion, and keep `bos` at the start."""
        room = max_length - self.task.max_tokens
        kept = ids[:0] if bos is None else ids[:1]
        if room <= len(kept):
            raise InvalidData(
                f"max_tokens is {self.task.max_tokens} of {max_length} tokens, which leaves no room for a prompt; "
                "lower `max_tokens`, or raise `max_length` if the model allows it"
            )
        return ids if len(ids) <= room else kept + ids[len(ids) - room + len(kept) :]

    def _end_of_text(self, tokenizer: TextTokenizer) -> int | None:
        return tokenizer.end_of_text if self.task.end_of_text is None else self.task.end_of_text

    def _complete(
        self,
        context: Context,
        tokenizer: TextTokenizer,
        prompts: Sequence[Sequence[int]],
        report: Callable[[int], None],
    ) -> list[DrawnText]:
        layout, model = context.layout(), self.model(context)
        rows = layout.text_ids
        wanted = [
            # The noise depends on the text, so it stays the same when prompts are added before it.
            Continuation(text, tuple(rows[token] for token in ids), self.task.max_tokens)
            for text, ids in zip(self.task.prompts, prompts, strict=True)
        ]
        end = self._end_of_text(tokenizer)
        ends = frozenset() if end is None else frozenset({rows[end]})
        by_way: list[list[list[int]]] = []
        try:
            for params in self.task.ways().values():
                before = len(by_way) * len(prompts)
                progress = partial(_report_after, report, before)
                budget = context.batch_tokens
                by_way.append(complete(model, wanted, params, batch_tokens=budget, end=ends, report=progress))
        except NonFinite as error:
            raise NonFinite(f"{context.checkpoint.label}: {error.message}") from None
        drawn = (way[index] for index in range(len(prompts)) for way in by_way)
        return [DrawnText(ids, render(ids, layout, tokenizer), layout) for ids in drawn]

    def _items(
        self,
        completions: Sequence[DrawnText],
        prompts: Sequence[Sequence[int]],
        protocol: Mapping[str, object],
        end_of_text: int | None,
    ) -> list[Item]:
        """Return the checkpoint's completions as items, greedy ones first so that tasks with other draws can be
        paired."""
        asked = product(enumerate(zip(self.task.prompts, prompts, strict=True)), enumerate(self.task.ways().items()))
        drawn = {**protocol, "estimator": DRAWING}
        end = None if end_of_text is None else completions[0].layout.text.offset + end_of_text
        return [
            Item(
                index=way_index * len(prompts) + prompt_index,
                prompt=prompt,
                way=way,
                protocol=Protocol({**drawn, "prompt": list(ids), "sampling": params.to_json()}).id,
                text=completion.text,
                ids=completion.ids,
                drawn=len(completion.ids),
                image_ids=completion.image_ids,
                **measure(completion.ids, end)._asdict(),
            )
            for ((prompt_index, (prompt, ids)), (way_index, (way, params))), completion in zip(
                asked, completions, strict=True
            )
        ]

    def _judged(
        self,
        items: Sequence[Item],
        base: Context,
        prompts: Sequence[Sequence[int]],
        own: Sequence[DrawnText],
        others: Sequence[DrawnText],
    ) -> list[Item]:
        rows = base.layout().text_ids
        texts = [completion.leading_text(len(rows)) for completion in chain(own, others)]
        asked = [index for index, text in enumerate(texts) if text]
        contexts = [tuple(rows[token] for token in ids) for ids in prompts for _ in self.task.ways()] * 2
        requests = [Request(contexts[index], tuple(rows[token] for token in texts[index])) for index in asked]
        try:
            scores = score(self.model(base), base.layout(), requests, base.batch_tokens) if requests else []
        except NonFinite as error:
            raise NonFinite(f"{base.checkpoint.label}: {error.message}") from None
        losses = dict.fromkeys(range(len(texts)), 0.0)
        losses |= {index: -score.logprob_within for index, score in zip(asked, scores, strict=True)}
        return [
            replace(
                item,
                base_nll=losses[index],
                base_scored=len(texts[index]),
                base_own_nll=losses[index + len(own)],
                base_own_scored=len(texts[index + len(own)]),
            )
            for index, item in enumerate(items)
        ]

    def _metrics(self, output: CompletionsOutput, prompts: Sequence[Mapping[str, float]]) -> Iterator[MetricValue]:
        items, ways = output.items, [params.to_json() for params in self.task.ways().values()]
        of_prompt = [item.prompt for item in items]
        share = ratio_of_sums([item.image_ids for item in items], [item.drawn for item in items], of_prompt)
        if share is not None and output.chance is not None:
            name, protocol = f"{self.task.name}/image_share", Protocol({**output.protocol, "sampling": ways})
            items_of, by = ("image_ids", "drawn"), None if share.groups is None else "prompt"
            yield share.as_metric(name, "fraction", "none", protocol, output.chance, items_of, by)
        same = [item.same_as_base for item in items if item.same_as_base is not None]
        if (mean := ratio_of_sums(same, [1] * len(same))) is not None:
            compared = {"base": output.base, **output.base_rotary}
            protocol = Protocol({**output.protocol, "sampling": ways[:1], **compared})
            name = f"{self.task.name}/same_as_base"
            yield mean.as_metric(name, "fraction", "none", protocol, items=("same_as_base",))
        groups = {GREEDY: ways[:1], **({SEEDED: ways[1:]} if ways[1:] else {})}
        protocols = {group: {**output.protocol, "sampling": drawn} for group, drawn in groups.items()}
        yield from measure_metrics(self.task.name, prompts, protocols, output.base_protocol, output.base_text_ids)


def _compared(items: Sequence[Item], completions: Sequence[DrawnText], base: Sequence[DrawnText]) -> list[Item]:
    return [
        replace(
            item,
            base=base_completion.text,
            base_ids=base_completion.ids,
            same_as_base=int(completion.from_text == base_completion.from_text) if item.is_greedy else None,
        )
        for item, completion, base_completion in zip(items, completions, base, strict=True)
    ]


@dataclass(frozen=True)
class DrawnText:
    ids: list[int]
    """Drawn ids, as rows of the table."""
    text: str
    layout: VocabularyLayout

    @property
    def image_ids(self) -> int:
        return sum(row in (self.layout.image_range or ()) for row in self.ids)

    @property
    def from_text(self) -> list[int]:
        """Return the ids relative to the first text row, so that equal text is equal under other layouts."""
        return [row - self.layout.text.offset for row in self.ids]

    def leading_text(self, size: int) -> list[int]:
        """Return the text at the beginning of the completion, as tokenizer ids that a base with `size` text ids
        knows."""
        known = min(size, self.layout.text.size)
        return list(takewhile(lambda token: 0 <= token < known, self.from_text))


def _sources(context: Context, base: Context | None) -> dict[str, str]:
    return {"checkpoint": context.checkpoint.label, **({} if base is None else {"base": base.checkpoint.label})}


def _report_after(report: Callable[[int], None], before: int, done: int) -> None:
    report(before + done)
