"""Step, epoch and variant in the name of a file, and names that are no checkpoints."""

from __future__ import annotations

import re
from dataclasses import dataclass

from evalsvc.errors import InvalidRequest

COMPANIONS = frozenset(("optimizer", "optim", "stats", "scheduler", "scaler", "rng", "random", "training"))
"""First words in names of files that a training job writes next to its checkpoints."""

MOVING = frozenset(("latest", "last", "best", "newest", "recent"))
"""Words in names of copies and links whose content changes to another checkpoint."""

UNFINISHED = frozenset(("tmp", "temp", "partial", "part", "incomplete"))

OVERWRITTEN = (
    "not posted, since a training replaces such files; save each checkpoint under a name with its step, or give "
    "--step-pattern"
)
PARTS = "not posted, since each is a part of a model; watch the folder above the folder of all parts and their index"

_EPOCH = re.compile(r"(?:^|[^a-z])epoch[_=-]?(\d+)(?!\d)", re.IGNORECASE)
_STEP = re.compile(
    r"(?:^|[^a-z])(?:global[_-]?step|step|iteration|iter|checkpoint|ckpt|model)s?[_=-]?(\d+)(?!\d)", re.I
)
_NUMBERED = re.compile(r"(?P<stem>.+)_(?P<number>\d+)\.[a-z]+")
_SHARD = re.compile(r"-\d+-of-\d+\.")
_BARE = re.compile(r"(\d{5,7})(?:\.[a-z]+)?", re.ASCII)


@dataclass(frozen=True)
class Named:
    """Parts of a name; None for parts that the name does not have."""

    step: int | None = None
    epoch: int | None = None
    variant: str | None = None


class StepPattern:
    """Regular expression of the user. The group `step` or `epoch`, or else the first group as a step, is a number."""

    def __init__(self, pattern: str) -> None:
        """Raise InvalidRequest if `pattern` is no regular expression or has no group."""
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
        """Return the parts of a name; None if the pattern does not match the name."""
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
    """Return why a name is not that of a checkpoint: OVERWRITTEN, PARTS, or empty where the user need not know.

    None: the name can be that of a checkpoint.
    """
    words = re.split(r"[._=-]+", name.lower())
    if words[0] in COMPANIONS or {*words} & UNFINISHED:
        return ""
    if {*words} & MOVING:
        return OVERWRITTEN
    return PARTS if _SHARD.search(name) else None


def read_name(name: str) -> Named:
    """Return the step in a name such as `checkpoint-500` or `step=500.ckpt`, or the epoch in `epoch_3.pt`."""
    step, epoch = _STEP.search(name), _EPOCH.search(name)
    return Named(step=int(step[1]) if step else None, epoch=int(epoch[1]) if epoch and not step else None)


def read_bare_number(name: str) -> int | None:
    """Return the step in a name such as `0050000.pt`; None if a number alone may be an epoch or a date."""
    match = _BARE.fullmatch(name)
    return int(match[1]) if match else None


def read_averaged_name(name: str) -> Named:
    """Return the variant `ema_0.9999_1` and the epoch 3 in `ema_0.9999_1_3.pt`, a name of open_lm's averagers."""
    match = _NUMBERED.fullmatch(name)
    return Named() if match is None else Named(epoch=int(match["number"]), variant=match["stem"])
