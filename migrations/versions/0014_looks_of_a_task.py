"""whether a task's shards are looked at before all have run"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("looks", sa.Boolean(), nullable=True))


def downgrade() -> None:
    # Not by a batch, which would make the table anew: SQLite drops none that rows of others refer to.
    op.drop_column("tasks", "looks")
