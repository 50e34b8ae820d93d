"""how many independent groups the items behind a value are"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("metric_values", sa.Column("groups", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("metric_values", "groups")
