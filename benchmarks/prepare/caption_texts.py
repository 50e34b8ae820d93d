"""Captions as texts: which of them become training data, and their ids.

A caption is a text of a stranger. A control character, or the text of one of the tokenizer's special tokens, such as
`<|endoftext|>`, would become a token that means something to the model, so such captions are left out.
"""

from __future__ import annotations

import re
from array import array

from evalsvc.data.files import check_text
from evalsvc.data.tokenizer import TextTokenizer
from evalsvc.errors import InvalidData
from evalsvc.spec.bounds import MAX_TEXT

MAX_CAPTION_BYTES = 4 * MAX_TEXT
"""Largest number of bytes of a caption: MAX_TEXT characters of four bytes."""

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
"""Control characters other than white space."""


def caption_of(content: bytes) -> str:
    """Return the caption in a text file. Raises InvalidData if the file is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidData("the caption is not UTF-8; save the file as UTF-8") from None


def problem_of(caption: str) -> str | None:
    """Return why a caption cannot be used; None if it can."""
    text = caption.strip()
    if not text:
        return "the caption is empty"
    if len(text) > MAX_TEXT:
        return f"the caption has more than {MAX_TEXT:,} characters"
    if CONTROL.search(text):
        return "the caption has control characters"
    try:
        check_text("the caption", text)
    except InvalidData:
        return "the caption holds half of a surrogate pair"
    return None


class CaptionEncoder:
    """Encoder from captions to a tokenizer's ids."""

    def __init__(self, tokenizer: TextTokenizer, bos: int | None) -> None:
        """Put the id `bos` before the ids of each caption; None for no token."""
        self._tokenizer = tokenizer
        self._bos = bos

    def __call__(self, caption: str) -> array[int] | str:
        """Return the ids of a caption, or why the caption cannot be used."""
        ids = self._tokenizer.encode(caption)
        if not self._tokenizer.special_ids.isdisjoint(ids):
            return "the caption has the text of a special token of the tokenizer"
        return array("i", ids if self._bos is None else [self._bos, *ids])
