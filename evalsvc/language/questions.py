"""What a benchmark asks of a model, document by document, checked before anything is scored.

All documents are asked, the first ones, named ones, or a sample that is stratified. A sample is the beginning of a
fixed order of all documents, so a larger one holds every smaller one, and every checkpoint is asked the same.
"""

from __future__ import annotations

import hashlib
import statistics
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask, Task

from evalsvc.errors import InvalidData
from evalsvc.language.building import blamed
from evalsvc.language.private import metric_functions, metric_options
from evalsvc.spec.protocol import canonical_json

DESIGN = "stratified/1"
"""In the protocol: how a sample is drawn. Another version draws other documents. It is what the draw is seeded by."""

ERROR = "finite population/1"
"""In the protocol of a sample: how its standard error is computed. n documents of N have the factor √(1 − n / N)."""

LENGTHS = 4
"""Classes of the questions' lengths, of about as many documents each."""


@dataclass(frozen=True)
class Selection:
    """What of a benchmark is used; of the three at most one is given, and none is all of it."""

    limit: int | None = None
    """The first so many documents."""
    samples: tuple[int, ...] | None = None
    """These documents, counted from 0."""
    sample: int | None = None
    """So many documents, drawn by strata."""

    def __bool__(self) -> bool:
        return self != Selection()


Stratum = tuple[int | None, int]
"""Place of the right answer among the options, None where there are none; and class of the question's length."""


@dataclass(frozen=True)
class Document:
    """One document's place in the benchmark."""

    index: int
    """Its number in the benchmark's data, from 0; also where only some of them are used."""
    requests: slice
    """Which of the benchmark's instances are its own."""


@dataclass(frozen=True)
class Questions:
    """All that a benchmark asks."""

    instances: list[Instance]
    """All requests, document by document."""
    documents: list[Document]
    total: int
    """Documents in the data, used or not."""
    sampled: bool = False
    """Whether the documents are a sample of the data, drawn by strata."""


def ask(name: str, task: Task, selection: Selection) -> Questions:
    """The requests of the selected documents. Solved examples are drawn in this order, as lm-eval draws them: a part
    of the documents must be cut from the result, never asked for by itself.

    A sample is such a part: its documents are asked as they are where all are, with the same solved examples.

    Raises:
        InvalidData: names the document: a template or the benchmark's code does not fit it, it has an option without
            text, or its right answer is none of its options. Or a sample is not there.
        MissingPackage: the benchmark's code needs it.
    """
    with blamed(name, "its data"):
        rows = task.task_docs if isinstance(task, ConfigurableTask) else task.eval_docs
        total = len(rows)
    asked: dict[int, list[Instance]] = {}
    for index, row in _chosen(name, rows, total, selection):
        with blamed(name, f"document {index}"):
            asked[index] = _requests(name, task, index, row)
        _check_answers(name, task, index, asked[index])
    if not asked:
        raise InvalidData(f"benchmark {name!r} has no documents; give it data")
    sampled = selection.sample is not None and selection.sample < total
    if sampled:
        asked = {index: asked[index] for index in sorted(_drawn(name, task, asked)[: selection.sample])}
    documents, instances = [], list[Instance]()
    for index, made in asked.items():
        documents.append(Document(index, slice(len(instances), len(instances) + len(made))))
        instances += made
    return Questions(instances, documents, total, sampled)


def question_digest(task: Task, questions: Questions) -> str:
    """SHA-256 over everything that the model is asked and what counts as right, 64 hexadecimal digits."""
    sha = hashlib.sha256(canonical_json(_scoring(task)).encode())
    for document in questions.documents:
        made = questions.instances[document.requests]
        asked = [[each.request_type, each.idx, _plain(each.arguments)] for each in made]
        content = canonical_json([document.index, asked, _plain(_right(task, made[0].doc))])
        sha.update(content.encode("utf-8", "surrogatepass"))
    return sha.hexdigest()


def chance_level(task: Task, questions: Questions) -> float:
    """Accuracy of a model that knows nothing: the mean of right options / options; 0 where there are no options."""
    if task.OUTPUT_TYPE != "multiple_choice" or not isinstance(task, ConfigurableTask):
        return 0.0
    rows = [questions.instances[document.requests][0].doc for document in questions.documents]
    return statistics.fmean(_right_options(task, row) / len(task.doc_to_choice(row)) for row in rows)


def is_plain(task: Task) -> bool:
    """Whether lm-eval itself decides what is asked and what is right, and no code of the benchmark's."""
    return type(task) is ConfigurableTask and not callable(task.config.process_results)


def right_options(task: Task, row: object) -> list[int] | None:
    """Which options of a multiple choice are right, by their place; None where only the benchmark's own code knows."""
    if task.OUTPUT_TYPE != "multiple_choice" or not is_plain(task):
        return None
    gold, choices = _gold(task, row), task.doc_to_choice(row)
    golds = gold if isinstance(gold, list) else [gold]
    return [choices.index(each) if isinstance(each, str) else int(each) for each in golds]


def question_text(task: Task, row: object) -> str:
    """What a document asks, without its options and without solved examples.

    Where the options are contexts of one continuation, that is the continuation.
    """
    text = task.doc_to_text(row)
    return text if isinstance(text, str) else str(task.doc_to_target(row))


def strata(right: Sequence[int | None], lengths: Sequence[int]) -> list[Stratum]:
    """The stratum of each document, from the place of its right answer and the length of its question in characters.

    Both move what a model that has forgotten its language gets right: it takes the first option, or the shortest.
    """
    bounds = statistics.quantiles(lengths, n=LENGTHS) if len(lengths) > 1 else []
    return [(place, bisect_left(bounds, length)) for place, length in zip(right, lengths, strict=True)]


def drawing_order(of: Sequence[Hashable], seed: str) -> list[int]:
    """All documents, by index, in an order whose every beginning is a sample; `of` has the stratum of each.

    The j-th of a stratum's N_h documents, put into a random order, has the place (j + ½) / N_h on a circle, and the
    order goes once around the circle from a random place on. So

    - every n-th place is of stratum h with probability N_h / N, and each document is among the first n with
      probability n / N exactly: the plain mean over a sample is unbiased for the mean over all documents;
    - n places in a row have n N_h / N documents of stratum h but for a few, so the sample is allocated in proportion.

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


def _random(seed: str, what: object) -> int:
    """The same on every machine and with every version of Python, whose own generator promises neither."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}".encode()).digest())


def _drawn(name: str, task: Task, asked: Mapping[int, Sequence[Instance]]) -> list[int]:
    """All documents in the order in which samples are drawn; what the strata are must not depend on solved examples."""
    right, lengths = list[int | None](), list[int]()
    for index, made in asked.items():
        with blamed(name, f"document {index}"):
            golds = right_options(task, made[0].doc)
            right.append(None if golds is None else golds[0])
            lengths.append(_length(task, made[0].doc))
    return drawing_order(strata(right, lengths), f"{DESIGN}/{name}")


def _length(task: Task, row: object) -> int:
    """Of a question in characters. Contexts that are options differ in a few characters only."""
    if isinstance(task, ConfigurableTask) and task.multiple_input:
        return len(task.doc_to_choice(row)[0])
    return len(question_text(task, row))


def _right_options(task: ConfigurableTask, row: object) -> int:
    gold = _right(task, row)
    return len(set(gold)) if isinstance(gold, list) else 1


def _chosen(name: str, rows: Sequence[object], total: int, selection: Selection) -> Iterator[tuple[int, object]]:
    samples = selection.samples
    if samples is None:
        yield from zip(range(min(selection.limit or total, total)), rows, strict=False)
        return
    if max(samples) >= total:
        raise InvalidData(
            f"benchmark {name!r} has {total} documents, `samples` names {max(samples)}; count from 0 to {total - 1}"
        )
    for index in sorted(set(samples)):
        yield index, rows[index]


def _requests(name: str, task: Task, index: int, row: object) -> list[Instance]:
    """As lm-eval's `build_all_requests` makes them, which names no document and calls the n-th sample document n."""
    context = task.fewshot_context(
        row,
        num_fewshot=task.config.num_fewshot or 0,
        system_instruction=None,
        apply_chat_template=False,
        fewshot_as_multiturn=False,
        chat_template=None,
        gen_prefix=task.doc_to_prefix(row),
    )
    made = task.construct_requests(
        doc=row,
        ctx=context,
        metadata=(name, index, task.config.repeats),
        apply_chat_template=False,
        chat_template=None,
    )
    return made if isinstance(made, list) else [made]


def _check_answers(name: str, task: Task, index: int, made: Sequence[Instance]) -> None:
    """lm-eval fails on an empty continuation without a name, and scores a wrong right answer as never reached."""
    where = f"benchmark {name!r}, document {index}"
    if not made:
        raise InvalidData(f"{where} has no options; give it at least one")
    for number, each in enumerate(made):
        if each.request_type == "loglikelihood" and not each.arguments[1]:
            raise InvalidData(f"{where}, option {number} has no text to score; give every option some")
    if not isinstance(task, ConfigurableTask) or callable(task.config.process_results):
        return
    with blamed(name, f"document {index}"):
        if task.OUTPUT_TYPE == "multiple_choice":
            choices = task.doc_to_choice(made[0].doc)
            _check_choices(where, choices)
            _check_gold(where, _gold(task, made[0].doc), choices)
        elif task.OUTPUT_TYPE == "generate_until" and task.config.doc_to_choice is not None:
            _check_gold(where, _gold(task, made[0].doc), task.doc_to_choice(made[0].doc))


def _check_choices(where: str, choices: object) -> None:
    if not isinstance(choices, list) or not choices:
        raise InvalidData(f"{where} has {_kind(choices)} as its options; they must be a list of texts")
    for number, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice:
            raise InvalidData(
                f"{where}, option {number} is {_kind(choice)}; it must be a text of at least one character"
            )


def _check_gold(where: str, gold: object, choices: Sequence[str]) -> None:
    for each in gold if isinstance(gold, list) and gold else [gold]:
        right = each in choices if isinstance(each, str) else type(each) is int and 0 <= each < len(choices)
        if not right:
            raise InvalidData(
                f"{where}: the right answer is {_kind(each)}, and none of its {len(choices)} options; give an index "
                f"from 0 to {len(choices) - 1}, or the text of one"
            )


def _kind(value: object) -> str:
    """Say what a value of a row is and nothing of what it holds: a submitter may not be allowed to read the row."""
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    if value is None or isinstance(value, bool):
        return repr(value)
    return "a number" if isinstance(value, (int, float)) else type(value).__name__


def _gold(task: ConfigurableTask, row: object) -> int | str | list[int | str]:
    # Of a question with one continuation and several contexts, `doc_to_text` is the index of the right context.
    gold: int | str | list[int | str] = task.doc_to_text(row) if task.multiple_input else task.doc_to_target(row)
    return gold


def _right(task: Task, row: object) -> object:
    """What an answer is compared with; all of the document where the benchmark's own code compares."""
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
    """`value` as JSON that is the same on every machine: functions by their names, what is no text by its type."""
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
