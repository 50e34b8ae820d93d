"""Runs: their checkpoints, plans, bases and results."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from evalsvc.api.errors import PROBLEMS
from evalsvc.api.json_answer import JsonAnswer, document
from evalsvc.api.list_queries import PageQuery
from evalsvc.api.routes.suites import find_suite
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import BaseInput, Name, PlanInput, RunInput
from evalsvc.api.state import CurrentState
from evalsvc.checkpoints.kept import spool_path
from evalsvc.checkpoints.reference import verify
from evalsvc.spec import documents
from evalsvc.spec.documents.items import Completions
from evalsvc.spec.names import MAX_STEP
from evalsvc.store.completions import read_completions
from evalsvc.store.lists.checkpoints import run_view
from evalsvc.store.lists.runs import runs_view
from evalsvc.store.lookup import find_run, get_or_create_run
from evalsvc.store.queue.references import checkpoint_reference
from evalsvc.store.results import read_results
from evalsvc.store.runs.base import base_view, name_base
from evalsvc.store.runs.renaming import rename_run
from evalsvc.store.views import plan_view

router = router_of(prefix="/v1", tags=["runs"], responses=PROBLEMS)


@router.get(
    "/runs",
    summary="Every run",
    description="With the number of checkpoints and of values, and the highest step. `GET /v1/runs/{run}` has the "
    "checkpoints.",
    responses=document(200, "A page of the runs, by name.", documents.Runs),
)
def list_runs(query: Annotated[PageQuery, Query()], state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(runs_view(session, query.page()))


@router.get(
    "/runs/{run}",
    summary="A run: its checkpoints, how far their evaluations are, and its plan",
    description="`checkpoints` has the 500 checkpoints of the highest steps, by step, and `checkpoint_count` is the "
    "number of all; `GET /v1/checkpoints?run=` lists all. Checkpoints that were replaced by another file are left out. "
    "The values are in `GET /v1/runs/{run}/metrics`.",
    responses=document(200, "The run; its last checkpoints by step.", documents.Run),
)
def get_run(run: Name, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(run_view(session, find_run(session, run)))


@router.patch(
    "/runs/{run}",
    summary="Give a run another name",
    description="Wherever it is named: in its history, in the expressions of virtual checkpoints, and as the base of "
    "other runs. Nothing is measured again.",
    responses=document(200, "The run under its new name.", documents.Run),
)
def patch_run(run: Name, body: RunInput, state: CurrentState) -> JsonAnswer:
    with state.writing() as session:
        content = run_view(session, rename_run(session, run, body.name))
    return JsonAnswer(content)


@router.get(
    "/runs/{run}/plan",
    summary="A run's plan",
    description="Which suites a checkpoint gets that is posted without `suites`. A run without a plan has an empty "
    "list.",
    responses=document(200, "The plan.", documents.Plan),
)
def get_plan(run: Name, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(plan_view(find_run(session, run)))


@router.put(
    "/runs/{run}/plan",
    summary="Say which suites a run's checkpoints get",
    description="The plan may come before the run's first checkpoint, and applies to checkpoints that are posted from "
    "now on. `when_behind` says what happens where a run posts faster than it is evaluated: every checkpoint waits "
    "(`all`), a checkpoint drops what older ones still wait for (`newest`), or a post is refused with 429 and "
    "`Retry-After` (`refuse`).",
    responses=document(200, "The plan.", documents.Plan),
)
def put_plan(run: Name, body: PlanInput, state: CurrentState) -> JsonAnswer:
    with state.writing() as session:
        for name in dict.fromkeys(entry.suite for entry in body.suites):
            find_suite(session, state.settings, name)
        row = get_or_create_run(session, run)
        row.plan = body.model_dump()
        return JsonAnswer(plan_view(row))


@router.put(
    "/runs/{run}/base",
    summary="Say what a run's checkpoints are compared with",
    description="Any checkpoint of any run; until it is said, the run's own step 0. It may come before the run's first "
    "checkpoint, and holds for what is evaluated from now on. Its weights must stay: those that were posted with "
    "`spool` are kept, and of others `in_use` stays true.",
    responses=document(200, "The base, and the checkpoint that it is now.", documents.Base),
)
def put_base(run: Name, body: BaseInput, state: CurrentState) -> JsonAnswer:
    with state.writing() as session:
        row = get_or_create_run(session, run)
        base = name_base(session, row, body.run or run, body.step, body.variant)
        folder = state.settings.data_path
        verify(checkpoint_reference(base, lambda found: spool_path(folder, found.id, found.path)))
        content = base_view(session, row)
    state.coordinator.wake()
    return JsonAnswer(content)


@router.get(
    "/runs/{run}/results/{step}",
    summary="All that is known of a checkpoint, in one document",
    description="As `evalsvc run --output` writes it: metrics, protocols, results per item, artifacts as references. "
    "Of every suite that evaluated the checkpoint, the newest evaluation; `state` is the worst of theirs.",
    responses=document(200, "The result.", documents.CheckpointResult),
)
def get_results(
    run: Name,
    step: Annotated[int, Path(ge=0, le=MAX_STEP)],
    state: CurrentState,
    variant: Annotated[Name, Query(description="Which weights of the step.")] = "raw",
    suite: Annotated[str | None, Query(description="Only of this suite.")] = None,
) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(read_results(session, state.settings.items_path, run, step, variant, suite))


@router.get(
    "/runs/{run}/completions",
    summary="What a run's checkpoints made of fixed prompts, by step",
    description="From the tasks of kind `completions`; of each, the newest evaluation of a checkpoint. `previous` says "
    "how a completion differs, in ids, from that of the step before which was drawn in the same way.",
    responses=document(200, "By step; the base's with the checkpoint's.", Completions),
)
def get_completions(
    run: Name,
    state: CurrentState,
    variant: Annotated[str | None, Query(description="Only these weights.")] = None,
    prompt: Annotated[str | None, Query(description="Only of prompts that hold this text.")] = None,
) -> JsonAnswer:
    with state.reading() as session:
        folder = state.settings.items_path
        return JsonAnswer(read_completions(session, folder, find_run(session, run), variant, prompt))
