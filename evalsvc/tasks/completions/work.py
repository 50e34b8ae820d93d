"""The completions task: fixed prompts, completed by a checkpoint and by the run's base.

Each prompt is completed greedily and by seeded draws, over all ids of the table, where a model that has forgotten its
text may answer with an image, or over the text ids alone.

The base judges the checkpoint's completions by its own loss, within text ids and given the prompt. The base has no
image ids, so only the text up to the first other id is scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, takewhile
from statistics import fmean
from typing import Any

from evalsvc.data.tokenizer import TextTokenizer, render
from evalsvc.errors import DataChanged, InvalidData, NonFinite
from evalsvc.files.artifacts import Artifact
from evalsvc.metrics.entropy import distinct_n, seq_rep
from evalsvc.metrics.intervals import MIN_ITEMS
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.metrics.token_loss import gaps
from evalsvc.sampling import Continuation, complete
from evalsvc.scoring import Request, score
from evalsvc.spec.documents.results import Completion
from evalsvc.spec.documents.text_reports import CompletionsReport
from evalsvc.spec.layout import IdCounts, VocabularyLayout
from evalsvc.spec.protocol import MetricValue, Protocol, digest
from evalsvc.tasks.completions.spec import GREEDY, Completions
from evalsvc.tasks.result_warnings import cut_inputs
from evalsvc.tasks.task import Context, Plan, Shard, TaskResult
from evalsvc.tasks.text_work import TextWork, base_rotary

ESTIMATOR = "completions/2"
"""Version of the computation of metrics, in their protocol. Another version is another series."""

LEFT_OUT = ("same_as_base", "base_nll", "base_scored", "base_own_nll", "base_own_scored", "previous")
"""Fields that an item of the task has only where they have a value."""

DRAWING = "completions/1"
"""Version of the drawing of ids, in the protocol of the items."""

SEEDED = "seeded"

MEASURES: Mapping[str, tuple[str, ...]] = {
    "seq_rep_4": ("fraction", "seq_rep_4"),
    "distinct_1": ("fraction", "distinct_1"),
    "distinct_2": ("fraction", "distinct_2"),
    "base_loss": ("nats/token", "base_nll", "base_scored"),
    "length": ("tokens", "length"),
    "ended": ("fraction", "ended"),
}
"""Units of measures by name, with keys as in `MetricValue.items` without the group. Metrics are called
`<task>/<group>_<measure>`. No direction is better: a text may be too varied or too plain."""


def prompt_numbers(items: Sequence[Completion]) -> dict[str, float]:
    """Return the numbers behind the measures of a prompt that have a value. Completions of a group are averaged and
    their losses summed; `distinct_n` counts the n-grams of all of them together."""
    numbers: dict[str, float | None] = {}
    for group in (GREEDY, SEEDED):
        chosen = [item for item in items if (item.way == GREEDY) == (group == GREEDY)]
        # The id that ends a text is part of no n-gram.
        texts = [ids[: len(ids) - (item.ended or 0)] for item in chosen for ids in [item.ids or []]]
        numbers[f"{group}_seq_rep_4"] = _mean([item.seq_rep_4 for item in chosen])
        numbers |= {f"{group}_distinct_{n}": distinct_n(texts, n) for n in (1, 2)}
        numbers[f"{group}_length"] = _mean([item.drawn for item in chosen])
        numbers[f"{group}_ended"] = _mean([item.ended for item in chosen])
        if scored := sum(item.base_scored or 0 for item in chosen):
            numbers |= {f"{group}_base_nll": sum(item.base_nll or 0.0 for item in chosen)}
            numbers |= {f"{group}_base_scored": scored}
    return {key: value for key, value in numbers.items() if value is not None}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


@dataclass(frozen=True, kw_only=True)
class CompletionsShard(Shard):
    tokenizer: str
    sources: Mapping[str, str]
    """Labels of the `checkpoint`, and of the `base` if the run has one."""


@dataclass(frozen=True, kw_only=True)
class CompletionsOutput:
    items: Sequence[Completion]
    """Items sorted by prompt, with all completions of a prompt together."""
    cut: int
    chance: float | None
    base: str | None
    base_layout: str | None
    base_rotary: Mapping[str, str]
    base_text_ids: int
    protocol: Mapping[str, Any]


class CompletionsWork(TextWork[Completions, CompletionsShard, CompletionsOutput]):
    def plan(self, context: Context) -> Plan[CompletionsShard]:
        tokenizer = self.text_tokenizer(context)
        if context.base is not None:
            self.require_same_text(context, context.base)
        self._encode(context, tokenizer)
        sources = _sources(context, context.base)
        completions = len(self.task.prompts) * len(self.task.ways()) * len(sources)
        shard = CompletionsShard(units=completions, tokenizer=tokenizer.digest, sources=sources)
        return Plan([shard], "completions")

    def run(self, context: Context, shard: CompletionsShard) -> CompletionsOutput:
        base = context.base if "base" in shard.sources else None
        if _sources(context, base) != shard.sources:
            raise DataChanged("the run's base has changed since this evaluation was planned; evaluate again")
        tokenizer = self.text_tokenizer(context)
        if tokenizer.digest != shard.tokenizer:
            raise DataChanged.since_planned(tokenizer.path)
        whole = self._encode(context, tokenizer)
        ids = IdCounts.of(context.layout(), context.model_config().heads_apart)
        max_length = self.task.max_length or self.model(context).config.seq_len
        prompts = [self._cut(ids, max_length, self.bos(context, tokenizer)) for ids in whole]
        completions = self._complete(context, tokenizer, prompts, context.report)
        protocol = self._protocol(context, tokenizer)
        of_base, judged, before = [], [], len(completions)
        if base is not None:
            of_base = self._complete(base, tokenizer, prompts, lambda done: context.report(before + done))
            judged = self._judge(base, prompts, [*completions, *of_base])
        return CompletionsOutput(
            items=list(self._items(completions, of_base, judged, prompts, protocol, self._end_of_text(tokenizer))),
            cut=sum(len(kept) < len(ids) for kept, ids in zip(prompts, whole, strict=True)),
            chance=ids.image / ids.all if ids.image and self.task.within == "all" else None,
            base=None if base is None else base.digest(),
            base_layout=None if base is None else base.layout().digest,
            base_rotary={} if base is None else base_rotary(base),
            base_text_ids=0 if base is None else IdCounts.of(base.layout()).text,
            protocol={**protocol, "prompts": digest([self.task.prompts, prompts])},
        )

    def merge(
        self, context: Context, shards: Sequence[CompletionsShard], outputs: Sequence[CompletionsOutput]
    ) -> TaskResult:
        """Return the share of image ids, the number of greedy completions equal to the base's, and a report of all."""
        [shard], [output] = shards, outputs
        items, ways = output.items, len(self.task.ways())
        drawn = sum(item.drawn or 0 for item in items)
        notes: dict[str, object] = {"completions": len(items), "prompts_cut": output.cut, "ids_drawn": drawn}
        if len(self.task.prompts) < MIN_ITEMS:
            notes["errors"] = (
                f"standard errors are over prompts, and {len(self.task.prompts)} prompts are too few for a comparison; "
                f"set {MIN_ITEMS} or more `prompts`"
            )
        report = CompletionsReport(
            checkpoint=shard.sources["checkpoint"], base=shard.sources.get("base"), completions=list(items)
        )
        rows: list[dict[str, object]] = [
            {name: value for name, value in row.items() if name not in LEFT_OUT or value is not None}
            for row in report.model_dump()["completions"]
        ]
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
            **({} if self.task.within == "all" else {"within": self.task.within}),
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
        self, context: Context, tokenizer: TextTokenizer, prompts: Sequence[list[int]], report: Callable[[int], None]
    ) -> list[DrawnText]:
        layout, model = context.layout(), self.model(context)
        rows, allowed = layout.text_ids, gaps(model.config.vocab_size, *[layout.image_range] * model.config.heads_apart)
        if self.task.within == "text":
            allowed = list(layout.text_ranges)
        wanted = [
            # The noise depends on the text, so it stays the same when prompts are added before it.
            Continuation(text, tuple(rows[token] for token in ids), self.task.max_tokens)
            for text, ids in zip(self.task.prompts, prompts, strict=True)
        ]
        end = self._end_of_text(tokenizer)
        ends = frozenset() if end is None else frozenset({rows[end]})
        by_way: list[list[list[int]]] = []

        def progress(done: int) -> None:
            report(len(by_way) * len(prompts) + done)

        try:
            for params in self.task.ways().values():
                size = context.batch_tokens
                way = complete(model, wanted, params, batch_tokens=size, allowed=allowed, end=ends, report=progress)
                by_way.append(way)
        except NonFinite as error:
            raise NonFinite(f"{context.checkpoint.label}: {error.message}") from None
        drawn = (way[index] for index in range(len(prompts)) for way in by_way)
        return [DrawnText(ids, render(ids, layout, tokenizer), layout) for ids in drawn]

    def _items(
        self,
        completions: Sequence[DrawnText],
        of_base: Sequence[DrawnText],
        judged: Sequence[tuple[float, int]],
        prompts: Sequence[Sequence[int]],
        protocol: Mapping[str, object],
        end_of_text: int | None,
    ) -> Iterator[Completion]:
        """Yield the checkpoint's completions, greedy ones first so that tasks with other draws can be paired."""
        asked = product(enumerate(zip(self.task.prompts, prompts, strict=True)), enumerate(self.task.ways().items()))
        end = None if end_of_text is None else completions[0].layout.text.offset + end_of_text
        losses: Sequence[tuple[float | None, int | None]] = judged or [(None, None)] * (2 * len(completions))
        for place, ((prompt_index, (prompt, ids)), (way_index, (way, params))) in enumerate(asked):
            drawn, base = completions[place], of_base[place] if of_base else None
            ended = end is not None and drawn.ids[-1:] == [end]
            text = drawn.ids[:-1] if ended else drawn.ids
            is_same = None if base is None or way != GREEDY else int(drawn.from_text == base.from_text)
            (nll, scored), (own_nll, own_scored) = losses[place], losses[len(completions) + place]
            content = {**protocol, "estimator": DRAWING, "prompt": list(ids), "sampling": params.to_json()}
            yield Completion(
                index=way_index * len(prompts) + prompt_index,
                prompt=prompt,
                way=way,
                protocol=Protocol(content).id,
                text=drawn.text,
                ids=drawn.ids,
                drawn=len(drawn.ids),
                image_ids=drawn.image_ids,
                seq_rep_4=seq_rep(text, 4),
                distinct_1=distinct_n([text], 1),
                distinct_2=distinct_n([text], 2),
                ended=None if end is None else int(ended),
                base=None if base is None else base.text,
                base_ids=None if base is None else base.ids,
                same_as_base=is_same,
                base_nll=nll,
                base_scored=scored,
                base_own_nll=own_nll,
                base_own_scored=own_scored,
            )

    def _judge(
        self, base: Context, prompts: Sequence[Sequence[int]], completions: Sequence[DrawnText]
    ) -> list[tuple[float, int]]:
        """Return the base's loss in nats on the text at the beginning of each completion, the checkpoint's first, and
        its number of ids."""
        rows = base.layout().text_ids
        texts = [completion.leading_text(base.layout()) for completion in completions]
        asked = [index for index, text in enumerate(texts) if text]
        contexts = [tuple(rows[token] for token in ids) for ids in prompts for _ in self.task.ways()] * 2
        requests = [Request(contexts[index], tuple(rows[token] for token in texts[index])) for index in asked]
        try:
            scores = score(self.model(base), base.layout(), requests, base.batch_tokens) if requests else []
        except NonFinite as error:
            raise NonFinite(f"{base.checkpoint.label}: {error.message}") from None
        losses = dict(zip(asked, (-each.logprob_within for each in scores), strict=True))
        return [(losses.get(index, 0.0), len(text)) for index, text in enumerate(texts)]

    def _metrics(self, output: CompletionsOutput, prompts: Sequence[Mapping[str, float]]) -> Iterator[MetricValue]:
        items, ways = output.items, [params.to_json() for params in self.task.ways().values()]
        of_prompt = [item.prompt for item in items]
        share = ratio_of_sums([item.image_ids or 0 for item in items], [item.drawn or 0 for item in items], of_prompt)
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
        judge = {"base": output.base, "base_layout": output.base_layout, **output.base_rotary}
        groups = {GREEDY: ways[:1], **({SEEDED: ways[1:]} if ways[1:] else {})}
        for (group, drawn), (measure, (unit, *parts)) in product(groups.items(), MEASURES.items()):
            key, *weight = keys = tuple(f"{group}_{part}" for part in parts)
            present = [numbers for numbers in prompts if key in numbers]
            weights = [numbers[weight[0]] if weight else 1 for numbers in present]
            ratio = ratio_of_sums([numbers[key] for numbers in present], weights)
            if ratio is not None:
                by_base = measure == "base_loss"
                protocol = Protocol({**output.protocol, "sampling": drawn, **(judge if by_base else {})})
                baseline = math.log(output.base_text_ids) if by_base else None
                yield ratio.as_metric(f"{self.task.name}/{group}_{measure}", unit, "none", protocol, baseline, keys)


@dataclass(frozen=True)
class DrawnText:
    ids: list[int]
    text: str
    layout: VocabularyLayout

    @property
    def image_ids(self) -> int:
        return sum(row in (self.layout.image_range or ()) for row in self.ids)

    @property
    def from_text(self) -> list[int]:
        """Return the ids relative to the first text row, so that equal text is equal under other layouts."""
        return [row - self.layout.text.offset for row in self.ids]

    def leading_text(self, base: VocabularyLayout) -> list[int]:
        """Return the text at the beginning of the completion, as tokenizer ids that are text for the base too."""

        def is_shared(token: int) -> bool:
            sides = (self.layout, base)
            return all(any(side.text.offset + token in part for part in side.text_ranges) for side in sides)

        return list(takewhile(is_shared, self.from_text))


def _sources(context: Context, base: Context | None) -> dict[str, str]:
    return {"checkpoint": context.checkpoint.label, **({} if base is None else {"base": base.checkpoint.label})}
