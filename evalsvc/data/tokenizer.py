"""The tokenizer of a model's text: text to ids and back, and the check that it fits the layout."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from evalsvc.checkpoints.reference import Identity
from evalsvc.data.files import CACHED_FILES, MEMORY, identify_file, limited_memory
from evalsvc.errors import EvalsvcError, InvalidData, os_reason
from evalsvc.files.opened import Allow, anywhere, open_file
from evalsvc.installation import missing_package
from evalsvc.spec.bounds import Beginning
from evalsvc.spec.layout import TextBlock, VocabularyLayout

END_OF_TEXT = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>")
"""Names of the token that ends a text, the most common name first."""

MAX_BYTES = 100_000_000
"""Largest size of a `tokenizer.json`: three times the largest published file, which has 262,144 ids."""

PANIC = "PanicException"
"""Class name of a panic in the library's Rust code; the class cannot be imported."""


@dataclass(frozen=True)
class TextTokenizer:
    """Tokenizer from a `tokenizer.json`, without truncation, padding and post-processing: all tokens are text.

    A post-processor may put a token before every text; here the layout decides, see `beginning`. Chat templates are in
    other files, which are not read.
    """

    path: str
    size: int
    """Number of ids; ids are 0…size-1."""
    digest: str
    """SHA-256 of the file."""
    end_of_text: int | None
    """Id of the token that ends a text; None where the tokenizer has none of the usual names."""
    _tokenizer: Any

    def encode(self, text: str, bos: int | None = None) -> list[int]:
        """Return the ids of a text, with `bos` first. A text that begins with `bos` gets no second, as in HFLM."""
        with translated(self.path):
            ids = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def id_of(self, name: str) -> int | None:
        """Return the id of the token with this name; None without such a token."""
        with translated(self.path):
            token: int | None = self._tokenizer.token_to_id(name)
        return token

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of ids; `skip_special` leaves out the tokenizer's special tokens."""
        with translated(self.path):
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    @cached_property
    def added_before(self) -> list[int]:
        """The ids that the file's post-processor would put before a text."""
        with translated(self.path):
            plain, processed = (self._tokenizer.encode("a", add_special_tokens=added).ids for added in (False, True))
        starts = range(len(processed) - len(plain) + 1)
        return list(processed[: next((i for i in starts if processed[i : i + len(plain)] == plain), 0)])

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of the file's special tokens, whose text in a caption would become one of these ids."""
        with translated(self.path):
            added = self._tokenizer.get_added_tokens_decoder()
            return frozenset(token for token, content in added.items() if content.special)

    def beginning(self, bos: Beginning | None) -> int | None:
        """Return the id that stands before a text; None: no token.

        `bos` is the decision of the task or the layout; None, neither decides, is refused where the tokenizer's
        post-processor would add tokens.
        """
        if bos is None and self.added_before:
            ids = ", ".join(map(str, self.added_before))
            raise InvalidData(
                f"the tokenizer {self.path} puts {ids} before every text by itself, and neither the layout nor the "
                f"task decides what stands before a text; set the layout's `text.bos` to {self.added_before[0]}, or to "
                "`none` if the model was trained without"
            )
        if isinstance(bos, int) and bos >= self.size:
            raise InvalidData(f"bos is {bos}; the tokenizer {self.path} has the ids 0…{self.size - 1}")
        return bos if isinstance(bos, int) else None

    def to_json(self) -> str:
        """Return the content of a `tokenizer.json`, for other libraries."""
        with translated(self.path):
            return str(self._tokenizer.to_str())

    def require_fits(self, text: TextBlock) -> None:
        """Raise InvalidData unless the tokenizer can be the one that the model was trained with."""
        if text.tokenizer_sha256 not in (None, self.digest):
            raise InvalidData(
                f"the tokenizer {self.path} has sha256 {self.digest}, but the layout has {text.tokenizer_sha256}; "
                "give the tokenizer that the model was trained with"
            )
        if self.size > text.size or text.size >= 2 * self.size:  # tables are padded by little
            raise InvalidData(
                f"the tokenizer {self.path} has {self.size} ids, but the layout has {text.size} text rows; give the "
                "tokenizer that the model was trained with, or correct the layout"
            )


def read_tokenizer(path: str | Path, allow: Allow = anywhere) -> TextTokenizer:
    """Open the tokenizer in a `tokenizer.json`, once per process and file."""
    path = Path(path)
    return _read(path, identify_file(path, "tokenizer"), allow)


def tokenizer_digest(path: str | Path, allow: Allow = anywhere) -> str:
    """Return the SHA-256 of a `tokenizer.json`, as in `TextTokenizer.digest`."""
    return hashlib.sha256(read_bounded(Path(path), allow)).hexdigest()


def read_bounded(path: Path, allow: Allow = anywhere) -> bytes:
    """Read a `tokenizer.json`."""
    try:
        with open_file(path, "tokenizer", allow).stream as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidData(f"the tokenizer {path} cannot be read: {os_reason(error)}; check the file") from None
    if len(content) > MAX_BYTES:
        raise InvalidData(f"the tokenizer {path} is larger than {MAX_BYTES:,} bytes; give a tokenizer.json")
    return content


@contextmanager
def translated(path: Path | str) -> Iterator[None]:
    """Limit the library's memory, and raise InvalidData, which quotes nothing, for its exceptions and Rust panics."""
    try:
        with limited_memory(MEMORY, f"the tokenizer {path}"):
            yield
    except (EvalsvcError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        place = re.search(r"line \d+ column \d+$", str(error))
        where = f" at {place[0]}" if place else ""
        raise InvalidData(
            f"the tokenizer {path} is not a tokenizer.json that works{where}; give the tokenizer that the model was "
            "trained with"
        ) from None


@lru_cache(maxsize=CACHED_FILES)
def _read(path: Path, identity: Identity, allow: Allow) -> TextTokenizer:
    # `identity` invalidates the cache when the file changes.
    try:  # imported here, since the service starts without tokenizers
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise missing_package("tokenizers", "text data") from None
    content = read_bounded(path, allow)
    with translated(path):
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        ids = tokenizer.get_vocab(with_added_tokens=True)
    end_of_text = next((ids[name] for name in END_OF_TEXT if name in ids), None)
    digest = hashlib.sha256(content).hexdigest()
    return TextTokenizer(str(path), max(ids.values(), default=-1) + 1, digest, end_of_text, tokenizer)


def render(ids: Sequence[int], layout: VocabularyLayout, tokenizer: TextTokenizer) -> str:
    """Return a model's output as readable text. `ids` are rows of the model's table, and the layout is resolved.

    Consecutive text ids are decoded together, so that characters of several ids are whole. Bytes that form no character
    become U+FFFD, and so does NUL, which PostgreSQL cannot store in text. Other ids are shown by kind: `‹image 188›`
    with the code, `‹/doc›`, `‹row 600›`, and `‹text 509›` for an id that the tokenizer does not have.
    """
    special = {row: name for name, row in layout.special_ids.items()}
    image = layout.image_range or range(0)
    known = layout.text_ids[: tokenizer.size]

    def is_known_text(row: int) -> bool:
        return row in known and row not in special and row not in image

    def name_of(row: int) -> str:
        if row in special:
            return special[row]
        if layout.image_ids is not None and row in image:
            return f"image {layout.image_ids.index(row)}"
        return f"text {row - layout.text.offset}" if row in layout.text_ids else f"row {row}"

    parts = []
    for is_text, run in groupby(ids, is_known_text):
        if is_text:
            parts.append(tokenizer.decode([row - layout.text.offset for row in run]))
        else:
            parts += [f"‹{name_of(row)}›" for row in run]
    return "".join(parts).replace("\0", "\ufffd")
