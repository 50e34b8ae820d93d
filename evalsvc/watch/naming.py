"""What a checkpoint's name says: its step or its epoch, and whether it is one at all."""

from __future__ import annotations

import re
from dataclasses import dataclass

from evalsvc.errors import InvalidRequest

COMPANIONS = frozenset(("optimizer", "optim", "stats", "scheduler", "scaler", "rng", "random", "training"))
"""First words of the names of files next to checkpoints that are none."""

MOVING = frozenset(("latest", "last", "best", "newest", "recent"))
"""Words in the names of copies and links that lead to another checkpoint from time to time."""

UNFINISHED = frozenset(("tmp", "temp", "partial", "part", "incomplete"))

_EPOCH = re.compile(r"(?:^|[^a-z])epoch[_=-]?(\d+)(?!\d)", re.IGNORECASE)
_STEP = re.compile(
    r"(?:^|[^a-z])(?:global[_-]?step|step|iteration|iter|checkpoint|ckpt|model)s?[_=-]?(\d+)(?!\d)", re.I
)
_NUMBERED = re.compile(r"(?P<stem>.+)_(?P<number>\d+)\.[a-z]+")
_SHARD = re.compile(r"-\d+-of-\d+\.")


@dataclass(frozen=True)
class Named:
    """What is in a name; None: nothing of it."""

    step: int | None = None
    epoch: int | None = None
    variant: str | None = None


class StepPattern:
    """A regular expression of the user's: its group `step` or `epoch`, or its first one as a step, is a number."""

    def __init__(self, pattern: str) -> None:
        """Raises InvalidRequest: it is no regular expression, or has no group."""
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise InvalidRequest(f"--step-pattern {pattern}: is no regular expression ({error})") from None
        if not self._pattern.groups:
            raise InvalidRequest(f"--step-pattern {pattern}: has no group for the step; write e.g. 'iter(\\d+)\\.pt'")

    def read(self, name: str) -> Named | None:
        """Return what is in a name that matches; None if it does not.

        Raises:
            InvalidRequest: what the group matches is no number.
        """
        if (match := self._pattern.search(name)) is None:
            return None
        groups = match.groupdict()
        kind = next((kind for kind in ("step", "epoch") if kind in groups), None)
        number = groups[kind] if kind else match[1]
        if not re.fullmatch(r"\d+", number or "", re.ASCII):
            raise InvalidRequest(
                f"--step-pattern {self._pattern.pattern}: matches {number!r} in {name}, which is no step; "
                "put the digits alone into the group"
            )
        return Named(**{kind or "step": int(number)}, variant=groups.get("variant"))


def is_checkpoint_name(name: str) -> bool:
    """Whether it can be one; what is unfinished, moving or a companion is not."""
    words = re.split(r"[._=-]+", name.lower())
    return not (words[0] in COMPANIONS or {*words} & (MOVING | UNFINISHED) or _SHARD.search(name))


def read_name(name: str) -> Named:
    """`epoch_3.pt` has an epoch, `checkpoint-500` and `step=500.ckpt` a step."""
    step, epoch = _STEP.search(name), _EPOCH.search(name)
    return Named(step=int(step[1]) if step else None, epoch=int(epoch[1]) if epoch and not step else None)


def read_averaged_name(name: str) -> Named:
    """`ema_0.9999_1_3.pt`, of an open_lm averager: which one, and the epoch."""
    match = _NUMBERED.fullmatch(name)
    return Named() if match is None else Named(epoch=int(match["number"]), variant=match["stem"])
