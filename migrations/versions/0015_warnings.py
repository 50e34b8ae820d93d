"""what is suspicious about a task's result"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("tasks", sa.Column("warnings", JSON, nullable=True))
    warned = sa.text("warnings IS NOT NULL")
    op.create_index("ix_tasks_warned", "tasks", ["id"], sqlite_where=warned, postgresql_where=warned)


def downgrade() -> None:
    op.drop_index("ix_tasks_warned", table_name="tasks")
    # Not by a batch, which would make the table anew: SQLite drops none that rows of others refer to.
    op.drop_column("tasks", "warnings")
