"""Documents of artifacts, and of which are kept."""

from __future__ import annotations

from typing import Annotated, Literal

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import Count, NextCursor, RunName
from evalsvc.spec.documents.results import Artifact


class Artifacts(Document):
    """A page of the artifacts of an evaluation or a run."""

    artifacts: list[Artifact]
    next_cursor: NextCursor = None
    """The cursor of the next page; null on the last page."""


class Retention(Document):
    """Which artifacts of a run are kept."""

    run: RunName
    keep: Annotated[dict[str, float | str] | None, Example({"last": 10, "every": 1000, "best": "coco/fid"})]
    """The rule: what any part of it keeps is kept; null: everything is kept."""
    from_: Literal["run", "service"] | None
    """Whose the rule is."""


class Pruned(Document):
    """How much was pruned, or would be."""

    artifacts: Annotated[Count, Example(120)]
    bytes: Annotated[Count, Example(40_213_000)]
    """Bytes of their contents."""
    freed_bytes: Annotated[Count, Example(38_000_000)]
    """Bytes of the contents that no other artifact has."""
    runs: Annotated[dict[str, Count], Example({"t2i-1b-pretrained": 120})]
    """How many of each run that loses any."""
    dry_run: bool
