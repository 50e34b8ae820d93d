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
from evalsvc.api.state import CurrentState, State
from evalsvc.checkpoints.kept import spool_path, spooled
from evalsvc.checkpoints.reference import verify
from evalsvc.errors import InvalidRequest
from evalsvc.files.artifacts import drop_contents
from evalsvc.files.outputs import drop_outputs
from evalsvc.spec import documents
from evalsvc.spec.documents.items import Completions
from evalsvc.spec.names import MAX_STEP
from evalsvc.store.completions import read_completions
from evalsvc.store.lists.checkpoints import run_view
from evalsvc.store.lists.runs import runs_view
from evalsvc.store.lookup import find_run, get_or_create_run
from evalsvc.store.named_files import asked_anew, named_artifacts, named_items
from evalsvc.store.queue.references import checkpoint_reference
from evalsvc.store.results import read_results
from evalsvc.store.runs import deletion
from evalsvc.store.runs.base import base_view, name_base
from evalsvc.store.runs.renaming import rename_run
from evalsvc.store.views import document_of, plan_view

router = router_of(prefix="/v1", tags=["runs"], responses=PROBLEMS)


@router.get(
    "/runs",
    summary="Every run",
    responses=document(200, "A page of the runs, by name.", documents.Runs),
)
def list_runs(query: Annotated[PageQuery, Query()], state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(runs_view(session, query.page()))


@router.get(
    "/runs/{run}",
    summary="A run: its checkpoints, how far their evaluations are, and its plan",
    description="`checkpoints` has the 500 checkpoints of the highest steps, by step, and `checkpoint_count` is the "
    "number of all; `GET /v1/checkpoints?run=` lists all.",
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


@router.delete(
    "/runs/{run}",
    summary="Delete a run with all that came of it",
    description="Its checkpoints, evaluations, history, artifacts and spooled files; the files that were posted stay "
    "where they are. There is no way back. Evaluations that wait or run are in the way unless `cancel` is true, and so "
    "are other runs whose base or virtual checkpoints need it.",
    responses=document(200, "How much is gone.", documents.Deleted),
    operation_id="delete_run__v1_runs__run__delete",  # by which generated clients call this route
)
def delete_run(
    run: Name,
    state: CurrentState,
    confirm: Annotated[str, Query(description="The run's name once more.")],
    cancel: Annotated[bool, Query(description="Also where evaluations wait or run; they are stopped.")] = False,
) -> JsonAnswer:
    if confirm != run:
        raise InvalidRequest(f"confirm is {confirm[:160]!r} and the run is {run!r}; give confirm={run} to delete it")
    with state.writing() as session:
        deleted = deletion.delete_run(session, run, cancel)
    state.coordinator.wake()  # attempts that run are told to stop
    return JsonAnswer(document_of(documents.Deleted, deleted, freed_bytes=_drop_files(deleted, state)))


def _drop_files(deleted: deletion.Deleted, state: State) -> int:
    """Remove the files that only the deleted run needed. The service sweeps leftovers of a crash at its next start."""
    settings = state.settings
    for checkpoint, _ in deleted.spooled:
        spooled(settings.data_path, checkpoint).remove()
    for task in deleted.tasks:
        drop_outputs(settings.outputs_path, task)
    artifacts, items = (asked_anew(state.reading, named) for named in (named_artifacts, named_items))
    freed = drop_contents(settings.artifacts_path, deleted.artifact_contents, artifacts)
    return freed + drop_contents(settings.items_path, deleted.item_contents, items)


@router.get("/runs/{run}/plan", summary="A run's plan", responses=document(200, "The plan.", documents.Plan))
def get_plan(run: Name, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(plan_view(find_run(session, run)))


@router.put(
    "/runs/{run}/plan",
    summary="Say which suites a run's checkpoints get",
    description="It may come before the run's first checkpoint. It holds for what is posted from now on.",
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
    variant: Name = "raw",
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
    variant: str | None = None,
    prompt: Annotated[str | None, Query(description="Only of prompts that hold this text.")] = None,
) -> JsonAnswer:
    with state.reading() as session:
        folder = state.settings.items_path
        return JsonAnswer(read_completions(session, folder, find_run(session, run), variant, prompt))
