"""Routes of artifacts: lists, contents, retention rules and pruning."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import quote

from fastapi import Query
from fastapi.responses import Response
from sqlalchemy.orm import Session

from evalsvc.api.answers import JsonAnswer, answer
from evalsvc.api.middleware.access import needs
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import (
    ArtifactId,
    ArtifactsQuery,
    EvaluationId,
    Name,
    RetentionInput,
    RunArtifactsQuery,
    RunPath,
)
from evalsvc.api.state import CurrentState
from evalsvc.compare.text_pages import ENDINGS, MEDIA_TYPES, ReportForm, rendered
from evalsvc.errors import ArtifactPruned, UnknownName
from evalsvc.files.artifacts import read_content
from evalsvc.files.atomic import FileLost
from evalsvc.service.shard_files import prune
from evalsvc.spec import documents
from evalsvc.spec.artifact_policy import parse_retention
from evalsvc.store.artifacts import evaluation_artifacts, require_metric, retention_view, run_artifacts
from evalsvc.store.lookup import find_evaluation, find_run, get_or_create_run
from evalsvc.store.tables import Artifact

_POLICY = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
"""The Content-Security-Policy of an artifact. A page runs no scripts, since they would have the service's origin."""

_MEDIA_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]+(; charset=[a-z0-9-]+)?")

router = router_of(prefix="/v1", tags=["artifacts"])


@router.get(
    "/evaluations/{evaluation_id}/artifacts",
    summary="List the artifacts of an evaluation",
    description="Artifacts are files for people to look at, such as grids of images. The list is in the order of the "
    "evaluation's tasks. A pruned artifact stays in the list, with `pruned_at`.",
    responses={200: answer(documents.Artifacts, "A page of artifacts; the contents are at /v1/artifacts/{id}.")},
)
@needs("read")
def list_evaluation_artifacts(
    evaluation_id: EvaluationId, query: Annotated[ArtifactsQuery, Query()], state: CurrentState
) -> JsonAnswer:
    with state.reading() as session:
        find_evaluation(session, evaluation_id)
        return JsonAnswer(evaluation_artifacts(session, evaluation_id, query.kind, query.page()))


@router.get(
    "/runs/{run}/artifacts",
    summary="List a run's artifacts, by step",
    description="The artifacts of all evaluations of the run's current checkpoints. Checkpoints that were replaced by "
    "another file are left out. A pruned artifact stays in the list, with `pruned_at`.",
    responses={200: answer(documents.Artifacts, "A page of artifacts; the contents are at /v1/artifacts/{id}.")},
)
@needs("read")
def list_run_artifacts(run: RunPath, query: Annotated[RunArtifactsQuery, Query()], state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(run_artifacts(session, find_run(session, run), query.kind, query.step, query.page()))


@router.get(
    "/runs/{run}/retention",
    summary="Get the retention rule of a run's artifacts",
    description="For a run without a rule, the rule of the service applies (`EVALSVC_RETENTION`).",
    responses={200: answer(documents.Retention, "The rule, and whether it is the run's or the service's.")},
)
@needs("read")
def get_retention(run: RunPath, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(retention_view(find_run(session, run), parse_retention(state.settings.retention)))


@router.put(
    "/runs/{run}/retention",
    summary="Set the retention rule of a run's artifacts",
    description="An artifact is kept if any part of the rule keeps it. The service prunes other artifacts within an "
    "hour, and `POST /v1/prune` prunes them immediately. If `keep` is null, the rule of the service applies "
    "(`EVALSVC_RETENTION`). Metrics and results per item always stay. `best` must be a metric with values in at least "
    "one run; all artifacts of this run are kept while the run has no values of the metric.",
    responses={200: answer(documents.Retention, "The rule.")},
)
@needs("admin")
def put_retention(run: RunPath, body: RetentionInput, state: CurrentState) -> JsonAnswer:
    with state.writing() as session:
        if body.keep is not None and body.keep.best is not None:
            require_metric(session, body.keep.best)
        row = get_or_create_run(session, run)
        row.retention = None if body.keep is None else body.keep.model_dump(exclude_none=True)
        return JsonAnswer(retention_view(row, parse_retention(state.settings.retention)))


@router.post(
    "/prune",
    summary="Prune artifacts by the retention rules now",
    description="The service also prunes every hour. A content that several artifacts have is deleted with the last "
    "of these artifacts.",
    responses={200: answer(documents.Pruned, "The number and bytes of the artifacts that were, or would be, pruned.")},
)
@needs("admin")
def post_prune(
    state: CurrentState,
    run: Annotated[Name | None, Query(description="Only prune artifacts of this run.")] = None,
    dry_run: Annotated[bool, Query(description="Only report what would be pruned.")] = False,
) -> JsonAnswer:
    return JsonAnswer(prune(state.settings, state.writing, state.reading, run=run, dry_run=dry_run))


@router.get(
    "/artifacts/{artifact_id}",
    summary="Get the content of an artifact",
    description="The content never changes, so browsers cache it. The answer for a pruned artifact is 410. Artifacts "
    "of the kinds `forgetting` and `completions` are reports as JSON; `form=text` renders them for readers, and "
    "`form=csv` the numbers of `forgetting` as a table.",
    response_class=Response,
    responses={
        200: {
            "description": "The content, with the media type of the artifact.",
            "content": {"*/*": {"schema": {}, "example": "the bytes of grid.png"}},
        }
    },
)
@needs("read")
def get_artifact(
    artifact_id: ArtifactId,
    state: CurrentState,
    form: Annotated[ReportForm | None, Query(description="Form to render a report in [as it is stored].")] = None,
) -> Response:
    with state.reading() as session:
        artifact = kept_artifact(session, artifact_id)
    name, content = re.split(r"[/\\]", artifact.name)[-1], artifact_content(artifact, state.settings.artifacts_path)
    media_type = artifact.media_type if _MEDIA_TYPE.fullmatch(artifact.media_type) else "application/octet-stream"
    digest, age = artifact.sha256, "max-age=31536000, immutable"  # the content never changes
    if form is not None:
        content = rendered(artifact.kind, content, form).encode()
        name, media_type = PurePosixPath(name).stem + ENDINGS[form], MEDIA_TYPES[form]
        digest, age = hashlib.sha256(content).hexdigest(), "no-cache"  # another version may render another text
    headers = {
        "ETag": f'"{digest}"',
        "Cache-Control": f"private, {age}",
        "Content-Security-Policy": _POLICY,
        "Content-Disposition": _disposition(name or f"artifact-{artifact.id}"),
    }
    return Response(content, media_type=media_type, headers=headers)


def kept_artifact(session: Session, artifact_id: int) -> Artifact:
    artifact = session.get(Artifact, artifact_id)
    if artifact is None:
        raise UnknownName(
            f"there is no artifact {artifact_id}; GET /v1/runs/{{run}}/artifacts lists the artifacts of a run"
        )
    if artifact.pruned_at is not None:
        raise ArtifactPruned(
            f"artifact {artifact_id} ({artifact.name} of evaluation {artifact.task.evaluation_id}) was pruned at "
            f"{artifact.pruned_at:%Y-%m-%d %H:%M} UTC by the retention rule of its run; evaluate the checkpoint "
            "again with POST /v1/evaluations, and change the rule with PUT /v1/runs/{run}/retention"
        )
    return artifact


def artifact_content(artifact: Artifact, folder: Path) -> bytes:
    try:
        return read_content(folder, artifact.sha256, artifact.size)
    except FileLost as error:
        raise UnknownName(
            f"the content of artifact {artifact.id} is lost: {error}; restore the file from a backup of the data "
            "folder, or evaluate the checkpoint again"
        ) from None


def _disposition(name: str) -> str:
    """Return the Content-Disposition header with the name quoted, so that the name cannot add another header."""
    quoted = quote(name, safe="")
    return f'inline; filename="{name}"' if quoted == name else f"inline; filename*=utf-8''{quoted}"
