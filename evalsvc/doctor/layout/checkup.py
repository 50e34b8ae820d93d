"""Finding the layout of one checkpoint: read its table and the pairs, try every layout, judge the result."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import yaml

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.checkpoints.remote.fetch import fetched
from evalsvc.config import Settings
from evalsvc.data.tokens import Record, read_tokens
from evalsvc.doctor.layout.search import MOST_ROWS, Scored, Search, find_sizes, propose, score
from evalsvc.errors import InvalidData
from evalsvc.metrics.intervals import critical_value
from evalsvc.metrics.shares import standard_error
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.layout_presets import IMAGE, TEXT
from evalsvc.tasks.loss.teacher_forcing import ModelEvidence
from evalsvc.worker.context import ShardContext

LEVEL = 0.001
"""Probability of a false decision over all comparisons, which are one-sided t-tests over sequences (Bonferroni)."""

NATS = 1.0
"""Minimum distance of every other candidate in nats per sequence."""

SILENT = 0.5
"""Maximum probability of rows that never occur, after each part of the template."""

REORDERINGS = 8

NEAR = 1
"""Number of rows by which a change of the tables may miss a border of the layout."""

LEGEND = (
    "losses, and the distance behind the best, in nats/token; borders: block borders that the tables show; "
    "cold: rows that are targets in the data but never were in training"
)


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
) -> dict[str, Any]:
    """Find the layout of a checkpoint. Return all findings, as JSON but for infinite numbers.

    `pairs` is the path of token data with text and image codes in every record, of which the first `limit` are used;
    `tokenizer` is for records of `text`, which layouts with a prompt need. `report` gets the number of layouts scored
    so far. Sizes that are not given are inferred; `layouts` are tried in addition to the presets.
    """
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

    def prompts_of(layout: VocabularyLayout) -> tuple[Record, ...] | None:
        model.config.require_image_rows(layout.image_range)
        form = layout.prompt_form
        return None if form is None else read_tokens(pairs, tokenizer, layout.text.bos, form=form).records[:limit]

    candidates, dropped = propose(rows, records, sizes, layouts or {}, prompts_of)
    if not candidates:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in dropped.items())
        raise InvalidData(f"{pairs}: no layout fits the model's {rows} rows and these pairs; {reasons}")
    witness = ModelEvidence(context, model)
    search = Search(witness, records, report)
    search.run(candidates)
    tables = witness.rows()
    return {
        "checkpoint": checkpoint.label,
        "pairs": pairs,
        "n": len(records),
        "rows": rows,
        **judge(search, [border.row for border in tables.borders], tables.cold),
        "dropped": [{"name": name, "reason": reason} for name, reason in dropped.items()],
        "sizes": vars(sizes),
        "borders": [vars(border) for border in tables.borders],
        "cold": tables.cold,
    }


@dataclass(frozen=True)
class Margin:
    """Distance of a candidate behind the best, paired over sequences, by the names of the findings."""

    behind: float
    """Nats per sequence; negative if the candidate is better."""
    behind_stderr: float | None
    """Standard error; None for a single sequence."""
    behind_nats_per_token: float
    behind_standard_errors: float

    def __str__(self) -> str:
        side = "worse" if self.behind > 0 else "better"
        return f"{abs(self.behind):.2f} nats/sequence {side}, {abs(self.behind_standard_errors):.1f} standard errors"


def margin(best: Scored, other: Scored) -> Margin:
    differences = [rival - leader for rival, leader in zip(other.totals, best.totals, strict=True)]
    tokens = math.fsum([*best.sums["n_text"], *best.sums["n_image"]]) / len(differences)
    mean, stderr = fmean(differences), standard_error(differences)
    return Margin(mean, stderr, mean / tokens, in_errors(mean, stderr))


def in_errors(difference: float, stderr: float | None) -> float:
    """Return a difference in standard errors; 0 if the standard error is unknown."""
    if stderr is None or math.isnan(difference):
        return 0.0
    return difference / stderr if stderr else math.copysign(math.inf, difference)


def judge(search: Search, borders: Sequence[int] = (), cold: Collection[int] = ()) -> dict[str, Any]:
    """Judge the result of a search by four conditions, all of which must hold. Return the findings.

    Rows where the model's tables change (`borders`) or were never trained (`cold`) are reported; the decision ignores
    them.
    """
    best = search.best
    others = [scored for scored in search.scores.values() if scored is not best]
    rivals = sorted(((margin(best, other), other) for other in others), key=lambda rival: rival[0].behind)
    reordered = []
    for seed in range(REORDERINGS):
        order = list(range(best.candidate.codebook_size))
        random.Random(seed).shuffle(order)
        candidate = best.candidate.reordered(order)
        reordered.append(margin(best, score(search.witness, candidate, candidate.sequences(search.records))))
    comparisons = len(rivals) + len(reordered) + 1
    needed = critical_value(LEVEL / comparisons, len(search.records) - 1)
    expectations = _expectations(search)
    conditions = list(_conditions(best, needed, rivals, reordered, expectations))

    def described(scored: Scored) -> dict[str, Any]:
        candidate, layout = scored.candidate, scored.candidate.layout
        blocks = [block for block in (layout.text_ids, layout.image_range) if block is not None]
        edges = {edge for block in blocks for edge in (block.start, block.stop)} - {0, layout.rows}
        targets = {row for sequence in candidate.sequences(search.records) for row in sequence[1:]}
        losses = {kind: scored.loss(kind) for kind in ("text", "image", "special")}
        losses["image_within"] = scored.loss("image", "within")
        return {
            "label": candidate.label,
            "name": candidate.name,
            "template": candidate.template,
            "variant": candidate.variant,
            "same": candidate.same,
            "special": dict(layout.special),
            "losses": {name: None if ratio is None else vars(ratio) for name, ratio in losses.items()},
            "nats_per_sequence": scored.total / len(scored.ends),
            "borders": sorted(edges),
            "borders_seen": [row for row in sorted(edges) if any(abs(row - border) <= NEAR for border in borders)],
            "targets": len(targets),
            "cold_targets": len(targets.intersection(cold)),
        }

    return {
        "decided": all(holds for _, holds, _, _ in conditions),
        "layout": best.candidate.layout.to_json(),
        "conditions": [dict(zip(("name", "ok", "found", "do"), condition, strict=True)) for condition in conditions],
        "needed": needed,
        "comparisons": comparisons,
        "best": described(best),
        "ranking": [described(other) | vars(behind) for behind, other in rivals],
        "reordered": [vars(behind) for behind in reordered],
        "expectations": expectations,
    }


def _expectations(search: Search) -> list[dict[str, Any]]:
    best = search.best.candidate
    template, silent = best.layout.template, best.silent_rows()[:MOST_ROWS]
    expectations = []
    prefixes: list[list[int]] = [[] for _ in search.records]
    for index, part in enumerate(template if silent else (), 1):
        for prefix, record in zip(prefixes, best.prompts or search.records, strict=True):
            prefix.extend(best.rows_of(part, record, best.layout.special))
        if part in (TEXT, IMAGE) or index == len(template):
            masses = search.witness.next_log_masses(prefixes, [silent, *([row] for row in silent)])
            mass, *single = (fmean(map(math.exp, column)) for column in zip(*masses, strict=True))
            probability, row = max(zip(single, silent, strict=True), key=lambda pair: pair[0])
            expectations.append({"place": part, "mass": mass, "row": row, "probability": probability})
    return expectations


def _conditions(
    best: Scored,
    needed: float,
    rivals: Sequence[tuple[Margin, Scored]],
    reordered: Sequence[Margin],
    expectations: Sequence[dict[str, Any]],
) -> Iterator[tuple[str, bool, str, str]]:
    image, codes = best.loss("image"), best.candidate.codebook_size
    uniform = math.log(codes)
    below = -math.inf if image is None else in_errors(uniform - image.value, image.stderr)
    evidence = "no image token is a target"
    if image is not None:
        side = "below" if below > 0 else "above"
        evidence = f"image loss {image.value:.3f}, {abs(below):.1f} standard errors {side} ln {codes} = {uniform:.3f}"
    do = "use a later checkpoint, or describe the layout with --layout"
    yield "the images are known", below >= needed, evidence, do

    # An untrained model with tied tables expects what it has just read. If codes repeat, the image loss is then below
    # ln of the codebook, in any order of the codes.
    nearest = min(reordered, key=lambda behind: behind.behind_standard_errors)
    evidence = f"of {len(reordered)} random orders of the codes the nearest is {nearest}"
    do = "the image block has another position or order of codes: describe it with --layout"
    yield "the order of the codes matters", nearest.behind_standard_errors >= needed, evidence, do

    close = [rival for rival in rivals if rival[0].behind < NATS or rival[0].behind_standard_errors < needed]
    evidence = "there is no other"
    if rivals:
        behind, rival = close[0] if close else min(rivals, key=lambda rival: rival[0].behind_standard_errors)
        more = f"; {len(close) - 1} more are too close" if len(close) > 1 else ""
        evidence = f"{rival.candidate.label} is {behind}{more}"
    do = "use more pairs (--limit), set the sizes (--text-size), try others (--layout), or use a later checkpoint"
    yield "every other candidate is worse", bool(rivals) and not close, evidence, do

    most = max(expectations, key=lambda expectation: expectation["mass"], default=None)
    evidence, do = "every row has a meaning", ""
    if most is not None:
        place, row = most["place"], most["row"]
        evidence = f"after {place}, row {row}, which never occurs, has a probability of {most['probability']:.3f}"
        do = f"a marker is missing: describe the template with --layout, with row {row} after {place}"
    yield "nothing else is expected", most is None or most["mass"] < SILENT, evidence, do


def summary(findings: Mapping[str, Any]) -> Iterator[str]:
    yield f"{findings['checkpoint']}: {findings['rows']} rows; {findings['n']} pairs of {findings['pairs']}"
    yield from findings["sizes"]["notes"]
    borders = ", ".join(str(border["row"]) for border in findings["borders"]) or "none"
    yield f"tables: the rows' norms and directions change (strongest first) at: {borders}"
    yield f"tables: rows that lie in one direction, as those do that were never a target: {len(findings['cold'])}"


def ranking_rows(findings: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return rows for the best layout, and for the nearest rival of every preset and file."""
    rows: list[dict[str, str]] = []
    listed: set[str] = set()
    for item in (findings["best"], *findings["ranking"]):
        # Names of the layouts that give the data the same ids, without their templates.
        same = list(dict.fromkeys(label.partition(" (")[0] for label in item["same"]))
        if listed.issuperset((item["name"], *same)):
            continue
        is_rival = "behind" in item
        listed.update((item["name"], *same) if is_rival else ())
        loss = {name: "" if ratio is None else f"{ratio['value']:.3f}" for name, ratio in item["losses"].items()}
        rows.append(
            {
                "layout": item["name"],
                "template": "; ".join(filter(None, [item["template"], item["variant"]])),
                "image": loss["image"],
                "within": loss["image_within"],
                "text": loss["text"],
                "special": loss["special"],
                "behind": f"{item['behind_nats_per_token']:.3f}" if is_rival else "",
                "": f"{item['behind_standard_errors']:.1f} s.e." if is_rival else "",
                "borders": f"{len(item['borders_seen'])}/{len(item['borders'])}",
                "cold": f"{item['cold_targets']}/{item['targets']}",
                "same ids": ", ".join(same),
            }
        )
    return rows


def conclusion(findings: Mapping[str, Any]) -> str:
    label, rule = findings["best"]["label"], f"{findings['needed']:.1f} standard errors needed"
    if not findings["decided"]:
        return f"not decided ({rule}); the best is {label}, which would be a guess"
    special = ", ".join(f"{name} {row}" for name, row in findings["layout"]["special"].items())
    return f"the layout is {label} ({rule}); special tokens: {special or 'none'}"


def layout_yaml(findings: Mapping[str, Any]) -> str:
    """Return the best layout as a file for `--layout`. Fields that the data do not determine are left to the author."""
    content = {key: value for key, value in findings["layout"].items() if value is not None}
    for name in ("text", "image"):
        content[name] = {key: value for key, value in content[name].items() if value is not None}
    return (
        f"# {findings['best']['label']}, found by `evalsvc layout` in {findings['n']} pairs.\n"
        "# Pairs do not determine length, unconditional_template, tokenizer, and special tokens that are not in the "
        "template.\n" + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
    )
