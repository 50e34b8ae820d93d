"""Files of the data folder that the rows of a database name, read from a schema of any known version.

`store.named_files` queries the newest schema only. A backup may be of a database with an older schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, text

from evalsvc.checkpoints.kept import spool_path
from evalsvc.files.artifacts import artifact_path
from evalsvc.files.outputs import OutputFile, from_column, output_path
from evalsvc.store.backup.rows import STREAMED, Columns

DIGEST = re.compile(r"[0-9a-f]{64}")

_OUTPUTS = (
    "SELECT shards.output FROM shards JOIN tasks ON tasks.id = shards.task_id "
    "JOIN evaluations ON evaluations.id = tasks.evaluation_id "
    "JOIN checkpoints ON checkpoints.id = evaluations.checkpoint_id "
    "WHERE shards.stage = 'run' AND shards.output IS NOT NULL AND checkpoints.replaced_at IS NULL"
)


@dataclass(frozen=True)
class NamedFile:
    """A file, or the folder of a spooled checkpoint."""

    name: str
    """The name of the member in the archive; for a spooled checkpoint, the folder of its members."""
    place: Path
    """The path relative to the data folder."""


def content_place(section: str, sha256: str) -> Path:
    """Return the path in the data folder of the artifact or the results per item with this digest."""
    return artifact_path(Path(section), sha256)


def named_files(connection: Connection, schema: Mapping[str, Columns], *, spool: bool) -> Iterator[NamedFile]:
    """Yield the files that the database names, including ready copies of checkpoints if `spool` is set.

    Raises:
        ValueError: a row has an invalid digest, or names a path outside of its folder.
    """
    condition = " WHERE pruned_at IS NULL" if "pruned_at" in schema["artifacts"].kinds else ""
    for sha256 in connection.scalars(
        text(f"SELECT DISTINCT sha256 FROM artifacts{condition}"), execution_options=STREAMED
    ):
        yield _content("artifacts", sha256)
    if "items_sha256" in schema["tasks"].kinds:
        query = "SELECT DISTINCT items_sha256 FROM tasks WHERE items_sha256 IS NOT NULL"
        for sha256 in connection.scalars(text(query), execution_options=STREAMED):
            yield _content("items", sha256)
    for packed in connection.scalars(text(_OUTPUTS), execution_options=STREAMED):
        output = from_column(bytes(packed))
        if isinstance(output, OutputFile):
            yield _output(output)
    if spool:
        ready = text("SELECT id, path FROM checkpoints WHERE spool_state = 'ready'")
        for row in connection.execute(ready, execution_options=STREAMED):
            yield NamedFile(f"spool/{row.id}", spool_path(Path(), row.id, row.path))


def require_safe_row(table: str, row: Mapping[str, object]) -> None:
    """Raise ValueError if a row from a backup names a file outside of the data folder.

    The service deletes the files that rows of a deleted run name: with a path as digest, it would delete any file.
    """
    if table == "artifacts":
        _content("artifacts", str(row["sha256"]))
    if table == "tasks" and row.get("items_sha256") is not None:
        _content("items", str(row["items_sha256"]))
    if table == "shards" and isinstance(packed := row["output"], bytes):
        try:
            output = from_column(packed)
        except Exception as error:  # errors of MessagePack, or of an `OutputFile` with other fields
            raise ValueError(f"a row of shards has an output that cannot be read ({type(error).__name__})") from None
        if isinstance(output, OutputFile):
            _output(output)
    if table == "checkpoints" and row["spool_state"] is not None and Path(str(row["path"])).name in ("", ".."):
        raise ValueError("a row of checkpoints has a spooled copy without a name")


def _content(section: str, sha256: str) -> NamedFile:
    if not DIGEST.fullmatch(sha256):
        raise ValueError(f"a row of {section} names {sha256!r}, which is no SHA-256")
    return NamedFile(f"{section}/{sha256}", content_place(section, sha256))


def _output(output: OutputFile) -> NamedFile:
    """Return the file of an output. Its fields come from the backup and may have any type of MessagePack."""
    numbers = (output.task, output.shard, output.attempt)
    if not all(type(number) is int and 0 <= number < 10**18 for number in numbers):
        raise ValueError("a row of shards names an output file with invalid numbers")
    place = output_path(Path("outputs"), *numbers)
    return NamedFile(str(place), place)
