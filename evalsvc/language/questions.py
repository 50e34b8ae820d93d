"""Requests of a benchmark, document by document, checked before anything is scored.

A selection is all documents, the first documents, named documents, or a stratified sample. A sample is the beginning of
a fixed order of all documents, so a larger sample holds every smaller one, and every checkpoint gets the same requests.
"""

from __future__ import annotations

import hashlib
import statistics
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, pairwise

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask, Task

from evalsvc.errors import InvalidData
from evalsvc.language.building import blamed, seeded
from evalsvc.language.private import metric_functions, metric_options
from evalsvc.spec.protocol import canonical_json

DESIGN = "stratified/1"
"""Version of the sampling design in the protocol, and seed of the draw: another version draws other documents."""

ERROR = "finite population/1"
"""Version of a sample's standard error in the protocol: n documents of N have the factor √(1 − n / N)."""

COMPARED = 1_000
"""Maximum number of documents whose questions are compared with each other."""

LENGTHS = 4
"""Number of classes of the questions' lengths, each with about the same number of documents."""


@dataclass(frozen=True)
class Selection:
    """Used documents of a benchmark; at most one field is given, and none selects all documents."""

    limit: int | None = None
    samples: tuple[int, ...] | None = None
    """Indices of the documents, counted from 0."""
    sample: int | None = None

    def __bool__(self) -> bool:
        return self != Selection()


Stratum = tuple[int | None, int]
"""Place of the right answer among the options, None without options; and class of the question's length."""


@dataclass(frozen=True)
class Document:
    """Position of a document in the benchmark."""

    index: int
    """Number in the benchmark's data, from 0, also where only some documents are used."""
    requests: slice


@dataclass(frozen=True)
class Questions:
    instances: tuple[Instance, ...]
    documents: tuple[Document, ...]
    """Index and requests of each used document, in the order of the data."""
    total: int
    """Number of documents in the data, used or not."""
    sampled: bool = False
    """Whether the documents are a sample of the data, drawn by strata."""


def ask(name: str, task: Task, selection: Selection) -> Questions:
    """Return the requests of the selected documents. Solved examples are drawn in the order of all documents, as in
    lm-eval: a part of them, such as a sample, is cut from the result, and never requested alone."""
    with blamed(name, "its data"):
        rows = task.task_docs if isinstance(task, ConfigurableTask) else task.eval_docs
        total = len(rows)
    asked: dict[int, list[Instance]] = {}
    for index, row in _chosen(name, rows, total, selection):
        with blamed(name, f"document {index}"):
            asked[index] = _requests(name, task, index, row)
        _check_answers(name, task, index, asked[index])
    if not asked:
        raise InvalidData(f"benchmark {name!r} has no documents; give data with rows")
    sampled = selection.sample is not None and selection.sample < total
    if sampled:
        asked = {index: asked[index] for index in sorted(_drawn(name, task, asked)[: selection.sample])}
    ends = [0, *accumulate(map(len, asked.values()))]
    documents = (Document(index, slice(*bounds)) for index, bounds in zip(asked, pairwise(ends), strict=True))
    return Questions(tuple(chain(*asked.values())), tuple(documents), total, sampled)


def require_different(name: str, task: ConfigurableTask) -> None:
    """Raise InvalidData if the first documents of the data, used or not, have the same question, which is not empty."""
    if task.multiple_input or task.OUTPUT_TYPE == "loglikelihood_rolling":
        return
    with seeded(), blamed(name, "its data"):
        first, *others = (task.doc_to_text(row) for row in islice(task.task_docs, 2))
        compared = min(len(task.task_docs), COMPARED)
        equal = first in others and all(task.doc_to_text(row) == first for row in islice(task.task_docs, compared))
    if first and equal:
        raise InvalidData(
            f"benchmark {name!r}: the question is the same text in {compared:,} documents; let `doc_to_text` name a "
            "column or have a template such as {{question}}, and move a text that stands before every question to "
            "`description`"
        )


def question_digest(task: Task, questions: Questions) -> str:
    """Return the SHA-256 of all requests and of the right answers, 64 hexadecimal digits."""
    sha = hashlib.sha256(canonical_json(_scoring(task)).encode())
    for document in questions.documents:
        made = questions.instances[document.requests]
        asked = [[each.request_type, each.idx, _plain(each.arguments)] for each in made]
        content = canonical_json([document.index, asked, _plain(_right(task, made[0].doc))])
        sha.update(content.encode("utf-8", "surrogatepass"))
    return sha.hexdigest()


def chance_level(task: Task, questions: Questions) -> float:
    """Return the accuracy of a model without knowledge: the mean of right options / options; 0 without options."""
    if task.OUTPUT_TYPE != "multiple_choice" or not isinstance(task, ConfigurableTask):
        return 0.0
    rows = [questions.instances[document.requests][0].doc for document in questions.documents]
    golds = [_right(task, row) for row in rows]
    numbers = [len(set(gold)) if isinstance(gold, list) else 1 for gold in golds]
    return statistics.fmean(number / len(task.doc_to_choice(row)) for number, row in zip(numbers, rows, strict=True))


def is_plain(task: Task) -> bool:
    """Return whether lm-eval alone decides requests and right answers, without code of the benchmark."""
    return type(task) is ConfigurableTask and not callable(task.config.process_results)


def right_options(task: Task, row: object) -> list[int] | None:
    """Return the indices of the right options of a multiple choice; None where only the benchmark's code knows them."""
    if task.OUTPUT_TYPE != "multiple_choice" or not is_plain(task):
        return None
    gold, choices = _gold(task, row), task.doc_to_choice(row)
    golds = gold if isinstance(gold, list) else [gold]
    return [choices.index(each) if isinstance(each, str) else int(each) for each in golds]


def question_text(task: Task, row: object) -> str:
    """Return a document's question without options and examples; of contexts as options, the continuation."""
    text = task.doc_to_text(row)
    return text if isinstance(text, str) else str(task.doc_to_target(row))


def strata(right: Sequence[int | None], lengths: Sequence[int]) -> list[Stratum]:
    """Return the stratum of each document: place of its right answer, and class of its question's length in characters.
    Both affect the score of a model that has forgotten its language: it takes the first option, or the shortest."""
    bounds = statistics.quantiles(lengths, n=LENGTHS) if len(lengths) > 1 else []
    return [(place, bisect_left(bounds, length)) for place, length in zip(right, lengths, strict=True)]


def drawing_order(of: Sequence[Hashable], seed: str) -> list[int]:
    """Return the indices of all documents in an order whose every beginning is a sample; `of` has each stratum.

    The j-th of a stratum's N_h documents, put into a random order, has the place (j + ½) / N_h on a circle, and the
    order goes once around the circle from a random place. So

    - every n-th place is of stratum h with probability N_h / N, and each document is among the first n with
      probability n / N exactly: the plain mean over a sample is unbiased for the mean over all documents;
    - n consecutive places have about n N_h / N documents of stratum h, so the sample is allocated in proportion.

    Source: W. G. Cochran, Sampling Techniques, 3rd edition: proportional allocation to strata (chapter 5) by a
    systematic sample with a random start (chapter 8), here of interleaved strata, so that samples are nested.
    """
    members: dict[Hashable, list[int]] = {}
    for index in sorted(range(len(of)), key=lambda index: _random(seed, index)):
        members.setdefault(of[index], []).append(index)
    circle = sorted(
        ((2 * j + 1) / (2 * len(indices)), index) for indices in members.values() for j, index in enumerate(indices)
    )
    start = _random(seed, "start") % max(len(circle), 1)
    return [index for _, index in circle[start:] + circle[:start]]


def _random(seed: str, name: object) -> int:
    # the same on every machine and in every version of Python
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest())


def _drawn(name: str, task: Task, asked: Mapping[int, Sequence[Instance]]) -> list[int]:
    """Return all documents in the order of the draw; the strata must not depend on solved examples."""
    right, lengths = list[int | None](), list[int]()
    for index, made in asked.items():
        with blamed(name, f"document {index}"):
            row = made[0].doc
            golds = right_options(task, row)
            right.append(None if golds is None else golds[0])
            # Contexts as options differ only in a few characters.
            contexts = isinstance(task, ConfigurableTask) and task.multiple_input
            lengths.append(len(task.doc_to_choice(row)[0] if contexts else question_text(task, row)))
    return drawing_order(strata(right, lengths), f"{DESIGN}/{name}")


def _chosen(name: str, rows: Sequence[object], total: int, selection: Selection) -> Iterator[tuple[int, object]]:
    samples = selection.samples
    if samples is None:
        yield from zip(range(min(selection.limit or total, total)), rows, strict=False)
        return
    if max(samples) >= total:
        raise InvalidData(
            f"benchmark {name!r} has {total} documents, but `samples` names {max(samples)}; give indices from 0 to "
            f"{total - 1}"
        )
    for index in sorted(set(samples)):
        yield index, rows[index]


def _requests(name: str, task: Task, index: int, row: object) -> list[Instance]:
    """Make the requests as lm-eval's `build_all_requests`, but with the document's index in the data."""
    plain: dict[str, object] = {"apply_chat_template": False, "chat_template": None}
    context = task.fewshot_context(
        row,
        num_fewshot=task.config.num_fewshot or 0,
        system_instruction=None,
        fewshot_as_multiturn=False,
        gen_prefix=task.doc_to_prefix(row),
        **plain,
    )
    made = task.construct_requests(doc=row, ctx=context, metadata=(name, index, task.config.repeats), **plain)
    return made if isinstance(made, list) else [made]


def _check_answers(name: str, task: Task, index: int, made: Sequence[Instance]) -> None:
    where = f"benchmark {name!r}, document {index}"
    if not made:
        raise InvalidData(f"{where} has no options; give at least one option")
    for number, each in enumerate(made):
        if each.request_type == "loglikelihood" and not each.arguments[1]:
            raise InvalidData(f"{where}, option {number} has no text to score; give every option a text")
    if not isinstance(task, ConfigurableTask) or callable(task.config.process_results):
        return
    is_choice = task.OUTPUT_TYPE == "multiple_choice"
    if not is_choice and (task.OUTPUT_TYPE != "generate_until" or task.config.doc_to_choice is None):
        return
    with blamed(name, f"document {index}"):
        choices = task.doc_to_choice(made[0].doc)
        if is_choice and (not isinstance(choices, list) or not choices):
            raise InvalidData(f"{where} has {_kind(choices)} as its options; give a list of texts")
        for number, choice in enumerate(choices if is_choice else ()):
            if not isinstance(choice, str) or not choice:
                raise InvalidData(f"{where}, option {number} is {_kind(choice)}; it must be a text that is not empty")
        gold = _gold(task, made[0].doc)
        for each in gold if isinstance(gold, list) and gold else [gold]:
            right = each in choices if isinstance(each, str) else type(each) is int and 0 <= each < len(choices)
            if not right:
                raise InvalidData(
                    f"{where}: the right answer is {_kind(each)}, and none of its {len(choices)} options; give an "
                    f"index from 0 to {len(choices) - 1}, or the text of one"
                )


def _kind(value: object) -> str:
    # without the content, since a submitter may not be allowed to read the row
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    if value is None or isinstance(value, bool):
        return repr(value)
    return "a number" if isinstance(value, (int, float)) else type(value).__name__


def _gold(task: ConfigurableTask, row: object) -> int | str | list[int | str]:
    # For a question with one continuation and several contexts, `doc_to_text` is the index of the right context.
    gold: int | str | list[int | str] = task.doc_to_text(row) if task.multiple_input else task.doc_to_target(row)
    return gold


def _right(task: Task, row: object) -> object:
    if not isinstance(task, ConfigurableTask) or callable(task.config.process_results):
        return row
    return _gold(task, row)


def _scoring(task: Task) -> dict[str, object]:
    config = task.config
    return {
        "version": str(task.VERSION),
        "output_type": task.OUTPUT_TYPE,
        "repeats": config.repeats,
        "metrics": {
            metric: {
                "aggregation": _plain(function),
                "options": _plain(metric_options(task).get(metric)),
                "function": _plain(metric_functions(task).get(metric)),
            }
            for metric, function in task.aggregation().items()
        },
        "filters": _plain(config.filter_list),
        "process_results": _plain(config.process_results),
    }


def _plain(value: object) -> object:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Iterable) and not callable(value):
        return [_plain(each) for each in value]
    if callable(value):
        module = str(getattr(value, "__module__", "")).rpartition("/")[2]
        return f"{module}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return type(value).__qualname__
