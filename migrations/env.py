"""Alembic's entry point: `alembic upgrade head` from the repository root, and `Store.migrate` inside the service."""

from typing import Any, Literal

import sqlalchemy as sa
from alembic import context
from alembic.autogenerate.api import AutogenContext

from evalsvc.config import Settings
from evalsvc.store.session import Store
from evalsvc.store.tables import Base, Packed, UtcDateTime


def render_item(kind: str, item: Any, autogen: AutogenContext) -> str | Literal[False]:
    """Write the project's column types in SQLAlchemy's own words: a migration must not change when the code does."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, Packed):
        return "sa.LargeBinary()"
    if kind == "type" and isinstance(item, sa.JSON):
        autogen.imports.add("from sqlalchemy.dialects import postgresql")
        return 'sa.JSON().with_variant(postgresql.JSONB(), "postgresql")'
    return False


url = context.config.get_main_option("sqlalchemy.url") or Settings.load().database
store = Store(url)
try:
    with store.engine.execution_options(writes=True).connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=True,  # SQLite alters a table by making it anew
            render_item=render_item,
            # All migrations or none: Alembic takes SQLite for a database that commits each step.
            transactional_ddl=True,
        )
        with context.begin_transaction():
            context.run_migrations()
finally:
    store.close()
