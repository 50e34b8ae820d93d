"""Routes that post, list and delete checkpoints. A request calls stat on files, but never reads a large file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import Query
from sqlalchemy.orm import Session

from evalsvc.api.answers import JsonAnswer, answer
from evalsvc.api.errors import PROBLEM_CONTENT
from evalsvc.api.middleware.access import TokenName, needs
from evalsvc.api.routes.suites import find_suite
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import CheckpointId, CheckpointInput, CheckpointsQuery
from evalsvc.api.state import CurrentState, State
from evalsvc.checkpoints.copies import Copy, keep_uploads, link_into, releasing, spooled
from evalsvc.checkpoints.expression import Expression, File, Sum, canonical, is_expression, parse_expression
from evalsvc.checkpoints.formats import (
    ADAPTER_FILES,
    IMAGES,
    adapter,
    images_among,
    is_adapter,
    is_archive,
    known_weights,
    weights_among,
)
from evalsvc.checkpoints.opening import checkpoint_rule, opened
from evalsvc.checkpoints.posted import given_model, images_model, posted_layout, posted_model, sum_at, uploaded_model
from evalsvc.checkpoints.reference import UPLOAD, CheckpointRef, Identity, uploaded_sha256, verify
from evalsvc.checkpoints.remote.fetch import locate_checkpoint
from evalsvc.checkpoints.remote.uri import is_remote
from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError, InvalidRequest, NotACheckpoint, UploadNotFound, first_few
from evalsvc.files.artifacts import drop_contents
from evalsvc.files.outputs import drop_outputs
from evalsvc.files.uploads import Sent
from evalsvc.spec import documents
from evalsvc.store.data_folder import asked_anew, named_artifacts, named_items
from evalsvc.store.lookup import current_checkpoint, find_checkpoint, get_or_create_run, place_of, step_of
from evalsvc.store.queue.attempts import checkpoint_reference
from evalsvc.store.runs import deletion
from evalsvc.store.runs.base import FIRST_STEP
from evalsvc.store.runs.posting import Submission, due_suites, needs_file, plan_of, submit, uploaded_bytes
from evalsvc.store.runs.virtual import (
    base_of_adapter,
    common_layout,
    require_combinable,
    resolve_expression,
    virtual_variant,
)
from evalsvc.store.views import checkpoint_view, checkpoints_view, document_of

UNREACHABLE: dict[int | str, dict[str, Any]] = {
    503: {
        "description": "The checkpoint's remote store does not answer in time, or its package is not installed.",
        "content": PROBLEM_CONTENT,
    }
}

Cancel = Annotated[bool, Query(description="Cancel unfinished evaluations instead of refusing the deletion.")]

router = router_of(prefix="/v1/checkpoints", tags=["checkpoints"])


@router.post(
    "",
    status_code=201,
    summary="Post a checkpoint for evaluation",
    description="A repeated post changes nothing and answers 200 with the same ids. Another file at the same run, "
    "step and variant is a conflict unless `replace` is true.\n\nA `uri` such as `avg(run@1000..2000/100)`, "
    "`lerp(run@0, run@5000, 0.3)` or `graft(run@5000, base, layers=0-11)` posts a virtual checkpoint, whose weights "
    "are computed from the weights of other checkpoints when the checkpoint is evaluated.\n\nThe folder of a LoRA "
    "adapter, or a `uri` such as `run@0 + lora(FOLDER)`, posts the adapter as a step of its run. The folder alone is "
    "added to the base that its `adapter_config.json` names, which becomes step 0 if no checkpoint has the files, or "
    "else to the base of the run.\n\nA `uri` such as "
    "`upload:SHA256` posts a file that was sent to `/v1/uploads`, or a folder by the digest of its manifest, the file "
    '`{"files": {"NAME": "SHA256", …}}`. The service keeps the files as long as an evaluation or a base needs them. A '
    "post before all files were sent is checked and then refused with `upload_not_found`.\n\nWithout `suites`, the "
    "plan of the run applies; if no suite is due, nothing is evaluated, and `note` says why. If the plan says "
    "`when_behind: refuse` and other steps of the run have unfinished evaluations, nothing is stored, and the answer "
    "is 429 (`run_behind`) with `Retry-After`.",
    responses={
        201: answer(documents.Posted, "The checkpoint, with an evaluation for each suite."),
        200: answer(documents.Posted, "The checkpoint and the evaluations of an earlier, equal post."),
        **UNREACHABLE,
    },
)
@needs("submit")
def post_checkpoint(body: CheckpointInput, state: CurrentState, owner: TokenName) -> JsonAnswer:
    settings, sha256 = state.settings, uploaded_sha256(body.uri)
    sent = None if sha256 is None else state.uploads.finished(owner, sha256)
    # Check files before the database is locked.
    expression: Expression | None = None
    if sha256 is None and is_expression(body.uri):
        expression = parse_expression(body.uri)
    elif sha256 is None and not is_remote(body.uri):
        expression = sum_at(Path(locate_checkpoint(body.uri, settings)[0]), settings)
    lora = _adapter(body, expression, settings) if isinstance(expression, Sum) else None
    submission = None if sha256 or expression else _of_file(body, settings)
    with nullcontext() if sha256 is None else releasing, state.writing() as session:
        if sha256 is not None:
            submission = _of_upload(session, body, sha256, sent, settings)
        elif lora is not None:
            submission = _of_adapter(session, body, lora, settings)
        elif submission is None:
            submission = _of_expression(session, body, settings)
        plan = plan_of(session, submission.run) if body.suites is None else None
        names = (body.suites or ()) if plan is None else due_suites(plan, submission.step)
        named = [find_suite(session, settings, name) for name in dict.fromkeys(names)]
        holds = "images" if submission.model == IMAGES else "weights"
        suites = [suite for suite in named if holds in suite.reads]
        if plan is None and (unread := [suite.name for suite in named if suite not in suites]):
            raise InvalidRequest(
                f"suite {first_few(unread, 3)} has no task that reads {holds}, and the checkpoint is {holds}; name "
                "other suites"
            )
        submitted = submit(session, submission, suites, plan)
        checkpoint = submitted.checkpoint
        if sha256 is not None and needs_file(submitted):
            _keep_sent(state, session, sent, submission, spooled(settings.data_path, checkpoint.id))
            checkpoint.spool_state = "ready"
        elif submitted.created and submission.spool == "link":
            reference = CheckpointRef(submission.path, rule=checkpoint_rule(settings), label="the checkpoint")
            with opened(reference) as pinned:
                copy = spooled(settings.data_path, checkpoint.id)
                link_into(copy, Path(pinned.path), Path(submission.path).name)
            checkpoint.spool_state = "ready"
        content = documents.Posted(
            checkpoint=checkpoint_view(session, checkpoint),
            evaluations=[document_of(documents.EvaluationSummary, evaluation) for evaluation in submitted.evaluations],
            note=submitted.note,
        )
    for upload in () if sent is None else sent.all:
        with suppress(EvalsvcError):  # the post is stored, and the rest of the upload expires
            state.uploads.drop(upload)
    state.coordinator.wake()
    return JsonAnswer(content, 201 if submitted.created else 200)


@router.get(
    "",
    summary="List checkpoints",
    description="Checkpoints that were not replaced, ordered by run (the oldest first), step and variant. "
    "`evaluations` has the newest 20 evaluations of each checkpoint; `GET /v1/evaluations` lists all evaluations.",
    responses={200: answer(documents.Checkpoints, "A page of the checkpoints.")},
)
@needs("read")
def list_checkpoints(query: Annotated[CheckpointsQuery, Query()], state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(checkpoints_view(session, query.filters(), query.page()))


@router.get(
    "/{checkpoint_id}",
    summary="Get a checkpoint with its evaluations",
    description="`in_use` says whether the service still needs the posted file. A checkpoint that was replaced by "
    "another file stays readable under its id, with `replaced_at`. A virtual checkpoint lists its `parents`.",
    responses={200: answer(documents.Checkpoint, "The checkpoint.")},
)
@needs("read")
def get_checkpoint(checkpoint_id: CheckpointId, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(checkpoint_view(session, find_checkpoint(session, checkpoint_id)))


@router.delete(
    "/{checkpoint_id}",
    summary="Delete a checkpoint with its evaluations",
    description="Deletes the evaluations of the checkpoint, their values and artifacts, and the spooled copy of the "
    "weights. The posted file and imported values stay. A deletion cannot be undone.\n\nThe deletion is refused with "
    "409 while the checkpoint has unfinished evaluations, unless `cancel` is true; while the checkpoint is the base of "
    "a run; and while virtual checkpoints are computed from the checkpoint. A watcher that is started again posts the "
    "file again if the file is still in its folder.",
    responses={200: answer(documents.DeletedCheckpoint, "The numbers of deleted rows, and the freed bytes.")},
)
@needs("admin")
def delete_checkpoint(
    checkpoint_id: CheckpointId,
    state: CurrentState,
    confirm: Annotated[
        str, Query(description="The name of the checkpoint, as a confirmation: RUN@STEP, or RUN@STEP:VARIANT.")
    ],
    cancel: Cancel = False,
) -> JsonAnswer:
    with state.writing() as session:
        checkpoint = find_checkpoint(session, checkpoint_id)
        name, place = step_of(checkpoint), place_of(checkpoint)
        whole_name = f"{name.run}@{name.step}:{name.variant}"
        require_confirmed(confirm, f"checkpoint {checkpoint_id} is {name}", str(name), whole_name)
        deleted = deletion.delete_checkpoint(session, checkpoint_id, cancel)
    state.coordinator.wake()
    freed = drop_files(deleted, state)
    return JsonAnswer(
        document_of(documents.DeletedCheckpoint, deleted, **place, checkpoint=checkpoint_id, freed_bytes=freed)
    )


def require_confirmed(confirm: str, target: str, *names: str) -> None:
    if confirm not in names:
        raise InvalidRequest(f"confirm is {confirm[:160]!r}, and {target}; to delete, give confirm={names[0]}")


def drop_files(deleted: deletion.Deleted, state: State) -> int:
    """Delete the files that only the deleted rows need; return the freed bytes."""
    settings = state.settings
    for checkpoint, _ in deleted.spooled:
        spooled(settings.data_path, checkpoint).remove()
    for task in deleted.tasks:
        drop_outputs(settings.outputs_path, task)
    artifacts, items = (asked_anew(state.reading, named) for named in (named_artifacts, named_items))
    freed = drop_contents(settings.artifacts_path, deleted.artifact_contents, artifacts)
    return freed + drop_contents(settings.items_path, deleted.item_contents, items)


def _common(body: CheckpointInput) -> Submission:
    return Submission(
        run=body.run or "",
        step=body.step or 0,
        uri=body.uri,
        path=body.uri,
        identity=Identity(0, 0),
        variant=body.variant or "raw",
        sha256=None if body.sha256 is None else body.sha256.lower(),
        tokens_seen=body.tokens_seen,
        tags=body.tags,
        spool=body.spool,
        priority=body.priority,
        replace=body.replace,
    )


def _of_file(body: CheckpointInput, settings: Settings) -> Submission:
    path, identity = locate_checkpoint(body.uri, settings)
    if is_adapter(Path(path)):
        raise adapter(body.uri)
    if identity.etag is not None and body.spool == "link":
        raise InvalidRequest(
            "spool is 'link', and the checkpoint is in a remote store, from which no file can be linked; give "
            "spool=copy if the store may delete the checkpoint before its evaluation"
        )
    model = posted_model(body.model, path, identity, settings)
    layout = posted_layout(body.layout, model, settings)
    return replace(_common(body), path=path, identity=identity, model=model, layout=layout)


def _keep_sent(state: State, session: Session, sent: Sent | None, submission: Submission, copy: Copy) -> None:
    if sent is None:
        raise UploadNotFound(
            f"you have no finished upload with the SHA-256 {submission.uri.removeprefix(UPLOAD)}: the file was not "
            "sent, its upload expired, or another post used the upload; send the file first: POST /v1/uploads"
        )
    _require_all(sent, submission.uri)
    # A file that a manifest names several times has arrived once.
    more = sent.size - sum(upload.length for upload in sent.all)
    if more > 0:
        state.uploads.require_space(more, uploaded_bytes(session))
    keep_uploads(copy, sent.paths(Path(submission.path).name))


def _require_all(sent: Sent, uri: str) -> None:
    if sent.missing:
        raise UploadNotFound(
            f"you have no finished upload of {first_few(sent.missing, 3)}, of the folder {uri}; send these files "
            "first: POST /v1/uploads"
        )


def _of_upload(
    session: Session, body: CheckpointInput, sha256: str, sent: Sent | None, settings: Settings
) -> Submission:
    common, uri = _common(body), UPLOAD + sha256
    existing = current_checkpoint(session, get_or_create_run(session, common.run).id, common.step, common.variant)
    if existing is not None and existing.uri != uri:
        existing = None
    # The digest of a folder is computed from its files, and differs from that of its manifest.
    is_folder = sent.files is not None if sent is not None else existing is not None and existing.sha256 != sha256
    if not is_folder and common.sha256 not in (None, sha256):
        raise InvalidRequest(f"sha256 is {body.sha256}, but uri names the SHA-256 {sha256}; leave sha256 out")
    if body.spool != "none":
        raise InvalidRequest(
            f"spool is {body.spool!r} for an uploaded file, which the service always keeps; leave spool out"
        )
    # A folder that is no checkpoint is refused before it is sent.
    of_images = False if existing is None else existing.images
    if sent is not None and sent.files is not None:
        of_images = _is_of_images(sent, uri)
        if not of_images and weights_among(sent.names, uri) in ADAPTER_FILES:
            raise adapter(uri)
    if of_images:
        model: Mapping[str, object] | None = images_model(body.model)
    else:
        model = None if body.model is None else given_model(body.model, settings)
    if model is None and existing is None and sent is not None and sent.files is not None:
        model = uploaded_model({name: upload.path for name, upload in sent.files.items()})
        if model is None:
            _require_all(sent, uri)
    if model is None and existing is None:
        raise InvalidRequest(
            "model is missing, and an uploaded file has no model configuration next to it; give model: a registered "
            "name of open_lm, or the fields of the model's JSON"
        )
    size = 0 if sent is None else sent.size  # without an upload, the post is refused after all other checks
    return replace(
        common,
        uri=uri,
        path=uri,
        identity=Identity(size if existing is None else existing.size, 0),
        sha256=common.sha256 if is_folder else sha256,
        model=model,
        layout=posted_layout(body.layout, model if existing is None else existing.model, settings),
    )


def _is_of_images(sent: Sent, uri: str) -> bool:
    archive = None if known_weights(sent.names, uri) else images_among(sent.names, uri)
    upload = (sent.files or {}).get(archive or "")
    if upload is None:
        return archive is not None
    with upload.path.open("rb") as stream:
        return is_archive(stream, str(archive), f"{archive} of {uri}")


def _adapter(body: CheckpointInput, posted: Sum, settings: Settings) -> tuple[Sum, Submission, Submission | None]:
    """Return a posted sum, the folder of its adapter, and the folder of its base if that is known."""
    if body.run is None or body.step is None:
        raise InvalidRequest("run or step is missing, and an adapter is a step of a run; give both")
    path, identity = locate_checkpoint(posted.adapter.path, settings)
    if not is_adapter(Path(path)):
        raise NotACheckpoint(f"{posted.adapter} is no folder of a LoRA adapter on a disk; give one")
    posted = replace(posted, adapter=File(path))
    file, base = replace(_common(body), path=path, identity=identity), None
    if isinstance(posted.first, File):
        fields = {"run": body.run, "step": FIRST_STEP, "uri": posted.first.path}
        fields |= {"model": body.model, "layout": body.layout}
        base = _of_file(CheckpointInput.model_validate(fields), settings)
    return posted, file, base


def _of_adapter(
    session: Session, body: CheckpointInput, posted: tuple[Sum, Submission, Submission | None], settings: Settings
) -> Submission:
    on, file, base = posted
    parent = base_of_adapter(session, file.run, file.variant, on, base)
    verify(checkpoint_reference(parent, settings.data_path))
    if body.model is not None and given_model(body.model, settings) != parent.model:
        raise InvalidRequest(f"model differs from that of {step_of(parent)}, the adapter's base; leave model out")
    return replace(
        file,
        uri=canonical(Sum(step_of(parent), on.adapter)),
        model=parent.model,
        layout=common_layout([parent], posted_layout(body.layout, parent.model, settings)),
        parents=[parent.id],
    )


def _of_expression(session: Session, body: CheckpointInput, settings: Settings) -> Submission:
    for name in ("model", "sha256"):
        if getattr(body, name) is not None:
            raise InvalidRequest(
                f"{name} cannot be set for a virtual checkpoint, since its parents determine it; leave {name} out"
            )
    if body.spool != "none":
        raise InvalidRequest(f"spool is {body.spool!r} for a virtual checkpoint, which has no file; leave spool out")
    resolved = resolve_expression(session, body.uri)
    parents, first = resolved.parents, resolved.parents[0]
    for parent in parents:
        verify(checkpoint_reference(parent, settings.data_path))
    require_combinable(resolved)
    run = body.run or first.run.name
    step = max(parent.step for parent in parents if parent.run_id == first.run_id) if body.step is None else body.step
    at_step = (parent.tokens_seen for parent in parents if parent.run.name == run and parent.step == step)
    uri = canonical(resolved.expression)
    return replace(
        _common(body),
        run=run,
        step=step,
        uri=uri,
        path=uri,
        variant=virtual_variant(session, run, body.variant, resolved),
        model=first.model,
        layout=common_layout(parents, posted_layout(body.layout, first.model, settings)),
        tokens_seen=next(at_step, None) if body.tokens_seen is None else body.tokens_seen,
        parents=[parent.id for parent in parents],
    )
