"""What a backup says of itself in the first line of its manifest."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

FORMAT: Final = "evalsvc-backup/1"

Kind = Literal["boolean", "bytes", "integer", "json", "number", "text", "time"]
"""What a column holds, whichever database it is in."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,63}$")]
Count = Annotated[int, Field(ge=0)]

LARGEST_ID = 2**31 - 1
"""Largest id that a row can have: ids are integers of 32 bits in PostgreSQL."""

NAMED = 20
"""Most files that a manifest names as lost."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TableRows(_Part):
    """A table of the backup."""

    name: Name
    columns: dict[Name, Kind]
    """Kinds of the columns by name, in the order of the values of a row."""
    rows: Count


class Manifest(_Part):
    """The first line of a manifest."""

    format: Literal["evalsvc-backup/1"]
    evalsvc: Annotated[str, Field(max_length=64)]
    """Version of evalsvc that made the backup."""
    made_at: AwareDatetime
    database: Literal["sqlite", "postgresql"]
    revision: Annotated[str, Field(pattern=r"^[0-9a-z_]{1,32}$")]
    """Migration that the database stood at."""
    tables: Annotated[list[TableRows], Field(max_length=99)]
    """All tables, each after those that its foreign keys refer to."""
    ids: dict[Name, Annotated[int, Field(ge=0, le=LARGEST_ID)]]
    """Largest id that was ever given to a row, by table; no id is given twice."""
    members: Count
    files: Count
    """Number of members that are files of the data folder."""
    lost: Count
    """Number of files that the database names and that were missing or damaged when the backup was made."""
    lost_names: Annotated[list[Annotated[str, Field(max_length=512)]], Field(max_length=NAMED)]

    @property
    def made(self) -> str:
        """When and by which version the backup was made, for messages."""
        when: datetime = self.made_at
        return f"{when:%Y-%m-%d %H:%M} UTC by evalsvc {self.evalsvc}"


def parse_manifest(line: bytes) -> Manifest:
    """Read the first line of a manifest.

    Raises:
        ValueError: the line is none that `evalsvc backup` writes; the message says why, in one line.
    """
    try:
        return Manifest.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"its manifest cannot be read: {where}: {first['msg']}") from None
