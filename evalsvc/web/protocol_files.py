"""How values were measured: their protocols, the files that the digests of a protocol are of, and the tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from evalsvc.assets import ASSETS
from evalsvc.client.reader import ServiceReader, find_checkpoint
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec.documents import Checkpoint, EvaluatedSuite, Evaluation, Task
from evalsvc.spec.names import checkpoint_name, is_checkpoint
from evalsvc.spec.protocol import EXTERNAL

DIGEST = re.compile(r"[0-9a-f]{32,64}")

GROUPS = {
    "Data": "task data images prompts prompt select category limit sample samples benchmark version digest lm_eval "
    "num_fewshot group aggregate members mean groups layout tokenizer bos end_of_text text_prefix max_length positions",
    "Sampling": "sampling decoder decoder_dtype size crop filter max_tokens dtype cache_dtype weights table "
    "rotary_inv_freq_dtype",
    "Estimator": "estimator extractor classifier lpips resize compared n until batch batches_seed candidates "
    "neighbours permutations seed temperature centred chance above_chance comparison grid engine",
    "Reference": "reference base base_layout less",
    "Other fields": "",
}
"""First names of the fields of each group; a field that no group names is in the last one."""


@dataclass(frozen=True)
class MeasuredTask:
    """A task of an evaluation that measured something; `parameters` are those that its suite wrote."""

    evaluation: Evaluation
    checkpoint: Checkpoint
    result: Task
    parameters: Mapping[str, object]


@dataclass(frozen=True)
class Measured:
    """A protocol by its id, and the metrics that were measured by the protocol."""

    protocol: str
    content: Mapping[str, object]
    metrics: Sequence[str]
    files: Mapping[str, str]
    """Names of files, assets and checkpoints, by digest and by the name of a task's parameter."""
    task: MeasuredTask | None = None
    """Task that measured the values; None for a protocol that is not read from an evaluation."""

    def fields(self) -> Iterator[tuple[str, str, str]]:
        """Yield the dotted name and value of every field, and the name of the file whose digest is the value, or ""."""
        for path, value in leaves(self.content):
            file = ""
            if isinstance(value, str) and DIGEST.fullmatch(value):
                file = next((self.files[key] for key in (value, *reversed(path)) if key in self.files), "")
            is_origin = path == ("sampling",) and value == EXTERNAL
            yield ".".join(path), f"{EXTERNAL}: external images" if is_origin else in_words(value), file


def grouped(measured: Measured) -> dict[str, list[tuple[str, str, str]]]:
    """Return the fields of a protocol, as `Measured.fields` has them, by group."""
    group_of = {name: group for group, names in GROUPS.items() for name in names.split()}
    groups: dict[str, list[tuple[str, str, str]]] = {group: [] for group in GROUPS}
    for row in measured.fields():
        groups[group_of.get(row[0].partition(".")[0], "Other fields")].append(row)
    return groups


def in_words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def measured_in(
    task: Task, evaluation: Evaluation, suite: EvaluatedSuite, checkpoint: Checkpoint
) -> Iterator[Measured]:
    names: dict[str, list[str]] = {}
    for metric in task.metrics or []:
        names.setdefault(metric.protocol, []).append(metric.name)
    parameters = next((given for given in suite.tasks if given.get("name") == task.name), {})
    files = known_files(checkpoint, parameters)
    for protocol, metrics in names.items():
        measured = MeasuredTask(evaluation, checkpoint, task, parameters)
        yield Measured(protocol, task.protocols.get(protocol, {}), metrics, files, measured)


def measured_by(source: ServiceReader, name: str, metric: str | None) -> list[Measured]:
    """Return the protocols of the metrics of RUN@STEP[:VARIANT] by its newest evaluations, or of `metric` alone."""
    checkpoint = find_checkpoint(source, name)
    newest: dict[str, int] = {}
    for evaluation in source.evaluations(checkpoint.run, first=checkpoint.step, last=checkpoint.step):
        if evaluation.checkpoint == checkpoint.id:
            newest.setdefault(evaluation.suite.name, evaluation.id)
    if not newest:
        name = checkpoint_name(checkpoint.run, checkpoint.step, checkpoint.variant)
        raise UnknownName(f"{name} has no evaluation yet; evaluate the checkpoint: evalsvc retry {name} --suite SUITE")
    measured: list[Measured] = []
    for number in newest.values():
        whole, suite = source.evaluation(number), source.evaluated_suite(number)
        measured += [item for task in whole.tasks for item in measured_in(task, whole, suite, checkpoint)]
    if metric is None:
        return measured
    chosen = [replace(item, metrics=[metric]) for item in measured if metric in item.metrics]
    if not chosen:
        raise UnknownName.among(f"metric of {name}", metric, {known for item in measured for known in item.metrics})
    return chosen


def newest_measured(source: ServiceReader, protocol: str, metric: str, runs: Sequence[str]) -> Iterator[Measured]:
    """Yield how the newest value of each run by a protocol was measured, where its evaluation is the newest."""
    for run in runs:
        series = [each for each in source.summary(run, [metric]) if each.protocol == protocol]
        places = sorted((each.latest.step, each.variant) for each in series if each.latest is not None)
        for step, variant in places[-1:]:
            with suppress(UnknownName):
                name = checkpoint_name(run, step, variant)
                yield from (each for each in measured_by(source, name, metric) if each.protocol == protocol)


def protocol_of(source: ServiceReader, name: str, metric: str | None) -> Mapping[str, object]:
    """Return the content of a protocol, which an id or a metric of RUN@STEP names."""
    if not is_checkpoint(name):
        return source.protocol(name)
    if metric is None:
        raise InvalidRequest(
            f"{name} is a checkpoint, whose metrics have different protocols; name a metric by --metric"
        )
    measured = measured_by(source, name, metric)
    if len(measured) > 1:
        ids = ", ".join(item.protocol for item in measured)
        raise InvalidRequest(f"{metric} of {name} has the protocols {ids}; give one of these ids instead of {name}")
    return measured[0].content


def known_files(checkpoint: Checkpoint | None = None, task: Mapping[str, object] | None = None) -> dict[str, str]:
    """Return the names of assets and of a checkpoint by digest, and the files of a task by parameter."""
    files = {
        digest: f"asset {asset.name}"
        for asset in ASSETS.values()
        for digest in (asset.tensors, *(source.sha256 for source in asset.sources))
        if digest
    }
    files |= {key: value for key, value in (task or {}).items() if isinstance(value, str)}
    if checkpoint is not None:
        files["layout"] = "the layout of the checkpoint"
        if checkpoint.sha256 is not None:
            files[checkpoint.sha256] = checkpoint.uri
    return files


def leaves(content: Mapping[str, object], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield the values of nested content, each with the names that lead to it."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value
