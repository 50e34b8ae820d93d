"""Documents on which two models are right and wrong in turn: the question, both answers and the right one, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance

from evalsvc.language.benchmarks import Benchmark
from evalsvc.language.questions import question_text, right_options

Item = Mapping[str, Any]


def flips(benchmark: Benchmark, key: str, base: Sequence[Item], own: Sequence[Item]) -> Iterator[dict[str, Any]]:
    """A JSON-able row for each document whose value under `key` or `key_within` differs between two results' items.

    In the order of the data: `benchmark`, `index`, `flip` and `flip_within` (`lost`: only the base is right, `gained`:
    only the other; None: over these ids both are alike), `question`, the `options` where there are some, those that are
    `right`, and the answers `base`, `checkpoint`, `base_within`, `checkpoint_within`.
    """
    before, after = (
        {item["index"]: item for item in items if item["benchmark"] == benchmark.name} for items in (base, own)
    )
    for document in benchmark.documents:
        old, new = before.get(document.index), after.get(document.index)
        if old is None or new is None:
            continue
        flipped = {name: _flip(old, new, key + end) for name, end in (("flip", ""), ("flip_within", "_within"))}
        if any(flipped.values()):
            asked = benchmark.instances[document.requests]
            yield {
                "benchmark": benchmark.name,
                "index": document.index,
                **flipped,
                **_question(benchmark, asked),
                "base": _answer(benchmark, asked, old, within=False),
                "checkpoint": _answer(benchmark, asked, new, within=False),
                "base_within": _answer(benchmark, asked, old, within=True),
                "checkpoint_within": _answer(benchmark, asked, new, within=True),
            }


def _flip(old: Item, new: Item, key: str) -> str | None:
    """A model that is all text has no numbers within text: they are the same."""
    before, after = (item.get(key, item.get(key.replace("_within", ""))) for item in (old, new))
    if before is None or after is None or before == after:
        return None
    return "lost" if after < before else "gained"


def _question(benchmark: Benchmark, asked: Sequence[Instance]) -> dict[str, Any]:
    task, row = benchmark.task, asked[0].doc
    question = question_text(task, row)
    if benchmark.output_type == "multiple_choice":
        options, golds = _options(benchmark, asked), right_options(task, row)
        return {"question": question, "options": options, "right": [options[gold] for gold in golds or []]}
    if benchmark.output_type == "loglikelihood":
        return {"question": question, "right": [asked[0].args[1].strip()]}
    target = task.doc_to_target(row)
    return {"question": question, "right": [str(each) for each in (target if isinstance(target, list) else [target])]}


def _options(benchmark: Benchmark, asked: Sequence[Instance]) -> list[str]:
    choices = getattr(benchmark.task, "doc_to_choice", None)
    return [str(choice) for choice in choices(asked[0].doc)] if choices else [each.args[1].strip() for each in asked]


def _answer(benchmark: Benchmark, asked: Sequence[Instance], item: Item, *, within: bool) -> str:
    if "scores" not in item:
        texts = item.get("text_within", item["text"]) if within else item["text"]
        return str(texts[0]).strip()
    # A row of scores is logprob and greedy, over all ids and then, where there are others, within text.
    scores = [row[-2:] if within else row[:2] for row in item["scores"]]
    if benchmark.output_type == "multiple_choice":
        options = _options(benchmark, asked)
        chosen = [logprob for logprob, _ in scores[: len(options)]]
        return options[chosen.index(max(chosen))]
    logprob, greedy = scores[0]
    return (
        asked[0].args[1].strip() if greedy else f"other words (the right ones have probability {math.exp(logprob):.2g})"
    )
