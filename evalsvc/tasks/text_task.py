"""The parameters of the tasks that put text to a model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from evalsvc.spec.bounds import MAX_TOKENS, TokenId
from evalsvc.spec.paths import DataPath
from evalsvc.tasks.task import Task


class TextTask(Task):
    """A task that puts text to a model."""

    tokenizer: DataPath | None = None
    """The `tokenizer.json` that the model was trained with [the layout's]."""
    bos: TokenId | None = None
    """Id of the tokenizer that is put before every text that the model goes on from."""
    end_of_text: TokenId | None = None
    """Id of the tokenizer that ends what is drawn, and stands for an empty context without `bos` [the tokenizer's]."""
    max_length: int | None = Field(default=None, ge=2, le=MAX_TOKENS)
    """Longest input in tokens, with what is drawn; what is longer is cut from the left and counted [the model's]."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and activations; logits are float32 in any case."""
    rotary_inv_freq_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """To what the rotary frequencies were rounded in training [found from the run's configuration]."""
