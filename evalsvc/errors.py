"""Every error that evalsvc raises on purpose.

EvalsvcError
├── InputError                       the caller can fix it
│   ├── InvalidRequest               invalid_request        a field of a request or an option
│   ├── InvalidSuite                 invalid_suite          a suite or a task in it
│   ├── InvalidLayout                invalid_layout         ids overlap, exceed the table, slots missing
│   ├── InvalidModelConfig           invalid_model_config   a model configuration
│   ├── InvalidData                  invalid_data           a token or text file, with its line
│   ├── UnknownName                  unknown_name           near misses and what exists are in the message
│   ├── Conflict                     conflict               the run has another file, or another value, in this place
│   ├── WrongState                   wrong_state            retry what runs, cancel what is over
│   ├── NotComparable                not_comparable         numbers of different protocols side by side
│   ├── Unauthorized                 unauthorized           no token, or one that is not known, revoked or expired
│   ├── Forbidden                    forbidden              the token's scope is too small, or a foreign web page asks
│   └── RateLimited                  rate_limited           too many requests, or wrong tokens, in too short a time
├── CheckpointError                  the weights are not what was posted
│   ├── CheckpointNotFound           checkpoint_not_found   at submission
│   ├── CheckpointNotAllowed         checkpoint_not_allowed outside the roots, a scheme that is not served, no access
│   ├── CheckpointGone               checkpoint_gone        deleted between submission and evaluation
│   ├── CheckpointChanged            checkpoint_changed     replaced between submission and evaluation
│   ├── NotACheckpoint               not_a_checkpoint       empty, truncated, another kind of file
│   ├── UnsafeCheckpoint             unsafe_checkpoint      a pickle that wants to run code
│   ├── ShardedCheckpoint            sharded_checkpoint     torch.distributed.checkpoint directory
│   ├── CheckpointMismatch           checkpoint_mismatch    keys or shapes differ from the configuration
│   └── UnsupportedModel             unsupported_model      mixture of experts, mamba, split tables
├── EvaluationError                  it was tried and did not work
│   ├── NonFinite                    non_finite             NaN or infinity in weights or logits
│   ├── DataChanged                  data_changed           a data file changed between shards
│   ├── OutOfMemory                  out_of_memory
│   ├── ArtifactNotWritten           artifact_not_written   the data folder is full or closed
│   ├── WorkerDied                   worker_died            a shard killed its worker too often
│   ├── DeadlineExceeded             deadline_exceeded
│   ├── Cancelled                    cancelled
│   └── InternalError                internal_error         a bug in evalsvc or in a plug-in
└── ServiceError                     the machine or the service needs attention
    ├── PortInUse                    port_in_use
    ├── DataDirectoryUnusable        data_directory_unusable
    ├── DatabaseUnusable             database_unusable      unreachable, or on a network file system
    ├── DatabaseInUse                database_in_use        another process is its coordinator
    ├── ReadOnly                     read_only              what writes is for another service of this database
    ├── SchemaVersionMismatch        schema_version_mismatch
    ├── SourceUnreachable            source_unreachable     the store that a checkpoint lies in; can pass on retry
    ├── CacheFull                    cache_full             no room for a checkpoint from elsewhere
    ├── MissingPackage               missing_package        with the install command
    ├── AssetMissing                 asset_missing          weights that were not pulled, or cannot be had
    ├── AssetCorrupt                 asset_corrupt          what was fetched or found is not what it should be
    ├── ArtifactPruned               artifact_pruned        by the rule of its run
    ├── ItemsLost                    items_lost             the file of a task's results per item is gone or damaged
    ├── NotReady                     not_ready              the service answers, but a part of it is missing
    └── ServiceUnreachable           service_unreachable    what the client says

A message says what is wrong, what was found and what to do. `code` is stable and is what programs compare.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import ClassVar

MAX_COMPARED = 100
"""Characters of a name for which near misses are looked for."""

MAX_LIKELY, MAX_CLOSELY = 500, 20
"""Names that are looked at for a near miss, and those of them that are compared letter by letter."""

MAX_SHOWN = 160
"""Characters of a name in a message."""


class EvalsvcError(Exception):
    code: ClassVar[str] = "error"
    transient: ClassVar[bool] = False
    """Whether it may pass by itself: a shard that fails by it is tried again later."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InputError(EvalsvcError):
    pass


class InvalidRequest(InputError):
    code = "invalid_request"


class InvalidSuite(InputError):
    code = "invalid_suite"


class InvalidLayout(InputError):
    code = "invalid_layout"


class InvalidModelConfig(InputError):
    code = "invalid_model_config"


class InvalidData(InputError):
    code = "invalid_data"


class UnknownName(InputError):
    code = "unknown_name"

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str], hint: str = "") -> UnknownName:
        """The message for `name`, which is not one of `known`, with its near misses.

        `hint` is a sentence that says how such a thing is made, for when nothing exists yet.
        """
        choices = sorted(known)
        near = near_misses(name, choices)
        parts = [f"no {kind} is named {_shortened(name)!r}"]
        if near:
            parts.append("did you mean " + " or ".join(map(repr, near)) + "?")
        if choices:
            parts.append(f"available: {first_few(list(map(_shortened, choices)), 20)}")
        else:
            parts.append(f"there is no {kind} yet")
        if hint:
            parts.append(hint)
        return cls("; ".join(parts))


class Conflict(InputError):
    code = "conflict"


class WrongState(InputError):
    code = "wrong_state"


class NotComparable(InputError):
    code = "not_comparable"


class Unauthorized(InputError):
    code = "unauthorized"


class Forbidden(InputError):
    code = "forbidden"


class RateLimited(InputError):
    code = "rate_limited"


class CheckpointError(EvalsvcError):
    pass


class CheckpointNotFound(CheckpointError):
    code = "checkpoint_not_found"


class CheckpointNotAllowed(CheckpointError):
    code = "checkpoint_not_allowed"


class CheckpointGone(CheckpointError):
    code = "checkpoint_gone"


class CheckpointChanged(CheckpointError):
    code = "checkpoint_changed"


class NotACheckpoint(CheckpointError):
    code = "not_a_checkpoint"


class UnsafeCheckpoint(CheckpointError):
    code = "unsafe_checkpoint"


class ShardedCheckpoint(CheckpointError):
    code = "sharded_checkpoint"


class CheckpointMismatch(CheckpointError):
    code = "checkpoint_mismatch"


class UnsupportedModel(CheckpointError):
    code = "unsupported_model"


class EvaluationError(EvalsvcError):
    pass


class NonFinite(EvaluationError):
    code = "non_finite"


class DataChanged(EvaluationError):
    code = "data_changed"

    @classmethod
    def since_planned(cls, what: object, causes: str = "") -> DataChanged:
        """Return the error to raise where `what` is not what the evaluation was planned with.

        `causes`, in brackets, follows for what has changed where `what` does not tell.
        """
        aside = f" ({causes})" if causes else ""
        return cls(f"{what} has changed since this evaluation was planned{aside}; evaluate again")


class OutOfMemory(EvaluationError):
    code = "out_of_memory"
    transient = True  # others may use the same card


class ArtifactNotWritten(EvaluationError):
    code = "artifact_not_written"
    transient = True


class WorkerDied(EvaluationError):
    code = "worker_died"


class DeadlineExceeded(EvaluationError):
    code = "deadline_exceeded"


class Cancelled(EvaluationError):
    code = "cancelled"


class InternalError(EvaluationError):
    code = "internal_error"


class ServiceError(EvalsvcError):
    pass


class PortInUse(ServiceError):
    code = "port_in_use"


class DataDirectoryUnusable(ServiceError):
    code = "data_directory_unusable"


class DatabaseUnusable(ServiceError):
    code = "database_unusable"


class DatabaseInUse(ServiceError):
    code = "database_in_use"


class ReadOnly(ServiceError):
    code = "read_only"


class SchemaVersionMismatch(ServiceError):
    code = "schema_version_mismatch"


class SourceUnreachable(ServiceError):
    code = "source_unreachable"
    transient = True


class CacheFull(ServiceError):
    code = "cache_full"


class MissingPackage(ServiceError):
    code = "missing_package"


class AssetMissing(ServiceError):
    code = "asset_missing"


class AssetCorrupt(ServiceError):
    code = "asset_corrupt"


class ArtifactPruned(ServiceError):
    code = "artifact_pruned"


class ItemsLost(ServiceError):
    code = "items_lost"


class NotReady(ServiceError):
    code = "not_ready"


class ServiceUnreachable(ServiceError):
    code = "service_unreachable"


def near_misses(name: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Up to three of `known` that `name` may be meant to be, the nearest first.

    Names come from requests, and a comparison takes longer than all else that answers one: long names are left out,
    and of many only the likeliest are compared.
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
    """The letters that follow each other, which near misses have in common."""
    return set(pairwise(name))


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}…"


def first_few(things: Sequence[object], most: int) -> str:
    """The first of some things, for a message, and how many more there are."""
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(map(str, things[:most])) + more


def is_transient(code: str) -> bool:
    """Whether the error of this code may pass by itself."""
    return any(error.code == code and error.transient for error in leaves())


def leaves(root: type[EvalsvcError] = EvalsvcError) -> list[type[EvalsvcError]]:
    """Every error class that is raised, in the order of the tree above."""
    children = root.__subclasses__()
    return [root] if not children else [leaf for child in children for leaf in leaves(child)]


def os_reason(error: Exception) -> str:
    """Return what the operating system says of a failed call, in lower case, without number and path."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def json_reason(error: ValueError | RecursionError) -> str:
    """What Python's parser found and where, without the text that it found it in."""
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def show_name(name: str) -> str:
    """A column or key as a message shows it. What looks like none is not shown: the file may be of another kind, and a
    secret of somebody else's."""
    return repr(name) if re.fullmatch(r"[\w .-]{1,40}", name) else "something that is no name"
