"""the index of evaluations by checkpoint has their state too"""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_evaluations_checkpoint_id_state", "evaluations", ["checkpoint_id", "state"])
    op.drop_index("ix_evaluations_checkpoint_id", "evaluations")


def downgrade() -> None:
    op.create_index("ix_evaluations_checkpoint_id", "evaluations", ["checkpoint_id"])
    op.drop_index("ix_evaluations_checkpoint_id_state", "evaluations")
