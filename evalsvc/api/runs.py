"""Runs: their checkpoints, their plans, and their history, which is what the service exists for."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from evalsvc.api.document import Document, example
from evalsvc.api.errors import PROBLEMS
from evalsvc.api.schemas import HistoryQuery, Name, PlanInput
from evalsvc.api.state import CurrentState
from evalsvc.api.suites import find_suite
from evalsvc.store.history import read_history, read_protocol
from evalsvc.store.submission import find_run, get_or_create_run
from evalsvc.store.views import plan_view, run_view, runs_view

router = APIRouter(prefix="/v1", tags=["runs"], responses=PROBLEMS)

_PLAN = {"suites": [{"suite": "loss", "every": 500, "first": None, "last": None}], "when_behind": "newest"}

_HISTORY = {
    "run": "t2i-1b-pretrained",
    "x": "step",
    "series": [
        {
            "metric": "loss/image",
            "variant": "raw",
            "protocol": "9a3f0c1d2e4b5a69",
            "unit": "nats/token",
            "direction": "lower",
            "baseline": 9.704,
            "x": [0, 2500],
            "value": ["NaN", 6.31],
            "stderr": [None, 0.02],
            "n": [400, 400],
            "omitted": 0,
        }
    ],
    "names": [{"name": "loss/image", "unit": "nats/token", "direction": "lower"}],
}


@router.get(
    "/runs",
    summary="Every run",
    responses=example(
        200, "The runs by name.", {"runs": [{"name": "t2i-1b", "checkpoints": 9, "last_step": 4000, "values": 180}]}
    ),
)
def list_runs(state: CurrentState) -> Document:
    with state.reading() as session:
        return Document({"runs": runs_view(session)})


@router.get("/runs/{run}", summary="A run: its checkpoints, how far their evaluations are, and its plan")
def get_run(run: Name, state: CurrentState) -> Document:
    with state.reading() as session:
        return Document(run_view(session, find_run(session, run)))


@router.get("/runs/{run}/plan", summary="A run's plan", responses=example(200, "The plan.", _PLAN))
def get_plan(run: Name, state: CurrentState) -> Document:
    with state.reading() as session:
        return Document(plan_view(find_run(session, run)))


@router.put(
    "/runs/{run}/plan",
    summary="Say which suites a run's checkpoints get",
    description="It may come before the run's first checkpoint. It holds for what is posted from now on.",
    responses=example(200, "The plan.", _PLAN),
)
def put_plan(run: Name, body: PlanInput, state: CurrentState) -> Document:
    with state.writing() as session:
        for entry in body.suites:
            find_suite(session, state.settings, entry.suite)
        row = get_or_create_run(session, run)
        row.plan = body.model_dump()
        return Document(plan_view(row))


@router.get(
    "/runs/{run}/metrics",
    summary="A run's history: values of metrics along training steps or tokens",
    description="One series per metric, variant and protocol: values in one series are comparable. NaN and infinities "
    "are strings. `omitted` counts values without a place on the axis.",
    responses=example(200, "Columns ordered by x.", _HISTORY),
)
def get_history(run: Name, query: Annotated[HistoryQuery, Query()], state: CurrentState) -> Document:
    with state.reading() as session:
        return Document(read_history(session, run, query.name, query.variant, query.x))


@router.get("/protocols/{protocol_id}", summary="What a protocol's id stands for")
def get_protocol(protocol_id: Name, state: CurrentState) -> Document:
    with state.reading() as session:
        return Document(read_protocol(session, protocol_id))
