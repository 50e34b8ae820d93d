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
A message says what is wrong, what was found and what to do. `code` is stable and is what programs compare.
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


class EvalsvcError(Exception):
    """An error that evalsvc raises on purpose."""

    code: ClassVar[str] = "error"
    transient: ClassVar[bool] = False
    """Whether a retry may succeed. A shard that fails with a transient error is retried later."""
    retry_after: int | None = None
    """Seconds after which the same request may succeed; None where that is not known."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InputError(EvalsvcError):
    """The caller can correct the request."""


class InvalidRequest(InputError):
    """A field of the request, or an option of the command, is wrong."""

    code = "invalid_request"


class InvalidSuite(InputError):
    """A key or a parameter of a suite, or of a task in the suite, is wrong."""

    code = "invalid_suite"


class InvalidLayout(InputError):
    """Ids of the vocabulary layout overlap or exceed the embedding table, or a slot or special token is missing."""

    code = "invalid_layout"


class InvalidModelConfig(InputError):
    """The model configuration is incomplete or contradicts itself."""

    code = "invalid_model_config"


class InvalidData(InputError):
    """A data file is damaged or does not fit the vocabulary layout. The message names the file and the line."""

    code = "invalid_data"


class UnknownName(InputError):
    """No run, suite, task, metric, checkpoint or other object has this name. The message lists similar names."""

    code = "unknown_name"

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str], hint: str = "") -> UnknownName:
        """Return an error for `name`, which is not in `known`. The message lists similar names, and all names if there
        are few.

        `hint` says how to make such an object, and ends the message.
        """
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

    code = "conflict"


class WrongState(InputError):
    """The state of the evaluation, checkpoint or run does not allow the action: only a queued or running evaluation can
    be cancelled, and only a failed or cancelled one can be retried.
    """

    code = "wrong_state"


class BackupUnusable(InputError):
    """The file is not a backup, or is truncated or changed. No row was restored. Use another backup."""

    code = "backup_unusable"


class TargetNotEmpty(InputError):
    """The database or the data folder that a backup is to be restored into is not empty. Choose a new one."""

    code = "target_not_empty"


class NotComparable(InputError):
    """The two values were measured with different protocols. The message names the fields that differ; `--force`
    compares the values anyway.
    """

    code = "not_comparable"


class UploadNotFound(InputError):
    """No upload of the client has this digest: the upload expired or became a checkpoint, or belongs to another token.
    Send the file again.
    """

    code = "upload_not_found"


class UploadConflict(InputError):
    """Another request is writing to the upload, or the part does not start at the upload's offset. Ask for the offset
    with `HEAD`, and resume from there.
    """

    code = "upload_conflict"


class ChecksumMismatch(InputError):
    """The part of an upload has another digest than its `Upload-Checksum` says, and is not counted. Send it again."""

    code = "checksum_mismatch"


class Unauthorized(InputError):
    """The request has no token, or its token is unknown, revoked or expired."""

    code = "unauthorized"


class Forbidden(InputError):
    """The token's scope is too small, a web page of another origin sent the request, a form is not from the session of
    the browser, or uploads are off.
    """

    code = "forbidden"


class RateLimited(InputError):
    """Too many requests, or too many wrong tokens, in a short time. `Retry-After` has the seconds to wait."""

    code = "rate_limited"


class RunBehind(InputError):
    """The plan of the run says `when_behind: refuse`, and as many steps as the plan allows still have evaluations that
    are not over. Nothing was stored. Post again after the seconds of `Retry-After`.
    """

    code = "run_behind"


class CheckpointError(EvalsvcError):
    """The weights are not what was posted."""


class CheckpointNotFound(CheckpointError):
    """No file is at the checkpoint's uri, or the file cannot be read."""

    code = "checkpoint_not_found"


class CheckpointNotAllowed(CheckpointError):
    """The checkpoint lies outside `EVALSVC_ROOTS` or in the data folder, is not a regular file or folder, has a scheme
    that `EVALSVC_SCHEMES` does not list, or its store denies access.
    """

    code = "checkpoint_not_allowed"


class CheckpointGone(CheckpointError):
    """The checkpoint was deleted between its post and its evaluation. Post with `spool` so that the service keeps a
    copy.
    """

    code = "checkpoint_gone"


class CheckpointChanged(CheckpointError):
    """The checkpoint's file was replaced between its post and its evaluation."""

    code = "checkpoint_changed"


class NotACheckpoint(CheckpointError):
    """The file is empty, truncated, or of another kind, such as an optimizer state."""

    code = "not_a_checkpoint"


class UnsafeCheckpoint(CheckpointError):
    """The checkpoint is a pickle that would run code when it is loaded."""

    code = "unsafe_checkpoint"


class ShardedCheckpoint(CheckpointError):
    """The checkpoint is a `torch.distributed.checkpoint` folder. The message has the command that converts it."""

    code = "sharded_checkpoint"


class CheckpointMismatch(CheckpointError):
    """The weights do not fit the model configuration. The message lists missing, unexpected and wrongly shaped keys."""

    code = "checkpoint_mismatch"


class UnsupportedModel(CheckpointError):
    """The model or decoder has parts that evalsvc cannot compute exactly. The message names the field or tensor."""

    code = "unsupported_model"


class EvaluationError(EvalsvcError):
    """The evaluation ran and failed."""


class NonFinite(EvaluationError):
    """The weights or the logits contain NaN or infinity. The message names the step and the layer."""

    code = "non_finite"


class DataChanged(EvaluationError):
    """A data file, or weights that the task uses, changed after the evaluation was planned. Evaluate again."""

    code = "data_changed"

    @classmethod
    def since_planned(cls, what: object, causes: str = "") -> DataChanged:
        """Return an error for `what`, which is not what it was when the evaluation was planned.

        `causes` follow `what` in brackets, where `what` does not say what has changed.
        """
        aside = f" ({causes})" if causes else ""
        return cls(f"{what} has changed since this evaluation was planned{aside}; evaluate again")


class OutOfMemory(EvaluationError):
    """The batch did not fit into memory. Lower `EVALSVC_BATCH_TOKENS`."""

    code = "out_of_memory"
    transient = True  # other programs may use the same device


class ArtifactNotWritten(EvaluationError):
    """The data folder is full or not writable. The metric history is unchanged."""

    code = "artifact_not_written"
    transient = True


class WorkerDied(EvaluationError):
    """A shard killed its worker `EVALSVC_MAX_ATTEMPTS` times."""

    code = "worker_died"


class DeadlineExceeded(EvaluationError):
    """A shard exceeded `EVALSVC_SHARD_DEADLINE` in every attempt, or the client waited longer than its timeout."""

    code = "deadline_exceeded"


class Cancelled(EvaluationError):
    """The evaluation was cancelled by a request or by a replaced checkpoint, or the run's plan skipped it."""

    code = "cancelled"


class InternalError(EvaluationError):
    """A bug in evalsvc or in a plug-in. The service's log has the trace."""

    code = "internal_error"


class ServiceError(EvalsvcError):
    """The service or its machine needs attention."""


class PortInUse(ServiceError):
    """Another program uses the port. Choose another `--port`."""

    code = "port_in_use"


class DataDirectoryUnusable(ServiceError):
    """The data folder cannot be written, or holds the artifacts of another database."""

    code = "data_directory_unusable"


class DatabaseUnusable(ServiceError):
    """The database does not answer, is full or damaged, or is SQLite on a network file system."""

    code = "database_unusable"
    retry_after = 5  # a database that was restarted is back within seconds


class DatabaseInUse(ServiceError):
    """Another service uses the database. The message names that service; `serve --read-only` starts a second service
    that only reads.
    """

    code = "database_in_use"


class ReadOnly(ServiceError):
    """The service only answers reads. Send writes to the other service of the same database."""

    code = "read_only"


class SchemaVersionMismatch(ServiceError):
    """The database was created by another version of evalsvc. See `serve --migrate`."""

    code = "schema_version_mismatch"


class SourceUnreachable(ServiceError):
    """The store that holds the checkpoint, or the service that has the files of a shard, does not answer."""

    code = "source_unreachable"
    transient = True


class CacheFull(ServiceError):
    """A remote checkpoint is larger than `EVALSVC_CACHE_BYTES`, or the cache folder cannot be written."""

    code = "cache_full"


class StorageFull(ServiceError):
    """An upload does not fit: on the disk, into `EVALSVC_UPLOAD_BYTES`, or next to the uploads that are there already.
    The bytes of open uploads are kept.
    """

    code = "storage_full"


class MissingPackage(ServiceError):
    """An optional package is not installed. The message has the install command."""

    code = "missing_package"


class AssetMissing(ServiceError):
    """Weights or benchmark data that a task needs are not on this machine, or cannot be downloaded. The message has the
    command that downloads them.
    """

    code = "asset_missing"


class AssetCorrupt(ServiceError):
    """A downloaded or local asset does not have the expected size, digest or content."""

    code = "asset_corrupt"


class ArtifactPruned(ServiceError):
    """The retention rule of the run removed the artifact. Evaluate again to recreate it."""

    code = "artifact_pruned"


class ItemsLost(ServiceError):
    """The file with a task's results per item is missing or damaged; the task's metrics remain. Restore the file, or
    evaluate again.
    """

    code = "items_lost"


class NotReady(ServiceError):
    """`/readyz`: the service answers, but one of its parts is missing."""

    code = "not_ready"


class ServiceUnreachable(ServiceError):
    """The service, or its Dask scheduler, does not answer."""

    code = "service_unreachable"


def near_misses(name: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Return up to three names in `known` that are similar to `name`, the most similar first.

    Names come from requests, and comparisons are slow: long names are ignored, and at most MAX_CLOSELY names are
    compared.
    """
    if len(name) > MAX_COMPARED:
        return []
    by_length = sorted(
        (item for item in known if len(item) <= MAX_COMPARED), key=lambda item: abs(len(item) - len(name))
    )
    pairs = _pairs(name)
    likely = sorted(by_length[:MAX_LIKELY], key=lambda item: -len(pairs & _pairs(item)))
    return difflib.get_close_matches(name, likely[:MAX_CLOSELY], n=3, cutoff=cutoff)


def _pairs(name: str) -> set[tuple[str, str]]:
    """Return all pairs of neighbouring letters in a name."""
    return set(pairwise(name))


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
    """Return whether the error of this code says nothing about the weights.

    An option, a suite or a data file is wrong, or a part of the installation or of the service is missing.
    """
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
