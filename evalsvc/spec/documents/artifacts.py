"""Documents of artifacts and of retention rules."""

from __future__ import annotations

from typing import Annotated, Literal

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import Count, NextCursor, RunName
from evalsvc.spec.documents.results import Artifact


class Artifacts(Document):
    """A page of the artifacts of an evaluation or a run."""

    artifacts: list[Artifact]
    next_cursor: NextCursor = None
    """Cursor of the next page; null on the last page."""


class Retention(Document):
    """The rule for which artifacts of a run are kept."""

    run: RunName
    keep: Annotated[dict[str, float | str] | None, Example({"last": 10, "every": 1000, "best": "coco/fid"})]
    """Retention rule. An artifact that matches any part of the rule is kept; null: every artifact is kept."""
    from_: Literal["run", "service"] | None
    """Origin of the rule: the run itself, or the service's `EVALSVC_RETENTION`; null if there is no rule."""


class Pruned(Document):
    """Counts of pruned artifacts, or with `dry_run` of artifacts that would be pruned."""

    artifacts: Annotated[Count, Example(120)]
    bytes: Annotated[Count, Example(40_213_000)]
    """Total size of the pruned artifacts."""
    freed_bytes: Annotated[Count, Example(38_000_000)]
    """Bytes freed on disk: contents that no other artifact shares."""
    runs: Annotated[dict[str, Count], Example({"t2i-1b-pretrained": 120})]
    """Number of pruned artifacts by run."""
    dry_run: bool
