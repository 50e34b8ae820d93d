"""which artifacts are kept"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    rule = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
    op.add_column("runs", sa.Column("retention", rule, nullable=True))
    op.add_column("artifacts", sa.Column("pruned_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    # Not by a batch, which would make the table anew: SQLite drops none that rows of others refer to.
    op.drop_column("artifacts", "pruned_at")
    op.drop_column("runs", "retention")
