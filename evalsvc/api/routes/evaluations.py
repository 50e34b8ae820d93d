"""Evaluations: their lists, progress and results, and how to begin, cancel and retry them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import yaml
from fastapi import Query
from fastapi.responses import Response
from sqlalchemy.orm import Session

from evalsvc.api.csv_lines import csv_response
from evalsvc.api.errors import PROBLEMS
from evalsvc.api.json_answer import JsonAnswer, document, or_text
from evalsvc.api.list_queries import EvaluationsQuery
from evalsvc.api.routes.suites import current_digest, find_suite, suite_entries
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import EvaluationInput, Id, ItemsQuery
from evalsvc.api.state import CurrentState, State
from evalsvc.errors import UnknownName, WrongState
from evalsvc.files.items import ItemTable
from evalsvc.spec import documents
from evalsvc.spec.documents.items import Items
from evalsvc.store.lists.evaluations import evaluations_view
from evalsvc.store.lists.filters import require_suite
from evalsvc.store.lookup import find_checkpoint, find_evaluation, require_current_parents
from evalsvc.store.queue.evaluations import cancel_evaluation, retry_evaluation
from evalsvc.store.results import read_task_items
from evalsvc.store.runs.posting import evaluate
from evalsvc.store.suites import evaluated_suite
from evalsvc.store.tables import Evaluation
from evalsvc.store.views import evaluation_view

router = router_of(prefix="/v1/evaluations", tags=["evaluations"], responses=PROBLEMS)

_CSV = "task,index,benchmark,acc\nlanguage,0,arc_easy,1.0\n"

_YAML = "# Suite loss as evaluation 40 began with it, digest 4f0c…\ntasks:\n- kind: loss\n  name: loss\n"


@router.post(
    "",
    status_code=201,
    summary="Evaluate a posted checkpoint with a suite",
    description="While an evaluation with this suite is not over, it is answered with 200; afterwards a new one "
    "measures again.",
    responses=document(201, "A new evaluation.", documents.Evaluation)
    | document(200, "The one that is not over.", documents.Evaluation),
)
def post_evaluation(body: EvaluationInput, state: CurrentState) -> JsonAnswer:
    with state.writing() as session:
        checkpoint = find_checkpoint(session, body.checkpoint)
        if checkpoint.replaced_at is not None:
            raise WrongState(f"checkpoint {checkpoint.id} was replaced by another file; evaluate the new one")
        require_current_parents(checkpoint)
        suite = find_suite(session, state.settings, body.suite)
        evaluation, created = evaluate(session, checkpoint, suite, body.priority)
        content = evaluation_view(session, evaluation, state.coordinator.live())
    state.coordinator.wake()
    return JsonAnswer(content, 201 if created else 200)


@router.get(
    "",
    summary="Evaluations of any run, the newest first",
    description="Without their tasks, and with those of replaced checkpoints. `error` is the whole message of an "
    "evaluation that failed.",
    responses=document(200, "A page of the evaluations.", documents.Evaluations),
)
def list_evaluations(query: Annotated[EvaluationsQuery, Query()], state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        if query.suite is not None:
            require_suite(session, query.suite, suite_entries(session, state.settings))
        return JsonAnswer(evaluations_view(session, query.filters(), query.page()))


@router.get(
    "/{evaluation_id}",
    summary="An evaluation",
    description="A task that goes on may have an `interim` result: its metrics after `done` units of work. It is "
    "replaced at every look and removed at the end, and never enters the history. `retry` says how many of its shards "
    "failed by what may pass and wait to be tried again, from when on, and what the first of them failed by. "
    "`warnings` say what is suspicious about a task's result: numbers that cannot be right, or rest on too little.",
    responses=document(200, "Its state, progress and results.", documents.Evaluation),
)
def get_evaluation(evaluation_id: Id, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(evaluation_view(session, find_evaluation(session, evaluation_id), state.coordinator.live()))


@router.get(
    "/{evaluation_id}/suite",
    summary="The suite that an evaluation began with",
    description="The suite stays readable although the suite of this name was replaced or deleted since: "
    "`current_digest` says what the name stands for now. As YAML, the answer can be put under a name, or given to "
    "`evalsvc run`.",
    response_model=None,
    responses=or_text(
        document(200, "The tasks with all their parameters.", documents.EvaluatedSuite),
        "application/yaml",
        _YAML,
        schema_type="object",
    ),
)
def get_evaluated_suite(
    evaluation_id: Id,
    state: CurrentState,
    format: Annotated[  # noqa: A002
        Literal["json", "yaml"], Query(description="The document in JSON, or the suite alone as YAML.")
    ] = "json",
) -> Response:
    with state.reading() as session:
        evaluation = find_evaluation(session, evaluation_id)
        suite = evaluated_suite(evaluation)
        content = documents.EvaluatedSuite(
            evaluation=evaluation_id,
            name=evaluation.suite,
            tasks=suite.tasks_to_json(),
            digest=evaluation.suite_digest,
            current_digest=current_digest(session, state.settings, evaluation.suite),
        )
    return Response(_as_yaml(content), media_type="application/yaml") if format == "yaml" else JsonAnswer(content)


def _as_yaml(suite: documents.EvaluatedSuite) -> str:
    """Return a suite as a file of suites has it; the name is that of the file."""
    head = f"# Suite {suite.name} as evaluation {suite.evaluation} began with it, digest {suite.digest}\n"
    return head + yaml.safe_dump({"tasks": suite.tasks}, sort_keys=False, allow_unicode=True)


@router.get(
    "/{evaluation_id}/items",
    summary="An evaluation's results per item",
    description="Of the tasks that have succeeded. Paired comparisons of two checkpoints rest on them. `columns` "
    "chooses keys of the items. As CSV, the first column is the task, what an item lacks is empty, and lists are JSON.",
    response_model=None,
    responses=or_text(document(200, "By task, in the order of the data.", Items), "text/csv", _CSV),
)
def list_items(evaluation_id: Id, query: Annotated[ItemsQuery, Query()], state: CurrentState) -> Response:
    with state.reading() as session:
        evaluation = find_evaluation(session, evaluation_id)
        tables = read_task_items(evaluation, state.settings.items_path, query.task)
    if query.benchmark is not None:
        tables = _with_benchmark(tables, query.benchmark, evaluation_id)
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


def _with_benchmark(tables: dict[str, ItemTable], benchmark: str, evaluation_id: int) -> dict[str, ItemTable]:
    """Return the items of a benchmark, by task."""
    known = {str(name) for table in tables.values() for name in table.column("benchmark") if name is not None}
    if benchmark not in known:
        raise UnknownName.among(f"benchmark of evaluation {evaluation_id}", benchmark, known)
    of = {task: table.where("benchmark", benchmark) for task, table in tables.items()}
    return {task: table for task, table in of.items() if len(table)}


@router.post(
    "/{evaluation_id}/cancel",
    status_code=202,
    summary="Cancel an evaluation",
    description="What waits is not begun, what runs is told to stop; finished shards keep their results.",
    responses=document(202, "Cancelled; running shards stop soon.", documents.Evaluation),
)
def post_cancel(evaluation_id: Id, state: CurrentState) -> JsonAnswer:
    return _changed(state, evaluation_id, cancel_evaluation)


@router.post(
    "/{evaluation_id}/retry",
    status_code=202,
    summary="Try again what failed or was cancelled",
    description="Finished shards keep their results and do not run again.",
    responses=document(202, "Queued again.", documents.Evaluation),
)
def post_retry(evaluation_id: Id, state: CurrentState) -> JsonAnswer:
    return _changed(state, evaluation_id, retry_evaluation)


def _changed(state: State, evaluation_id: int, change: Callable[[Session, int], Evaluation]) -> JsonAnswer:
    with state.writing() as session:
        content = evaluation_view(session, change(session, evaluation_id), state.coordinator.live())
    state.coordinator.wake()
    return JsonAnswer(content, 202)
