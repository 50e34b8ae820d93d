"""what followers of an evaluation are told"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("evaluations", sa.Column("event_count", sa.Integer(), server_default="0", nullable=False))
    op.create_table(
        "evaluation_events",
        sa.Column("evaluation_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("task", sa.String(length=128), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=True),
        sa.Column(
            "data", sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql"), nullable=True
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["evaluation_id"],
            ["evaluations.id"],
            name=op.f("fk_evaluation_events_evaluation_id_evaluations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "number", name=op.f("pk_evaluation_events")),
    )
    # How it came to its state was not written down; that it has it is what a follower must be told.
    op.execute(
        "INSERT INTO evaluation_events (evaluation_id, number, kind, state, created_at) "
        "SELECT id, 1, 'state', state, COALESCE(finished_at, started_at, created_at) FROM evaluations"
    )
    op.execute("UPDATE evaluations SET event_count = 1")


def downgrade() -> None:
    op.drop_table("evaluation_events")
    op.drop_column("evaluations", "event_count")
