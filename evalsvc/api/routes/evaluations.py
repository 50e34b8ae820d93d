"""Routes of evaluations: begin, list, read, cancel and retry evaluations, and read results per item."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import yaml
from fastapi import Query
from fastapi.responses import Response
from sqlalchemy.orm import Session

from evalsvc.api.answers import JsonAnswer, answer, csv_response, or_text
from evalsvc.api.middleware.access import needs
from evalsvc.api.routes.suites import current_digest, find_suite, suite_entries
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import EvaluationId, EvaluationInput, EvaluationsQuery, ItemsQuery
from evalsvc.api.state import CurrentState, State
from evalsvc.config import Settings
from evalsvc.errors import UnknownName, WrongState
from evalsvc.spec import documents
from evalsvc.spec.documents.results import Items
from evalsvc.store.lookup import find_checkpoint, find_evaluation, require_current_parents
from evalsvc.store.pages import require_suite
from evalsvc.store.queue.stages import cancel_evaluation, retry_evaluation
from evalsvc.store.results import read_task_items
from evalsvc.store.runs.posting import evaluate
from evalsvc.store.suites import evaluated_suite
from evalsvc.store.tables import OVER, Evaluation
from evalsvc.store.views import evaluation_view, evaluations_view, read_pace

router = router_of(prefix="/v1/evaluations", tags=["evaluations"])

_CSV = "task,index,benchmark,acc\nlanguage,0,arc_easy,1.0\n"

_YAML = "# Suite loss as evaluation 40 began with it, digest 4f0c…\ntasks:\n- kind: loss\n  name: loss\n"


@router.post(
    "",
    status_code=201,
    summary="Evaluate a posted checkpoint with a suite",
    description="If the checkpoint has an unfinished evaluation by the suite, the answer is 200 with this evaluation. "
    "Otherwise a new evaluation measures again.",
    responses={
        201: answer(documents.Evaluation, "A new evaluation."),
        200: answer(documents.Evaluation, "The unfinished evaluation."),
    },
)
@needs("submit")
def post_evaluation(body: EvaluationInput, state: CurrentState) -> JsonAnswer:
    content, created = begin_evaluation(state, body)
    return JsonAnswer(content, 201 if created else 200)


def begin_evaluation(state: State, body: EvaluationInput) -> tuple[documents.Evaluation, bool]:
    """Evaluate a checkpoint with a suite; return the evaluation, and whether it is new."""
    with state.writing() as session:
        checkpoint = find_checkpoint(session, body.checkpoint)
        if checkpoint.replaced_at is not None:
            raise WrongState(f"checkpoint {checkpoint.id} was replaced by another file; evaluate the new checkpoint")
        require_current_parents(checkpoint)
        suite = find_suite(session, state.settings, body.suite)
        evaluation, created = evaluate(session, checkpoint, suite, body.priority)
        content = evaluation_view(session, evaluation, state.coordinator.live())
    state.coordinator.wake()
    return content, created


@router.get(
    "",
    summary="List evaluations, the newest first",
    description="The list includes evaluations of replaced checkpoints, and leaves out tasks. `error` has the whole "
    "message of a failed evaluation.",
    responses={200: answer(documents.Evaluations, "A page of the evaluations.")},
)
@needs("read")
def list_evaluations(query: Annotated[EvaluationsQuery, Query()], state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        if query.suite is not None:
            require_suite(session, query.suite, suite_entries(session, state.settings))
        return JsonAnswer(evaluations_view(session, query.filters(), query.page()))


@router.get(
    "/{evaluation_id}",
    summary="Get an evaluation with its tasks",
    description="A running task may have an `interim` result, its metrics after `done` units of work. Every look "
    "replaces the interim result, the end of the task removes it, and it never enters the history. `retry` has the "
    "number of shards that failed with a transient error and wait for a retry, the time of the next retry, and the "
    "error of its shard. `warnings` name suspicious results: values that cannot be right, or rest on too few items.",
    responses={200: answer(documents.Evaluation, "The evaluation, with progress and results of its tasks.")},
)
@needs("read")
def get_evaluation(evaluation_id: EvaluationId, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(read_evaluation(state, session, evaluation_id))


def read_evaluation(state: State, session: Session, evaluation_id: int) -> documents.Evaluation:
    row, live = find_evaluation(session, evaluation_id), state.coordinator.live()
    pace = None if row.state in OVER else read_pace(session, live, state.coordinator.workers())
    return evaluation_view(session, row, live, pace)


@router.get(
    "/{evaluation_id}/suite",
    summary="Get the suite that an evaluation began with",
    description="The suite stays readable after the suite of this name was replaced or deleted. `current_digest` is "
    "the digest of the suite that has the name now. The YAML format is valid for `PUT /v1/suites/{name}` and for "
    "`evalsvc run`.",
    responses={
        200: answer(
            documents.EvaluatedSuite,
            "The tasks with all parameters.",
            **or_text("application/yaml", _YAML, schema_type="object"),
        )
    },
)
@needs("read")
def get_evaluated_suite(
    evaluation_id: EvaluationId,
    state: CurrentState,
    format: Annotated[  # noqa: A002
        Literal["json", "yaml"], Query(description="The document as JSON, or only the suite as YAML.")
    ] = "json",
) -> Response:
    with state.reading() as session:
        content = evaluated_suite_view(session, state.settings, evaluation_id)
    if format == "json":
        return JsonAnswer(content)
    head = f"# Suite {content.name} as evaluation {content.evaluation} began with it, digest {content.digest}\n"
    text = head + yaml.safe_dump({"tasks": content.tasks}, sort_keys=False, allow_unicode=True)
    return Response(text, media_type="application/yaml")


def evaluated_suite_view(session: Session, settings: Settings, evaluation_id: int) -> documents.EvaluatedSuite:
    evaluation = find_evaluation(session, evaluation_id)
    return documents.EvaluatedSuite(
        evaluation=evaluation_id,
        name=evaluation.suite,
        tasks=evaluated_suite(evaluation).tasks_to_json(),
        digest=evaluation.suite_digest,
        current_digest=current_digest(session, settings, evaluation.suite),
    )


@router.get(
    "/{evaluation_id}/items",
    summary="Get an evaluation's results per item",
    description="The results of succeeded tasks, which paired comparisons of two checkpoints use. `columns` chooses "
    "keys of the items. In CSV, the first column is the task, missing keys are empty cells, and lists are JSON.",
    responses={200: answer(Items, "The items by task, in the order of the data.", **or_text("text/csv", _CSV))},
)
@needs("read")
def list_items(evaluation_id: EvaluationId, query: Annotated[ItemsQuery, Query()], state: CurrentState) -> Response:
    with state.reading() as session:
        evaluation = find_evaluation(session, evaluation_id)
        tables = read_task_items(evaluation, state.settings.items_path, query.task)
    if query.benchmark is not None:
        known = {str(name) for table in tables.values() for name in table.column("benchmark") if name is not None}
        if query.benchmark not in known:
            raise UnknownName.among(f"benchmark of evaluation {evaluation_id}", query.benchmark, known)
        filtered = {task: table.where("benchmark", query.benchmark) for task, table in tables.items()}
        tables = {task: table for task, table in filtered.items() if len(table)}
    names = list(dict.fromkeys(name for table in tables.values() for name in table.names))
    for column in query.columns:
        if column not in names:
            raise UnknownName.among(f"column of the items of evaluation {evaluation_id}", column, names)
    chosen = query.columns or names
    if query.format == "csv":
        rows = ([task, *map(row.get, chosen)] for task, table in tables.items() for row in table.rows(chosen))
        return csv_response(["task", *chosen], rows, state.threads)
    items = {task: list(table.rows(chosen)) for task, table in tables.items()}
    return JsonAnswer(Items(evaluation=evaluation_id, state=evaluation.state, items=items))


@router.post(
    "/{evaluation_id}/cancel",
    status_code=202,
    summary="Cancel an evaluation",
    description="Queued shards do not start, and running shards stop. Finished shards keep their results.",
    responses={202: answer(documents.Evaluation, "The cancelled evaluation; running shards stop soon.")},
)
@needs("submit")
def post_cancel(evaluation_id: EvaluationId, state: CurrentState) -> JsonAnswer:
    return JsonAnswer(change_evaluation(state, evaluation_id, cancel_evaluation), 202)


@router.post(
    "/{evaluation_id}/retry",
    status_code=202,
    summary="Retry a failed or cancelled evaluation",
    description="Failed and cancelled shards are queued again. Finished shards keep their results.",
    responses={202: answer(documents.Evaluation, "The queued evaluation.")},
)
@needs("submit")
def post_retry(evaluation_id: EvaluationId, state: CurrentState) -> JsonAnswer:
    return JsonAnswer(change_evaluation(state, evaluation_id, retry_evaluation), 202)


def change_evaluation(
    state: State, evaluation_id: int, change: Callable[[Session, int], Evaluation]
) -> documents.Evaluation:
    with state.writing() as session:
        content = evaluation_view(session, change(session, evaluation_id), state.coordinator.live())
    state.coordinator.wake()
    return content
