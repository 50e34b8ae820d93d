"""Routes that post and list checkpoints. A request calls stat on files, but never reads a large file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import Query
from sqlalchemy.orm import Session

from evalsvc.api.errors import PROBLEM_CONTENT, PROBLEMS
from evalsvc.api.json_answer import JsonAnswer, document
from evalsvc.api.list_queries import CheckpointsQuery
from evalsvc.api.middleware.access import TokenName
from evalsvc.api.routes.suites import find_suite
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import CheckpointInput, Id
from evalsvc.api.state import CurrentState, State
from evalsvc.checkpoints.expression import canonical, default_variant, require_parts
from evalsvc.checkpoints.expression_parser import is_expression
from evalsvc.checkpoints.kept import keep_upload, link_into, releasing, spool_path, spooled
from evalsvc.checkpoints.opening import checkpoint_rule, locate, opened
from evalsvc.checkpoints.reference import (
    UPLOAD,
    CheckpointRef,
    Identity,
    uploaded_sha256,
    verify,
)
from evalsvc.checkpoints.remote.fetch import locate_checkpoint
from evalsvc.checkpoints.remote.model_files import find_remote_model_config
from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError, InvalidLayout, InvalidRequest, UploadNotFound
from evalsvc.families.reading import find_model_config, read_model_spec, require_one_model
from evalsvc.files.uploads import Upload
from evalsvc.spec import documents
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.paths import local_data
from evalsvc.store.lookup import current_checkpoint, find_checkpoint, get_or_create_run, step_of
from evalsvc.store.queue.references import checkpoint_reference
from evalsvc.store.runs.posting import Submission, Submitted, submit
from evalsvc.store.runs.uploaded import needs_file
from evalsvc.store.runs.virtual import Resolved, has_files, resolve_expression
from evalsvc.store.tables import Checkpoint
from evalsvc.store.views import checkpoint_view, checkpoints_view, evaluation_summary

UNREACHABLE: dict[int | str, dict[str, Any]] = {
    503: {
        "description": "The checkpoint's remote store does not answer in time, or its package is not installed.",
        "content": PROBLEM_CONTENT,
    }
}

router = router_of(prefix="/v1/checkpoints", tags=["checkpoints"], responses=PROBLEMS)


@router.post(
    "",
    status_code=201,
    summary="Post a checkpoint for evaluation",
    description="A repeated post changes nothing and answers 200 with the same ids. Another file at the same run, "
    "step and variant is a conflict unless `replace` is true.\n\nA `uri` such as `avg(run@1000..2000/100)`, "
    "`lerp(run@0, run@5000, 0.3)` or `graft(run@5000, base, layers=0-11)` posts a virtual checkpoint, whose weights "
    "are computed from the weights of other checkpoints when the checkpoint is evaluated.\n\nA `uri` such as "
    "`upload:SHA256` posts a file that was sent to `/v1/uploads`. The service keeps the file as long as an evaluation "
    "or a base needs the file. A post before the file was sent is checked and then refused with "
    "`upload_not_found`.\n\nWithout `suites`, the plan of the run applies; if no suite is due, nothing is evaluated, "
    "and `note` says why. If the plan says `when_behind: refuse` and other steps of the run have unfinished "
    "evaluations, nothing is stored, and the answer is 429 (`run_behind`) with `Retry-After`.",
    responses=document(201, "The checkpoint, with an evaluation for each suite.", documents.Posted)
    | document(200, "The checkpoint and the evaluations of an earlier, equal post.", documents.Posted)
    | UNREACHABLE,
)
def post_checkpoint(body: CheckpointInput, state: CurrentState, owner: TokenName) -> JsonAnswer:
    # Check files before the database is locked.
    sha256 = uploaded_sha256(body.uri)
    if sha256 is not None:
        content, created = _post_upload(body, sha256, state, owner)
    else:
        submission = None if is_expression(body.uri) else _submission(body, state.settings)
        with state.writing() as session:
            submission = submission or _virtual_submission(session, body, state.settings)
            submitted = _enter(session, state.settings, submission, body.suites)
            content, created = _posted(session, submitted), submitted.created
    state.coordinator.wake()
    return JsonAnswer(content, 201 if created else 200)


@router.get(
    "",
    summary="List checkpoints",
    description="Checkpoints that were not replaced, ordered by run (the oldest first), step and variant. "
    "`evaluations` has the newest 20 evaluations of each checkpoint; `GET /v1/evaluations` lists all evaluations.",
    responses=document(200, "A page of the checkpoints.", documents.Checkpoints),
)
def list_checkpoints(query: Annotated[CheckpointsQuery, Query()], state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(checkpoints_view(session, query.filters(), query.page()))


@router.get(
    "/{checkpoint_id}",
    summary="Get a checkpoint with its evaluations",
    description="`in_use` says whether the service still needs the posted file. A checkpoint that was replaced by "
    "another file stays readable under its id, with `replaced_at`. A virtual checkpoint lists its `parents`.",
    responses=document(200, "The checkpoint.", documents.Checkpoint),
)
def get_checkpoint(checkpoint_id: Id, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        return JsonAnswer(checkpoint_view(session, find_checkpoint(session, checkpoint_id)))


def _posted(session: Session, submitted: Submitted) -> documents.Posted:
    return documents.Posted(
        checkpoint=checkpoint_view(session, submitted.checkpoint),
        evaluations=[evaluation_summary(evaluation) for evaluation in submitted.evaluations],
        note=submitted.note,
    )


def _post_upload(body: CheckpointInput, sha256: str, state: State, owner: str | None) -> tuple[documents.Posted, bool]:
    """Post a checkpoint from an uploaded file. Return the answer, and whether the checkpoint is new.

    Raises:
        UploadNotFound: the file is needed, and no finished upload of this owner has this digest.
        CheckpointChanged: see `Uploads.verify`.
    """
    upload = _verified_upload(state, sha256, owner)
    with releasing, state.writing() as session:
        submission = _uploaded_submission(session, body, sha256, upload, state.settings)
        submitted = _enter(session, state.settings, submission, body.suites)
        if needs_file(submitted):
            if upload is None:
                raise _not_uploaded(sha256)
            copy = spooled(state.settings.data_path, submitted.checkpoint.id)
            keep_upload(copy, upload.path, Path(submission.path).name)
            submitted.checkpoint.spool_state = "ready"
        content = _posted(session, submitted)
    if upload is not None:
        with suppress(EvalsvcError):  # the post is stored, and the rest of the upload expires
            state.uploads.delete(owner, sha256)
    return content, submitted.created


def _verified_upload(state: State, sha256: str, owner: str | None) -> Upload | None:
    """Return the finished upload of a file after comparing its digest; None if the owner has none."""
    try:
        upload = state.uploads.find(owner, sha256)
        return None if upload.remaining else state.uploads.verify(owner, sha256)
    except UploadNotFound:
        return None


def _uploaded_submission(
    session: Session, body: CheckpointInput, sha256: str, upload: Upload | None, settings: Settings
) -> Submission:
    if body.sha256 is not None and body.sha256.lower() != sha256:
        raise InvalidRequest(f"sha256 is {body.sha256}, but uri names the SHA-256 {sha256}; leave sha256 out")
    if body.spool != "none":
        raise InvalidRequest(
            f"spool is {body.spool!r} for an uploaded file, which the service always keeps; leave spool out"
        )
    assert body.run is not None, "required by the schema"
    assert body.step is not None, "required by the schema"
    uri, variant = UPLOAD + sha256, body.variant or "raw"
    existing = current_checkpoint(session, get_or_create_run(session, body.run).id, body.step, variant)
    if existing is not None and existing.uri != uri:
        existing = None
    if body.model is None and existing is None:
        raise InvalidRequest(
            "model is missing, and an uploaded file has no model configuration next to it; give model: a registered "
            "name of open_lm, or the fields of the model's JSON"
        )
    model = None if body.model is None else _model(body.model, settings)
    known_model = model if existing is None else existing.model
    size = 0 if existing is None else existing.size  # without an upload, the post is refused after all other checks
    return Submission(
        run=body.run,
        step=body.step,
        uri=uri,
        path=uri,
        identity=Identity(size if upload is None else upload.length, 0),
        variant=variant,
        sha256=sha256,
        model=model,
        layout=None if body.layout is None else _layout(body.layout, known_model, settings),
        tokens_seen=body.tokens_seen,
        tags=body.tags,
        priority=body.priority,
        replace=body.replace,
    )


def _not_uploaded(sha256: str) -> UploadNotFound:
    return UploadNotFound(
        f"you have no finished upload with the SHA-256 {sha256}: the file was not sent, its upload expired, or another "
        "post used the upload; send the file first: POST /v1/uploads"
    )


def _enter(session: Session, settings: Settings, submission: Submission, names: Sequence[str] | None) -> Submitted:
    find = partial(find_suite, session, settings)
    suites = None if names is None else [find(name) for name in dict.fromkeys(names)]
    submitted = submit(session, submission, suites, find)
    if submitted.created and submission.spool == "link":
        _link(settings, submitted.checkpoint)
    return submitted


def _link(settings: Settings, checkpoint: Checkpoint) -> None:
    with opened(_reference(checkpoint.path, settings)) as pinned:
        link_into(spooled(settings.data_path, checkpoint.id), Path(pinned.path), Path(checkpoint.path).name)
    checkpoint.spool_state = "ready"


def _submission(body: CheckpointInput, settings: Settings) -> Submission:
    path, identity = locate_checkpoint(body.uri, settings)
    if identity.etag is not None and body.spool == "link":
        raise InvalidRequest(
            "spool is 'link', and the checkpoint is in a remote store, from which no file can be linked; give "
            "spool=copy if the store may delete the checkpoint before its evaluation"
        )
    model = _adjacent_model(path, identity, settings) if body.model is None else _model(body.model, settings)
    layout = None if body.layout is None else _layout(body.layout, model, settings)
    assert body.run is not None, "required by the schema"
    assert body.step is not None, "required by the schema"
    return Submission(
        run=body.run,
        step=body.step,
        uri=body.uri,
        path=path,
        identity=identity,
        variant=body.variant or "raw",
        sha256=None if body.sha256 is None else body.sha256.lower(),
        model=model,
        layout=layout,
        tokens_seen=body.tokens_seen,
        tags=body.tags,
        spool=body.spool,
        priority=body.priority,
        replace=body.replace,
    )


def _virtual_submission(session: Session, body: CheckpointInput, settings: Settings) -> Submission:
    """Return the submission of a virtual checkpoint. Its parents are current checkpoints, whose files must exist."""
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
        verify(checkpoint_reference(parent, lambda row: spool_path(settings.data_path, row.id, row.path)))
    _require_sound(resolved)
    run = body.run or first.run.name
    step = max(parent.step for parent in parents if parent.run_id == first.run_id) if body.step is None else body.step
    uri = canonical(resolved.expression)
    return Submission(
        run=run,
        step=step,
        uri=uri,
        path=uri,
        identity=Identity(0, 0),
        variant=_virtual_variant(session, body, run, resolved),
        model=first.model,
        layout=_one_layout(parents, None if body.layout is None else _layout(body.layout, first.model, settings)),
        tokens_seen=_tokens_seen(parents, run, step) if body.tokens_seen is None else body.tokens_seen,
        tags=body.tags,
        priority=body.priority,
        replace=body.replace,
        parents=[parent.id for parent in parents],
    )


def _virtual_variant(session: Session, body: CheckpointInput, run: str, resolved: Resolved) -> str:
    """Return the variant of a virtual checkpoint, which never shares a series with trained checkpoints."""
    variant = body.variant or (default_variant(resolved.expression) if has_files(session, run) else "raw")
    if has_files(session, run, variant):
        raise InvalidRequest(
            f"variant {variant!r} of run {run!r} has trained checkpoints, whose values would be in one series with "
            "those of the virtual checkpoint; name another variant, or leave variant out"
        )
    return variant


def _require_sound(resolved: Resolved) -> None:
    """Check an expression as far as possible without the files. A worker checks the rest.

    Raises:
        CheckpointMismatch: the parents have different models.
        InvalidRequest: the expression names parts that the model does not have.
    """
    models = {str(step_of(parent)): {**(parent.model or {})} for parent in resolved.parents}
    for model in models.values():
        model.pop("precision", None)
    require_one_model(models)
    fields = next(iter(models.values()))
    if {"n_layers", "weight_tying"} <= fields.keys():
        require_parts(resolved.expression, fields["n_layers"], fields["weight_tying"])


def _one_layout(parents: Sequence[Checkpoint], given: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """Return the layout of all parents. A given layout also applies to parents that were posted without a layout.

    Raises:
        InvalidLayout: two layouts differ.
    """
    wanted = given or parents[0].layout
    other = next((parent for parent in parents if parent.layout != wanted and (parent.layout or not given)), None)
    if other is None:
        return wanted
    keys = sorted({*(wanted or {}), *(other.layout or {})})
    differing = [key for key in keys if (wanted or {}).get(key) != (other.layout or {}).get(key)]
    expected = "the given layout" if given else f"the layout of {step_of(parents[0])}"
    raise InvalidLayout(
        f"the layout of {step_of(other)} differs from {expected} in {', '.join(differing)}; combine only checkpoints "
        "with the same layout"
    )


def _tokens_seen(parents: Sequence[Checkpoint], run: str, step: int) -> int | None:
    counts = (parent.tokens_seen for parent in parents if parent.run.name == run and parent.step == step)
    return next(counts, None)


def _adjacent_model(path: str, identity: Identity, settings: Settings) -> Mapping[str, object] | None:
    """Return the model configuration next to a checkpoint, in a local folder or a remote store."""
    if identity.etag is not None:
        return find_remote_model_config(path, settings)
    with opened(_reference(path, settings)) as checkpoint:
        return find_model_config(Path(checkpoint.path))


def _reference(path: str, settings: Settings) -> CheckpointRef:
    return CheckpointRef(path, rule=checkpoint_rule(settings), label="the checkpoint")


def _model(model: str | Mapping[str, object], settings: Settings) -> Mapping[str, object]:
    if isinstance(model, str) and _names_file(model):
        path = str(locate(model, checkpoint_rule(settings)))
        with opened(_reference(path, settings)) as pinned:
            return read_model_spec(pinned.path)
    # With the base /, a name never refers to a file in the working directory of the service.
    return read_model_spec(model, base=Path("/"))


def _layout(
    layout: str | Mapping[str, object], model: Mapping[str, object] | None, settings: Settings
) -> Mapping[str, object]:
    """Return the layout as JSON, checked against the size of the model's vocabulary if the size is known."""
    if isinstance(layout, str) and _names_file(layout):
        layout = str(locate(layout, checkpoint_rule(settings)))
    image = layout.get("image") if isinstance(layout, Mapping) else None
    if isinstance(image, Mapping) and isinstance(image.get("map"), str):
        locate(image["map"], checkpoint_rule(settings))
    parsed = parse_layout(layout, allow=checkpoint_rule(settings))
    if parsed.text.tokenizer is not None:
        local_data(settings, parsed.text.tokenizer)
    rows = (model or {}).get("vocab_size")
    if isinstance(rows, int):
        parsed.resolve(rows)
    return parsed.to_json()


def _names_file(text: str) -> bool:
    return "/" in text or text.endswith((".json", ".yaml", ".yml"))
