"""Routes of runs: lists, names, plans, bases, results and completions; and of the protocols of their values."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import Response

from evalsvc.api.answers import NOT_MODIFIED, JsonAnswer, answer, caching_headers, not_modified
from evalsvc.api.middleware.access import needs
from evalsvc.api.routes.checkpoints import Cancel, drop_files, require_confirmed
from evalsvc.api.routes.suites import find_suite
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import (
    BaseInput,
    Name,
    PageQuery,
    PlanInput,
    ProtocolPath,
    ProtocolsQuery,
    RunInput,
    RunPath,
    StepPath,
)
from evalsvc.api.state import CurrentState
from evalsvc.checkpoints.reference import verify
from evalsvc.spec import documents
from evalsvc.spec.documents.results import Completions
from evalsvc.store.history.series import listed_protocols, read_protocol
from evalsvc.store.lookup import find_run, get_or_create_run
from evalsvc.store.queue.attempts import checkpoint_reference
from evalsvc.store.results import read_completions, read_results
from evalsvc.store.runs import deletion
from evalsvc.store.runs.base import base_view, name_base
from evalsvc.store.runs.listing import run_view, runs_tag, runs_view
from evalsvc.store.views import document_of, plan_view

router = router_of(prefix="/v1", tags=["runs"])


@router.get(
    "/runs",
    summary="List runs",
    description="`GET /v1/runs/{run}` has the checkpoints of a run.",
    responses={200: answer(documents.Runs, "A page of the runs, ordered by name."), **NOT_MODIFIED},
)
@needs("read")
def list_runs(query: Annotated[PageQuery, Query()], request: Request, state: CurrentState) -> Response:
    with state.reading() as session:
        tag = runs_tag(session, query.page())
        return not_modified(request, tag) or JsonAnswer(
            runs_view(session, query.page(), state.answers.get), headers=caching_headers(tag)
        )


@router.get(
    "/runs/{run}",
    summary="Get a run with its plan, checkpoints and evaluations",
    description="`checkpoints` has the 500 checkpoints of the highest steps, ordered by step. `checkpoint_count` is "
    "the number of all checkpoints, which `GET /v1/checkpoints?run=` lists. Checkpoints that were replaced by another "
    "file are left out. `GET /v1/runs/{run}/metrics` has the values.",
    responses={200: answer(documents.Run, "The run.")},
)
@needs("read")
def get_run(run: RunPath, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(run_view(session, find_run(session, run)))


@router.patch(
    "/runs/{run}",
    summary="Rename a run",
    description="The new name also replaces the old name in expressions of virtual checkpoints and in bases of other "
    "runs. No value is measured again.",
    responses={200: answer(documents.Run, "The renamed run.")},
)
@needs("admin")
def patch_run(run: RunPath, body: RunInput, state: CurrentState) -> JsonAnswer:
    with state.writing() as session:
        content = run_view(session, deletion.rename_run(session, run, body.name))
    return JsonAnswer(content)


@router.delete(
    "/runs/{run}",
    summary="Delete a run with its checkpoints and results",
    description="Deletes the run's checkpoints, evaluations, history, artifacts and spooled files. The posted files "
    "stay. A deletion cannot be undone.\n\nThe deletion is refused with 409 while the run has unfinished evaluations, "
    "unless `cancel` is true, and while the base or a virtual checkpoint of another run needs a checkpoint of this "
    "run.",
    responses={200: answer(documents.Deleted, "The numbers of deleted rows, and the freed bytes.")},
    operation_id="delete_run__v1_runs__run__delete",  # the name that generated clients use
)
@needs("admin")
def delete_run(
    run: RunPath,
    state: CurrentState,
    confirm: Annotated[str, Query(description="The name of the run, as a confirmation.")],
    cancel: Cancel = False,
) -> JsonAnswer:
    require_confirmed(confirm, f"the run is {run!r}", run)
    with state.writing() as session:
        deleted = deletion.delete_run(session, run, cancel)
    state.coordinator.wake()  # to stop running attempts
    return JsonAnswer(document_of(documents.Deleted, deleted, freed_bytes=drop_files(deleted, state)))


@router.get(
    "/runs/{run}/plan",
    summary="Get a run's plan",
    description="The plan says which suites evaluate a checkpoint that is posted without `suites`. A run without a "
    "plan has an empty list.",
    responses={200: answer(documents.Plan, "The plan.")},
)
@needs("read")
def get_plan(run: RunPath, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(plan_view(find_run(session, run)))


@router.put(
    "/runs/{run}/plan",
    summary="Set a run's plan",
    description="The plan may be set before the run's first checkpoint, and applies to checkpoints posted later.",
    responses={200: answer(documents.Plan, "The plan.")},
)
@needs("submit")
def put_plan(run: RunPath, body: PlanInput, state: CurrentState) -> JsonAnswer:
    with state.writing() as session:
        for name in dict.fromkeys(entry.suite for entry in body.suites):
            find_suite(session, state.settings, name)
        row = get_or_create_run(session, run)
        row.plan = body.model_dump()
        return JsonAnswer(plan_view(row))


@router.put(
    "/runs/{run}/base",
    summary="Set the base of a run: the checkpoint to compare with",
    description="The base may be any checkpoint of any run, and is step 0 of the same run by default. The base may be "
    "set before the run's first checkpoint, and applies to later evaluations. Keep the base's weights for as long as "
    "the run is evaluated: for a base that was posted with `spool` the service keeps a copy; for other bases `in_use` "
    "stays true.",
    responses={200: answer(documents.Base, "The base, with the id of its current checkpoint.")},
)
@needs("submit")
def put_base(run: RunPath, body: BaseInput, state: CurrentState) -> JsonAnswer:
    with state.writing() as session:
        row = get_or_create_run(session, run)
        base = name_base(session, row, body.run or run, body.step, body.variant)
        folder = state.settings.data_path
        verify(checkpoint_reference(base, folder))
        content = base_view(session, row)
    state.coordinator.wake()
    return JsonAnswer(content)


@router.get(
    "/runs/{run}/results/{step}",
    summary="Get the whole result of a checkpoint",
    description="The document has the format of `evalsvc run --output`: metrics, protocols, results per item, and "
    "references to artifacts, from the newest evaluation by each suite. `state` is the joint state of these "
    "evaluations.",
    responses={200: answer(documents.CheckpointResult, "The result.")},
)
@needs("read")
def get_results(
    run: RunPath,
    step: StepPath,
    state: CurrentState,
    variant: Annotated[Name, Query(description="The variant of the step's weights.")] = "raw",
    suite: Annotated[str | None, Query(description="Only results of this suite.")] = None,
) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(read_results(session, state.settings.items_path, run, step, variant, suite))


@router.get(
    "/runs/{run}/completions",
    summary="Get the completions of fixed prompts by a run's checkpoints",
    description="The completions are from tasks of kind `completions`, in the newest evaluation of each checkpoint. "
    "`previous` is the difference in ids to the completion at the previous step that was drawn in the same way.",
    responses={200: answer(Completions, "The completions by step, of the checkpoint and of its base.")},
)
@needs("read")
def get_completions(
    run: RunPath,
    state: CurrentState,
    variant: Annotated[str | None, Query(description="Only completions by this variant of the weights.")] = None,
    prompt: Annotated[str | None, Query(description="Only prompts that contain this text.")] = None,
) -> JsonAnswer:
    with state.reading() as session:
        folder = state.settings.items_path
        return JsonAnswer(read_completions(session, folder, find_run(session, run), variant, prompt))


@router.get(
    "/protocols",
    summary="List protocols with their metrics and number of runs",
    description="With `run` or `metric`, the list only has protocols of values of the run or the metric. `metrics`, "
    "`runs` and `used_by` of a protocol cover all runs, whatever the filter.",
    responses={200: answer(documents.Protocols, "A page of the protocols, ordered by id.")},
)
@needs("read")
def list_protocols(query: Annotated[ProtocolsQuery, Query()], state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(listed_protocols(session, query.run, query.metric, query.page(), query.id))


@router.get(
    "/protocols/{protocol_id}",
    summary="Get the content of a protocol",
    description="The content has everything that changes a value: the task with its parameters, digests of data and "
    "networks, and versions. Two values are comparable only if they have the same protocol.",
    responses={
        200: {
            "description": "The content of the protocol.",
            "content": {"application/json": {"schema": {"type": "object"}, "example": {"task": "loss", "version": 1}}},
        }
    },
)
@needs("read")
def get_protocol(protocol_id: ProtocolPath, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(read_protocol(session, protocol_id))
