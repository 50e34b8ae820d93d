"""Common work of tasks that put text to a model: finding the tokenizer, and checking that a base reads the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

from evalsvc.data.tokenizer import TextTokenizer, read_tokenizer, tokenizer_digest
from evalsvc.errors import InvalidData
from evalsvc.models.language_model import LanguageModel
from evalsvc.spec.layout import TextBlock
from evalsvc.tasks.task import Context, Output, ShardKind, TextTask, Work

TextParameters = TypeVar("TextParameters", bound=TextTask)


class TextWork(Work[TextParameters, ShardKind, Output], Generic[TextParameters, ShardKind, Output]):
    def model(self, context: Context) -> LanguageModel:
        return context.model(dtype=self.task.dtype, rotary_inv_freq_dtype=self.task.rotary_inv_freq_dtype)

    def text_tokenizer(self, context: Context) -> TextTokenizer:
        text = context.layout().text
        path = self.tokenizer_path(context, text)
        if path is None:
            raise InvalidData(
                f"task {self.task.name!r} needs text, but there is no tokenizer; set the task's `tokenizer` or the "
                "layout's `text.tokenizer`"
            )
        tokenizer = read_tokenizer(path, context.readable)
        tokenizer.require_fits(text)
        return tokenizer

    def bos(self, context: Context, tokenizer: TextTokenizer) -> int | None:
        """Return the tokenizer's id before every text: the task's, or the layout's."""
        return tokenizer.beginning(context.layout().text.beginning(self.task.bos))

    def tokenizer_path(self, context: Context, text: TextBlock) -> str | None:
        """Return the path of the tokenizer: the task's own, or that of `text`."""
        return text.tokenizer if self.task.tokenizer is None else context.dataset(self.task.tokenizer)

    def require_same_text(self, context: Context, base: Context, tokenized: bool = True) -> None:
        """Raise InvalidData unless each id is the same text for the checkpoint and its base. Without `tokenized`, a
        tokenizer is needed only to tell whether text blocks of two sizes differ by padding."""
        own_text, base_text = context.layout().text, base.layout().text
        label = f"the base, {base.checkpoint.label},"
        digests = [_tokenizer_digest(context, text) for text in (own_text, base_text)]
        if None not in digests and digests[0] != digests[1]:
            raise InvalidData(
                f"{label} has a tokenizer with sha256 {digests[1]}, but the checkpoint's has {digests[0]}; set a base "
                "with the checkpoint's tokenizer"
            )
        path = self.tokenizer_path(context, own_text) or base_text.tokenizer
        if path is not None and (tokenized or own_text.size != base_text.size):
            tokenizer = read_tokenizer(path, context.readable)
            tokenizer.require_fits(own_text)
            try:
                tokenizer.require_fits(base_text)
            except InvalidData as error:
                raise InvalidData(f"{label} has other text: {error.message}") from None
        elif own_text.size != base_text.size:
            raise InvalidData(
                f"{label} has {base_text.size} text rows, the checkpoint has {own_text.size}; if the rest is padding, "
                "set the task's `tokenizer`, otherwise set a base with the checkpoint's tokenizer"
            )

    def protocol(self, rotary: Mapping[str, str]) -> dict[str, str]:
        """Return the protocol's content that affects every number; `rotary` is that of the model's context."""
        return {"dtype": self.task.dtype, "rotary_inv_freq_dtype": self.task.rotary_inv_freq_dtype, **rotary}


def base_rotary(base: Context) -> dict[str, str]:
    """Return the protocol's content for the base's rotary frequencies in a comparison; see `Context.rotary`."""
    return {f"base_{key}": value for key, value in base.rotary().items()}


def _tokenizer_digest(context: Context, text: TextBlock) -> str | None:
    if text.tokenizer_sha256 is not None or text.tokenizer is None:
        return text.tokenizer_sha256
    return tokenizer_digest(text.tokenizer, context.readable) if Path(text.tokenizer).is_file() else None
