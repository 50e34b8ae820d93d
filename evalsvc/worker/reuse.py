"""Reuse of values from an earlier `evalsvc run`: comparing the inputs of each task, and copying values that hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from evalsvc import __version__
from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.checkpoints.remote.fetch import fetched
from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError, first_few
from evalsvc.families.reading import computed_by
from evalsvc.messages import PlanResult, ShardResult
from evalsvc.spec.documents.reading import content_of
from evalsvc.spec.documents.results import ResultDocument, ResultFile, TaskOrigin
from evalsvc.spec.protocol import digest, plain_json
from evalsvc.spec.suite import Suite, TaskSpec, build_task
from evalsvc.tasks.task import work_of
from evalsvc.worker.context import ShardContext

Inputs = Mapping[str, str]
"""Digests of the inputs that determine the values of a task, by name; empty if the inputs cannot be read."""


@dataclass(frozen=True)
class Earlier:
    """The result of an earlier run, whose values may be reused."""

    document: ResultFile
    path: str
    """Path of the file that the result was read from."""
    say: Callable[[str], None]
    """Function that is called with a line per task: whether its values are reused, or why not."""

    def holds(self, task: str, inputs: Inputs) -> bool:
        """Return whether the values of a task have these inputs and were not edited, and report the answer."""
        reason = self._why_not(task, inputs)
        line = f"values are reused from {self.path}" if reason is None else f"measured again: {reason}"
        self.say(f"{task}: {line}")
        return reason is None

    def _why_not(self, task: str, inputs: Inputs) -> str | None:
        """Return why the values of a task must be measured again; None if they can be reused."""
        origin = self.document.origins.get(task)
        if origin is None:
            return f"{self.path} has no such task, or does not record the inputs of the task"
        if not inputs:
            return "the task cannot be planned, or the checkpoint cannot be read"
        names = [name for name in {**inputs, **origin.inputs} if inputs.get(name) != origin.inputs.get(name)]
        if names:
            return f"{first_few(names, 8)} differ{'s' if len(names) == 1 else ''}"
        if content_digest(self.document, task) != origin.content:
            return f"{self.path} was changed after it was written"
        return None


def with_digest(checkpoint: CheckpointRef, settings: Settings) -> CheckpointRef:
    """Return a checkpoint with the SHA-256 of its files; loading other weights then fails.

    Raises:
        CheckpointGone, CheckpointChanged, CheckpointNotAllowed, SourceUnreachable: the files cannot be read.
    """
    with fetched([checkpoint], settings, _ignore) as (local,):
        return replace(checkpoint, sha256=ShardContext(local, settings, _ignore).digest())


def task_inputs(
    task: TaskSpec, planned: ShardResult, checkpoint: CheckpointRef, base: CheckpointRef | None, settings: Settings
) -> Inputs:
    """Return the inputs of a planned task; empty if the plan failed or the files cannot be read."""
    if not isinstance(planned.output, PlanResult):
        return {}
    wanted = [checkpoint] if base is None else [checkpoint, base]
    try:
        with fetched(wanted, settings, _ignore) as (local, *others):
            context = ShardContext(local, settings, _ignore, others[0] if others else None)
            work = work_of(build_task(task))
            shards = [work.shard_codec.from_json(shard) for shard in planned.output.shards]
            contents = {
                "evalsvc": __version__,
                "parameters": [task.kind, dict(task.parameters)],
                **_weights_of(context, ""),
                **({} if context.base is None else _weights_of(context.base, "base's ")),
                **work.inputs(context, shards),
            }
    except (EvalsvcError, OSError):  # the task reports the error when it runs
        return {}
    return {name: value if isinstance(value, str) else digest(plain_json(value)) for name, value in contents.items()}


def content_digest(document: ResultDocument, task: str) -> str:
    """Return the digest of the values of a task: metrics, protocols, results per item and warnings."""
    metrics = [metric for metric in document.metrics if metric.task == task]
    content = {
        "metrics": [content_of(metric) for metric in metrics],
        "protocols": {metric.protocol: document.protocols.get(metric.protocol) for metric in metrics},
        "items": document.items.get(task, []),
        "warnings": [content_of(warning) for warning in document.warnings.get(task, [])],
    }
    return digest(plain_json(content))


def with_origins(
    measured: ResultFile, suite: Suite, inputs: Mapping[str, Inputs], earlier: Earlier | None, reused: Collection[str]
) -> ResultFile:
    """Return a result with the earlier values of the tasks in `reused`, and with the origins of all values."""
    before = measured if earlier is None else _without_contents(earlier.document)
    sources = {task.name: before if task.name in reused else measured for task in suite.tasks}
    metrics = [metric for name, source in sources.items() for metric in source.metrics if metric.task == name]
    missing = {metric.protocol: metric for metric in metrics if metric.protocol not in measured.protocols}
    known = before.protocols
    whole = replace(
        measured,
        metrics=metrics,
        protocols={**measured.protocols, **{identity: known[identity] for identity in missing if identity in known}},
        items={name: source.items[name] for name, source in sources.items() if name in source.items},
        artifacts={name: source.artifacts[name] for name, source in sources.items() if name in source.artifacts},
        warnings={name: source.warnings[name] for name, source in sources.items() if name in source.warnings},
        provenance={name: source.provenance[name] for name, source in sources.items() if name in source.provenance},
    )
    origins = {
        name: TaskOrigin(
            inputs=dict(inputs[name]),
            content=content_digest(whole, name),
            reused_from=earlier.path if earlier and name in reused else None,
        )
        for name in sources
        if name not in measured.errors
        and inputs.get(name)
        and (name in reused or _has_weights(whole, name, inputs[name]))
    }
    return replace(whole, origins=origins)


def _without_contents(document: ResultFile) -> ResultFile:
    """Return a result without contents of artifacts, because contents from a file of a stranger are never written."""
    artifacts = {
        task: [{key: value for key, value in artifact.items() if key != "content"} for artifact in of_task]
        for task, of_task in document.artifacts.items()
    }
    return replace(document, artifacts=artifacts)


def _has_weights(measured: ResultFile, task: str, inputs: Inputs) -> bool:
    """Return whether all shards loaded the weights of the inputs; the file may have been replaced in the meantime."""
    shards = measured.provenance[task]["shards"]
    assert isinstance(shards, list), "run_suite writes a list"
    return all(shard["checkpoint_sha256"] == inputs["checkpoint"] for shard in shards if shard["dtype"] is not None)


def _weights_of(context: ShardContext, whose: str) -> dict[str, object]:
    layout, config = context.layout(), context.model_config()
    return {
        f"{whose}checkpoint": context.digest(),
        f"{whose}model": config.model_dump(mode="json"),
        **{f"{whose}{package}": version for package, version in computed_by(config).items()},
        f"{whose}layout": layout.digest,
        # The layout's digest is without it, and only the protocols of the results have it.
        **({} if layout.text.bos is None else {f"{whose}bos": layout.text.bos}),
    }


def _ignore(done: int) -> None:
    """Ignore progress."""
