"""virtual checkpoints"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "checkpoint_parents",
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_checkpoint_parents_checkpoint_id_checkpoints")
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["checkpoints.id"], name=op.f("fk_checkpoint_parents_parent_id_checkpoints")
        ),
        sa.PrimaryKeyConstraint("checkpoint_id", "parent_id", name=op.f("pk_checkpoint_parents")),
    )
    with op.batch_alter_table("checkpoint_parents", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_checkpoint_parents_parent_id"), ["parent_id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("checkpoint_parents", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_checkpoint_parents_parent_id"))

    op.drop_table("checkpoint_parents")
