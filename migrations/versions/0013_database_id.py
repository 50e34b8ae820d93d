"""what a data folder knows its database by"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("terms", sa.Column("database_id", sa.String(length=32), nullable=True))


def downgrade() -> None:
    op.drop_column("terms", "database_id")
