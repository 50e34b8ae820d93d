"""Documents on which only one of two models is right: the question, both answers and the right answer, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lm_eval.api.instance import Instance

from evalsvc.language.benchmarks import Benchmark
from evalsvc.language.questions import question_text, right_options
from evalsvc.metrics.item_numbers import Item
from evalsvc.spec.documents.text_reports import Flip, FlippedQuestion


def flips(
    benchmark: Benchmark, key: str, base: Sequence[Item], checkpoint: Sequence[Item]
) -> Iterator[FlippedQuestion]:
    """Yield the documents whose value under `key` or `key_within` differs between two results, in the data's order."""
    before, after = (
        {item["index"]: item for item in items if item["benchmark"] == benchmark.name} for items in (base, checkpoint)
    )
    for document in benchmark.documents:
        old, new = before.get(document.index), after.get(document.index)
        if old is None or new is None:
            continue
        kinds = _flip(old, new, key), _flip(old, new, f"{key}_within")
        if any(kinds):
            asked = benchmark.instances[document.requests]
            options = _options(benchmark, asked) if benchmark.output_type == "multiple_choice" else None
            answers = [_answer(asked, options, item, within) for within in (False, True) for item in (old, new)]
            words = [_readable(answer) for answer in answers]
            yield FlippedQuestion(
                index=document.index,
                flip=kinds[0],
                flip_within=kinds[1],
                question=_readable(question_text(benchmark.task, asked[0].doc)),
                options=None if options is None else [_readable(option) for option in options],
                right=[_readable(answer) for answer in _right(benchmark, asked, options)],
                base=words[0],
                checkpoint=words[1],
                base_within=words[2],
                checkpoint_within=words[3],
            )


def _readable(text: str) -> str:
    """Replace half characters, which a few datasets contain and UTF-8 does not."""
    return text.encode("utf-8", "replace").decode()


def _flip(old: Item, new: Item, key: str) -> Flip | None:
    """Return the kind of flip. A model with only text rows has no separate numbers within text."""
    before, after = (item.get(key, item.get(key.replace("_within", ""))) for item in (old, new))
    if before is None or after is None or before == after:
        return None
    return "lost" if after < before else "gained"


def _right(benchmark: Benchmark, asked: Sequence[Instance], options: Sequence[str] | None) -> list[str]:
    task, row = benchmark.task, asked[0].doc
    if options is not None:
        return [options[gold] for gold in right_options(task, row) or []]
    if benchmark.output_type == "loglikelihood":
        return [asked[0].args[1].strip()]
    target = task.doc_to_target(row)
    return [str(each) for each in (target if isinstance(target, list) else [target])]


def _options(benchmark: Benchmark, asked: Sequence[Instance]) -> list[str]:
    choices = getattr(benchmark.task, "doc_to_choice", None)
    return [str(choice) for choice in choices(asked[0].doc)] if choices else [each.args[1].strip() for each in asked]


def _answer(asked: Sequence[Instance], options: Sequence[str] | None, item: Item, within: bool) -> str:
    if "scores" not in item:
        texts = item.get("text_within", item["text"]) if within else item["text"]
        return str(texts[0]).strip()
    # A row of scores has logprob and greedy over all ids, followed by both within text for tables with other rows.
    scores = [row[-2:] if within else row[:2] for row in item["scores"]]
    if options is not None:
        chosen = [logprob for logprob, _ in scores[: len(options)]]
        return options[chosen.index(max(chosen))]
    logprob, greedy = scores[0]
    return (
        asked[0].args[1].strip() if greedy else f"other words (the right ones have probability {math.exp(logprob):.2g})"
    )
