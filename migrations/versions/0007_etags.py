"""which content of an object was posted"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("etag", sa.String(length=128), nullable=True))


def downgrade() -> None:
    # Not by a batch, which would make the table anew: SQLite drops none that rows of others refer to.
    op.drop_column("checkpoints", "etag")
