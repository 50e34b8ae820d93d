"""Finding the layout of one checkpoint: read its table and the pairs, try every layout, judge the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.checkpoints.remote.fetch import fetched
from evalsvc.config import Settings
from evalsvc.data.tokens import Record, read_tokens
from evalsvc.doctor.layout.candidates import Behind, Scored, find_sizes, propose
from evalsvc.doctor.layout.search import Search, Verdict, judge
from evalsvc.errors import InvalidData
from evalsvc.spec.layout import VocabularyLayout

if TYPE_CHECKING:
    from evalsvc.metrics.table_rows import RowStatistics

NEAR = 1
"""Number of rows by which a change of the tables may miss a border of the layout."""

LEGEND = (
    "losses, and the distance behind the best, in nats/token; borders: block borders that the tables show; "
    "cold: rows that are targets in the data but never were in training"
)


@dataclass(frozen=True)
class Checkup:
    """The result of a search for a layout."""

    verdict: Verdict
    findings: Mapping[str, Any]
    """Everything that is known about every candidate, as JSON but for infinite numbers."""


def examine(
    checkpoint: CheckpointRef,
    pairs: str,
    settings: Settings,
    report: Callable[[int], None],
    *,
    text_sizes: Sequence[int] = (),
    codebook_size: int | None = None,
    limit: int = 16,
    layouts: Mapping[str, VocabularyLayout] | None = None,
    tokenizer: str | None = None,
) -> Checkup:
    """Find the layout of a checkpoint.

    Args:
        pairs: path of token data with text and image codes in every record.
        report: callback with the number of layouts scored so far.
        text_sizes: numbers of text rows to try; inferred if empty.
        codebook_size: number of codes; inferred if None.
        limit: number of pairs to use, from the beginning.
        layouts: layouts to try in addition to the presets, by name.
        tokenizer: path of the `tokenizer.json`, for pairs that hold `text`.

    Raises:
        InvalidData: a record is not a pair, a file is broken, or no candidate fits table and data.
        EvalsvcError: as evaluating the checkpoint.
    """
    # Imported here because both need torch, and the rest of this module does not.
    from evalsvc.tasks.loss.layout_evidence import ModelEvidence
    from evalsvc.worker.context import ShardContext

    records = read_tokens(pairs, tokenizer, "none").records[:limit]
    for record in records:
        if not record.text_ids or not record.image_codes:
            missing = "`image_codes`" if record.text_ids else "`text_ids` or `text`"
            raise InvalidData(f"{pairs}, {record.where} has no {missing}; the layout doctor needs both in every record")
    with fetched([checkpoint], settings, lambda _: None) as (local,):
        context = ShardContext(local, settings, lambda _: None)
        model = context.model(dtype="float32", rotary_inv_freq_dtype="auto")
    rows = model.config.vocab_size
    sizes = find_sizes(rows, records, text_sizes, codebook_size)
    candidates, dropped = propose(rows, records, sizes, layouts or {})
    if not candidates:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in dropped.items())
        raise InvalidData(f"{pairs}: no layout fits the model's {rows} rows and these pairs; {reasons}")
    witness = ModelEvidence(context, model)
    search = Search(witness, records, report)
    search.run(candidates)
    verdict, tables = judge(search), witness.rows()
    findings = {
        "checkpoint": checkpoint.label,
        "pairs": pairs,
        "n": len(records),
        "rows": rows,
        "decided": verdict.decided,
        "layout": verdict.best.candidate.layout.to_json(),
        "conditions": [vars(condition) for condition in verdict.conditions],
        "needed": verdict.needed,
        "comparisons": verdict.comparisons,
        "best": _scored(verdict.best, records, tables),
        "ranking": [_scored(rival.scored, records, tables) | _behind(rival) for rival in verdict.ranking],
        "reordered": [_behind(rival) for rival in verdict.reordered],
        "expectations": [vars(expectation) for expectation in verdict.expectations],
        "dropped": [{"name": name, "reason": reason} for name, reason in dropped.items()],
        "sizes": vars(sizes),
        "borders": [vars(border) for border in tables.borders],
        "cold": tables.cold,
    }
    return Checkup(verdict, findings)


def _scored(scored: Scored, records: Sequence[Record], tables: RowStatistics) -> dict[str, Any]:
    """Return what is known about a candidate: losses, and evidence of the model's tables, which the verdict ignores."""
    candidate, layout = scored.candidate, scored.candidate.layout
    losses = {kind: scored.loss(kind) for kind in ("text", "image", "special")} | {"image_within": scored.image_within}
    blocks = [block for block in (layout.text_ids, layout.image_range) if block is not None]
    borders = sorted({edge for block in blocks for edge in (block.start, block.stop)} - {0, layout.rows})
    targets = {row for sequence in candidate.sequences(records) for row in sequence[1:]}
    return {
        "name": candidate.name,
        "template": candidate.template,
        "variant": candidate.variant,
        "same": candidate.same,
        "special": dict(layout.special),
        "losses": {name: None if ratio is None else vars(ratio) for name, ratio in losses.items()},
        "nats_per_sequence": scored.total / len(scored.ends),
        "borders": borders,
        "borders_seen": [row for row in borders if any(abs(row - change.row) <= NEAR for change in tables.borders)],
        "targets": len(targets),
        "cold_targets": len(targets & set(tables.cold)),
    }


def _behind(rival: Behind) -> dict[str, Any]:
    return {
        "behind": rival.nats,
        "behind_stderr": rival.stderr,
        "behind_nats_per_token": rival.nats_per_token,
        "behind_standard_errors": rival.standard_errors,
    }


def summary(checkup: Checkup) -> Iterator[str]:
    """Yield lines about the input and the statistics of the tables."""
    findings = checkup.findings
    yield f"{findings['checkpoint']}: {findings['rows']} rows; {findings['n']} pairs of {findings['pairs']}"
    yield from findings["sizes"]["notes"]
    borders = ", ".join(str(border["row"]) for border in findings["borders"]) or "none"
    yield f"tables: the rows' norms and directions change (strongest first) at: {borders}"
    yield f"tables: rows that lie in one direction, as those do that were never a target: {len(findings['cold'])}"


def ranking_rows(checkup: Checkup) -> list[dict[str, str]]:
    """Return rows for the best layout, and for the nearest rival of every preset and file."""
    names: set[str] = set()
    rows = [checkup.findings["best"]]
    for rival in checkup.findings["ranking"]:
        tried = {rival["name"], *_names_of_same(rival)}
        if not tried <= names:
            rows.append(rival)
        names |= tried
    return [_row(item) for item in rows]


def _names_of_same(item: Mapping[str, Any]) -> list[str]:
    """Return the names of the layouts that give the data the same ids, without their templates."""
    return list(dict.fromkeys(label.partition(" (")[0] for label in item["same"]))


def _row(item: Mapping[str, Any]) -> dict[str, str]:
    loss = {name: "" if ratio is None else f"{ratio['value']:.3f}" for name, ratio in item["losses"].items()}
    return {
        "layout": item["name"],
        "template": "; ".join(filter(None, [item["template"], item["variant"]])),
        "image": loss["image"],
        "within": loss["image_within"],
        "text": loss["text"],
        "special": loss["special"],
        "behind": f"{item['behind_nats_per_token']:.3f}" if "behind" in item else "",
        "": f"{item['behind_standard_errors']:.1f} s.e." if "behind" in item else "",
        "borders": f"{len(item['borders_seen'])}/{len(item['borders'])}",
        "cold": f"{item['cold_targets']}/{item['targets']}",
        "same ids": ", ".join(_names_of_same(item)),
    }


def conclusion(checkup: Checkup) -> str:
    """Return the verdict as a sentence."""
    verdict = checkup.verdict
    rule = f"{verdict.needed:.1f} standard errors needed, {verdict.comparisons} comparisons"
    best = verdict.best.candidate
    special = ", ".join(f"{name} {row}" for name, row in best.layout.special.items())
    if not verdict.decided:
        return f"not decided ({rule}); the best is {best.label}, which would be a guess"
    return f"the layout is {best.label} ({rule})" + (f"; special tokens: {special}" if special else "")


def layout_yaml(checkup: Checkup) -> str:
    """Return the best layout as a file for `--layout`. Fields that the data do not determine are left to the author."""
    content = {key: value for key, value in checkup.findings["layout"].items() if value is not None}
    for name in ("text", "image"):
        content[name] = {key: value for key, value in content[name].items() if value is not None}
    best, n = checkup.verdict.best.candidate, checkup.findings["n"]
    return (
        f"# {best.label}, found by `evalsvc doctor layout` in {n} pairs.\n"
        "# Pairs do not determine length, unconditional_template, tokenizer, and special tokens that are not in the "
        "template.\n" + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
    )
