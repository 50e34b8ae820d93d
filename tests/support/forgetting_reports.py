"""Parts of a report of forgetting as JSON, with fields that a test changes."""

from typing import Any

from evalsvc.spec.documents.text_reports import ForgettingReport

ROW: dict[str, Any] = {"what": "arc", "metric": "acc", "scope": "all", "unit": "fraction", "n": 300, "verdict": "lost"}
ROW |= {"base": 0.5, "base_stderr": 0.02}
ROW |= {"checkpoint": 0.4, "checkpoint_stderr": None, "lost": 40, "gained": 10, "p": 1e-4, "p_corrected": 1e-4}
ROW |= {"change": -0.1, "change_stderr": 0.02, "change_basis": "paired", "change_low": -0.15, "change_high": -0.05}

FLIP: dict[str, Any] = {"index": 3, "flip": "lost", "flip_within": None, "question": "is it so?", "options": None}
FLIP |= {"right": ["yes", "aye"], "base": "yes", "checkpoint": "no", "base_within": "yes", "checkpoint_within": "aye"}


def flipped(*flips: dict[str, Any], **counts: int) -> dict[str, Any]:
    """The flipped questions of a benchmark; all of them are lost unless `counts` say otherwise."""
    every = {"lost": len(flips), "lost_within": 0, "gained": 0, "gained_within": 0, **counts}
    return {"benchmark": "a", "questions": flips, **every}


def report(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    named = {"base": "text-1b@0", "checkpoint": "text-1b@9", "rows": rows or [ROW]}
    empty = {"parts": [], "recovered": {}, "over_benchmarks": [], "of_text": [], "flipped": []}
    return {**named, **empty, **changes}


def content(*rows: dict[str, Any], **changes: Any) -> bytes:
    return ForgettingReport.model_validate(report(*rows, **changes)).model_dump_json().encode()
