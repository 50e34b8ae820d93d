"""The parameters of tasks that put text to a model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from evalsvc.spec.bounds import MAX_TOKENS, Beginning, TokenId
from evalsvc.spec.paths import DataPath
from evalsvc.tasks.task import Task


class TextTask(Task):
    """A task that puts text to a model."""

    tokenizer: DataPath | None = None
    """The `tokenizer.json` that the model was trained with [the layout's]."""
    bos: Beginning | None = None
    """Id of the tokenizer to put before every text that the model continues, or `none` [the layout's `text.bos`]."""
    end_of_text: TokenId | None = None
    """Id of the tokenizer that ends a completion, and that replaces an empty context without `bos` [the
    tokenizer's]."""
    max_length: int | None = Field(default=None, ge=2, le=MAX_TOKENS)
    """Longest input in tokens, including drawn tokens; a longer input is cut from the left and counted [the
    model's]."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights and activations; logits are always float32."""
    rotary_inv_freq_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type to which training rounded the rotary frequencies; `auto` takes it from the run's configuration."""
