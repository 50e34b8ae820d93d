"""Every error that evalsvc raises on purpose.

EvalsvcError
├── InputError
│   ├── InvalidRequest               invalid_request
│   ├── InvalidSuite                 invalid_suite
│   ├── InvalidLayout                invalid_layout
│   ├── InvalidModelConfig           invalid_model_config
│   ├── InvalidData                  invalid_data
│   ├── UnknownName                  unknown_name
│   ├── Conflict                     conflict
│   ├── WrongState                   wrong_state
│   ├── BackupUnusable               backup_unusable
│   ├── TargetNotEmpty               target_not_empty
│   ├── NotComparable                not_comparable
│   ├── UploadNotFound               upload_not_found
│   ├── UploadConflict               upload_conflict
│   ├── ChecksumMismatch             checksum_mismatch
│   ├── Unauthorized                 unauthorized
│   ├── Forbidden                    forbidden
│   ├── RateLimited                  rate_limited
│   └── RunBehind                    run_behind
├── CheckpointError
│   ├── CheckpointNotFound           checkpoint_not_found
│   ├── CheckpointNotAllowed         checkpoint_not_allowed
│   ├── CheckpointGone               checkpoint_gone
│   ├── CheckpointChanged            checkpoint_changed
│   ├── NotACheckpoint               not_a_checkpoint
│   ├── UnsafeCheckpoint             unsafe_checkpoint
│   ├── ShardedCheckpoint            sharded_checkpoint
│   ├── CheckpointMismatch           checkpoint_mismatch
│   └── UnsupportedModel             unsupported_model
├── EvaluationError
│   ├── NonFinite                    non_finite
│   ├── DataChanged                  data_changed
│   ├── PlanOutdated                 plan_outdated
│   ├── OutOfMemory                  out_of_memory
│   ├── ArtifactNotWritten           artifact_not_written
│   ├── WorkerDied                   worker_died
│   ├── DeadlineExceeded             deadline_exceeded
│   ├── Cancelled                    cancelled
│   └── InternalError                internal_error
└── ServiceError
    ├── PortInUse                    port_in_use
    ├── DataDirectoryUnusable        data_directory_unusable
    ├── DatabaseUnusable             database_unusable
    ├── DatabaseInUse                database_in_use
    ├── ReadOnly                     read_only
    ├── SchemaVersionMismatch        schema_version_mismatch
    ├── SourceUnreachable            source_unreachable
    ├── CacheFull                    cache_full
    ├── StorageFull                  storage_full
    ├── MissingPackage               missing_package
    ├── AssetMissing                 asset_missing
    ├── AssetCorrupt                 asset_corrupt
    ├── ArtifactPruned               artifact_pruned
    ├── ItemsLost                    items_lost
    ├── NotReady                     not_ready
    └── ServiceUnreachable           service_unreachable

Each class's docstring says what went wrong and what to do; the reference of errors is written from the classes.
A message says what is wrong, what was found and what to do. `code`, the name of the class in other letters, is stable
and is what programs compare.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import ClassVar

MAX_COMPARED = 100
"""Longest name, in characters, that similar names are searched for."""

MAX_LIKELY, MAX_CLOSELY = 500, 20
"""Numbers of names that are preselected, and that are compared letter by letter, in a search for similar names."""

MAX_LISTED = 20
"""Most names that a message lists. If there are more, and some are similar, the message has the similar ones only."""

MAX_SHOWN = 160
"""Characters of a name that a message quotes."""

INSPECT = "`evalsvc inspect PATH` shows what a checkpoint is and how it is evaluated"
OF_CONTENT = ["not_a_checkpoint", "unsafe_checkpoint", "sharded_checkpoint", "checkpoint_mismatch", "unsupported_model"]
"""Codes of errors about what a checkpoint holds, whose messages end by INSPECT."""


class EvalsvcError(Exception):
    """An error that evalsvc raises on purpose."""

    code: ClassVar[str] = "error"
    transient: ClassVar[bool] = False
    """Whether a retry may succeed. A shard that fails with a transient error is retried later."""
    retry_after: int | None = None
    """Seconds after which the same request may succeed; None where that is not known."""

    def __init_subclass__(cls) -> None:
        if cls.__module__ == __name__ and cls.__base__ is not EvalsvcError:  # a leaf of the tree above
            cls.code = re.sub(r"\B(?=[A-Z])", "_", cls.__name__).lower()

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    @property
    def told(self) -> str:
        """The message as it leaves evalsvc: printed, in an answer, or stored. That of a service may have INSPECT."""
        advice = f"; {INSPECT}" if self.code in OF_CONTENT and INSPECT not in self.message else ""
        return self.message + advice


class InputError(EvalsvcError):
    """The caller can correct the request."""


class InvalidRequest(InputError):
    """A field of the request, or an option of the command, is wrong."""


class InvalidSuite(InputError):
    """A key or a parameter of a suite, or of a task in the suite, is wrong."""


class InvalidLayout(InputError):
    """Ids of the vocabulary layout overlap or exceed the embedding table, or a slot or special token is missing."""


class InvalidModelConfig(InputError):
    """The model configuration is incomplete or contradicts itself."""


class InvalidData(InputError):
    """A data file is damaged or does not fit the vocabulary layout. The message names the file and the line."""


class UnknownName(InputError):
    """No run, suite, task, metric, checkpoint or other object has this name. The message lists similar names."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str], hint: str = "") -> UnknownName:
        """Return an error that lists the names in `known` that are similar to `name`, and all names if there are few.
        `hint` says how to make such an object."""
        choices = sorted(known)
        near = near_misses(name, choices)
        begin = f"no {kind} is named {_shortened(name)!r}; "
        parts = [hint] if hint else []
        if near:
            begin += f"did you mean {' or '.join(map(repr, near))}? "
        if not choices:
            parts.insert(0, f"there is no {kind} yet")
        elif not near or len(choices) <= MAX_LISTED:
            parts.insert(0, f"available: {first_few(list(map(_shortened, choices)), MAX_LISTED)}")
        return cls((begin + "; ".join(parts)).rstrip("; "))


class Conflict(InputError):
    """The run already has a different file, or a different value, at this step and variant. Post with `replace: true`
    to replace the old one.
    """


class WrongState(InputError):
    """The state of the evaluation, checkpoint or run does not allow the action: only a queued or running evaluation can
    be cancelled, and only a failed or cancelled one can be retried.
    """


class BackupUnusable(InputError):
    """The file is not a backup, or is truncated or changed. No row was restored. Use another backup."""


class TargetNotEmpty(InputError):
    """The database or the data folder that a backup is to be restored into is not empty. Choose a new one."""


class NotComparable(InputError):
    """The two values were measured with different protocols. The message names the fields that differ; `--force`
    compares the values anyway.
    """


class UploadNotFound(InputError):
    """No upload of the client has this digest: the upload expired or became a checkpoint, or belongs to another token.
    Send the file again.
    """


class UploadConflict(InputError):
    """Another request is writing to the upload, or the part does not start at the upload's offset. Ask for the offset
    with `HEAD`, and resume from there.
    """


class ChecksumMismatch(InputError):
    """The part of an upload has another digest than its `Upload-Checksum` says, and is not counted. Send it again."""


class Unauthorized(InputError):
    """The request has no token, or its token is unknown, revoked or expired."""


class Forbidden(InputError):
    """The token's scope is too small, a web page of another origin sent the request, a form is not from the session of
    the browser, or uploads are off.
    """


class RateLimited(InputError):
    """Too many requests, or too many wrong tokens, in a short time. `Retry-After` has the seconds to wait."""


class RunBehind(InputError):
    """The plan of the run says `when_behind: refuse`, and as many steps as the plan allows still have evaluations that
    are not over. Nothing was stored. Post again after the seconds of `Retry-After`.
    """


class CheckpointError(EvalsvcError):
    """The weights are not what was posted."""


class CheckpointNotFound(CheckpointError):
    """No file is at the checkpoint's uri, or the file cannot be read."""


class CheckpointNotAllowed(CheckpointError):
    """The checkpoint lies outside `EVALSVC_ROOTS` or in the data folder, is not a regular file or folder, has a scheme
    that `EVALSVC_SCHEMES` does not list, or its store denies access.
    """


class CheckpointGone(CheckpointError):
    """The checkpoint was deleted between its post and its evaluation. Post with `spool` so that the service keeps a
    copy.
    """


class CheckpointChanged(CheckpointError):
    """The checkpoint's file was replaced between its post and its evaluation."""


class NotACheckpoint(CheckpointError):
    """The file is empty, truncated, or of another kind, such as an optimizer state."""


class UnsafeCheckpoint(CheckpointError):
    """The checkpoint is a pickle that would run code when it is loaded."""


class ShardedCheckpoint(CheckpointError):
    """The checkpoint is a `torch.distributed.checkpoint` folder that is compressed or in too many pieces. The message
    has the command that converts it."""


class CheckpointMismatch(CheckpointError):
    """The weights do not fit the model configuration. The message lists missing, unexpected and wrongly shaped keys."""


class UnsupportedModel(CheckpointError):
    """The model or decoder has parts that evalsvc cannot compute exactly. The message names the field or tensor."""


class EvaluationError(EvalsvcError):
    """The evaluation ran and failed."""


class NonFinite(EvaluationError):
    """The weights or the logits contain NaN or infinity. The message names the step and the layer."""


class DataChanged(EvaluationError):
    """A data file, or weights that the task uses, changed after the evaluation was planned. Evaluate again."""

    @classmethod
    def since_planned(cls, what: object, causes: str = "") -> DataChanged:
        """Return an error for `what`. `causes` follow in brackets, where `what` does not say what has changed."""
        aside = f" ({causes})" if causes else ""
        return cls(f"{what} has changed since this evaluation was planned{aside}; evaluate again")


class PlanOutdated(EvaluationError):
    """Another version of evalsvc planned the task, or ran its shards. The service plans the task again by itself."""

    code = "plan_outdated"


class OutOfMemory(EvaluationError):
    """The batch did not fit into memory. Lower `EVALSVC_BATCH_TOKENS`."""

    transient = True  # other programs may use the same device


class ArtifactNotWritten(EvaluationError):
    """The data folder is full or not writable. The metric history is unchanged."""

    transient = True


class WorkerDied(EvaluationError):
    """A shard killed its worker `EVALSVC_MAX_ATTEMPTS` times."""


class DeadlineExceeded(EvaluationError):
    """A shard exceeded `EVALSVC_SHARD_DEADLINE` in every attempt, or the client waited longer than its timeout."""


class Cancelled(EvaluationError):
    """The evaluation was cancelled by a request or by a replaced checkpoint, or the run's plan skipped it."""


class InternalError(EvaluationError):
    """A bug in evalsvc or in a plug-in. The service's log has the trace."""


class ServiceError(EvalsvcError):
    """The service or its machine needs attention."""


class PortInUse(ServiceError):
    """Another program uses the port. Choose another `--port`."""


class DataDirectoryUnusable(ServiceError):
    """The data folder cannot be written, or holds the artifacts of another database."""


class DatabaseUnusable(ServiceError):
    """The database does not answer, is full or damaged, or is SQLite on a network file system."""

    retry_after = 5  # a database that was restarted is back within seconds


class DatabaseInUse(ServiceError):
    """Another service uses the database. The message names that service; `serve --read-only` starts a second service
    that only reads.
    """


class ReadOnly(ServiceError):
    """The service only answers reads. Send writes to the other service of the same database."""


class SchemaVersionMismatch(ServiceError):
    """The database was created by another version of evalsvc. See `serve --migrate`."""


class SourceUnreachable(ServiceError):
    """The store that holds the checkpoint, or the service that has the files of a shard, does not answer."""

    transient = True


class CacheFull(ServiceError):
    """A remote checkpoint is larger than `EVALSVC_CACHE_BYTES`, or the cache folder cannot be written."""


class StorageFull(ServiceError):
    """An upload does not fit: on the disk, into `EVALSVC_UPLOAD_BYTES`, or next to the uploads that are there already.
    The bytes of open uploads are kept.
    """


class MissingPackage(ServiceError):
    """An optional package is not installed. The message has the install command."""


class AssetMissing(ServiceError):
    """Weights or benchmark data that a task needs are not on this machine, or cannot be downloaded. The message has the
    command that downloads them.
    """


class AssetCorrupt(ServiceError):
    """A downloaded or local asset does not have the expected size, digest or content."""


class ArtifactPruned(ServiceError):
    """The retention rule of the run removed the artifact. Evaluate again to recreate it."""


class ItemsLost(ServiceError):
    """The file with a task's results per item is missing or damaged; the task's metrics remain. Restore the file, or
    evaluate again.
    """


class NotReady(ServiceError):
    """`/readyz`: the service answers, but one of its parts is missing."""


class ServiceUnreachable(ServiceError):
    """The service, or its Dask scheduler, does not answer."""


def near_misses(name: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Return up to three names in `known` that are similar to `name`, the most similar first. Names come from requests,
    and comparisons are slow: long names are ignored, and at most MAX_CLOSELY names are compared."""
    if len(name) > MAX_COMPARED:
        return []
    short = (item for item in known if len(item) <= MAX_COMPARED)
    by_length = sorted(short, key=lambda item: abs(len(item) - len(name)))
    pairs = set(pairwise(name))
    likely = sorted(by_length[:MAX_LIKELY], key=lambda item: -len(pairs.intersection(pairwise(item))))
    return difflib.get_close_matches(name, likely[:MAX_CLOSELY], n=3, cutoff=cutoff)


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}…"


def first_few(things: Sequence[object], most: int) -> str:
    """Join the first `most` things for a message, and say how many more there are."""
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(map(str, things[:most])) + more


def is_transient(code: str) -> bool:
    """Tell whether an error with this code is transient."""
    return any(error.code == code and error.transient for error in leaves())


def is_untried(code: str) -> bool:
    """Return whether the error of this code says nothing about the weights: a request, a data file, the installation or
    the service is at fault."""
    return any(error.code == code for root in (InputError, ServiceError) for error in leaves(root))


def leaves(root: type[EvalsvcError] = EvalsvcError) -> list[type[EvalsvcError]]:
    """Return every error class without subclasses, in the order of the tree above."""
    children = root.__subclasses__()
    return [root] if not children else [leaf for child in children for leaf in leaves(child)]


def meaning(code: str) -> str:
    """Return what an error's code means and what to do, as the reference of errors has it; empty if the code is
    unknown."""
    return next((" ".join((leaf.__doc__ or "").split()) for leaf in leaves() if leaf.code == code), "")


def os_reason(error: Exception) -> str:
    """Return the operating system's reason for a failed call, in lower case, without number and path."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def json_reason(error: ValueError | RecursionError) -> str:
    """Return why Python's parser refused a JSON text, without quoting the text."""
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def type_name(value: object) -> str:
    """Return the type of a value of JSON or YAML as a message names it: `empty` for null, else Python's name."""
    return "empty" if value is None else type(value).__name__


def show_name(name: str) -> str:
    """Return a column or key as a message quotes it. Anything that does not look like a name is withheld: the file may
    be of another kind and hold a secret."""
    return repr(name) if re.fullmatch(r"[\w .-]{1,40}", name) else "something that is no name"
