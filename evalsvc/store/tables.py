"""The database tables. `series` and `metric_values` are the history; the other tables record how it was measured.

run ─< checkpoint ─< evaluation ─< task ─< shard ─< attempt
checkpoint >─< checkpoint (a virtual checkpoint and its parents)
run ─< series (run, variant, metric, protocol) ─< metric_value (key: series and step) >─ evaluation or import
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, get_args

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from evalsvc.access_tokens import TokenScope
from evalsvc.checkpoints.formats import IMAGES
from evalsvc.files.outputs import KeptOutput, from_column, to_column
from evalsvc.spec.documents.evaluations import EventKind
from evalsvc.spec.documents.fields import OVER as OVER
from evalsvc.spec.documents.fields import Direction, State, Word

FINITE, NAN, POSITIVE_INFINITY, NEGATIVE_INFINITY = range(4)
"""Values of `metric_values.kind`, which stores NaN and infinities in place of `value`: databases disagree on them."""

WORDS: Mapping[int, Word] = {NAN: "NaN", POSITIVE_INFINITY: "Infinity", NEGATIVE_INFINITY: "-Infinity"}
"""The words in JSON for the kinds of values that are not finite."""

Json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A time in UTC with a time zone, also from SQLite, which stores no zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Packed(sa.TypeDecorator[KeptOutput]):
    """The output of a shard as MessagePack, or the `OutputFile` that holds the output."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: KeptOutput | None, dialect: sa.Dialect) -> bytes | None:
        return None if value is None else to_column(value)

    def process_result_value(self, value: bytes | None, dialect: sa.Dialect) -> KeptOutput | None:
        return None if value is None else from_column(value)


class BetterDirection(sa.TypeDecorator[Direction]):
    """A direction. A stored word that is no direction is read as `none`, so that the run still has its pages."""

    impl = sa.String(8)
    cache_ok = True

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Direction:
        return next((known for known in get_args(Direction) if known == value), "none")


def now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: Json, dict[str, str]: Json, list[Any]: Json}  # noqa: RUF012


checkpoint_parents = sa.Table(
    "checkpoint_parents",
    Base.metadata,
    sa.Column("checkpoint_id", sa.ForeignKey("checkpoints.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("parent_id", sa.ForeignKey("checkpoints.id", ondelete="CASCADE"), primary_key=True, index=True),
)
"""The parents of virtual checkpoints: the checkpoints that the expression named when it was posted."""


NEVER_REUSE_IDS = {"sqlite_autoincrement": True}
"""The option of tables whose ids are used outside of the database: in URLs, in names of files, and on workers.

Without the option, SQLite would give the id of a deleted newest row to the next row: a late result would be stored for
another shard, and a client would get another evaluation. PostgreSQL's sequences only grow."""


def _partial_index(name: str, *columns: str, where: str, unique: bool = False) -> sa.Index:
    return sa.Index(name, *columns, unique=unique, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


class Run(Base):
    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(128), unique=True)
    plan: Mapped[dict[str, Any] | None]
    """The plan, `{"suites": [{"suite", "every", "first", "last"}], "when_behind", "at_most"}`."""
    base: Mapped[dict[str, Any] | None]
    """The base of the run's checkpoints, `{"run", "step", "variant"}`; None for the run's own step 0."""
    retention: Mapped[dict[str, Any] | None]
    """The retention rule of the run's artifacts, a `spec.artifact_policy.Retention`; None for the service's rule."""
    history_version: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    """A number that grows with every transaction that changes the run's history; see `history.writing.touch_history`.
    """
    created_at: Mapped[datetime] = mapped_column(default=now)

    checkpoints: Mapped[list[Checkpoint]] = relationship(back_populates="run")


class Checkpoint(Base):
    """A run's weights at a step. The row of a replaced checkpoint stays, with its evaluations."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        _partial_index("uq_checkpoints_current", "run_id", "step", "variant", where="replaced_at IS NULL", unique=True),
        NEVER_REUSE_IDS,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(sa.ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    step: Mapped[int] = mapped_column(sa.BigInteger)
    variant: Mapped[str] = mapped_column(sa.String(128))
    uri: Mapped[str] = mapped_column(sa.Text)
    """The posted uri; for a virtual checkpoint or an adapter on its base, the expression in canonical form."""
    path: Mapped[str] = mapped_column(sa.Text)
    """The path of the file with links resolved when the checkpoint was posted; for a virtual checkpoint, its uri."""
    size: Mapped[int] = mapped_column(sa.BigInteger)
    mtime_ns: Mapped[int] = mapped_column(sa.BigInteger)
    """Modification time of the file; 0 if `etag` identifies the content."""
    etag: Mapped[str | None] = mapped_column(sa.String(128))
    """The ETag of the posted content in a remote store; None for a local file."""
    sha256: Mapped[str | None] = mapped_column(sa.String(64))
    """The SHA-256 of the file, from the client or from the first worker that read the file."""
    model: Mapped[dict[str, Any] | None]
    layout: Mapped[dict[str, Any] | None]
    tokens_seen: Mapped[int | None] = mapped_column(sa.BigInteger)
    tags: Mapped[dict[str, str]] = mapped_column(default=dict)
    spool: Mapped[str] = mapped_column(sa.String(8), default="none")
    spool_state: Mapped[str | None] = mapped_column(sa.String(8), index=True)
    """State of the spooled copy: None | copying | ready | failed | released."""
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
    """The parents of a virtual checkpoint, or the base of an adapter; empty for another file or folder."""
    children: Mapped[list[Checkpoint]] = relationship(
        secondary=checkpoint_parents,
        primaryjoin="Checkpoint.id == checkpoint_parents.c.parent_id",
        secondaryjoin="Checkpoint.id == checkpoint_parents.c.checkpoint_id",
        back_populates="parents",
        order_by="Checkpoint.id",
    )
    evaluations: Mapped[list[Evaluation]] = relationship(back_populates="checkpoint", order_by="Evaluation.id")

    @property
    def is_virtual(self) -> bool:
        """Whether the weights are computed from other checkpoints only, and not of an adapter's own files too."""
        return bool(self.parents) and not self.size

    @property
    def images(self) -> bool:
        """Whether the file is images that another program sampled, and not weights."""
        return self.model == IMAGES


class Suite(Base):
    """A suite that a client stored with `PUT /v1/suites/{name}`. It hides a file or a shipped suite of the same
    name."""

    __tablename__ = "suites"

    name: Mapped[str] = mapped_column(sa.String(128), primary_key=True)
    content: Mapped[dict[str, Any]]
    digest: Mapped[str] = mapped_column(sa.String(64))
    updated_at: Mapped[datetime] = mapped_column(default=now, onupdate=now)


class Evaluation(Base):
    __tablename__ = "evaluations"

    id: Mapped[int] = mapped_column(primary_key=True)
    checkpoint_id: Mapped[int] = mapped_column(sa.ForeignKey("checkpoints.id", ondelete="CASCADE"))
    suite: Mapped[str] = mapped_column(sa.String(128))
    suite_digest: Mapped[str] = mapped_column(sa.String(64))
    planned: Mapped[bool] = mapped_column(default=False)
    """Whether the run's plan asked for the evaluation. `when_behind: newest` drops planned evaluations only."""
    priority: Mapped[int] = mapped_column(default=0)
    state: Mapped[State] = mapped_column(sa.String(16), default="queued", index=True)
    error: Mapped[dict[str, str] | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    event_count: Mapped[int] = mapped_column(default=0)
    """The number of the evaluation's newest event; see `store.events`."""

    checkpoint: Mapped[Checkpoint] = relationship(back_populates="evaluations")
    tasks: Mapped[list[Task]] = relationship(back_populates="evaluation", order_by="Task.index")

    # With an index of the checkpoint alone, PostgreSQL reads the index of states once for each checkpoint of a run.
    __table_args__ = (sa.Index("ix_evaluations_checkpoint_id_state", "checkpoint_id", "state"), NEVER_REUSE_IDS)


class EvaluationEvent(Base):
    """An event of an evaluation. The numbers of an evaluation's events start at 1 and have no gaps."""

    __tablename__ = "evaluation_events"

    evaluation_id: Mapped[int] = mapped_column(sa.ForeignKey("evaluations.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[EventKind] = mapped_column(sa.String(8))
    task: Mapped[str | None] = mapped_column(sa.String(128))
    state: Mapped[State | None] = mapped_column(sa.String(16))
    data: Mapped[dict[str, Any] | None]
    """The error, the warnings, or the interim result of a look."""
    created_at: Mapped[datetime] = mapped_column(default=now)


class Task(Base):
    """A task of an evaluation, with its results. The series may have newer values from a later evaluation."""

    __tablename__ = "tasks"
    __table_args__ = (
        sa.UniqueConstraint("evaluation_id", "index"),
        _partial_index("ix_tasks_warned", "id", where="warnings IS NOT NULL"),
        NEVER_REUSE_IDS,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    evaluation_id: Mapped[int] = mapped_column(sa.ForeignKey("evaluations.id", ondelete="CASCADE"))
    index: Mapped[int]
    kind: Mapped[str] = mapped_column(sa.String(128))
    name: Mapped[str] = mapped_column(sa.String(128))
    parameters: Mapped[dict[str, Any]]
    state: Mapped[State] = mapped_column(sa.String(16), default="queued")
    total: Mapped[int | None]
    unit: Mapped[str | None] = mapped_column(sa.String(64))
    looks: Mapped[bool | None]
    """Whether the task's plan has looks, so that a query need not load a long plan. None before the task is planned,
    and in rows of old versions."""
    metrics: Mapped[list[Any] | None]
    items: Mapped[bytes | None] = mapped_column(sa.LargeBinary, deferred=True)
    """Packed results per item (`items.ItemTable`), if small enough for a row. Loaded on access only."""
    items_sha256: Mapped[str | None] = mapped_column(sa.String(64))
    """Digest of the file with the results per item, if too large for a row. A task without `items` and `items_sha256`
    has no results per item."""
    warnings: Mapped[list[Any] | None]
    """Warnings about the result, a list of `{"code", "metric", "message"}`; None without warnings."""
    provenance: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, str] | None]

    evaluation: Mapped[Evaluation] = relationship(back_populates="tasks")
    shards: Mapped[list[Shard]] = relationship(back_populates="task", order_by="Shard.id")


class Shard(Base):
    """A restartable part of a task. `stage` is plan, run (a piece of the work), look or merge."""

    __tablename__ = "shards"
    __table_args__ = (sa.UniqueConstraint("task_id", "stage", "index"), NEVER_REUSE_IDS)

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(sa.ForeignKey("tasks.id", ondelete="CASCADE"))
    stage: Mapped[str] = mapped_column(sa.String(8))
    index: Mapped[int]
    state: Mapped[str] = mapped_column(sa.String(16), default="queued", index=True)
    attempt: Mapped[int] = mapped_column(default=0)
    """The number of the newest attempt. Results of older attempts are rejected."""
    failed_attempts: Mapped[int] = mapped_column(default=0)
    """The number of attempts that killed their worker, exceeded the deadline, or failed with a transient error. The
    loss of the service or the scheduler does not count."""
    not_before: Mapped[datetime | None]
    """The earliest time of the next retry; None without a back-off."""
    payload: Mapped[dict[str, Any] | None]
    units: Mapped[int | None]
    """Units of work of a succeeded shard."""
    output: Mapped[KeptOutput | None] = mapped_column(Packed)
    """The output, packed by the task for a run shard, and by `queue.transitions` for other stages."""
    provenance: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]

    task: Mapped[Task] = relationship(back_populates="shards")
    attempts: Mapped[list[Attempt]] = relationship(back_populates="shard", order_by="Attempt.number")


class Attempt(Base):
    __tablename__ = "attempts"

    shard_id: Mapped[int] = mapped_column(sa.ForeignKey("shards.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    started_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(sa.String(32))
    """How the attempt ended: succeeded | failed | cancelled | worker_died | deadline_exceeded | lost (the service or
    the scheduler stopped)."""

    shard: Mapped[Shard] = relationship(back_populates="attempts")


class Term(Base):
    """The newest coordinator of the database. The table has one row."""

    __tablename__ = "terms"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(sa.BigInteger)
    """A number that grows with every new coordinator. A coordinator with a lower number can store nothing."""
    holder: Mapped[str] = mapped_column(sa.String(256))
    """The coordinator's process and host, for messages."""
    since: Mapped[datetime]
    database_id: Mapped[str | None] = mapped_column(sa.String(32))
    """A random id of the database, which its data folder also has; None before the first start of a service."""


class AttemptTotal(Base):
    """A count of ended attempts. The counts keep the attempts of deleted runs."""

    __tablename__ = "attempt_totals"

    kind: Mapped[str] = mapped_column(sa.String(128), primary_key=True)
    stage: Mapped[str] = mapped_column(sa.String(8), primary_key=True)
    outcome: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    code: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    """The code of the error; empty for an attempt without an error."""
    bucket: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """The index of the attempt's duration in `queue.transitions.SECONDS`."""
    attempts: Mapped[int] = mapped_column(sa.BigInteger)
    seconds: Mapped[float] = mapped_column(sa.Float(53))
    units: Mapped[int] = mapped_column(sa.BigInteger)


class Artifact(Base):
    """An artifact. The file of its content in the data folder is named by the content's digest."""

    __tablename__ = "artifacts"
    __table_args__ = (sa.UniqueConstraint("task_id", "name"), NEVER_REUSE_IDS)

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(sa.ForeignKey("tasks.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(sa.String(64))
    name: Mapped[str] = mapped_column(sa.String(256))
    media_type: Mapped[str] = mapped_column(sa.String(128))
    sha256: Mapped[str] = mapped_column(sa.String(64))
    size: Mapped[int] = mapped_column(sa.BigInteger)
    details: Mapped[dict[str, Any]]
    pruned_at: Mapped[datetime | None]

    task: Mapped[Task] = relationship()


class Protocol(Base):
    __tablename__ = "protocols"

    id: Mapped[str] = mapped_column(sa.String(16), primary_key=True)
    content: Mapped[dict[str, Any]]


class Series(Base):
    """A series of comparable values: one metric of one run and variant under one protocol."""

    __tablename__ = "series"
    __table_args__ = (sa.UniqueConstraint("run_id", "metric", "variant", "protocol_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(sa.ForeignKey("runs.id", ondelete="CASCADE"))
    metric: Mapped[str] = mapped_column(sa.String(256))
    variant: Mapped[str] = mapped_column(sa.String(128))
    protocol_id: Mapped[str] = mapped_column(sa.ForeignKey("protocols.id"))
    unit: Mapped[str] = mapped_column(sa.String(64))
    direction: Mapped[Direction] = mapped_column(BetterDirection)
    baseline: Mapped[float | None]


class Import(Base):
    __tablename__ = "imports"

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(sa.ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    source: Mapped[str] = mapped_column(sa.String(256))
    values: Mapped[int]
    """The number of imported values. Some of the values may have been replaced since."""
    created_at: Mapped[datetime] = mapped_column(default=now)


class MetricValue(Base):
    """The value of a series at a step. Rows are clustered by series and step, which is the order of reads. A value
    comes from an evaluation or from an import, never from both."""

    __tablename__ = "metric_values"
    __table_args__ = (
        sa.CheckConstraint("(evaluation_id IS NULL) <> (import_id IS NULL)", name="one_origin"),
        _partial_index("ix_metric_values_import_id", "import_id", where="import_id IS NOT NULL"),
        {"sqlite_with_rowid": False},
    )

    series_id: Mapped[int] = mapped_column(sa.ForeignKey("series.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    value: Mapped[float | None] = mapped_column(sa.Float(53))
    kind: Mapped[int] = mapped_column(default=FINITE)
    stderr: Mapped[float | None] = mapped_column(sa.Float(53))
    low: Mapped[float | None] = mapped_column(sa.Float(53))
    """The lower end of the interval of 95 %; None for a value without an interval, or of a version that stored none."""
    high: Mapped[float | None] = mapped_column(sa.Float(53))
    n: Mapped[int | None]
    """The number of items behind the value; None for a value that was imported without the number."""
    groups: Mapped[int | None]
    """The number of independent groups of items; None if every item is independent, or the groups are unknown."""
    evaluation_id: Mapped[int | None] = mapped_column(sa.ForeignKey("evaluations.id", ondelete="CASCADE"), index=True)
    import_id: Mapped[int | None] = mapped_column(sa.ForeignKey("imports.id", ondelete="CASCADE"))


class Token(Base):
    """An access token. The row of a revoked token stays: its holder gets an error that names the cause, and a service
    whose tokens are all revoked does not become open."""

    __tablename__ = "tokens"
    __table_args__ = (_partial_index("uq_tokens_current", "name", where="revoked_at IS NULL", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(128))
    scope: Mapped[TokenScope] = mapped_column(sa.String(8))
    sha256: Mapped[str] = mapped_column(sa.String(64), unique=True)
    """The SHA-256 of the token. The token itself is not stored."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """The time of the last use, accurate to a minute."""
    revoked_at: Mapped[datetime | None]
