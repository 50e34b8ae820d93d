"""Artifacts: lists of them, their content, and the rules by which they are kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import Query
from fastapi.responses import Response

from evalsvc.api.errors import PROBLEMS
from evalsvc.api.json_answer import JsonAnswer, document
from evalsvc.api.list_queries import ArtifactsQuery, RunArtifactsQuery
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import Id, Name, RetentionInput
from evalsvc.api.state import CurrentState
from evalsvc.errors import ArtifactPruned, UnknownName
from evalsvc.files.artifacts import DamagedContent, artifact_path, read_content
from evalsvc.service.pruner import prune
from evalsvc.spec import documents
from evalsvc.spec.artifact_policy import parse_retention
from evalsvc.store.lists.artifacts import evaluation_artifacts, run_artifacts
from evalsvc.store.lookup import find_evaluation, find_run, get_or_create_run
from evalsvc.store.runs.pruning import require_metric, retention_view
from evalsvc.store.tables import Artifact

_POLICY = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
"""The Content-Security-Policy of an artifact. A page runs no script, since its origin would be that of this service."""

_MEDIA_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]+(; charset=[a-z0-9-]+)?")

router = router_of(prefix="/v1", tags=["artifacts"], responses=PROBLEMS)


@router.get(
    "/evaluations/{evaluation_id}/artifacts",
    summary="What an evaluation left to be looked at",
    description="In the order of the evaluation's tasks. A pruned artifact keeps its description, with `pruned_at`.",
    responses=document(200, "Descriptions; the content is at /v1/artifacts/{id}.", documents.Artifacts),
)
def list_evaluation_artifacts(
    evaluation_id: Id, query: Annotated[ArtifactsQuery, Query()], state: CurrentState
) -> JsonAnswer:
    with state.reading() as session:
        find_evaluation(session, evaluation_id)
        return JsonAnswer(evaluation_artifacts(session, evaluation_id, query.kind, query.page()))


@router.get(
    "/runs/{run}/artifacts",
    summary="A run's artifacts, by step",
    description="Those of checkpoints that were not replaced, of every evaluation. A pruned artifact keeps its "
    "description, with `pruned_at`.",
    responses=document(200, "Descriptions; the content is at /v1/artifacts/{id}.", documents.Artifacts),
)
def list_run_artifacts(run: Name, query: Annotated[RunArtifactsQuery, Query()], state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(run_artifacts(session, find_run(session, run), query.kind, query.step, query.page()))


@router.get(
    "/runs/{run}/retention",
    summary="Which artifacts of a run are kept",
    description="A run without a rule of its own has the service's (`EVALSVC_RETENTION`).",
    responses=document(200, "The rule, and whose it is: the run's own, or the service's.", documents.Retention),
)
def get_retention(run: Name, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(retention_view(find_run(session, run), parse_retention(state.settings.retention)))


@router.put(
    "/runs/{run}/retention",
    summary="Say which artifacts of a run are kept",
    description="What any part of the rule keeps is kept; the others are pruned within the hour, or now by "
    "`POST /v1/prune`. Without `keep`, the rule is the service's own (`EVALSVC_RETENTION`). Metrics and "
    "results per item always stay. `best` is a metric that some run has values of; as long as this run has none, all "
    "of its artifacts are kept.",
    responses=document(200, "The rule.", documents.Retention),
)
def put_retention(run: Name, body: RetentionInput, state: CurrentState) -> JsonAnswer:
    with state.writing() as session:
        if body.keep is not None and body.keep.best is not None:
            require_metric(session, body.keep.best)
        row = get_or_create_run(session, run)
        row.retention = None if body.keep is None else body.keep.model_dump(exclude_none=True)
        return JsonAnswer(retention_view(row, parse_retention(state.settings.retention)))


@router.post(
    "/prune",
    summary="Prune artifacts by the rules now",
    description="The service does it by itself every hour. A content that several artifacts have goes with the last.",
    responses=document(200, "How much was, or would be, pruned.", documents.Pruned),
)
def post_prune(
    state: CurrentState,
    run: Annotated[Name | None, Query(description="Only of this run.")] = None,
    dry_run: Annotated[bool, Query(description="Only say what would be pruned.")] = False,
) -> JsonAnswer:
    return JsonAnswer(prune(state.settings, state.writing, state.reading, run=run, dry_run=dry_run))


@router.get(
    "/artifacts/{artifact_id:int}",  # what is no number is another route's
    summary="The content of an artifact",
    description="The content never changes, so a browser keeps it. A pruned artifact is answered with 410.",
    response_model=None,
    response_class=Response,
    responses={
        200: {
            "description": "As it was left, of the type that it has.",
            "content": {"*/*": {"schema": {}, "example": "the bytes of grid.png"}},
        }
    },
)
def get_artifact(artifact_id: Id, state: CurrentState) -> Response:
    with state.reading() as session:
        artifact = session.get(Artifact, artifact_id)
        if artifact is None:
            raise UnknownName(f"there is no artifact {artifact_id}; GET /v1/runs/{{run}}/artifacts lists a run's")
        if artifact.pruned_at is not None:
            raise ArtifactPruned(
                f"artifact {artifact_id} ({artifact.name} of evaluation {artifact.task.evaluation_id}) was pruned at "
                f"{artifact.pruned_at:%Y-%m-%d %H:%M} UTC by the rule of its run; evaluate the checkpoint again by "
                "POST /v1/evaluations, and keep more by PUT /v1/runs/{run}/retention"
            )
    headers = {
        # Content under a digest never changes.
        "ETag": f'"{artifact.sha256}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Security-Policy": _POLICY,
        "Content-Disposition": _disposition(re.split(r"[/\\]", artifact.name)[-1] or f"artifact-{artifact.id}"),
    }
    media_type = artifact.media_type if _MEDIA_TYPE.fullmatch(artifact.media_type) else "application/octet-stream"
    return Response(_content(artifact, state.settings.artifacts_path), media_type=media_type, headers=headers)


def _content(artifact: Artifact, folder: Path) -> bytes:
    try:
        return read_content(folder, artifact.sha256, artifact.size)
    except DamagedContent:
        problem = "is not what was written, and is not shown"
    except OSError:
        problem = "is no longer there"
    path = artifact_path(folder, artifact.sha256)
    raise UnknownName(
        f"the content of artifact {artifact.id}, {path}, {problem}; put the file back from a backup of the data "
        "folder, or evaluate again"
    )


def _disposition(name: str) -> str:
    """Return the Content-Disposition header, in which a foreign name cannot become another header."""
    quoted = quote(name, safe="")
    return f'inline; filename="{name}"' if quoted == name else f"inline; filename*=utf-8''{quoted}"
