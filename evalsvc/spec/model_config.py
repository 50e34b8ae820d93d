"""The configuration of a language model: its shape and the switches of its arithmetic, known without torch.

One class describes the models of every family. The first fields are those of an open_lm model JSON, with open_lm's
names and defaults; the others are switches that open_lm's models leave as they are. A family (see
`evalsvc.families`) reads its own configuration files into this class.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from evalsvc.errors import InvalidLayout

ModelNorm = Literal[
    "default_layer_norm",
    "lp_layer_norm",
    "gain_only_layer_norm",
    "gain_only_lp_layer_norm",
    "no_wb_layer_norm",
    "rms_norm",
    "rms_norm_wide",
    "rms_norm_plus_one",
]
PositionalEmbedding = Literal["rotary", "head_rotary", "llama_rotary", "none"]
FeedForwardType = Literal["swiglu", "swiglu_torch", "gelu", "gemma_geglu", "gated", "plain"]
Activation = Literal["silu", "gelu", "gelu_tanh"]

MAX_LAYERS = 512
"""Largest number of layers: four times that of the deepest published language models. Building 4,096 takes 12 s, also
for a file of no weights."""

OPEN_LM = "open_lm"
"""Family of a configuration that names none."""

TRANSFORMERS = "transformers"
"""Family of models that the package transformers computes."""


class RotaryScaling(BaseModel):
    """Scaling of the rotary frequencies of a model whose training continued on longer sequences.

    `linear` divides every frequency by `factor`. `llama3` divides low frequencies, keeps high frequencies, and
    interpolates between the two.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    kind: Literal["linear", "llama3"]
    factor: float = Field(gt=0, le=2**20)
    low_freq_factor: float = Field(default=1.0, gt=0, le=2**20)
    """Number of rotations within `original_length` below which a frequency is divided by `factor`."""
    high_freq_factor: float = Field(default=4.0, gt=0, le=2**20)
    """Number of rotations within `original_length` above which a frequency is kept."""
    original_length: int = Field(default=8192, gt=0, le=2**26)
    """Length of the sequences before the training continued, in tokens."""

    @model_validator(mode="after")
    def _band(self) -> Self:
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} is not below high_freq_factor {self.high_freq_factor}; "
                "correct one of the two"
            )
        return self


class ImageTables(BaseModel):
    """Input rows and head of image ids that are apart from those of text, in the last rows of both tables.

    An MLP makes the input rows of narrow embeddings; the head has a layer of its own before its rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rows: int = Field(gt=0, le=2**26)
    """Number of image ids."""
    width: int = Field(gt=0, le=2**16)
    """Width of the embeddings that the input rows are made of."""
    depth: int = Field(gt=0, le=16)
    """Number of layers of the MLP."""


class ModelConfig(BaseModel):
    """The shape and the switches of a model; unknown keys are ignored, as in open_lm.

    The upper bounds keep a hostile file from building a model for hours.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    hidden_dim: int = Field(gt=0, le=2**20)
    n_layers: int = Field(gt=0, le=MAX_LAYERS)
    n_heads: int = Field(gt=0, le=2**16)
    seq_len: int = Field(gt=0, le=2**26)
    vocab_size: int = Field(gt=0, le=2**26)
    post_embed_norm: bool
    weight_tying: bool
    model_norm: ModelNorm = "default_layer_norm"
    qk_norm: bool = False
    positional_embedding_type: PositionalEmbedding = "rotary"
    ffn_type: FeedForwardType = "swiglu"
    norm_eps: float = Field(default=1e-5, gt=0)
    precision: str | None = None
    """`--precision` of the training run, or "fsdp_bf16"; only determines how the rotary frequencies were rounded."""

    # Switches of other families, in the order of the forward pass.
    family: str = Field(default=OPEN_LM, max_length=100)
    """Name in the catalog of the family whose names the tensors of the checkpoint have."""
    embedding_scale: float = Field(default=1.0, gt=0, le=2**20)
    """Factor on the embeddings, rounded to the model's dtype."""
    image_tables: ImageTables | None = None
    """Tables of image ids, where they are apart from those of text. None: image ids are rows like all others."""
    n_kv_heads: int | None = Field(default=None, gt=0, le=2**16)
    """Number of heads of keys and values; n_heads / n_kv_heads heads of queries share a head. None: n_heads."""
    head_size: int | None = Field(default=None, gt=0, le=2**16)
    """Width of a head. None: hidden_dim / n_heads."""
    attention_bias: bool = False
    """Whether the product to queries, keys and values has a bias."""
    output_bias: bool = False
    """Whether the product out of attention has a bias."""
    qk_norm_per_head: bool = False
    """Whether `qk_norm` normalises each head separately instead of all heads together."""
    qk_layer_norm: bool = False
    """Whether `qk_norm` is, for each head, a layer norm of epsilon 1e-5 with a gain and bias of the head's own."""
    rotary_base: float = Field(default=10_000.0, gt=1, le=1e12)
    """Base of the rotary frequencies, theta."""
    rotary_dims: int | None = Field(default=None, gt=0, le=2**16)
    """Number of leading dimensions of each head that are rotated. None: all."""
    rotary_scaling: RotaryScaling | None = None
    attention_window: int | None = Field(default=None, gt=0, le=2**26)
    """Number of tokens that sliding attention is limited to; longer sequences are refused. None: no layer slides."""
    ffn_size: int | None = Field(default=None, gt=0, le=2**24)
    """Width inside the feed-forward layer. None: open_lm's rule."""
    ffn_activation: Activation = "silu"
    """Activation of the feed-forward types `gated` and `plain`."""
    ffn_bias: bool = False
    """Whether the products of the feed-forward types `gated` and `plain` have biases."""
    norm_place: Literal["before", "after"] = "before"
    """Whether norms are applied to the inputs of attention and feed-forward layer, or to their outputs."""
    parallel_residual: bool = False
    """Whether attention and feed-forward layer both start from the input of the layer."""
    transformers_config: str | None = Field(default=None, max_length=1_000_000)
    """Checked `config.json`, as JSON, of a model that the package transformers computes."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.n_heads > self.hidden_dim and self.head_size is None:
            raise ValueError(
                f"n_heads {self.n_heads} is more than hidden_dim {self.hidden_dim}; correct one of the two"
            )
        if self.n_heads % self.kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} is no multiple of the {self.kv_heads} heads of keys and values; correct one "
                "of the two"
            )
        width = self.rotated_dims
        if self.positional_embedding_type != "none" and width % 2:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} over n_heads {self.n_heads} gives heads of width {width}; "
                f"{self.positional_embedding_type} turns pairs and needs an even width"
            )
        if width > self.head_dim:
            raise ValueError(f"{width} rotated dimensions do not fit into heads of width {self.head_dim}; correct it")
        return self

    @model_validator(mode="after")
    def _switches_fit(self) -> Self:
        """Refuse combinations that no family has, and that the Transformer does not compute."""
        if self.positional_embedding_type == "head_rotary" and self.kv_heads != self.n_heads:
            raise ValueError("head_rotary turns heads against each other and needs as many keys as queries")
        if self.positional_embedding_type == "llama_rotary" and self.rotated_dims != self.head_dim:
            raise ValueError("llama_rotary turns whole heads; leave rotary_dims out")
        if self.qk_layer_norm and not (self.qk_norm and self.qk_norm_per_head):
            raise ValueError("qk_layer_norm needs qk_norm and qk_norm_per_head")
        if self.image_tables is not None and self.weight_tying:
            raise ValueError("image_tables needs tables that are not tied")
        if self.image_tables is not None and self.image_tables.rows >= self.vocab_size:
            raise ValueError(f"image_tables has {self.image_tables.rows} rows, not fewer than vocab_size; correct it")
        if self.parallel_residual and self.norm_place == "after":
            raise ValueError("parallel_residual needs norm_place before")
        return self

    @model_serializer(mode="wrap")
    def _only_what_differs(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the switches that are as in open_lm, so that its configurations are written as open_lm's."""
        fields: dict[str, Any] = handler(self)
        return {
            name: value
            for name, value in fields.items()
            if name in OPEN_LM_FIELDS or getattr(self, name) != type(self).model_fields[name].default
        }

    def require_image_rows(self, image: range | None) -> None:
        """Raise InvalidLayout unless the image rows of a layout are those of the model's own tables of images."""
        if self.image_tables is not None:
            first = self.vocab_size - self.image_tables.rows
            if image != range(first, self.vocab_size):
                given = "no image rows" if image is None else f"the image rows {image.start}…{image.stop - 1}"
                raise InvalidLayout(
                    f"the layout has {given}, and the model has tables of its own for {first}…{self.vocab_size - 1}; "
                    f"give an image block of offset {first} and size {self.image_tables.rows}, or the model's preset"
                )

    @property
    def heads_apart(self) -> bool:
        """Whether logits of image ids come from a head of their own. A softmax over all ids then has no meaning."""
        return self.image_tables is not None

    @property
    def head_dim(self) -> int:
        """The width of one head. hidden_dim need not be a multiple of n_heads; the remainder is dropped."""
        return self.head_size or self.hidden_dim // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def attention_dim(self) -> int:
        """The width of all heads together; less than hidden_dim in open_lm_87m (480 of 488)."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def rotated_dims(self) -> int:
        return self.rotary_dims or self.head_dim

    @property
    def ffn_is_gated(self) -> bool:
        """Whether the feed-forward layer multiplies the activation by a second product."""
        return self.ffn_type not in ("gelu", "plain")

    @property
    def ffn_dim(self) -> int:
        """The width inside the feed-forward layer; by open_lm's rule 4·D for gelu, otherwise 8·D/3 rounded up to a
        multiple of 256."""
        if self.ffn_size is not None:
            return self.ffn_size
        if not self.ffn_is_gated:
            return 4 * self.hidden_dim
        return 256 * ((int(8 * self.hidden_dim / 3) + 255) // 256)


OPEN_LM_FIELDS = frozenset(takewhile(lambda name: name != "family", ModelConfig.model_fields))
"""Fields that a configuration of open_lm has: those before the switches of other families."""
