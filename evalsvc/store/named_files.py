"""Files of the data folder that the database names. All other files are orphans, which may be removed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.files.artifacts import artifact_path
from evalsvc.files.outputs import OutputFile
from evalsvc.store.tables import Artifact, Checkpoint, Evaluation, Run, Shard, Task, Term

Named = Callable[[Collection[str]], Collection[str]]
"""A function that takes digests, and returns those that the database names."""


def asked_anew(reading: Callable[[], AbstractContextManager[Session]], named: Callable[..., Collection[str]]) -> Named:
    """Return a function that calls `named` (`named_artifacts` or `named_items`) in a new session each time."""

    def ask(digests: Collection[str]) -> Collection[str]:
        with reading() as session:
            return named(session, digests)

    return ask


def named_outputs(session: Session) -> set[OutputFile]:
    """Return the output files that a merge may still read; all other output files are orphans."""
    rows = session.scalars(
        select(Shard.output)
        .join(Task)
        .join(Evaluation)
        .join(Checkpoint)
        .where(Shard.stage == "run", Shard.output.is_not(None), Checkpoint.replaced_at.is_(None))
    )
    return {output for output in rows if isinstance(output, OutputFile)}


def named_artifacts(session: Session, digests: Collection[str] | None = None) -> set[str]:
    """Return the digests of artifacts that were not pruned, of all artifacts or among `digests`."""
    query = select(Artifact.sha256).where(Artifact.pruned_at.is_(None)).distinct()
    return set(session.scalars(query if digests is None else query.where(Artifact.sha256.in_(digests))))


def named_items(session: Session, digests: Collection[str] | None = None) -> set[str]:
    """Return the digests of files with results per item, of all tasks or among `digests`."""
    named = Task.items_sha256.is_not(None) if digests is None else Task.items_sha256.in_(digests)
    return {sha256 for sha256 in session.scalars(select(Task.items_sha256).where(named)) if sha256 is not None}


SAMPLED = 20
"""The number of newest files that `may_begin_folder` looks for, artifacts and results per item each."""


def may_begin_folder(session: Session, artifacts: Path, items: Path) -> bool:
    """Tell whether the database may claim the data folder with these subfolders, which has no owner.

    A database with runs that was served before already has a data folder. Such a database may only claim a folder with
    files that the database names.
    """
    identity = session.scalar(select(Term.database_id))
    if identity is None or session.scalar(select(Run.id).limit(1)) is None:
        return True
    named = (
        (artifacts, select(Artifact.sha256).where(Artifact.pruned_at.is_(None)).order_by(Artifact.id.desc())),
        (items, select(Task.items_sha256).where(Task.items_sha256.is_not(None)).order_by(Task.id.desc())),
    )
    return any(
        artifact_path(folder, str(sha256)).is_file()
        for folder, query in named
        for sha256 in session.scalars(query.limit(SAMPLED))
    )
