"""Teacher-forced loss by token type: text, image and special tokens separately.

The total of an image–caption pair hides the text, which is one token in thirty. Every loss is therefore reported per
type, over all ids and within the ids of the type. `metrics.py` has the losses to compare with, `profile.py` the loss
by position, and `sequence_groups.py` the groups of dependent sequences for standard errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from evalsvc.spec.bounds import MAX_SIDE, Beginning, Rows, Shards, TextPrefix
from evalsvc.spec.images import Crop, Filter
from evalsvc.spec.paths import AssetName, DataPath
from evalsvc.tasks.task import Task


class Loss(Task):
    """Loss of given sequences, separately for text, image and special tokens."""

    kind: ClassVar[str] = "loss"
    work: ClassVar[str] = "evalsvc.tasks.loss.work:LossWork"
    stages: ClassVar[tuple[str, ...]] = ("model", "decoder")
    needs: ClassVar[str] = "token ids of sequences; or captions and images, and the decoder that encodes them"
    example: ClassVar[Mapping[str, Any]] = {"data": "/path/to/sequences.jsonl"}

    data: DataPath
    """Sequences, one per record: a JSONL file with `text_ids` or `text`, and `image_codes`, or a safetensors file. With
    `images`, captions that each name an image: COCO annotations, CSV or JSONL. Standard errors treat captions of one
    image, records with the same `document`, and equal texts without an image as one group."""
    images: DataPath | None = None
    """Images that `decoder` encodes and that follow their captions in the sequence: a folder, or a safetensors file."""
    decoder: AssetName | None = None
    """Image tokenizer that the run was trained with: the name of an asset or the path of its checkpoint."""
    decoder_config: AssetName | None = None
    """Configuration of the decoder: a name such as `movqgan-67M`, or the path of a YAML file [next to `decoder`]."""
    decoder_ema: bool = False
    """Whether to use the decoder's averaged weights."""
    size: int | None = Field(default=None, ge=2, le=MAX_SIDE)
    """Side of the images in pixels [the decoder's]."""
    crop: Crop = "center"
    """`center` cuts out the central square, `none` squeezes the whole image, `center-adm` needs `filter: bicubic`."""
    filter: Filter = "lanczos"
    """Filter of the resampling to `size`."""
    tokenizer: DataPath | None = None
    """The `tokenizer.json` for records that hold `text` [the layout's]."""
    bos: Beginning | None = None
    """Id of the tokenizer to put before the ids of a `text`, or `none` [the layout's `text.bos`]."""
    limit: Rows | None = None
    """Number of sequences to use, from the beginning [all]."""
    general_text: DataPath | None = None
    """General text, in a file like `data` without codes. Reports its loss, and the distance above the captions'."""
    general_text_limit: Rows | None = None
    """Number of sequences of `general_text` to use, from the beginning [all]."""
    text_prefix: TextPrefix = "bos"
    """What stands before a text without an image, in `data` and `general_text`: `bos` only the token of `bos`, if there
    is one, as before the questions of benchmarks; `layout` puts the text into the layout's template, as a caption."""
    profile: bool = True
    """Whether to keep the artifact `loss_profile`: the loss by position in texts, and by row, column and cell."""
    profile_metrics: tuple[Literal["text_position", "image_row", "image_column", "image_position"], ...] = Field(
        default=(), max_length=4
    )
    """Groups of the profile whose bins are also metrics, for curves over steps."""
    image_columns: int | None = Field(default=None, ge=1, le=MAX_SIDE)
    """Number of columns of an image's codes, which are stored row by row [as many as rows; if that is impossible, or if
    images have different numbers of codes, the profile is by position]."""
    shards: Shards | None = None
    """Number of shards [one per 262,144 tokens]; does not affect metrics."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights and activations; logits and losses are always float32."""
    rotary_inv_freq_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type to which training rounded the rotary frequencies; `auto` takes it from the run's configuration."""

    @model_validator(mode="after")
    def _check_images(self) -> Loss:
        if (self.images is None) != (self.decoder is None):
            missing, given = ("decoder", "images") if self.decoder is None else ("images", "decoder")
            raise ValueError(f"`{given}` is given without `{missing}`; set both, because a decoder encodes the images")
        if self.decoder is not None and self.image_columns is not None:
            raise ValueError("`image_columns` is given together with `decoder`, which sets it; remove `image_columns`")
        if self.profile_metrics and not self.profile:
            raise ValueError("`profile_metrics` are given, but `profile` is false; remove one of the two")
        return self
