"""Routes that delete a run or a checkpoint, with the files that only the deleted rows need."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from evalsvc.api.answers import JsonAnswer, answer
from evalsvc.api.middleware.access import needs
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import CheckpointId, RunPath
from evalsvc.api.state import CurrentState, State
from evalsvc.checkpoints.copies import spooled
from evalsvc.errors import InvalidRequest
from evalsvc.files.artifacts import drop_contents
from evalsvc.files.outputs import drop_outputs
from evalsvc.spec import documents
from evalsvc.store.lookup import find_checkpoint, place_of, step_of
from evalsvc.store.named_files import asked_anew, named_artifacts, named_items
from evalsvc.store.runs import deletion
from evalsvc.store.views import document_of

router = router_of(prefix="/v1")

Cancel = Annotated[bool, Query(description="Cancel unfinished evaluations instead of refusing the deletion.")]


@router.delete(
    "/runs/{run}",
    tags=["runs"],
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
    _require_confirmed(confirm, f"the run is {run!r}", run)
    with state.writing() as session:
        deleted = deletion.delete_run(session, run, cancel)
    state.coordinator.wake()  # to stop running attempts
    return JsonAnswer(document_of(documents.Deleted, deleted, freed_bytes=_drop_files(deleted, state)))


@router.delete(
    "/checkpoints/{checkpoint_id}",
    tags=["checkpoints"],
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
        _require_confirmed(confirm, f"checkpoint {checkpoint_id} is {name}", str(name), whole_name)
        deleted = deletion.delete_checkpoint(session, checkpoint_id, cancel)
    state.coordinator.wake()
    freed = _drop_files(deleted, state)
    return JsonAnswer(
        document_of(documents.DeletedCheckpoint, deleted, **place, checkpoint=checkpoint_id, freed_bytes=freed)
    )


def _require_confirmed(confirm: str, target: str, *names: str) -> None:
    if confirm not in names:
        raise InvalidRequest(f"confirm is {confirm[:160]!r}, and {target}; to delete, give confirm={names[0]}")


def _drop_files(deleted: deletion.Deleted, state: State) -> int:
    settings = state.settings
    for checkpoint, _ in deleted.spooled:
        spooled(settings.data_path, checkpoint).remove()
    for task in deleted.tasks:
        drop_outputs(settings.outputs_path, task)
    artifacts, items = (asked_anew(state.reading, named) for named in (named_artifacts, named_items))
    freed = drop_contents(settings.artifacts_path, deleted.artifact_contents, artifacts)
    return freed + drop_contents(settings.items_path, deleted.item_contents, items)
