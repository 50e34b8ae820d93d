"""The tables. The history (`series`, `metric_values`) is what the service exists for; the rest is how it came about.

run ─< checkpoint ─< evaluation ─< task ─< shard ─< attempt
checkpoint >─< checkpoint (a virtual one and its parents)
run ─< series (run, variant, metric, protocol) ─< metric_value (keyed by step) >─ evaluation or import
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from evalsvc.access_tokens import TokenScope
from evalsvc.files.outputs import KeptOutput, from_column, to_column
from evalsvc.spec.documents.events import EventKind
from evalsvc.spec.documents.fields import OVER as OVER
from evalsvc.spec.documents.fields import Direction, State

FINITE, NAN, POSITIVE_INFINITY, NEGATIVE_INFINITY = range(4)
"""`metric_values.kind`: the databases disagree on NaN and infinities, so what is not finite is kept apart."""

Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time; SQLite forgets the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Packed(TypeDecorator[KeptOutput]):
    """What came of a shard, as MessagePack, or the `OutputFile` that holds it."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: KeptOutput | None, dialect: Dialect) -> bytes | None:
        return None if value is None else to_column(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> KeptOutput | None:
        return None if value is None else from_column(value)


def now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: Json, dict[str, str]: Json, list[Any]: Json}  # noqa: RUF012


checkpoint_parents = Table(
    "checkpoint_parents",
    Base.metadata,
    Column("checkpoint_id", ForeignKey("checkpoints.id"), primary_key=True),
    Column("parent_id", ForeignKey("checkpoints.id"), primary_key=True, index=True),
)
"""What a virtual checkpoint is computed from: the rows that its expression named when it was posted."""


def _partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """An index of the rows of which a condition holds; both databases have such."""
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


class Run(Base):
    """A training run."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    plan: Mapped[dict[str, Any] | None]
    """`{"suites": [{"suite", "every", "first", "last"}], "when_behind": "all" | "newest"}`."""
    base: Mapped[dict[str, Any] | None]
    """`{"run", "step", "variant"}`: what its checkpoints are compared with; None: its own step 0."""
    retention: Mapped[dict[str, Any] | None]
    """Which artifacts are kept, see `spec.artifact_policy.Retention`; None: as the service's own rule says."""
    history_version: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Grows with every transaction that changes what reading its history gives; see `history.version.touch_history`."""
    created_at: Mapped[datetime] = mapped_column(default=now)

    checkpoints: Mapped[list[Checkpoint]] = relationship(back_populates="run")


class Checkpoint(Base):
    """A run's weights at a step. A replaced one stays, for the record of its evaluations."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        _partial_index("uq_checkpoints_current", "run_id", "step", "variant", where="replaced_at IS NULL", unique=True),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), index=True)
    step: Mapped[int] = mapped_column(BigInteger)
    variant: Mapped[str] = mapped_column(String(128))
    uri: Mapped[str] = mapped_column(Text)
    """Of a virtual checkpoint, its expression over its parents, in canonical form."""
    path: Mapped[str] = mapped_column(Text)
    """The file that the uri named at submission, links resolved; the uri itself for a virtual checkpoint."""
    size: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    """0 where `etag` says what it was."""
    etag: Mapped[str | None] = mapped_column(String(128))
    """Of what lies elsewhere: which content of the object was posted, in the words of its store."""
    sha256: Mapped[str | None] = mapped_column(String(64))
    """From the client, or from the first worker that read the file."""
    model: Mapped[dict[str, Any] | None]
    layout: Mapped[dict[str, Any] | None]
    tokens_seen: Mapped[int | None] = mapped_column(BigInteger)
    tags: Mapped[dict[str, str]] = mapped_column(default=dict)
    spool: Mapped[str] = mapped_column(String(8), default="none")
    spool_state: Mapped[str | None] = mapped_column(String(8))
    """None | copying | ready | failed | released."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    replaced_at: Mapped[datetime | None]

    run: Mapped[Run] = relationship(back_populates="checkpoints")
    parents: Mapped[list[Checkpoint]] = relationship(
        secondary=checkpoint_parents,
        primaryjoin="Checkpoint.id == checkpoint_parents.c.checkpoint_id",
        secondaryjoin="Checkpoint.id == checkpoint_parents.c.parent_id",
        back_populates="children",
        order_by="Checkpoint.id",
    )
    """Empty: it is a file or folder."""
    children: Mapped[list[Checkpoint]] = relationship(
        secondary=checkpoint_parents,
        primaryjoin="Checkpoint.id == checkpoint_parents.c.parent_id",
        secondaryjoin="Checkpoint.id == checkpoint_parents.c.checkpoint_id",
        back_populates="parents",
        order_by="Checkpoint.id",
    )
    evaluations: Mapped[list[Evaluation]] = relationship(back_populates="checkpoint", order_by="Evaluation.id")


class Suite(Base):
    """A suite given by `PUT /v1/suites/{name}`; it comes before a file or a shipped one of the same name."""

    __tablename__ = "suites"

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    content: Mapped[dict[str, Any]]
    digest: Mapped[str] = mapped_column(String(64))
    updated_at: Mapped[datetime] = mapped_column(default=now, onupdate=now)


class Evaluation(Base):
    """One suite on one checkpoint. It keeps the suite as it was."""

    __tablename__ = "evaluations"

    id: Mapped[int] = mapped_column(primary_key=True)
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoints.id"), index=True)
    suite: Mapped[str] = mapped_column(String(128))
    suite_digest: Mapped[str] = mapped_column(String(64))
    planned: Mapped[bool] = mapped_column(default=False)
    """Asked for by the run's plan, so `when_behind: newest` may drop it."""
    priority: Mapped[int] = mapped_column(default=0)
    state: Mapped[State] = mapped_column(String(16), default="queued", index=True)
    error: Mapped[dict[str, str] | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    event_count: Mapped[int] = mapped_column(default=0, server_default="0")
    """The number of its newest event; see `store.events`."""

    checkpoint: Mapped[Checkpoint] = relationship(back_populates="evaluations")
    tasks: Mapped[list[Task]] = relationship(back_populates="evaluation", order_by="Task.index")


class EvaluationEvent(Base):
    """A change of an evaluation that its followers are told of, numbered from 1 on without a gap."""

    __tablename__ = "evaluation_events"

    evaluation_id: Mapped[int] = mapped_column(ForeignKey("evaluations.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[EventKind] = mapped_column(String(8))
    task: Mapped[str | None] = mapped_column(String(128))
    """Name of the task; None of the evaluation itself."""
    state: Mapped[State | None] = mapped_column(String(16))
    data: Mapped[dict[str, Any] | None]
    """The error, or what a look found."""
    created_at: Mapped[datetime] = mapped_column(default=now)


class Task(Base):
    """One task of an evaluation, with its results as they were then; the series may since hold newer ones."""

    __tablename__ = "tasks"
    __table_args__ = (
        UniqueConstraint("evaluation_id", "index"),
        _partial_index("ix_tasks_warned", "id", where="warnings IS NOT NULL"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    evaluation_id: Mapped[int] = mapped_column(ForeignKey("evaluations.id"))
    index: Mapped[int]
    kind: Mapped[str] = mapped_column(String(128))
    name: Mapped[str] = mapped_column(String(128))
    parameters: Mapped[dict[str, Any]]
    state: Mapped[State] = mapped_column(String(16), default="queued")
    total: Mapped[int | None]
    unit: Mapped[str | None] = mapped_column(String(64))
    looks: Mapped[bool | None]
    """Whether its plan has looks, which is long where shards are many; None: there is none yet, or it is of old."""
    metrics: Mapped[list[Any] | None]
    items: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    """Results per item, packed (`items.ItemTable`), where they are small enough for a row; read only when asked for."""
    items_sha256: Mapped[str | None] = mapped_column(String(64))
    """Digest of the file that holds them where they are not. Neither: there are none (yet)."""
    warnings: Mapped[list[Any] | None]
    """Suspicions about the result, `{"code", "metric", "message"}` each; None where there are none."""
    provenance: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, str] | None]

    evaluation: Mapped[Evaluation] = relationship(back_populates="tasks")
    shards: Mapped[list[Shard]] = relationship(back_populates="task", order_by="Shard.id")


class Shard(Base):
    """A restartable part of a task: its planning, a piece of its work, or its merging."""

    __tablename__ = "shards"
    __table_args__ = (UniqueConstraint("task_id", "stage", "index"), Index("ix_shards_state", "state"))

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    stage: Mapped[str] = mapped_column(String(8))
    index: Mapped[int]
    state: Mapped[str] = mapped_column(String(16), default="queued")
    attempt: Mapped[int] = mapped_column(default=0)
    """Number of the newest attempt: the fence that keeps a late result of an older one out."""
    failed_attempts: Mapped[int] = mapped_column("strikes", default=0)
    """Attempts that killed their worker, overran the deadline, or failed by what may pass. A lost service or scheduler
    does not count."""
    not_before: Mapped[datetime | None]
    """When it may be tried again, where it waits after a failed attempt."""
    payload: Mapped[dict[str, Any] | None]
    units: Mapped[int | None]
    """Units of work that it did, once it succeeded."""
    output: Mapped[KeptOutput | None] = mapped_column(Packed)
    """Of a run as its task packed it; of other stages see `queue.stage_results`."""
    provenance: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]

    task: Mapped[Task] = relationship(back_populates="shards")
    attempts: Mapped[list[Attempt]] = relationship(back_populates="shard", order_by="Attempt.number")


class Attempt(Base):
    """One try of a shard."""

    __tablename__ = "attempts"

    shard_id: Mapped[int] = mapped_column(ForeignKey("shards.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    started_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(String(32))
    """succeeded | failed | cancelled | worker_died | deadline_exceeded | lost (service or scheduler went away)."""

    shard: Mapped[Shard] = relationship(back_populates="attempts")


class Term(Base):
    """Whose the database is: one row, with the newest coordinator that has begun."""

    __tablename__ = "terms"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
    """Grows with every coordinator that begins; an older one stores nothing any more."""
    holder: Mapped[str] = mapped_column(String(256))
    """In words, for messages: which process on which host."""
    since: Mapped[datetime]
    database_id: Mapped[str | None] = mapped_column(String(32))
    """Random; its data folder has it too. None before a service has started on it."""


class AttemptTotal(Base):
    """How many attempts have ended in one way, whatever became of their rows since: runs are deleted, totals grow."""

    __tablename__ = "attempt_totals"

    kind: Mapped[str] = mapped_column(String(128), primary_key=True)
    """Of the task."""
    stage: Mapped[str] = mapped_column(String(8), primary_key=True)
    outcome: Mapped[str] = mapped_column(String(32), primary_key=True)
    code: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Of the error; empty where there was none."""
    bucket: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Which of `totals.SECONDS` they took."""
    attempts: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float] = mapped_column(Float(53))
    units: Mapped[int] = mapped_column(BigInteger)
    """Units of work that they did."""


class Artifact(Base):
    """Something to look at; its content lies in the data folder under its digest."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("task_id", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    kind: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(256))
    media_type: Mapped[str] = mapped_column(String(128))
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)
    details: Mapped[dict[str, Any]]
    pruned_at: Mapped[datetime | None]
    """Since then its content is gone, by the run's rule, unless another artifact has the same."""

    task: Mapped[Task] = relationship()


class Protocol(Base):
    """The content behind a protocol's id."""

    __tablename__ = "protocols"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    content: Mapped[dict[str, Any]]


class Series(Base):
    """What is comparable along training steps: one metric of one run and variant under one protocol."""

    __tablename__ = "series"
    __table_args__ = (UniqueConstraint("run_id", "metric", "variant", "protocol_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    metric: Mapped[str] = mapped_column(String(256))
    variant: Mapped[str] = mapped_column(String(128))
    protocol_id: Mapped[str] = mapped_column(ForeignKey("protocols.id"))
    unit: Mapped[str] = mapped_column(String(64))
    direction: Mapped[Direction] = mapped_column(String(8))
    baseline: Mapped[float | None]


class Import(Base):
    """One writing of values that were measured elsewhere."""

    __tablename__ = "imports"

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), index=True)
    source: Mapped[str] = mapped_column(String(256))
    """Where the values are from, in the words of who imported them."""
    values: Mapped[int]
    """How many it entered; some may have been replaced since."""
    created_at: Mapped[datetime] = mapped_column(default=now)


class MetricValue(Base):
    """The value of a series at a step. Clustered by (series, step), which is how it is read.

    It comes from an evaluation or from an import, never from both.
    """

    __tablename__ = "metric_values"
    __table_args__ = (
        CheckConstraint("(evaluation_id IS NULL) <> (import_id IS NULL)", name="one_origin"),
        {"sqlite_with_rowid": False},
    )

    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    value: Mapped[float | None] = mapped_column(Float(53))
    kind: Mapped[int] = mapped_column(default=FINITE)
    stderr: Mapped[float | None] = mapped_column(Float(53))
    n: Mapped[int | None]
    """None: imported without it."""
    groups: Mapped[int | None]
    """Independent groups of the n items; None: every item is one, or nothing is known of groups."""
    evaluation_id: Mapped[int | None] = mapped_column(ForeignKey("evaluations.id"), index=True)
    import_id: Mapped[int | None] = mapped_column(ForeignKey("imports.id"))


class IdFloor(Base):
    """Of a table on SQLite: ids up to this one were given, whether or not what had them is still there; see `ids`."""

    __tablename__ = "id_floors"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[int]


class Token(Base):
    """What lets a request in. A revoked one stays, so that its holder can be told and the service stays closed."""

    __tablename__ = "tokens"
    __table_args__ = (_partial_index("uq_tokens_current", "name", where="revoked_at IS NULL", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    scope: Mapped[TokenScope] = mapped_column(String(8))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    """Of the token, which is nowhere else."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """Of its last use, to a minute."""
    revoked_at: Mapped[datetime | None]
