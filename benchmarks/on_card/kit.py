"""What a section of the kit is, what it is given, and the rows that it yields.

A section answers one question. It is a generator: rows are printed as they come, and what was yielded before the time
limit or a crash is kept. Each section compares what is computed on the device with something else, and passes one side
of that through `Kit.touched`; a test disturbs one number there and requires that a check of the section fails.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

GIB = 1 << 30
MOST_GIB = 60.0
"""GPU memory that the kit may take: a card of 80 GB has that left beside another process's context."""

Subject = TypeVar("Subject", Tensor, nn.Module)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    value: float | str
    unit: str = ""
    kind: Literal["check", "goal", "figure", "left out"] = "figure"
    """A check must hold, on any device. A goal is what the hardware should allow; its distance is printed."""
    bound: str = ""
    """What a check or a goal asks for, for people."""
    met: bool | None = None
    """None where nothing is asked for."""
    details: dict[str, object] = field(default_factory=dict)
    """More figures, for the JSON document alone."""


def figure(what: str, value: float | str, unit: str = "", **details: object) -> Row:
    """Return a row that asks for nothing."""
    return Row(what, value, unit, details=details)


def at_most(what: str, value: float, bound: float, unit: str = "", **details: object) -> Row:
    """Return a check that `value` is `bound` at most; NaN is not."""
    return Row(what, value, unit, "check", f"≤ {bound:g}", bool(value <= bound), details)


def holds(what: str, met: bool, found: str = "", **details: object) -> Row:
    """Return a check that something is so; `found` says what was found instead, or by how much it holds."""
    return Row(what, found or ("yes" if met else "no"), "", "check", "yes", bool(met), details)


def goal(what: str, value: float, bound: float, unit: str = "", *, below: bool = False, **details: object) -> Row:
    """Return a goal: `value` should be `bound` at least, with `below` at most."""
    met = value <= bound if below else value >= bound
    return Row(what, value, unit, "goal", f"{'≤' if below else '≥'} {bound:g}", bool(met), details)


def left_out(what: str, reason: str) -> Row:
    """Return a row for what could not be measured here."""
    return Row(what, reason, kind="left out")


@dataclass
class Kit:
    """What every section is given."""

    device: torch.device
    small: bool = False
    """Shapes so small that a CPU runs all sections within a minute."""
    disturb: bool = False
    """Whether `touched` changes a number: the section's check must then fail."""
    touches: int = 0
    """How often `touched` was called."""

    @property
    def on_card(self) -> bool:
        return self.device.type == "cuda"

    def touched(self, subject: Subject) -> Subject:
        """Return `subject`, the weights or codes of one side of a comparison, as it is.

        Under `disturb`, one number of it is another: a code the next one, a weight larger by 16 times the largest.
        A module is changed in place, in the middle of its largest matrix.
        """
        self.touches += 1
        if not self.disturb:
            return subject
        if isinstance(subject, nn.Module):
            with torch.no_grad():
                _disturb(max(subject.parameters(), key=Tensor.numel))
            return subject
        changed = subject.clone()
        _disturb(changed)
        return changed

    def free_bytes(self) -> int:
        """Bytes that may still be taken on the card, within MOST_GIB; a terabyte on a CPU, where nothing is asked."""
        if not self.on_card:
            return 1 << 40
        free, total = torch.cuda.mem_get_info(self.device)
        held = torch.cuda.memory_allocated(self.device)
        unused = torch.cuda.memory_reserved(self.device) - held
        return min(int(free) + unused, int(min(MOST_GIB * GIB, total)) - held)

    def release(self) -> None:
        """Give back what nobody holds any more, and forget the peak."""
        gc.collect()
        if self.on_card:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        """Bytes that were allocated on the card at once since the last `release`; 0 on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.on_card else 0


def _disturb(numbers: Tensor) -> None:
    """Change the number in the middle, in place."""
    flat = numbers.view(-1)
    middle = len(flat) // 2
    if numbers.is_floating_point():
        flat[middle] += 16 * flat.abs().max() + 1
    else:
        flat[middle] += 1


@dataclass(frozen=True)
class Section:
    """One question to the card."""

    name: str
    kind: Literal["right", "memory", "fast"]
    question: str
    """In one line, for the table."""
    run: Callable[[Kit], Iterator[Row]]
    needs: tuple[str, ...] = ()
    """Packages beside those that evalsvc itself needs to sample; where one is missing the section is left out."""
