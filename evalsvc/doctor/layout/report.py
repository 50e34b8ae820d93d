"""Reports of a search for a layout: tables for people, JSON, and the layout as a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import yaml

from evalsvc.doctor.layout.candidates import Candidate
from evalsvc.doctor.layout.checkup import Checkup
from evalsvc.doctor.layout.scores import Behind, Scored
from evalsvc.metrics.ratio import Ratio
from evalsvc.spec.protocol import plain_json

COLUMNS = ("layout", "template", "image", "within", "text", "special", "behind", "", "borders", "cold", "same ids")
LEGEND = (
    "losses, and the distance behind the best, in nats/token; borders: block borders that the tables show; "
    "cold: rows that are targets in the data but never were in training"
)
NEIGHBOURS = 5
"""Number of variants of the best layout that the table shows."""


def ranking_rows(checkup: Checkup) -> list[list[str]]:
    """Return rows for the best layout, the nearest template of every preset and file, and the nearest variants of the
    best."""
    verdict = checkup.verdict
    rivals = _shown(verdict.ranking)
    return [_row(checkup, verdict.best, None), *(_row(checkup, rival.scored, rival) for rival in rivals)]


def summary(checkup: Checkup) -> Iterator[str]:
    """Yield lines about the input and the statistics of the tables."""
    yield f"{checkup.checkpoint}: {checkup.rows} rows; {len(checkup.records)} pairs of {checkup.pairs}"
    yield from checkup.sizes.notes
    borders = ", ".join(str(border.row) for border in checkup.statistics.borders) or "none"
    yield f"tables: the rows' norms and directions change (strongest first) at: {borders}"
    cold = checkup.statistics.cold
    ranges = ", ".join(_ranges(cold)) or "none"
    yield f"tables: rows that lie in one direction, as those do that were never a target: {len(cold)} ({ranges})"


def condition_rows(checkup: Checkup) -> list[list[str]]:
    """Return a row for each condition of the rule."""
    return [
        [condition.name, "ok" if condition.ok else "NO", condition.found, "" if condition.ok else condition.do]
        for condition in checkup.verdict.conditions
    ]


def conclusion(checkup: Checkup) -> str:
    """Return the verdict as a sentence."""
    verdict = checkup.verdict
    rule = f"{verdict.needed:.1f} standard errors needed, {verdict.comparisons} comparisons"
    label = verdict.best.candidate.label
    special = ", ".join(f"{name} {row}" for name, row in verdict.best.candidate.layout.special.items())
    if not verdict.decided:
        return f"not decided ({rule}); the best is {label}, which would be a guess"
    return f"the layout is {label} ({rule})" + (f"; special tokens: {special}" if special else "")


def layout_yaml(checkup: Checkup) -> str:
    """Return the best layout as a file for `--layout`. Fields that the data do not determine are left to the author."""
    content = checkup.verdict.best.candidate.layout.to_json()
    content = {key: value for key, value in content.items() if value is not None}
    content["text"] = {key: value for key, value in content["text"].items() if value is not None}
    content["image"] = {key: value for key, value in content["image"].items() if value is not None}
    best, n = checkup.verdict.best.candidate, len(checkup.records)
    head = (
        f"# {best.label}, found by `evalsvc doctor layout` in {n} pairs.\n"
        "# Pairs do not determine length, unconditional_template, tokenizer, and special tokens that are not in the "
        "template.\n"
    )
    return head + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)


def to_json(checkup: Checkup) -> dict[str, object]:
    """Return the result as JSON."""
    verdict = checkup.verdict
    document = {
        "checkpoint": checkup.checkpoint,
        "pairs": checkup.pairs,
        "n": len(checkup.records),
        "rows": checkup.rows,
        "decided": verdict.decided,
        "layout": verdict.best.candidate.layout.to_json(),
        "conditions": [vars(condition) for condition in verdict.conditions],
        "needed": verdict.needed,
        "comparisons": verdict.comparisons,
        "best": _scored_json(checkup, verdict.best),
        "ranking": [_scored_json(checkup, rival.scored) | _behind_json(rival) for rival in verdict.ranking],
        "reordered": [_behind_json(rival) for rival in verdict.reordered],
        "expectations": [vars(expectation) for expectation in verdict.expectations],
        "dropped": [vars(dropped) for dropped in checkup.dropped],
        "sizes": {"text": checkup.sizes.text, "codebook": checkup.sizes.codebook, "notes": checkup.sizes.notes},
        "borders": [vars(border) for border in checkup.statistics.borders],
        "cold": checkup.statistics.cold,
    }
    plain: dict[str, object] = plain_json(document)
    return plain


def _shown(ranking: Sequence[Behind]) -> list[Behind]:
    names: set[str] = set()
    variants, shown = 0, []
    for rival in ranking:
        candidate = rival.scored.candidate
        if candidate.variant:
            variants += 1
            new = variants <= NEIGHBOURS
        else:
            tried = {candidate.name, *_names_of_same(candidate)}
            new = not tried <= names
            names |= tried
        if new:
            shown.append(rival)
    return shown


def _row(checkup: Checkup, scored: Scored, rival: Behind | None) -> list[str]:
    candidate, tables = scored.candidate, checkup.tables_of(scored.candidate)
    return [
        candidate.name,
        "; ".join(filter(None, [candidate.template, candidate.variant])),
        _loss(scored.loss("image")),
        _loss(scored.image_within),
        _loss(scored.loss("text")),
        _loss(scored.loss("special")),
        "" if rival is None else f"{rival.nats_per_token:.3f}",
        "" if rival is None else f"{rival.standard_errors:.1f} s.e.",
        f"{len(tables.seen)}/{len(tables.borders)}",
        f"{tables.cold}/{tables.targets}",
        ", ".join(_names_of_same(candidate)),
    ]


def _names_of_same(candidate: Candidate) -> list[str]:
    """Return the names of the layouts that give the data the same ids, without their templates."""
    return list(dict.fromkeys(label.partition(" (")[0] for label in candidate.same))


def _loss(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.value:.3f}"


def _ranges(rows: Sequence[int], most: int = 8) -> Iterator[str]:
    """Yield ranges of rows: `0…9, 12`; the first few, and the number of omitted ones."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and runs[-1][1] == row - 1:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    for start, stop in runs[:most]:
        yield str(start) if start == stop else f"{start}…{stop}"
    if len(runs) > most:
        yield f"and {len(runs) - most} more ranges"


def _scored_json(checkup: Checkup, scored: Scored) -> dict[str, object]:
    candidate, tables = scored.candidate, checkup.tables_of(scored.candidate)
    losses = {kind: scored.loss(kind) for kind in ("text", "image", "special")} | {"image_within": scored.image_within}
    return {
        "name": candidate.name,
        "template": candidate.template,
        "variant": candidate.variant,
        "same": candidate.same,
        "special": dict(candidate.layout.special),
        "losses": {name: None if ratio is None else vars(ratio) for name, ratio in losses.items()},
        "nats_per_sequence": scored.total / len(scored.ends),
        "borders": tables.borders,
        "borders_seen": tables.seen,
        "targets": tables.targets,
        "cold_targets": tables.cold,
    }


def _behind_json(rival: Behind) -> dict[str, object]:
    return {
        "behind": rival.nats,
        "behind_stderr": rival.stderr,
        "behind_nats_per_token": rival.nats_per_token,
        "behind_standard_errors": rival.standard_errors,
    }
