"""The base of a run: the checkpoint, of any run, with which the run's checkpoints are compared.

By default, the base is step 0 of the same run.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, or_, select, tuple_
from sqlalchemy.orm import Session

from evalsvc.checkpoints.expression import Step
from evalsvc.spec import documents
from evalsvc.store.lookup import current_checkpoint, find_run, find_step, step_of
from evalsvc.store.tables import Checkpoint, Run, checkpoint_parents

FIRST_STEP = 0
"""The step of the default base."""


def name_base(session: Session, run: Run, of: str, step: int, variant: str) -> Checkpoint:
    """Set a checkpoint of the run named `of` as the base of `run`."""
    base = find_step(session, find_run(session, of), step, variant)
    run.base = {"run": of, "step": step, "variant": variant}
    return base


def find_base(session: Session, checkpoint: Checkpoint) -> Checkpoint | None:
    return base_of(session, checkpoint.run, checkpoint.variant)


def base_of(session: Session, run: Run, variant: str) -> Checkpoint | None:
    """Return the base of a run's checkpoints of a variant: the named one, or step 0 of the variant or of `raw`."""
    if run.base is not None:
        return _current(session, Step(**run.base))
    bases = (current_checkpoint(session, run.id, FIRST_STEP, name) for name in dict.fromkeys((variant, "raw")))
    return next((base for base in bases if base is not None), None)


def is_first(session: Session, checkpoint: Checkpoint, base: Checkpoint | None) -> bool:
    """Tell whether a checkpoint is its own `base`, a base that a run names, or at the lowest step of its run."""
    if base is not None and base.id == checkpoint.id:
        return True
    current = select(Checkpoint.id).filter_by(run_id=checkpoint.run_id, replaced_at=None)
    earlier = session.scalar(current.where(Checkpoint.step < checkpoint.step).limit(1))
    return earlier is None or is_named_base(session, checkpoint)


def base_view(session: Session, run: Run) -> documents.Base:
    return base_views(session, [run])[run.id]


def base_views(session: Session, runs: Sequence[Run]) -> dict[int, documents.Base]:
    """Return the documents of bases by the run's id, with the id of the current checkpoint if the base was posted."""
    bases = {run.id: base_step(run) for run in runs}
    wanted = sorted({(base.run, base.step, base.variant) for base in bases.values()})
    query = (
        select(Checkpoint.id, Run.name, Checkpoint.step, Checkpoint.variant)
        .join(Run, Run.id == Checkpoint.run_id)
        .where(tuple_(Run.name, Checkpoint.step, Checkpoint.variant).in_(wanted), Checkpoint.replaced_at.is_(None))
    )
    checkpoints = {Step(row.name, row.step, row.variant): row.id for row in session.execute(query)}
    named = {run.id for run in runs if run.base is not None}
    return {
        run: documents.Base(**vars(base), named=run in named, checkpoint=checkpoints.get(base))
        for run, base in bases.items()
    }


def base_step(run: Run) -> Step:
    """Return the place of a run's base, whether or not a checkpoint is there."""
    return Step(run.name, FIRST_STEP) if run.base is None else Step(**run.base)


def is_named_base(session: Session, checkpoint: Checkpoint) -> bool:
    """Tell whether a run names the checkpoint, or a virtual checkpoint computed from the checkpoint, as its base."""
    places = [step_of(item) for item in (checkpoint, *checkpoint.children) if item.replaced_at is None]
    return bool(places) and any(base in places for base in _named(session).values())


def runs_based_on(session: Session, checkpoint: Checkpoint) -> list[str]:
    """Return the runs that name the checkpoint as their base, or whose other checkpoints are compared with it."""
    if checkpoint.replaced_at is not None:
        return []
    rows = session.execute(select(Run.name, Run.base).where(Run.base.is_not(None)).order_by(Run.name))
    runs = [row.name for row in rows if Step(**row.base) == step_of(checkpoint)]
    run = checkpoint.run
    if run.base is None and checkpoint.step == FIRST_STEP:
        current = select(Checkpoint.variant).filter_by(run_id=run.id, replaced_at=None)
        variants = session.scalars(current.where(Checkpoint.id != checkpoint.id).distinct()).all()
        runs += [run.name] if any(base_of(session, run, variant) is checkpoint for variant in variants) else []
    return runs


def base_ids(session: Session) -> set[int]:
    """Return the ids of the bases of all runs and of their parents, whose spooled copies must be kept."""
    named = [_current(session, base) for base in _named(session).values()]
    default = select(Checkpoint.id).filter_by(step=FIRST_STEP, replaced_at=None).join(Run).where(Run.base.is_(None))
    bases = {base.id for base in named if base is not None} | set(session.scalars(default))
    parents = select(checkpoint_parents.c.parent_id).where(checkpoint_parents.c.checkpoint_id.in_(bases))
    return bases | set(session.scalars(parents))


def awaiting_parents() -> Select[tuple[int]]:
    """Select the ids of virtual checkpoints with a parent that is being copied to the spool."""
    return (
        select(checkpoint_parents.c.checkpoint_id)
        .join(Checkpoint, Checkpoint.id == checkpoint_parents.c.parent_id)
        .where(Checkpoint.spool_state == "copying")
    )


def runs_awaiting_base(session: Session) -> set[int]:
    """Return the ids of runs whose base is being copied. Their shards wait: the client may delete the original then."""
    is_copied = or_(Checkpoint.spool_state == "copying", Checkpoint.id.in_(awaiting_parents()))
    copying = session.scalars(select(Checkpoint).where(is_copied, Checkpoint.replaced_at.is_(None))).all()
    if not copying:
        return set()
    default = {item.run_id for item in copying if item.step == FIRST_STEP and item.run.base is None}
    places = [step_of(item) for item in copying]
    return default | {run_id for run_id, base in _named(session).items() if base in places}


def _named(session: Session) -> dict[int, Step]:
    rows = session.execute(select(Run.id, Run.base).where(Run.base.is_not(None)))
    return {row.id: Step(**row.base) for row in rows}


def _current(session: Session, base: Step) -> Checkpoint | None:
    return current_checkpoint(session, find_run(session, base.run).id, base.step, base.variant)
