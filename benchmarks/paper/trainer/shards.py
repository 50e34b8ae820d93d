"""Sequences in shards, as `prepare_data.py` writes them for open_lm: a manifest and tar files of `json.gz` members."""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from evalsvc.errors import InvalidData, os_reason
from evalsvc.spec.layout import VocabularyLayout
from trainer.image_source import Ids, Images

MANIFEST = "manifest.jsonl"
DATASHEET = "prepare.json"
MAX_MEMBER = 4_000_000
"""Maximum number of bytes of a record; far more than a sequence has."""


class Shards(Images):
    """Sequences in the tar files that a manifest lists. One shard at a time is in memory."""

    def __init__(self, folder: Path, layout: VocabularyLayout) -> None:
        self.layout = layout
        _require_layout(folder / DATASHEET, layout)
        self.paths, counts = zip(*_read_manifest(folder / MANIFEST), strict=True)
        self.groups = counts
        self.starts = [sum(counts[:place]) for place in range(len(counts))]
        self.code_of_row = {row: code for code, row in enumerate(layout.image_ids or ())}
        self.read = lru_cache(maxsize=2)(self._read)

    def captions(self, image: int) -> Sequence[Ids]:
        rows, text = self._record(image), self.layout.text_ids
        ids = [row - text.start for row in rows if row in text]
        return (ids,) if ids else ()

    def codes(self, image: int, variant: int) -> Ids | None:
        codes = [self.code_of_row[row] for row in self._record(image) if row in self.code_of_row]
        return codes or None

    def _record(self, image: int) -> array[int]:
        shard = next(place for place in reversed(range(len(self.starts))) if self.starts[place] <= image)
        return self.read(shard)[image - self.starts[shard]]

    def _read(self, shard: int) -> list[array[int]]:
        path = self.paths[shard]
        records = [self._rows(path, name, content) for name, content in _members(path)]
        if len(records) != self.groups[shard]:
            raise InvalidData(
                f"{path} has {len(records)} sequences, {MANIFEST} says {self.groups[shard]}; prepare the data again"
            )
        return records

    def _rows(self, path: Path, name: str, content: bytes) -> array[int]:
        try:
            rows = json.loads(content)
        except (ValueError, RecursionError):
            rows = None
        table = self.layout.rows or 0
        if not isinstance(rows, list) or any(type(row) is not int or not -table <= row < table for row in rows):
            raise InvalidData(
                f"{path}, {name} is no list of rows of a table of {table} rows; prepare the data with this layout"
            )
        return array("i", [row % table for row in rows])  # open_lm counts negative ids from the end of the table


def _read_manifest(path: Path) -> list[tuple[Path, int]]:
    """Return path and number of sequences of each shard."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        shards = [(path.parent / f"{line['shard']}.tar", line["num_sequences"]) for line in lines]
    except OSError as error:
        raise InvalidData(f"{path} cannot be read: {os_reason(error)}; give a folder of `prepare_data.py`") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidData(f"{path} is no manifest of open_lm; give a folder of `prepare_data.py`") from None
    names = [shard for shard, count in shards if shard.parent != path.parent or type(count) is not int or count < 1]
    if names or not shards:
        raise InvalidData(f"{path} lists no shards, or wrong ones; give a folder of `prepare_data.py`")
    return shards


def _require_layout(path: Path, layout: VocabularyLayout) -> None:
    """Compare a layout with that of the datasheet. Shards of another program have none."""
    if not path.exists():
        return
    try:
        prepared = json.loads(path.read_text())["settings"]["layout"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InvalidData(f"{path} is no datasheet of `prepare_data.py`; prepare the data again") from None
    if prepared != layout.digest:
        raise InvalidData(
            f"{path.parent} was prepared with the layout {str(prepared)[:12]}, the recipe's layout is "
            f"{layout.digest[:12]}; prepare the data with the recipe's layout, or give the layout of the data"
        )


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.isreg() else None
                if stream is None or not member.name.endswith(".json.gz"):
                    raise InvalidData(
                        f"{path} has the member {member.name!r}; shards have files named KEY.json.gz only"
                    )
                with gzip.open(stream) as content:
                    yield member.name, content.read(MAX_MEMBER)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else "it is no tar file, or is cut off"
        raise InvalidData(f"the shard {path} cannot be read: {reason}; prepare the data again") from None
