"""Comparing benchmarks with lm-eval itself: its `evaluate` with its model class HFLM, on the same weights and
documents.

Requests, answers and metrics are computed a second time. Both sides compute in float32, evalsvc on the device of the
context and HFLM on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lm_eval.evaluator import evaluate

from evalsvc.errors import CheckpointMismatch, MissingPackage, UnsupportedModel
from evalsvc.language.benchmarks import Benchmark, Loaded
from evalsvc.language.building import FEWSHOT_SEED
from evalsvc.language.encoding import Scored, TextEncoding
from evalsvc.language.hub import offline, one_line, quiet
from evalsvc.language.lm import Answer, Generation, OpenLM
from evalsvc.language.results import results
from evalsvc.language.scoring import Scope, named, scopes, unit
from evalsvc.models import Transformer
from evalsvc.spec.layout import IdCounts
from evalsvc.spec.protocol import MetricValue
from evalsvc.tasks.language.spec import BenchmarkTask
from evalsvc.tasks.language.work import BenchmarkWork
from evalsvc.tasks.task import Context, work_of
from evalsvc.verify.agreement import Agreement, Finding, Untried
from evalsvc.verify.hflm import Hflm, build_hflm, build_hflm_of_open_lm, hflm_program, whole_tokens
from evalsvc.verify.open_lm_reference import build_open_lm, checkpoint_tensors
from evalsvc.verify.own_model import require_own
from evalsvc.verify.recorded_values import RecordedValues
from evalsvc.verify.rounding import MEASURED, NOTE, Rounding, measure_rounding

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

TIES = 50
"""Number of generated texts per text that may differ: rounding decides between equally likely ids."""


def verify_benchmarks(context: Context, task: BenchmarkTask, recorded: RecordedValues, n: int) -> list[Finding]:
    """Compare the first `n` documents of each benchmark of a task.

    If `n` covers the benchmark and the task computes in float32, the recorded values are compared with lm-eval's.
    Otherwise evalsvc computes its values over the same documents again.

    Raises the errors of loading benchmarks and checkpoint, and NonFinite.
    """
    work = work_of(task)
    assert isinstance(work, BenchmarkWork), "tasks that ask benchmarks are done by it"
    if not task.benchmarks:
        return []
    encoding, loaded = work.encoding(context), work.load(context)
    model = context.model(dtype="float32", rotary_inv_freq_dtype=task.rotary_inv_freq_dtype)
    try:
        ours = require_own(model)
        theirs = _models(context, ours, encoding)
    except (CheckpointMismatch, MissingPackage, UnsupportedModel) as error:
        return [Untried(f"{task.name}: benchmarks", hflm_program(), error.message)]
    lm = OpenLM(ours, encoding, batch_tokens=context.batch_tokens, report=context.report)
    protocol = {**work.protocol(context.rotary()), **asdict(encoding.identity)}
    findings: list[Finding] = []
    for benchmark in loaded.benchmarks:
        asked = _first(benchmark, n)
        values = recorded.over(len(asked.documents), len(benchmark.documents))
        findings += _compare(asked, lm, theirs, values, protocol)
    return findings


def _models(context: Context, ours: Transformer, encoding: TextEncoding) -> dict[Scope, Hflm]:
    """Return HFLM over all ids and within the text ids: of transformers if a class computes the model, otherwise of
    open_lm."""
    wanted = scopes(IdCounts.of(encoding.layout))
    try:
        return {scope: build_hflm(ours, encoding, within=scope.within) for scope in wanted}
    except UnsupportedModel as error:
        try:
            with checkpoint_tensors(context, ours) as tensors:
                reference = build_open_lm(ours.config, tensors, ours.rotary_inv_freq_dtype)
        except MissingPackage as missing:
            raise UnsupportedModel(f"{error.message}; for open_lm's own model: {missing.message}") from missing
    return {scope: build_hflm_of_open_lm(reference, encoding, within=scope.within) for scope in wanted}


def _first(benchmark: Benchmark, n: int) -> Benchmark:
    documents = benchmark.documents[:n]
    return replace(benchmark, documents=documents, instances=benchmark.instances[: documents[-1].requests.stop])


@dataclass(frozen=True)
class Ours:
    """evalsvc's results of a benchmark."""

    benchmark: Benchmark
    answers: list[Answer | Generation]
    """Answer to each request."""
    metrics: Mapping[str, MetricValue]
    """Metrics by name."""
    rounding: Rounding
    program: str
    """Name of the second program."""

    @property
    def tokens(self) -> list[int]:
        """Return the number of scored tokens of each request; 1 for a generation."""
        return [answer.tokens if isinstance(answer, Answer) else 1 for answer in self.answers]


def _compare(
    benchmark: Benchmark,
    lm: OpenLM,
    theirs: Mapping[Scope, Hflm],
    recorded: RecordedValues,
    protocol: Mapping[str, object],
) -> Iterator[Finding]:
    program = next(iter(theirs.values())).program
    if reason := _unaskable(benchmark, lm.encoding):
        yield Untried(benchmark.name, program, reason)
        return
    answers = lm.answers(benchmark.instances)
    if any(isinstance(answer, Answer) and answer.continuation_cut for answer in answers):
        reason = "a continuation is longer than the model's input, where HFLM stops; raise `max_length`"
        yield Untried(benchmark.name, program, reason)
        return
    ids = IdCounts.of(lm.encoding.layout)
    computed = results(Loaded((benchmark,), ()), [[answer] for answer in answers], ids, protocol)
    metrics = {metric.name: metric for metric in computed.metrics}
    ours = Ours(benchmark, answers, metrics, _rounding(benchmark, lm), program)
    for scope, other in theirs.items():
        lm.report(0)
        try:
            reply = _ask(benchmark, other.model)
        except Exception as error:  # any error that stops another program
            said = f"{type(error).__name__}: {one_line(error)}"
            yield Untried(f"{benchmark.name}{scope.suffix}", program, f"lm-eval stopped with {said}")
            continue
        if not scope.within:
            yield _compare_requests(ours, reply)
        yield _compare_answers(ours, scope, reply)
        yield from _compare_metrics(ours, scope, reply, recorded)


def _unaskable(benchmark: Benchmark, encoding: TextEncoding) -> str:
    """Return why lm-eval cannot be asked the same questions; empty if it can."""
    kinds = {instance.request_type for instance in benchmark.instances}
    if benchmark.sampled and benchmark.num_fewshot:
        return "lm-eval draws other solved examples for a sample of the documents; use `limit`"
    if "generate_until" in kinds:
        if encoding.end not in whole_tokens(encoding):
            return "HFLM only generates up to an end of text, and none of the tokenizer's added tokens is `end_of_text`"
        if any(instance.args[1].get("do_sample") for instance in benchmark.instances):
            return "its texts are drawn at random"
    return ""


def _rounding(benchmark: Benchmark, lm: OpenLM) -> Rounding:
    """Measure rounding on the first questions, with right or wrong continuations."""
    encoded = lm.encoding.encode_all(benchmark.instances[:MEASURED])
    sequences = [
        [*request.requests[0].context, *request.requests[0].continuation]
        if isinstance(request, Scored)
        else list(request.ids)
        for request in encoded
    ]
    assert isinstance(lm.model, Transformer), "`verify_benchmarks` requires it"
    return measure_rounding(lm.model, [sequence for sequence in sequences if len(sequence) > 1])


@dataclass(frozen=True)
class Reply:
    """lm-eval's results of a benchmark."""

    requests: list[tuple[Any, ...]]
    """Arguments of every request, document by document."""
    responses: list[Any]
    """The model's response to each request."""
    values: dict[tuple[str, str], float]
    """Values by metric and filter."""


def _ask(benchmark: Benchmark, model: HFLM) -> Reply:
    task = copy(benchmark.task)
    task.set_fewshot_seed(FEWSHOT_SEED)
    indices = [document.index for document in benchmark.documents]
    first = indices == list(range(len(indices)))
    selection = {"limit": len(indices)} if first else {"samples": {benchmark.name: indices}}
    with quiet(), offline():
        said = evaluate(model, {"tasks": {benchmark.name: task}, "groups": {}}, bootstrap_iters=0, **selection)
    samples = said["samples"][benchmark.name]
    documents = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    values = {
        (metric, filtered): float(value)
        for name, value in said["results"][benchmark.name].items()
        for metric, comma, filtered in [name.partition(",")]
        if comma and not metric.endswith("_stderr")
    }
    return Reply(
        [tuple(arguments) for sample in documents for arguments in sample["arguments"]],
        [responses[0] for sample in documents for responses in sample["resps"]],
        values,
    )


def _compare_requests(ours: Ours, reply: Reply) -> Agreement:
    requests = [tuple(instance.args) for instance in ours.benchmark.instances]
    differing = sum(first != second for first, second in zip(requests, reply.requests, strict=False))
    differing += abs(len(requests) - len(reply.requests))
    quantity = f"{ours.benchmark.name}: requests that differ, of {len(requests)}"
    return Agreement(quantity, ours.program, differing, 0, note="as lm-eval builds them from the documents")


def _compare_answers(ours: Ours, scope: Scope, reply: Reply) -> Agreement:
    program, name, count = ours.program, f"{ours.benchmark.name}{scope.suffix}", len(ours.answers)
    asked = zip(ours.answers, ours.benchmark.instances, strict=True)
    responses = [scope.response(answer, instance.request_type) for answer, instance in asked]
    if any(isinstance(answer, Generation) for answer in ours.answers):
        differing = sum(first != second for first, second in zip(responses, reply.responses, strict=False))
        note = "where two ids are equally likely, rounding decides"
        return Agreement(f"{name}: texts that differ, of {count}", program, differing, count // TIES, note=note)
    quantity = f"{name}: log-likelihood per token of {count} requests"
    sides = [
        [_logprob(response) / length for response, length in zip(side, ours.tokens, strict=False)]
        for side in (responses, reply.responses)
    ]
    return Agreement.of_arrays(quantity, program, sides[0], sides[1], ours.rounding.loss_tolerance, NOTE)


def _logprob(response: float | Sequence[float]) -> float:
    return float(response[0] if isinstance(response, Sequence) else response)


def _compare_metrics(ours: Ours, scope: Scope, reply: Reply, recorded: RecordedValues) -> Iterator[Finding]:
    for (metric, filtered), value in reply.values.items():
        name = f"{ours.benchmark.name}/{named(metric, filtered, scope.suffix)}"
        if (metric_value := ours.metrics.get(name)) is None:
            continue
        if unit(metric) == "fraction":
            tolerance = 1.001 / len(ours.benchmark.documents)
            why = "in one document two answers may be equally likely, where rounding decides"
        else:
            tolerance = abs(value) * ours.rounding.loss_tolerance * sum(ours.tokens) / len(ours.tokens)
            why = "rounding adds up over tokens"
        now = Agreement.of_numbers(name, ours.program, metric_value.value, value, tolerance, why)
        yield from recorded.compare(now, metric_value.protocol.content)
