"""Routes that compare two checkpoints, or two runs along their steps; and names such as RUN@best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from evalsvc import __version__
from evalsvc.api.answers import NOT_MODIFIED, answer, conditional
from evalsvc.api.middleware.access import needs
from evalsvc.api.routes.history import headline_of, read_known, read_with_noise
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import CompareQuery, CurvesQuery, NamedQuery
from evalsvc.api.state import CurrentState, State
from evalsvc.compare.comparison import Options, compare_results, require_comparable
from evalsvc.compare.difference_curves import difference_curves, level_of_looks
from evalsvc.compare.result import Result
from evalsvc.errors import UnknownName
from evalsvc.spec import documents
from evalsvc.spec.documents.history import NamedStep
from evalsvc.spec.names import NAMED, checkpoint_name, parse_checkpoint, parse_run
from evalsvc.spec.protocol import digest
from evalsvc.store.history.gaps import gaps_mark
from evalsvc.store.history.headlines import Question, read_run_headlines
from evalsvc.store.history.writing import history_tag
from evalsvc.store.lookup import find_run, find_step
from evalsvc.store.results import evaluated_steps, read_values, read_values_along
from evalsvc.store.runs.base import base_of, base_step, find_base
from evalsvc.store.tables import MetricValue, Run, Series

router = router_of(prefix="/v1", tags=["comparison"])


@router.get(
    "/compare",
    summary="Compare two checkpoints",
    description="For every metric, the answer has the difference b − a, paired over the items of both checkpoints, an "
    "interval, and a verdict on b at `level` from the p-value `p`. With fewer than 8 items there is no interval."
    "\n\nMetrics with different protocols have the verdict `other_protocol` and the fields that differ. If all metrics "
    "have different protocols, the answer is an error.",
    responses={
        200: answer(documents.Comparison, "The metrics of a in their order, then metrics that only b has."),
        **NOT_MODIFIED,
    },
)
@needs("read")
def get_comparison(query: Annotated[CompareQuery, Query()], request: Request, state: CurrentState) -> Response:
    with state.reading() as session:
        query = with_sides(session, state, query)
        make = partial(read_comparison, session, state.settings.items_path, query)
        return conditional(request, state.answers, *tag_of(session, query), make)


def tag_of(session: Session, query: CompareQuery | CurvesQuery) -> tuple[str, str]:
    """Return the run that a comparison is about, and a text that changes whenever the comparison does. The newest
    evaluation of each suite counts, also before it ends; see `gaps_mark`."""
    if isinstance(query, CompareQuery):
        other, run = (parse_checkpoint(name)[0] for name in (query.a, query.b))
    else:
        run = parse_run(query.a)[0]
        other = base_step(find_run(session, run)).run if query.b is None else parse_run(query.b)[0]
    names = (other, run) if isinstance(query, CompareQuery) else (run, other)
    rows = [find_run(session, name) for name in dict.fromkeys(names)]
    question = [type(query).__name__, query.model_dump()]
    tags = [history_tag(row, __version__, [question, row.base, gaps_mark(session, row)]) for row in rows]
    return run, digest(tags)[:32]


def read_comparison(session: Session, folder: Path, query: CompareQuery) -> documents.Comparison:
    chosen = tuple(query.metric), tuple(query.task)
    options = Options(*chosen, query.level, query.force, tuple(query.across), query.flipped, query.family)
    a, b = (_result(session, folder, query.suite, name, *parse_checkpoint(name)) for name in (query.a, query.b))
    comparison = compare_results(a, b, options)
    require_comparable(comparison, all_of_it=False)
    return comparison


@router.get(
    "/compare/curves",
    summary="Compare two runs step by step",
    description="The differences of `/v1/compare` at the steps of both runs; without `b`, between the run's "
    "checkpoints and its base. The intervals of the chosen band have the level `step_level`. `apart_from` and "
    "`sign_changes` use the simultaneous band (`crossings_rest_on`), whose intervals have the level "
    "`simultaneous_level`.",
    responses={
        200: answer(documents.RunComparison, "A curve for each metric and protocol, in columns by step."),
        **NOT_MODIFIED,
    },
)
@needs("read")
def get_curves(query: Annotated[CurvesQuery, Query()], request: Request, state: CurrentState) -> Response:
    with state.reading() as session:
        make = partial(read_curves, session, state.settings.items_path, query)
        return conditional(request, state.answers, *tag_of(session, query), make)


def read_curves(session: Session, folder: Path, query: CurvesQuery) -> documents.RunComparison:
    options = Options(tuple(query.metric), tuple(query.task), query.level, query.force, tuple(query.across))
    if query.b is None:
        a, pairs = _against_base(session, folder, query)
        return difference_curves(a, query.a, pairs, options, query.band)
    pairs = _in_step(session, folder, query.a, query.b, query.suite)
    return difference_curves(query.a, query.b, pairs, options, query.band)


Pairs = Iterator[tuple[int, Result, Result]]


def _result(session: Session, folder: Path, suite: str | None, name: str, run: str, step: int, variant: str) -> Result:
    return Result(name, *read_values(session, folder, run, step, variant, suite))


def _results_along(
    session: Session, folder: Path, run: str, steps: Sequence[int], variant: str, suite: str | None
) -> Iterator[Result]:
    for step, (values, tables) in read_values_along(session, folder, run, steps, variant, suite):
        yield Result(f"{run}@{step}:{variant}", values, tables)


def _in_step(session: Session, folder: Path, a: str, b: str, suite: str | None) -> Pairs:
    runs = [parse_run(name) for name in (a, b)]
    steps_a, steps_b = (evaluated_steps(session, *run, suite) for run in runs)
    common = [step for step in steps_a if step in set(steps_b)]
    if not common:
        texts = (", ".join(map(str, steps[:8])) + (", …" if len(steps) > 8 else "") for steps in (steps_a, steps_b))
        raise UnknownName(
            f"{a} and {b} have no evaluated step in common: {a} has {next(texts)}; {b} has {next(texts)}; "
            "compare two checkpoints as RUN@STEP"
        )
    before, after = (_results_along(session, folder, run, common, variant, suite) for run, variant in runs)
    yield from zip(common, before, after, strict=True)


def _against_base(session: Session, folder: Path, query: CurvesQuery) -> tuple[str, Pairs]:
    run, variant = parse_run(query.a)
    steps = evaluated_steps(session, run, variant, query.suite)
    base = find_base(session, find_step(session, find_run(session, run), steps[0], variant))
    if base is None:
        raise UnknownName(
            f"run {run!r} has no base to compare with: no checkpoint was posted at step 0; post step 0, name another "
            f"base with PUT /v1/runs/{run}/base, or give a second run as b"
        )
    place = (base.run.name, base.step, base.variant)
    name = checkpoint_name(*place)
    before = _result(session, folder, query.suite, name, *place)
    others = [step for step in steps if (run, step, variant) != place]
    after = _results_along(session, folder, run, others, variant, query.suite)
    return name, ((step, before, result) for step, result in zip(others, after, strict=True))


@router.get(
    "/named",
    summary="Find the checkpoint that a name such as RUN@best stands for",
    description="`RUN@best:METRIC` is the checkpoint with the best value of a metric, and `RUN@best` that of the first "
    "headline metric that has a best value. `RUN@newest` is the highest step that has been evaluated, and `RUN@base` "
    "the base of the run. The best of several values is partly luck: `within_noise` has the steps whose values are "
    "not worse than the best one, paired over items, at the level 1 − 0.05 / (K − 1) for the best of K.",
    responses={200: answer(NamedStep, "The checkpoint."), **NOT_MODIFIED},
)
@needs("read")
def get_named(query: Annotated[NamedQuery, Query()], request: Request, state: CurrentState) -> Response:
    with state.reading() as session:
        named = find_named(session, state, query.name)
        row = find_run(session, query.name.partition("@")[0])
        tag = digest([history_tag(row, "named", [query.name, gaps_mark(session, row)]), named.model_dump()])[:32]
        return conditional(request, state.answers, row.name, tag, partial(with_noise, session, state, named))


def find_named(session: Session, state: State, name: str) -> NamedStep:
    """Return the checkpoint of a name, or of RUN@STEP[:VARIANT], without the steps within its noise."""
    if (match := NAMED.fullmatch(name)) is None:
        run, step, variant = parse_checkpoint(name)
        return NamedStep(run=run, step=step, variant=variant)
    row, variant = find_run(session, match["run"]), match["variant"] or "raw"
    if match["word"] is None:
        return _best(session, state, row, match["metric"], variant)
    if match["word"] == "base":
        if (base := base_of(session, row, variant)) is None:
            raise UnknownName(
                f"{name}: the base of {row.name} has not been posted; post it, or name another one: PUT "
                f"/v1/runs/{row.name}/base"
            )
        return NamedStep(run=base.run.name, step=base.step, variant=base.variant)
    measured = select(func.max(MetricValue.step)).join(Series, Series.id == MetricValue.series_id)
    measured = measured.where(MetricValue.import_id.is_(None)).filter(
        Series.run_id == row.id, Series.variant == variant
    )
    if (newest := session.scalar(measured)) is None:
        raise UnknownName(f"{name}: no checkpoint has been evaluated yet; wait for the first evaluation to end")
    return NamedStep(run=row.name, step=newest, variant=variant)


def _best(session: Session, state: State, run: Run, metric: str | None, variant: str) -> NamedStep:
    headline = headline_of(session, state, run.name)
    if metric is not None and metric not in (known := [item.name for item in headline.names]):
        raise UnknownName.among(f"metric of {run.name}", metric, known)
    question = Question(tuple(headline.metrics) if metric is None else (metric,), variant=variant)
    for series in read_run_headlines(session, run, question).series:
        if series.best is not None:
            best = NamedStep(run=run.name, step=series.best.step, variant=variant)
            return best.model_copy(update={"metric": series.metric, "title": series.title, "of": series.best.of})
    raise UnknownName(f"{metric or 'the headline'} of {run.name} has no best value; name a step: {run.name}@STEP")


def with_noise(session: Session, state: State, named: NamedStep) -> NamedStep:
    """Return a named checkpoint with the steps whose values are within the noise of the best one."""
    if named.metric is None:
        return named
    run, question = find_run(session, named.run), Question((named.metric,), near=True, variant=named.variant)
    results = partial(read_known, session, state.settings.items_path, {})
    [series] = read_with_noise(session, run, question, results).series
    return named.model_copy(update={"within_noise": series.near_best})


def with_sides(session: Session, state: State, query: CompareQuery) -> CompareQuery:
    """Return a comparison with the steps of its sides, at a level that is corrected for sides that are the best."""
    sides = [find_named(session, state, name) for name in (query.a, query.b)]
    looks = prod(side.of for side in sides) - (sides[0].run == sides[1].run)
    a, b = (checkpoint_name(side.run, side.step, side.variant) for side in sides)
    return query.model_copy(update={"a": a, "b": b, "level": level_of_looks(query.level, looks)})
