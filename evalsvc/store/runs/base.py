"""The base of a run: the checkpoint, of any run, that its checkpoints are compared with; by default its own step 0."""

from __future__ import annotations

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from evalsvc.checkpoints.expression import Step
from evalsvc.spec import documents
from evalsvc.store.lookup import current_checkpoint, find_run, find_step, step_of
from evalsvc.store.tables import Checkpoint, Run, checkpoint_parents

FIRST_STEP = 0
"""The step of the default base."""


def name_base(session: Session, run: Run, of: str, step: int, variant: str) -> Checkpoint:
    """Make a checkpoint of the run named `of` the base of `run`.

    Raises:
        UnknownName: there is no such run, step or variant; near ones are named.
    """
    base = find_step(session, find_run(session, of), step, variant)
    run.base = {"run": of, "step": step, "variant": variant}
    return base


def find_base(session: Session, checkpoint: Checkpoint) -> Checkpoint | None:
    """Return the checkpoint that a checkpoint is compared with; see `base_of`."""
    return base_of(session, checkpoint.run, checkpoint.variant)


def base_of(session: Session, run: Run, variant: str) -> Checkpoint | None:
    """Return the checkpoint that a run's checkpoints of a variant are compared with; None if there is none.

    Without a named base, that is the run's step 0 of the variant, or else of `raw`.
    """
    if run.base is not None:
        return _current(session, Step(**run.base))
    found = (current_checkpoint(session, run.id, FIRST_STEP, name) for name in dict.fromkeys((variant, "raw")))
    return next((base for base in found if base is not None), None)


def is_first(session: Session, checkpoint: Checkpoint, base: Checkpoint | None) -> bool:
    """Tell whether a checkpoint is its own `base`, another run's base, or of the smallest step of its run."""
    if base is not None and base.id == checkpoint.id:
        return True
    earlier = select(Checkpoint.id).where(
        Checkpoint.run_id == checkpoint.run_id, Checkpoint.step < checkpoint.step, Checkpoint.replaced_at.is_(None)
    )
    return session.scalar(earlier.limit(1)) is None or is_named_base(session, checkpoint)


def base_view(session: Session, run: Run) -> documents.Base:
    """Return a run's base, whether it was named, and the checkpoint that the base is now."""
    base = Step(**run.base) if run.base is not None else Step(run.name, FIRST_STEP)
    found = _current(session, base)
    is_named, checkpoint = run.base is not None, None if found is None else found.id
    return documents.Base(**vars(base), named=is_named, checkpoint=checkpoint)


def is_named_base(session: Session, checkpoint: Checkpoint) -> bool:
    """Tell whether a run names the checkpoint, or a virtual checkpoint that is made of the checkpoint, as its base."""
    places = [step_of(item) for item in (checkpoint, *checkpoint.children) if item.replaced_at is None]
    return bool(places) and any(base in places for base in _named(session).values())


def runs_based_on(session: Session, checkpoint: Checkpoint) -> list[str]:
    """Return the names of the runs whose base is this checkpoint.

    A step 0 is the base of its run by default, as long as other checkpoints of the run are compared with the step 0.
    """
    if checkpoint.replaced_at is not None:
        return []
    rows = session.execute(select(Run.name, Run.base).where(Run.base.is_not(None)).order_by(Run.name))
    runs = [row.name for row in rows if Step(**row.base) == step_of(checkpoint)]
    run = checkpoint.run
    if run.base is None and checkpoint.step == FIRST_STEP:
        others = select(Checkpoint.variant).where(
            Checkpoint.run_id == run.id, Checkpoint.id != checkpoint.id, Checkpoint.replaced_at.is_(None)
        )
        variants = session.scalars(others.distinct()).all()
        runs += [run.name] if any(base_of(session, run, variant) is checkpoint for variant in variants) else []
    return runs


def base_ids(session: Session) -> set[int]:
    """Return the bases of all runs and the parents of virtual bases: their copies must outlive their evaluations."""
    named = [_current(session, base) for base in _named(session).values()]
    default = (
        select(Checkpoint.id)
        .join(Run)
        .where(Checkpoint.step == FIRST_STEP, Checkpoint.replaced_at.is_(None), Run.base.is_(None))
    )
    bases = {base.id for base in named if base is not None} | set(session.scalars(default))
    parents = select(checkpoint_parents.c.parent_id).where(checkpoint_parents.c.checkpoint_id.in_(bases))
    return bases | set(session.scalars(parents))


def awaiting_parents() -> Select[tuple[int]]:
    """Return the virtual checkpoints with a parent that is being copied to the spool."""
    return (
        select(checkpoint_parents.c.checkpoint_id)
        .join(Checkpoint, Checkpoint.id == checkpoint_parents.c.parent_id)
        .where(Checkpoint.spool_state == "copying")
    )


def runs_awaiting_base(session: Session) -> set[int]:
    """Return the runs whose base is being copied to the spool. A shard that begins now would lose the base when the
    copy is ready."""
    copying = session.scalars(
        select(Checkpoint).where(
            or_(Checkpoint.spool_state == "copying", Checkpoint.id.in_(awaiting_parents())),
            Checkpoint.replaced_at.is_(None),
        )
    ).all()
    if not copying:
        return set()
    default = {item.run_id for item in copying if item.step == FIRST_STEP and item.run.base is None}
    places = [step_of(item) for item in copying]
    return default | {run_id for run_id, base in _named(session).items() if base in places}


def _named(session: Session) -> dict[int, Step]:
    """Return the bases that runs name, by the run's id."""
    rows = session.execute(select(Run.id, Run.base).where(Run.base.is_not(None)))
    return {row.id: Step(**row.base) for row in rows}


def _current(session: Session, base: Step) -> Checkpoint | None:
    return current_checkpoint(session, find_run(session, base.run).id, base.step, base.variant)
