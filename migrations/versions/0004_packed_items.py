"""results per item packed by column

What a row holds is packed and stays in the row, whatever its size. The packing is written out here, evalsvc-items/1: a
migration must not change when the code does.
"""

import hashlib
import zlib
from collections.abc import Callable
from typing import Any

import msgpack
import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from evalsvc.config import Settings
from evalsvc.errors import ItemsLost

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.add_column("tasks", sa.Column("packed", sa.LargeBinary(), nullable=True))
    tasks = sa.table("tasks", sa.column("id"), sa.column("items", Json), sa.column("packed", sa.LargeBinary))
    _convert(tasks, tasks.c["items"].is_not(None), lambda row: {"packed": _pack(row["items"])})
    # Not by a batch, which would make the table anew: SQLite drops none that rows of others refer to.
    op.drop_column("tasks", "items")
    op.execute("ALTER TABLE tasks RENAME COLUMN packed TO items")
    op.add_column("tasks", sa.Column("items_sha256", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.add_column("tasks", sa.Column("plain", Json, nullable=True))
    tasks = sa.table(
        "tasks",
        sa.column("id"),
        sa.column("items", sa.LargeBinary),
        sa.column("items_sha256", sa.String),
        sa.column("plain", Json),
    )
    kept = sa.or_(tasks.c["items"].is_not(None), tasks.c.items_sha256.is_not(None))
    _convert(
        tasks,
        kept,
        lambda row: {"plain": _unpack(_read(row["items_sha256"]) if row["items"] is None else row["items"])},
    )
    op.drop_column("tasks", "items_sha256")
    op.drop_column("tasks", "items")
    op.execute("ALTER TABLE tasks RENAME COLUMN plain TO items")


def _convert(tasks: sa.TableClause, chosen: Any, values: Callable[[Any], dict[str, Any]]) -> None:
    """Row by row: all together may not fit into memory."""
    connection = op.get_bind()
    for number in connection.scalars(sa.select(tasks.c.id).where(chosen)).all():
        row = connection.execute(sa.select(tasks).where(tasks.c.id == number)).mappings().one()
        connection.execute(sa.update(tasks).where(tasks.c.id == number).values(values(row)))


def _pack(items: list[dict[str, Any]]) -> bytes:
    shapes: dict[tuple[str, ...], int] = {}
    shape_of, columns = [], {}
    for item in items:
        shape_of.append(shapes.setdefault(tuple(item), len(shapes)))
        for key, value in item.items():
            columns.setdefault(key, []).append(value)
    packed: bytes = msgpack.packb(
        {
            "format": "evalsvc-items/1",
            "shapes": list(shapes),
            "shape_of": _compress(shape_of),
            "columns": {key: _compress(values) for key, values in columns.items()},
        }
    )
    return packed


def _compress(values: list[Any]) -> bytes:
    # PostgreSQL gives 1e22 back as a whole number, which is longer than any that was stored.
    return zlib.compress(msgpack.packb(values, default=float))


def _unpack(content: bytes) -> list[dict[str, Any]]:
    document = msgpack.unpackb(content)
    columns = {key: iter(msgpack.unpackb(zlib.decompress(values))) for key, values in document["columns"].items()}
    shape_of = msgpack.unpackb(zlib.decompress(document["shape_of"]))
    return [{key: next(columns[key]) for key in document["shapes"][shape]} for shape in shape_of]


def _read(sha256: str) -> bytes:
    path = Settings.load().items_path / sha256[:2] / sha256
    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ItemsLost(
            f"{path} is missing or damaged; say where the data folder is by EVALSVC_DATA_DIR, and try again"
        )
    return content
