"""The first line of a backup's manifest, which describes the backup."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

FORMAT: Final = "evalsvc-backup/1"

Kind = Literal["boolean", "bytes", "integer", "json", "number", "text", "time"]
"""The kind of a column's values, the same in SQLite and PostgreSQL."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,63}$")]
Count = Annotated[int, Field(ge=0)]

LARGEST_ID = 2**31 - 1
"""The largest id of a row: PostgreSQL's ids are integers of 32 bits."""

NAMED = 20
"""The most lost files that a manifest names."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TableRows(_Part):
    """The columns of a table, and the number of its rows."""

    name: Name
    columns: dict[Name, Kind]
    """The kind of each column by name, in the order of a row's values."""
    rows: Count


class Manifest(_Part):
    """The first line of a manifest."""

    format: Literal["evalsvc-backup/1"]
    evalsvc: Annotated[str, Field(max_length=64)]
    """The version of evalsvc that made the backup."""
    made_at: AwareDatetime
    database: Literal["sqlite", "postgresql"]
    revision: Annotated[str, Field(pattern=r"^[0-9a-z_]{1,32}$")]
    """The schema version of the database: the revision of its newest migration."""
    tables: Annotated[list[TableRows], Field(max_length=99)]
    """All tables, each after the tables that its foreign keys refer to."""
    ids: dict[Name, Annotated[int, Field(ge=0, le=LARGEST_ID)]]
    """The largest id that a row of each table ever had, so that a restored database reuses no id."""
    members: Count
    files: Count
    """The number of members that are files of the data folder."""
    lost: Count
    """The number of files that the database names and that were missing or damaged at the time of the backup."""
    lost_names: Annotated[list[Annotated[str, Field(max_length=512)]], Field(max_length=NAMED)]

    @property
    def made(self) -> str:
        """The time and the version of evalsvc that made the backup, for messages."""
        when: datetime = self.made_at
        return f"{when:%Y-%m-%d %H:%M} UTC by evalsvc {self.evalsvc}"


def parse_manifest(line: bytes) -> Manifest:
    """Read the first line of a manifest.

    Raises:
        ValueError: the line is not valid; the message has one line.
    """
    try:
        return Manifest.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"its manifest cannot be read: {where}: {first['msg']}") from None
