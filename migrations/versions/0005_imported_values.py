"""imported values, and a version of every run's history"""

from contextlib import AbstractContextManager

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

from evalsvc.errors import WrongState

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("history_version", sa.BigInteger(), server_default="0", nullable=False))
    op.create_table(
        "imports",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=256), nullable=False),
        sa.Column("values", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_imports_run_id_runs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_imports")),
    )
    op.create_index(op.f("ix_imports_run_id"), "imports", ["run_id"])
    with _metric_values() as batch_op:
        batch_op.add_column(sa.Column("import_id", sa.Integer(), nullable=True))
        batch_op.alter_column("n", existing_type=sa.Integer(), nullable=True)
        batch_op.alter_column("evaluation_id", existing_type=sa.Integer(), nullable=True)
        batch_op.create_foreign_key(batch_op.f("fk_metric_values_import_id_imports"), "imports", ["import_id"], ["id"])
        batch_op.create_check_constraint(
            batch_op.f("ck_metric_values_one_origin"), "(evaluation_id IS NULL) <> (import_id IS NULL)"
        )


def downgrade() -> None:
    imported = op.get_bind().scalar(sa.text("SELECT count(*) FROM metric_values WHERE import_id IS NOT NULL"))
    if imported:
        raise WrongState(
            f"the history has {imported:,} imported values, for which the older schema has no place; keep them "
            "elsewhere (GET /v1/table), delete them (DELETE FROM metric_values WHERE import_id IS NOT NULL), try again"
        )
    with _metric_values() as batch_op:
        batch_op.drop_constraint(batch_op.f("ck_metric_values_one_origin"), type_="check")
        batch_op.drop_constraint(batch_op.f("fk_metric_values_import_id_imports"), type_="foreignkey")
        batch_op.alter_column("evaluation_id", existing_type=sa.Integer(), nullable=False)
        batch_op.alter_column("n", existing_type=sa.Integer(), nullable=False)
        batch_op.drop_column("import_id")
    op.drop_index(op.f("ix_imports_run_id"), "imports")
    op.drop_table("imports")
    # Not by a batch, which would make the table anew: SQLite drops none that rows of others refer to.
    op.drop_column("runs", "history_version")


def _metric_values() -> AbstractContextManager[BatchOperations]:
    # SQLite makes the table anew; no other one refers to it.
    return op.batch_alter_table("metric_values", table_kwargs={"sqlite_with_rowid": False})
