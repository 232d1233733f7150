"""Labels say why, and which of them are gold as delivered (A10).

Those that were stored before say nothing and are none.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add both columns."""
    op.add_column("labels", sa.Column("explanation", sa.Text(), nullable=False, server_default=""))
    op.add_column(
        "labels", sa.Column("held_out", sa.SmallInteger(), nullable=False, server_default="0")
    )


def downgrade() -> None:
    """Remove them."""
    op.drop_column("labels", "held_out")
    op.drop_column("labels", "explanation")
