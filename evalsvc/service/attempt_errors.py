"""Errors of evaluations whose attempts ended without a result."""

from __future__ import annotations

from evalsvc.config import Settings
from evalsvc.errors import ArtifactNotWritten, DeadlineExceeded, WorkerDied
from evalsvc.files.outputs import OutputFile
from evalsvc.messages import ShardError, Stage


def worker_died(cause: str, settings: Settings) -> ShardError:
    how = f"the last time, {cause}" if cause else "killed, out of memory, or crashed"
    return ShardError(
        WorkerDied.code,
        f"the worker process died while it ran this shard, {settings.max_attempts} times ({how}); check "
        "the machine's log, lower EVALSVC_BATCH_TOKENS, then retry the evaluation",
    )


def deadline_exceeded(stage: Stage, settings: Settings) -> ShardError:
    if stage == "plan":
        return ShardError(
            DeadlineExceeded.code,
            f"planning was stopped after {settings.plan_deadline:g} s without progress; look for a template, a "
            "tokenizer or data of this task that takes as long, or raise EVALSVC_SHARD_DEADLINE of the service, then "
            "retry the evaluation",
        )
    return ShardError(
        DeadlineExceeded.code,
        f"the shard ran longer than {settings.shard_deadline:g} s, {settings.max_attempts} times; "
        "raise EVALSVC_SHARD_DEADLINE or give the task more shards, then retry the evaluation",
    )


def output_lost(lost: OutputFile, settings: Settings) -> ShardError:
    return ShardError(
        ArtifactNotWritten.code,
        f"the output of a shard was written to {lost.path(settings.outputs_path)} and was missing, or "
        f"changed, when it was read, {settings.max_attempts} times; check the disk, then retry the "
        "evaluation",
    )
