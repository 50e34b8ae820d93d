"""the ends of the interval of each value; values that are older have none until they are measured again"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("metric_values", sa.Column("low", sa.Float(53), nullable=True))
    op.add_column("metric_values", sa.Column("high", sa.Float(53), nullable=True))


def downgrade() -> None:
    op.drop_column("metric_values", "high")
    op.drop_column("metric_values", "low")
