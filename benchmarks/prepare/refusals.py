"""What was left out of the training data, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from evalsvc.errors import EvalsvcError

PATHS = re.compile(r" \([^()]*/[^()]*\)")
"""Folders in a message, which differ between machines."""

NUMBER = re.compile(r"\d[\d,.]*(?:×\d+)?")


@dataclass(frozen=True)
class Refusal:
    """A caption or image that was left out."""

    item: str
    """Name of the image, or place of the caption in its file."""
    reason: str

    @classmethod
    def of_error(cls, item: str, error: EvalsvcError, path: str = "") -> Refusal:
        """Return a refusal for an error that names the item, or its `path`: without name, advice, and other paths."""
        reason = error.message.partition("; ")[0]
        for name in filter(None, (path, item)):
            reason = re.sub(rf"(?:the data file |the image )?'?{re.escape(name)}'?", "it", reason)
        return cls(item, PATHS.sub("", reason))

    def __str__(self) -> str:
        return f"{self.item}: {self.reason}"


def count_reasons(refused: Iterable[Refusal]) -> dict[str, int]:
    """Return the number of refusals by reason, the most frequent first. Reasons that differ in numbers are one."""
    counts = Counter(NUMBER.sub("…", refusal.reason) for refusal in refused)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
