"""Whether a file or folder is a checkpoint, whether it is complete, and which step and weights it is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evalsvc.checkpoints.reference import FOLDER_FILES
from evalsvc.checkpoints.safetensors_file import read_header
from evalsvc.checkpoints.torch_file import read_outline
from evalsvc.errors import EvalsvcError, NotACheckpoint, os_reason
from evalsvc.spec.names import NAME
from evalsvc.watch.local_folder import Candidate
from evalsvc.watch.memory import Memory
from evalsvc.watch.naming import Named, StepPattern, is_checkpoint_name, read_averaged_name, read_name

ZIP, SAFETENSORS = b"PK\x03\x04", b"{"

NO_STEP = (
    "does not say its step, by name or content; give --steps-per-epoch N where its name has the epoch, or "
    "--step-pattern 'REGEX' with a group for the step"
)


@dataclass(frozen=True)
class Rules:
    """How checkpoints are told from other files."""

    settle: float = 10.0
    """Seconds in which a file must not have changed."""
    marker: str | None = None
    """Name of a file that says that another one is complete, with `{}` for that one's name."""
    step_pattern: StepPattern | None = None
    """Where given, what it matches is a checkpoint, and nothing else."""
    steps_per_epoch: int | None = None
    averaged: bool = True
    """Post averaged weights too."""


@dataclass(frozen=True)
class Verdict:
    kind: Literal["checkpoint", "waits", "no checkpoint"]
    reason: str = ""
    """Worth saying, once; empty: not worth it."""
    step: int = 0
    variant: str = "raw"


@dataclass
class Classifier:
    rules: Rules
    memory: Memory
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By uri: how it looked, and since when by the clock."""

    def classify(self, candidate: Candidate) -> Verdict:
        """What `candidate` is now.

        Raises:
            InvalidRequest: the step pattern matches what is no number.
        """
        named = Named()
        if self.rules.step_pattern is not None:
            matched = self.rules.step_pattern.read(candidate.name)
            if matched is None:
                return Verdict("no checkpoint")
            named = matched
        elif not is_checkpoint_name(candidate.name):
            return Verdict("no checkpoint")
        if not self._is_settled(candidate):
            return Verdict("waits")
        if candidate.size == 0:
            return Verdict("waits", "is empty; it is posted once it is written")
        if candidate.problem is not None:
            return Verdict("waits", candidate.problem)
        try:
            outline = None if candidate.path is None else read_complete(candidate.path)
        except EvalsvcError as error:
            return Verdict("waits", f"is not complete: {error.message}")
        except OSError as error:
            return Verdict("waits", f"cannot be read: {os_reason(error)}")
        return self._placed(candidate, named, outline)

    def _is_settled(self, candidate: Candidate) -> bool:
        """Whether its marker is there, or it has not changed for long enough, as it was seen here or by its date."""
        mark, since = self._seen.get(candidate.uri, ("", 0.0))
        if mark != candidate.mark:
            since = self.clock()
            self._seen[candidate.uri] = (candidate.mark, since)
        if self.rules.marker is not None:
            marker = self.rules.marker.replace("{}", candidate.name)
            return candidate.path is not None and (candidate.path.parent / marker).exists()
        if self.clock() - since >= self.rules.settle:
            return True
        return candidate.modified is not None and self.wall() - candidate.modified >= self.rules.settle

    def _placed(self, candidate: Candidate, named: Named, outline: dict[str, Any] | None) -> Verdict:
        outline = outline or {}
        if "av_model_sd" in outline:
            return self._placed_average(candidate, named)
        if "epoch" in outline and "state_dict" not in outline:
            return Verdict("no checkpoint")  # optimizer_N.pt or stats_N.pt by another name
        if named == Named():
            named = read_name(candidate.name)
        step = named.step
        if step is None and named.epoch is not None:
            step = self._step_of_epoch(candidate, named.epoch, outline)
        if step is None:
            step = _step_in(outline)
        if step is None:
            return Verdict("no checkpoint", NO_STEP)
        return _checkpoint(step, named.variant or "raw")

    def _placed_average(self, candidate: Candidate, named: Named) -> Verdict:
        """Averaged weights do not say their step: the epoch's own file does."""
        if not self.rules.averaged:
            return Verdict("no checkpoint")
        said = read_averaged_name(candidate.name)
        step, variant = named.step, named.variant or said.variant
        if variant is None:
            return Verdict("no checkpoint", f"holds averaged weights, and {NO_STEP}")
        if step is None and said.epoch is not None:
            step = self._step_of_epoch(candidate, said.epoch, {})
        if step is None:
            return Verdict(
                "waits", f"waits for epoch_{said.epoch}.pt, which says its step; or give --steps-per-epoch N"
            )
        return _checkpoint(step, variant)

    def _step_of_epoch(self, candidate: Candidate, epoch: int, outline: dict[str, Any]) -> int | None:
        if self.rules.steps_per_epoch is not None:
            return epoch * self.rules.steps_per_epoch
        step = _step_in(outline)
        if step is None and candidate.path is not None:
            step = _step_beside(candidate.path.parent, epoch)
        if step is None:
            return self.memory.step(epoch)
        self.memory.keep_step(epoch, step)
        return step


def read_complete(path: Path) -> dict[str, Any] | None:
    """What the file's dictionary says of itself, where it is a file of torch.save's; None for other formats.

    Raises:
        NotACheckpoint: it, or a file of the folder, is cut off or missing.
        OSError: it cannot be read.
    """
    if path.is_dir():
        _require_whole_folder(path)
        return None
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(ZIP):
        return read_outline(path)
    if head[8:9] == SAFETENSORS:
        read_header(path)
    elif not head.strip(b"\0"):
        raise NotACheckpoint("it begins with zeros")
    return None


def _require_whole_folder(folder: Path) -> None:
    names = {entry.name for entry in folder.iterdir()}
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        raise NotACheckpoint(
            "it is a torch.distributed.checkpoint folder; make one file of it: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} {folder}.pt"
        )
    first = next((name for name in FOLDER_FILES if name in names), None)
    if first is None:
        raise NotACheckpoint(f"it has none of {', '.join(FOLDER_FILES)} yet")
    files = [first]
    if first.endswith(".index.json"):
        try:
            files = sorted({str(name) for name in json.loads((folder / first).read_bytes())["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise NotACheckpoint(f"its {first} is cut off or damaged") from None
    if missing := [name for name in files if name not in names]:
        raise NotACheckpoint(f"{', '.join(missing[:3])} is not there yet")
    for name in files:
        if (folder / name).stat().st_size == 0:
            raise NotACheckpoint(f"{name} is empty")
        read_complete(folder / name)


def _step_in(outline: dict[str, Any]) -> int | None:
    step = outline.get("step", outline.get("global_step"))
    return step if isinstance(step, int) and step >= 0 else None


def _step_beside(folder: Path, epoch: int) -> int | None:
    """What the files of an epoch, as open_lm calls them, say of its step."""
    for name in (f"epoch_{epoch}.pt", f"stats_{epoch}.pt"):
        try:
            step = _step_in(read_outline(folder / name))
        except (OSError, EvalsvcError):
            continue
        if step is not None:
            return step
    return None


def _checkpoint(step: int, variant: str) -> Verdict:
    if not NAME.fullmatch(variant):
        return Verdict(
            "no checkpoint", f"its name makes {variant!r} of the variant; use --step-pattern with (?P<variant>…)"
        )
    return Verdict("checkpoint", step=step, variant=variant)
