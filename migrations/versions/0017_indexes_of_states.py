"""indexes: a checkpoint's evaluations by state, and checkpoints by the state of their copy"""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_evaluations_checkpoint_id_state", "evaluations", ["checkpoint_id", "state"])
    op.drop_index("ix_evaluations_checkpoint_id", "evaluations")
    op.create_index("ix_checkpoints_spool_state", "checkpoints", ["spool_state"])


def downgrade() -> None:
    op.drop_index("ix_checkpoints_spool_state", "checkpoints")
    op.create_index("ix_evaluations_checkpoint_id", "evaluations", ["checkpoint_id"])
    op.drop_index("ix_evaluations_checkpoint_id_state", "evaluations")
