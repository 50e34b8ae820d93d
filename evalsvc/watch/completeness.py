"""Decide whether a file or folder is a complete checkpoint, and read its step and variant from name or content."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from evalsvc.checkpoints.distributed import read_models
from evalsvc.checkpoints.formats import format_of, known_weights, legible, names_in, read_header, weights_at
from evalsvc.checkpoints.torch_file import OTHER, read_outline
from evalsvc.errors import EvalsvcError, InvalidRequest, UnsafeCheckpoint, first_few, os_reason
from evalsvc.families.family import LISTS
from evalsvc.files.atomic import write_whole
from evalsvc.files.manifest import STATES
from evalsvc.spec.names import NAME
from evalsvc.watch.folders import INSIDE, Candidate, whole_folder

NO_STEP = (
    "has no step in its name or content; give --steps-per-epoch N if its name has the epoch, or --step-pattern 'REGEX' "
    "with a group for the step"
)

WEIGHT_KEYS = frozenset(("state_dict", "av_model_sd", "model", "module", "ema"))
"""Keys under which training loops save weights. Without any of them, a file is a state dict of tensors alone."""

Outline = Mapping[str, object]
"""Top-level entries of a file of torch.save; empty for other formats."""


@dataclass(frozen=True)
class Verdict:
    kind: Literal["checkpoint", "waits", "no checkpoint"]
    reason: str = ""
    """Reason to print once; empty if the user need not know."""
    step: int = 0
    variant: str = "raw"


@dataclass
class Classifier:
    """Classifier of files and folders: complete checkpoints, incomplete checkpoints, and other files."""

    memory: Memory
    settle: float = 10.0
    """Seconds without a change after which a file counts as complete."""
    marker: str | None = None
    """Name of a file that marks a checkpoint as complete, with `{}` for the name of the checkpoint."""
    step_pattern: StepPattern | None = None
    """Pattern for names of checkpoints; if given, other names are no checkpoints."""
    steps_per_epoch: int | None = None
    averaged: bool = True
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Last mark of a candidate, and the time of the clock since which the mark is unchanged, by URI."""

    def classify(self, candidate: Candidate) -> Verdict:
        named = None if self.step_pattern is None else self.step_pattern.read(candidate.name)
        skipped = None if named is not None else skip_reason(candidate.name) or folder_reason(candidate.path)
        if named is None and self.step_pattern is not None:
            return Verdict("no checkpoint", skipped or OTHER_NAME)
        if skipped is not None and (skipped != UNFINISHED_NAME or self._is_settled(candidate)):
            is_link = candidate.path is not None and candidate.path.is_symlink()  # to what is posted by its own name
            return Verdict("no checkpoint", "" if is_link else skipped)
        if not self._is_settled(candidate):
            return Verdict("waits")
        if candidate.size == 0:
            return Verdict("waits", "is empty; evalsvc posts the file when it is written")
        if candidate.problem is not None:
            state = "is not complete" if candidate.path is None else "cannot be read"
            return Verdict("waits", f"{state}: {candidate.problem}")
        try:
            outline: Outline = {} if candidate.path is None else read_complete(candidate.path)
        except UnsafeCheckpoint as error:
            return Verdict("no checkpoint", f"cannot be opened: {_about(candidate, error.told)}")
        except EvalsvcError as error:
            return Verdict("waits", f"is not complete: {_about(candidate, error.message)}")
        except OSError as error:
            return Verdict("waits", f"cannot be read: {os_reason(error)}")
        if "av_model_sd" in outline:
            return self._placed_average(candidate, named or Named())
        if not WEIGHT_KEYS & outline.keys() and any(value is not OTHER for value in outline.values()):
            held = first_few([legible(key) for key in outline], 5)
            return Verdict(
                "no checkpoint", f"holds no weights, but {held}; save the weights as `state_dict` or `model`"
            )
        named = named or read_name(candidate.name)
        step = named.step
        if step is None and named.epoch is not None:
            step = self._step_of_epoch(candidate, named.epoch, outline)
        if step is None:
            step = _step_in(outline)
        if step is None:
            step = read_bare_number(candidate.name)
        return Verdict("no checkpoint", NO_STEP) if step is None else _checkpoint(step, named.variant or "raw")

    def _is_settled(self, candidate: Candidate) -> bool:
        """Return whether the marker exists, or the candidate is unchanged for `settle` seconds. The time without a
        change is measured by this process, or by the modification time of the file."""
        mark, since = self._seen.get(candidate.uri, ("", 0.0))
        if mark != candidate.mark:
            since = self.clock()
            self._seen[candidate.uri] = (candidate.mark, since)
        if self.marker is not None:
            marker = self.marker.replace("{}", candidate.name)
            return candidate.path is not None and (candidate.path.parent / marker).exists()
        if self.clock() - since >= self.settle:
            return True
        return candidate.modified is not None and self.wall() - candidate.modified >= self.settle

    def _placed_average(self, candidate: Candidate, named: Named) -> Verdict:
        if not self.averaged:
            return Verdict("no checkpoint")
        averaged = read_averaged_name(candidate.name)
        step, variant = named.step, named.variant or averaged.variant
        if variant is None:
            return Verdict("no checkpoint", f"holds averaged weights, and {NO_STEP}")
        if step is None and averaged.epoch is not None:
            step = self._step_of_epoch(candidate, averaged.epoch, {})
        if step is None:
            reason = f"waits for epoch_{averaged.epoch}.pt, which has its step; or give --steps-per-epoch N"
            return Verdict("waits", reason)
        return _checkpoint(step, variant)

    def _step_of_epoch(self, candidate: Candidate, epoch: int, outline: Outline) -> int | None:
        if self.steps_per_epoch is not None:
            return epoch * self.steps_per_epoch
        step = _step_in(outline)
        if candidate.path is not None:
            for name in (f"epoch_{epoch}.pt", f"stats_{epoch}.pt"):
                with suppress(OSError, EvalsvcError):
                    step = _step_in(read_outline(candidate.path.parent / name)) if step is None else step
        if step is None:
            return self.memory.step(epoch)
        self.memory.keep_step(epoch, step)
        return step


def read_complete(path: Path) -> Outline:
    """Return the top-level entries of a complete file of torch.save, or nothing for other formats."""
    if path.is_dir():
        if any((path / name).is_file() for name in LISTS):
            read_models(weights_at(path, str(path)).parent)
            return {}
        for name in whole_folder(names_in(path), lambda name: (path / name).read_bytes(), str(path)):
            read_complete(path / name)
        return {}
    match format_of(path):
        case "safetensors":
            read_header(path)
        case "torch":
            return read_outline(path)
    return {}


def _about(candidate: Candidate, message: str) -> str:
    start = f"{candidate.path} "
    return f"it {message.removeprefix(start)}" if message.startswith(start) else message


def _step_in(outline: Outline) -> int | None:
    step = next((outline[key] for key in ("step", "global_step", "steps") if key in outline), None)
    return step if isinstance(step, int) and step >= 0 else None


def _checkpoint(step: int, variant: str) -> Verdict:
    if NAME.fullmatch(variant):
        return Verdict("checkpoint", step=step, variant=variant)
    reason = f"its name gives the variant {variant!r}, which is no valid name; give --step-pattern with (?P<variant>…)"
    return Verdict("no checkpoint", reason)


MOVING = frozenset(("latest", "last", "best", "newest", "recent"))
"""Words in names of copies and links whose content changes to another checkpoint."""

UNFINISHED = frozenset(("tmp", "temp", "partial", "part", "incomplete"))

STATE = "not posted, since a training job keeps its own state in such files, and no weights"
UNFINISHED_NAME = "not posted, since the name says that it is unfinished"
OTHER_NAME = "not posted, since the name does not match --step-pattern"
NO_WEIGHTS = "not posted, since such folders hold no weights"
OVERWRITTEN = (
    "not posted, since a training replaces such files; save each checkpoint under a name with its step, or give "
    "--step-pattern"
)
PARTS = "not posted, since each is a part of a model; watch the folder above the folder of all parts"
BY_NAME = (STATE, UNFINISHED_NAME, OTHER_NAME, NO_WEIGHTS, OVERWRITTEN, PARTS)
"""Reasons that hold for all files with such names, and are said once for all of them."""

_EPOCH = re.compile(r"(?:^|[^a-z])epoch[_=-]?(\d+)(?!\d)", re.IGNORECASE)
_STEPS = (
    re.compile(r"(?:^|[^a-z])(?:global[_-]?step|step|iteration|iter)s?[_=-]?(\d+)(?![\da-z])", re.I),
    re.compile(r"(?:^|[^a-z])(?:checkpoint|ckpt|model)s?[_=-]?(\d+)(?![\da-z])", re.I),
)
"""Patterns of steps; the first that matches counts: `model_2_step_500` is step 500, and `model-7b` has no step."""
_NUMBERED = re.compile(r"(?P<stem>.+)_(?P<number>\d+)\.[a-z]+")
_PART = re.compile(
    r".*-\d+-of-\d+\..*|consolidated\.\d\d\.pth|.*(model|optim)_states\.pt|adapter_model\..*|.*\.distcp|"
    r"(pytorch_)?model\.(safetensors|bin)"
)
_BARE = re.compile(r"(\d{5,7})(?:\.[a-z]+)?", re.ASCII)


@dataclass(frozen=True)
class Named:
    step: int | None = None
    epoch: int | None = None
    variant: str | None = None


class StepPattern:
    """Regular expression of the user. The group `step` or `epoch`, or else the first group as a step, is a number."""

    def __init__(self, pattern: str) -> None:
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise InvalidRequest(
                f"--step-pattern {pattern} is no regular expression: {error}; correct the pattern"
            ) from None
        if not self._pattern.groups:
            raise InvalidRequest(
                f"--step-pattern {pattern} has no group for the step; write, for example, 'iter(\\d+)\\.pt'"
            )

    def read(self, name: str) -> Named | None:
        if (match := self._pattern.search(name)) is None:
            return None
        groups = match.groupdict()
        kind = next((kind for kind in ("step", "epoch") if kind in groups), None)
        number = groups[kind] if kind else match[1]
        if not re.fullmatch(r"\d+", number or "", re.ASCII):
            raise InvalidRequest(
                f"the group of --step-pattern {self._pattern.pattern} matches {number!r} in {name}, which is no step; "
                "put only the digits into the group"
            )
        return Named(**{kind or "step": int(number)}, variant=groups.get("variant"))


def skip_reason(name: str) -> str | None:
    """Return why a name is no checkpoint's; None if it may be a checkpoint's."""
    words = re.split(r"[._=-]+", name.lower())
    if {*words} & UNFINISHED:
        return UNFINISHED_NAME
    if STATES.match(name):
        return STATE
    if {*words} & MOVING:
        return OVERWRITTEN
    return PARTS if _PART.fullmatch(name) else None


def folder_reason(folder: Path | None) -> str | None:
    """Return why a folder without a step in its name, such as that of logs or of a run, is no checkpoint; None if it
    may be one."""
    if folder is None or not folder.is_dir() or _has_step(folder.name):
        return None
    try:
        if known_weights(names := names_in(folder), str(folder)) is not None:
            return None
    except (OSError, EvalsvcError):  # the reader of the folder says what is wrong
        return None
    if any(name == INSIDE or (_has_step(name) and skip_reason(name) is None) for name in names):
        return f"is a folder of checkpoints, and is not looked into; watch that folder: {folder}"
    return NO_WEIGHTS


def _has_step(name: str) -> bool:
    return read_name(name) != Named() or read_bare_number(name) is not None


def read_name(name: str) -> Named:
    """Return the step in a name such as `checkpoint-500` or `step=500.ckpt`, or the epoch in `epoch_3.pt`."""
    step = next(filter(None, (pattern.search(name) for pattern in _STEPS)), None)
    epoch = _EPOCH.search(name)
    return Named(step=int(step[1]) if step else None, epoch=int(epoch[1]) if epoch and not step else None)


def read_bare_number(name: str) -> int | None:
    """Return the step in a name such as `0050000.pt`; None if a number alone may be an epoch or a date."""
    match = _BARE.fullmatch(name)
    return int(match[1]) if match else None


def read_averaged_name(name: str) -> Named:
    """Return the variant `ema_0.9999_1` and the epoch 3 in `ema_0.9999_1_3.pt`, a name of open_lm's averagers."""
    match = _NUMBERED.fullmatch(name)
    return Named() if match is None else Named(epoch=int(match["number"]), variant=match["stem"])


class _Content(BaseModel):
    format: Literal[1] = 1
    digests: dict[str, tuple[str, str]] = {}
    """Mark and SHA-256 by URI."""
    steps: dict[int, int] = {}


class Memory:
    """Digests of files, and steps of epochs whose files were removed, in a file that outlives the watcher. A missing,
    damaged or incompatible file counts as empty: the service knows the posted checkpoints."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._content = _Content.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            self._content = _Content()

    @classmethod
    def of(cls, data_home: Path, place: str, run: str) -> Memory:
        name = hashlib.sha256(f"{place}\n{run}".encode()).hexdigest()[:16]
        return cls(data_home / "watch" / f"{name}.json")

    def digest(self, candidate: Candidate) -> str | None:
        """Return the known SHA-256 of a candidate; None if the content was never digested or has changed."""
        mark, sha256 = self._content.digests.get(candidate.uri, ("", ""))
        return sha256 if mark == candidate.mark else None

    def keep_digest(self, candidate: Candidate, sha256: str) -> None:
        self._content.digests[candidate.uri] = (candidate.mark, sha256)
        self._write()

    def step(self, epoch: int) -> int | None:
        return self._content.steps.get(epoch)

    def keep_step(self, epoch: int, step: int) -> None:
        if self.step(epoch) != step:
            self._content.steps[epoch] = step
            self._write()

    def forget_others(self, uris: Collection[str]) -> None:
        digests = self._content.digests
        self._content.digests = {uri: kept for uri, kept in digests.items() if uri in uris}

    def _write(self) -> None:
        write_whole(self._path, self._content.model_dump_json().encode())
