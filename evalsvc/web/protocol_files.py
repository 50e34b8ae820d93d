"""How values were measured: their protocols, the files that the digests of a protocol are of, and the tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from evalsvc.assets import ASSETS
from evalsvc.client import Client
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec.documents import Checkpoint, Evaluation, ListedEvaluation, Task
from evalsvc.spec.names import CHECKPOINT, checkpoint_name, parse_checkpoint

DIGEST = re.compile(r"[0-9a-f]{32,64}")


@dataclass(frozen=True)
class MeasuredTask:
    """A task of an evaluation that measured something."""

    evaluation: Evaluation
    checkpoint: Checkpoint
    result: Task
    parameters: Mapping[str, object]
    """The task as its suite wrote it."""


@dataclass(frozen=True)
class Measured:
    """A protocol, and the metrics that were measured by the protocol."""

    protocol: str
    """Id of the protocol."""
    content: Mapping[str, object]
    metrics: Sequence[str]
    files: Mapping[str, str]
    """Names of files, assets and checkpoints, by digest and by the name of a task's parameter."""
    task: MeasuredTask | None = None
    """Task that measured the values; None for a protocol that is not read from an evaluation."""

    def fields(self) -> Iterator[tuple[str, str, str]]:
        """Yield the dotted name and value of every field, and the name of the file whose digest is the value, or ""."""
        for path, value in leaves(self.content):
            yield ".".join(path), in_words(value), self._file(path, value)

    def _file(self, path: Sequence[str], value: object) -> str:
        if not (isinstance(value, str) and DIGEST.fullmatch(value)):
            return ""
        return self.files.get(value) or next((self.files[key] for key in reversed(path) if key in self.files), "")


def find_checkpoint(client: Client, name: str) -> Checkpoint:
    """Return the checkpoint that RUN@STEP[:VARIANT] or an id names.

    Raises:
        InvalidRequest: `name` has another form.
        UnknownName: there is no such checkpoint; the message has near misses.
    """
    if name.isdecimal():
        return client.checkpoint(int(name))
    run, step, variant = parse_checkpoint(name)
    for checkpoint in client.checkpoints(run, variant=variant, first=step, last=step):
        return client.checkpoint(checkpoint.id)
    posted = [checkpoint_name(run, each.step, each.variant) for each in client.run(run).checkpoints]
    raise UnknownName.among("checkpoint", checkpoint_name(run, step, variant), posted)


def in_words(value: object) -> str:
    """Return a text as it is, and any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def measured_by(client: Client, name: str, metric: str | None) -> list[Measured]:
    """Return the protocols of the metrics of RUN@STEP[:VARIANT] by its newest evaluations, or only those of `metric`.

    Raises:
        UnknownName: the checkpoint does not exist, or has no evaluation or no such metric.
    """
    checkpoint = find_checkpoint(client, name)
    measured: list[Measured] = []
    known: set[str] = set()
    for listed in _newest(client, checkpoint):
        suite = client.evaluated_suite(listed.id)
        parameters = {str(task.get("name")): task for task in suite.tasks}
        evaluation = client.evaluation(listed.id)
        for task in evaluation.tasks:
            names: dict[str, list[str]] = {}
            for value in task.metrics or []:
                known.add(value.name)
                if metric in (None, value.name):
                    names.setdefault(value.protocol, []).append(value.name)
            own = MeasuredTask(evaluation, checkpoint, task, parameters.get(task.name, {}))
            files = known_files(checkpoint, own.parameters)
            measured += [
                Measured(key, task.protocols.get(key, {}), metrics, files, own) for key, metrics in names.items()
            ]
    if metric is not None and not measured:
        raise UnknownName.among(f"metric of {name}", metric, known)
    return measured


def _newest(client: Client, checkpoint: Checkpoint) -> list[ListedEvaluation]:
    """Return the newest evaluation of a checkpoint by each suite.

    Raises:
        UnknownName: the checkpoint has no evaluation.
    """
    newest: dict[str, ListedEvaluation] = {}
    for evaluation in client.evaluations(checkpoint.run, first=checkpoint.step, last=checkpoint.step):
        if evaluation.checkpoint == checkpoint.id:
            newest.setdefault(evaluation.suite.name, evaluation)
    if not newest:
        name = checkpoint_name(checkpoint.run, checkpoint.step, checkpoint.variant)
        raise UnknownName(
            f"{name} has no evaluation yet; evaluate the checkpoint: evalsvc evaluations again {name} --suite SUITE"
        )
    return list(newest.values())


def protocol_of(client: Client, name: str, metric: str | None) -> Mapping[str, object]:
    """Return the content of a protocol, which an id or a metric of RUN@STEP names.

    Raises:
        InvalidRequest: RUN@STEP is given without a metric, or the metric has several protocols.
    """
    if not CHECKPOINT.fullmatch(name):
        return client.protocol(name)
    if metric is None:
        raise InvalidRequest(
            f"{name} is a checkpoint, whose metrics have different protocols; name a metric by --metric"
        )
    measured = measured_by(client, name, metric)
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
