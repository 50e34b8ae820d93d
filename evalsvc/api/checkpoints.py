"""Checkpoints in: what a training job posts. A request looks at files by stat only and never reads a large one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from sqlalchemy.orm import Session

from evalsvc.api.document import Document, example
from evalsvc.api.errors import PROBLEMS
from evalsvc.api.schemas import CheckpointInput, Id
from evalsvc.api.state import CurrentState
from evalsvc.api.suites import find_suite
from evalsvc.checkpoints import discard, identify, locate, spool_link, spool_path
from evalsvc.config import Settings
from evalsvc.layout import parse_layout
from evalsvc.model_config import config_beside, read_model_spec
from evalsvc.store.submission import Submission, Submitted, find_checkpoint, submit
from evalsvc.store.tables import Checkpoint
from evalsvc.store.views import checkpoint_view, evaluation_summary

router = APIRouter(prefix="/v1/checkpoints", tags=["checkpoints"], responses=PROBLEMS)

_EXAMPLE = {
    "checkpoint": {
        "id": 17,
        "run": "t2i-1b-pretrained",
        "step": 2500,
        "variant": "raw",
        "in_use": True,
        "spool": "none",
    },
    "evaluations": [{"id": 40, "suite": "loss", "state": "queued"}],
}


@router.post(
    "",
    status_code=201,
    summary="Post a checkpoint and have it evaluated",
    description="The same post again changes nothing and answers 200 with the same ids. Another file at the same run, "
    "step and variant is a conflict unless `replace` is true.",
    responses=example(201, "The checkpoint and one evaluation per suite.", _EXAMPLE)
    | example(200, "It was there already: the same checkpoint, the same evaluations.", _EXAMPLE),
)
def post_checkpoint(body: CheckpointInput, state: CurrentState) -> Document:
    submission = _submission(body, state.settings)
    with state.writing() as session:
        submitted = _enter(session, state.settings, submission, body.suites)
        content = {
            "checkpoint": checkpoint_view(session, submitted.checkpoint),
            "evaluations": [evaluation_summary(evaluation) for evaluation in submitted.evaluations],
        }
    state.coordinator.wake()
    return Document(content, 201 if submitted.created else 200)


@router.get("/{checkpoint_id}", summary="A checkpoint, whether its file is still needed, and its evaluations")
def get_checkpoint(checkpoint_id: Id, state: CurrentState) -> Document:
    with state.reading() as session:
        return Document(checkpoint_view(session, find_checkpoint(session, checkpoint_id)))


def _enter(session: Session, settings: Settings, submission: Submission, names: Sequence[str] | None) -> Submitted:
    find = partial(find_suite, session, settings)
    suites = None if names is None else [find(name) for name in dict.fromkeys(names)]
    submitted = submit(session, submission, suites, find)
    if submitted.created and submission.spool == "link":
        _link(settings, submitted.checkpoint)
    return submitted


def _link(settings: Settings, checkpoint: Checkpoint) -> None:
    target = spool_path(settings.data_path, checkpoint.id, checkpoint.path)
    # A post that was rolled back may have left its link under an id that is now given anew.
    discard(target)
    spool_link(Path(checkpoint.path), target)
    checkpoint.spool_state = "ready"


def _submission(body: CheckpointInput, settings: Settings) -> Submission:
    path = locate(body.uri, settings.root_paths)
    model = config_beside(path) if body.model is None else _model(body.model, settings)
    layout = None if body.layout is None else _layout(body.layout, model, settings)
    return Submission(
        run=body.run,
        step=body.step,
        uri=body.uri,
        path=str(path),
        identity=identify(path),
        variant=body.variant,
        sha256=None if body.sha256 is None else body.sha256.lower(),
        model=model,
        layout=layout,
        tokens_seen=body.tokens_seen,
        tags=body.tags,
        spool=body.spool,
        priority=body.priority,
        replace=body.replace,
    )


def _model(model: str | Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    if isinstance(model, str) and _names_file(model):
        model = str(locate(model, settings.root_paths))
    # Without the base, a name could be a file of the folder that the service happens to run in.
    return read_model_spec(model, base=Path("/"))


def _layout(layout: str | Mapping[str, Any], model: Mapping[str, Any] | None, settings: Settings) -> dict[str, Any]:
    """The layout inline, checked against the model's table where its size is known."""
    if isinstance(layout, str) and _names_file(layout):
        layout = str(locate(layout, settings.root_paths))
    image = layout.get("image") if isinstance(layout, Mapping) else None
    if isinstance(image, Mapping) and isinstance(image.get("map"), str):
        locate(image["map"], settings.root_paths)
    parsed = parse_layout(layout)
    rows = (model or {}).get("vocab_size")
    if isinstance(rows, int):
        parsed.resolve(rows)
    return parsed.to_json()


def _names_file(text: str) -> bool:
    return "/" in text or text.endswith((".json", ".yaml", ".yml"))
