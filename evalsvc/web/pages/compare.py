"""Two checkpoints, or two runs along their steps, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from evalsvc.client.reader import ServiceReader
from evalsvc.compare.difference_curves import level_of_looks
from evalsvc.errors import EvalsvcError, InvalidRequest, NotComparable, UnknownName
from evalsvc.metrics.intervals import LEVEL
from evalsvc.spec import documents
from evalsvc.spec.documents.comparisons import Family
from evalsvc.spec.documents.text_reports import FlippedQuestion
from evalsvc.spec.names import CHECKPOINT, NAME, NAMED, checkpoint_name, parse_checkpoint, parse_run
from evalsvc.spec.protocol import short_json
from evalsvc.web.charts import Along
from evalsvc.web.page import Content, Crumb, Page
from evalsvc.web.pages.images import most_changed
from evalsvc.web.pages.text import MAX_FLIPS, Forgetting, read_forgetting
from evalsvc.web.panels.differences import Across, ContrastsQuery, DifferenceQuery, divided
from evalsvc.web.protocol_files import measured_by

Side = Annotated[str, Field(max_length=500)]

MAX_METRICS, MAX_FILES = 8, 4
"""Most metrics of two runs that a page compares, each of which reads the items of all steps; and most groups of
differing protocols whose files are looked up."""

FieldDifference = tuple[str, str, str, str, str]
"""Name of a field, its value in A, the file that this value is the digest of, if known, and the same of B."""


class ComparePage(Page):
    template: ClassVar = "compare.html"

    a: Side = ""
    b: Side = ""
    a_step: Side = ""
    """Step of the run `a`, or `best`, `newest` or `base`, where `a` names none."""
    b_step: Side = ""
    to: Literal["", "base", "best"] = ""
    """With the run `b` alone: compare its newest evaluated checkpoint with the run's base, or with its best one."""
    family: Family = "none"
    """Verdicts on each metric alone, or on all metrics together by Holm's method."""
    best_of: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Number of steps that one of two checkpoints is the best of. Verdicts and intervals are corrected for it."""
    metric: Annotated[tuple[Annotated[str, Field(max_length=300)], ...], Field(max_length=MAX_METRICS)] = ()
    """Metrics of two runs; by default, the headline metrics."""
    along: Along = "auto"
    across: Across = ()
    tab: Literal["metrics", "images", "questions", "protocols"] = "metrics"

    def content(self, source: ServiceReader) -> Content:
        asked, note = self._resolved(source)
        values: dict[str, object] = {"query": asked, "note": note, "comparison": None, "curves": None, "panels": []}
        known = source.run_names()
        values |= {"names": known, "runs": [], "refusal": None}
        values["link"] = lambda **changes: f"/compare?{asked.model_copy(update=changes).to_query()}"
        names = [side.partition("@")[0].partition(":")[0] for side in (asked.b, asked.a)]
        read = {name: source.run(name, all_checkpoints=False) for name in {*names} & {*known}}
        values["sides"] = [read.get(name) for name in names]
        if not (asked.a and asked.b):
            values["runs"] = source.runs()
        else:
            are_checkpoints = [CHECKPOINT.fullmatch(side) is not None for side in (asked.a, asked.b)]
            if any(are_checkpoints) and not all(are_checkpoints):
                raise InvalidRequest(
                    f"one side of {asked.a!r} and {asked.b!r} is a checkpoint and the other one is a run; give two "
                    "checkpoints (RUN@STEP) or two runs (RUN)"
                )
            try:
                values |= asked._checkpoints(source) if all(are_checkpoints) else asked._runs(source)
            except NotComparable as error:  # the form offers what can be compared all the same
                values["refusal"] = error
        title = f"{asked.b} against {asked.a}" if asked.a and asked.b else "Compare"
        trail = [Crumb("Compare", "/compare"), Crumb(title)] if title != "Compare" else ()
        return Content(title, values, trail=trail)

    def _checkpoints(self, source: ServiceReader) -> Mapping[str, object]:
        level = level_of_looks(LEVEL, self.best_of - 1)
        query = ContrastsQuery(a=self.a, b=self.b, level=level, family=self.family, across=self.across)
        given = query.model_dump(include={"a", "b", "level", "family", "across"})
        comparison = source.compare(**given, flipped=MAX_FLIPS if self.tab == "questions" else 0)
        alike: dict[str, list[tuple[documents.MetricDifference, list[documents.MetricDifference]]]] = {}
        for row, companions in divided(comparison.contrasts):  # two tasks may have the same loss
            alike.setdefault(repr((row.a, row.b, row.difference)), []).append((row, companions))
        names = source.headline(parse_checkpoint(self.b)[0]).metrics
        return {
            "comparison": comparison,
            "groups": list(alike.values()),
            "headline": [
                [pair] for name in names for group in alike.values() for pair in group if pair[0].metric == name
            ],
            "other_protocols": list(_other_protocols(source, self.a, self.b, comparison.contrasts)),
            "images": most_changed(source, [self.a, self.b]) if self.tab == "images" else None,
            "questions": [_questions(source, side) for side in (self.a, self.b)] if self.tab == "questions" else None,
            "most": MAX_FLIPS,
            "panels": [query.panel_of(comparison)] if self.tab == "metrics" else [],
        }

    def _runs(self, source: ServiceReader) -> Mapping[str, object]:
        first, second = (source.headline(parse_run(side)[0]) for side in (self.a, self.b))
        others = {known.name for known in second.names}
        shared = [known.name for known in first.names if known.name in others]
        chosen = self.metric or [name for name in first.metrics if name in others] or shared
        chosen = list(chosen)[:MAX_METRICS]
        if not chosen:
            raise UnknownName(f"{self.a} and {self.b} have no metric in common; choose other runs")
        curves = source.compare_runs(self.a, self.b, chosen, across=self.across)
        query = DifferenceQuery(a=self.a, b=self.b, metric=chosen[0], across=self.across, along=self.along)
        panels = [query.model_copy(update={"metric": name}).panel_of(curves) for name in chosen]
        return {"curves": curves, "shared": shared, "chosen": chosen, "panels": panels}

    def _resolved(self, source: ServiceReader) -> tuple[ComparePage, str]:
        """Return the page with a step for each side that is named by values, and what is to be said about the steps."""
        sides = {"a": _at_step(self.a, self.a_step), "b": _at_step(self.b, self.b_step)}
        asked, notes = self.model_copy(update={**sides, "a_step": "", "b_step": ""}), list[str]()
        if self.to:
            run, variant = parse_run(asked.b)
            end = "" if variant == "raw" else f":{variant}"
            other = f"{asked.a}@best" if self.to == "best" and NAME.fullmatch(asked.a) else f"{run}@{self.to}{end}"
            asked = asked.model_copy(update={"a": other, "b": f"{run}@newest{end}", "to": ""})
        sides, looks = {"a": asked.a, "b": asked.b}, 1
        for side, name in sides.items():
            if NAMED.fullmatch(name):
                named = source.named(name)
                sides[side] = checkpoint_name(named.run, named.step, named.variant)
                looks *= named.of
                notes.append(named.words(name))
        if sides["a"] == sides["b"] and self.to == "best":
            newest, note = ComparePage(b=self.b, to="base", family=self.family)._resolved(source)
            return newest, f"{notes[0]}, and the newest; {note}"
        if sides["a"] == sides["b"] and notes:
            note = f"{'; '.join(notes)}; A and B are the same checkpoint: choose another step"
            return ComparePage(b=sides["b"]), note
        same_run = sides["a"].partition("@")[0] == sides["b"].partition("@")[0]
        best_of = max(asked.best_of, looks + (not same_run)) if looks > 1 else asked.best_of
        return asked.model_copy(update={**sides, "best_of": best_of}), "; ".join(notes)


def _at_step(side: str, step: str) -> str:
    run, _, variant = side.partition(":")
    return f"{run}@{step}{variant and ':'}{variant}" if run and step and "@" not in side else side


def _questions(source: ServiceReader, side: str) -> Mapping[tuple[str, object], tuple[Forgetting, FlippedQuestion]]:
    """Return the questions in a checkpoint's reports of forgetting, each with its report, by benchmark and index."""
    run, step, variant = parse_checkpoint(side)
    own = [each for each in source.artifacts(run, "forgetting", step) if each.variant == variant and not each.pruned_at]
    read = [read_forgetting(source, artifact) for artifact in own]
    flipped = [(of, part) for of in read if of.report for part in of.report.flipped]
    return {(part.benchmark, each.index): (of, each) for of, part in flipped for each in part.questions}


def _other_protocols(
    source: ServiceReader, a: str, b: str, rows: Sequence[documents.MetricDifference]
) -> Iterator[tuple[Sequence[str], Sequence[FieldDifference]]]:
    groups: dict[str, list[documents.MetricDifference]] = {}
    for row in rows:
        if row.differing:
            groups.setdefault(repr(row.differing), []).append(row)
    for number, group in enumerate(groups.values()):
        metric = group[0].metric
        files = [_files(source, side, metric) if number < MAX_FILES else {} for side in (a, b)]
        fields: list[FieldDifference] = []
        for name, sides in group[0].differing.items():
            a_value, b_value = (short_json(sides[side]) if side in sides else "(none)" for side in ("a", "b"))
            fields.append((name, a_value, files[0].get(name, ""), b_value, files[1].get(name, "")))
        yield [row.metric for row in group], fields


def _files(source: ServiceReader, checkpoint: str, metric: str) -> Mapping[str, str]:
    try:
        measured = measured_by(source, checkpoint, metric)
    except EvalsvcError:
        return {}
    return {name: file for each in measured for name, _, file in each.fields() if file}
