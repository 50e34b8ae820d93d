"""Shards that open_lm's loader reads by `--data-key json.gz`, equal byte for byte for equal sequences.

A shard `00000001.tar` is a plain USTAR archive with a member `KEY.json.gz` per sequence: a gzipped JSON list of ids.
Times are 0 and owners are empty. Another version of zlib may compress to other bytes; the ids are the same.

Source of the form: mlfoundations/open_lm, `open_lm/data.py` and `open_lm/datapreprocess/ray/tokenize_shuffle.py`.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

from evalsvc.files.atomic import write_whole
from prepare.code_store import CodeStore
from prepare.records import PairRecord
from prepare.sequence_form import SequenceForm

GZIP_HEADER = bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0xFF])
"""Magic number, deflate, no flags, time 0, no extra flags, unknown system."""
LEVEL = 6

MANIFEST = "manifest.jsonl"
SHARD_NAME = "{:08d}"
"""Name of a shard by its number, counted from 1."""
SHARD_FILE = "[0-9]" * 8 + ".tar"
"""Pattern of the names of shards."""


@dataclass(frozen=True)
class ShardFile:
    """A shard on the disk."""

    shard: str
    """Name without the suffix `.tar`."""
    num_sequences: int
    bytes: int
    sha256: str

    def is_whole(self, folder: Path) -> bool:
        """Return whether the file in the folder is still this one. Raises OSError if it cannot be read."""
        path = folder / f"{self.shard}.tar"
        if not path.is_file() or path.stat().st_size != self.bytes:
            return False
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == self.sha256

    def to_line(self) -> str:
        """Return the shard as a line of JSON."""
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True)
class ShardWriter:
    """Writer of sequences of one form."""

    form: SequenceForm
    store: CodeStore

    def write(self, folder: Path, name: str, records: Sequence[PairRecord]) -> ShardFile:
        """Write the records as `NAME.tar`. Raises OSError and DataChanged."""
        stream = BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for record in records:
                content = gzipped(json.dumps(self._ids(record)).encode())
                header = tarfile.TarInfo(f"{record.key}.json.gz")
                header.size = len(content)
                tar.addfile(header, BytesIO(content))
        content = stream.getvalue()
        write_whole(folder / f"{name}.tar", content, mode=0o644)
        return ShardFile(name, len(records), len(content), hashlib.sha256(content).hexdigest())

    def _ids(self, record: PairRecord) -> list[int]:
        return self.form.ids(record.text_ids, self.store.codes(record.file))


def gzipped(content: bytes) -> bytes:
    """Return a gzip file of `content` without time and name. Python's `gzip` writes a header that depends on its
    version."""
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflate.compress(content) + deflate.flush()
    return GZIP_HEADER + body + zlib.crc32(content).to_bytes(4, "little") + len(content).to_bytes(4, "little")


def equal_parts(count: int, most: int) -> list[int]:
    """Return the starts of as few shards as possible of at most `most` sequences, and `count` as the last item.

    Shards differ by one sequence at most, since open_lm gives each worker whole shards and warns of small ones.
    """
    shards = -(-count // most)
    size, longer = divmod(count, shards)
    return [number * size + min(number, longer) for number in range(shards + 1)]


def manifest(shards: Sequence[ShardFile]) -> bytes:
    """Return open_lm's manifest: a line per shard. open_lm drops what follows the last line break, so one ends it."""
    lines = (json.dumps({"shard": shard.shard, "num_sequences": shard.num_sequences}) + "\n" for shard in shards)
    return "".join(lines).encode()
