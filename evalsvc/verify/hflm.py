"""lm-eval's own model class, HFLM, with a checkpoint's weights in a transformers class or in the real open_lm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from evalsvc.installation import missing_package
from evalsvc.language.encoding import TextEncoding
from evalsvc.language.hub import quiet
from evalsvc.models import Transformer
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.verify.agreement import release
from evalsvc.verify.hugging_face import write_hugging_face

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

NEEDED = ("transformers", "accelerate")
"""Packages that HFLM imports in addition to lm-eval."""

BATCH = 16


@dataclass(frozen=True)
class Hflm:
    """lm-eval's HFLM around a model."""

    model: HFLM
    program: str
    """Name in findings: lm-eval and the program that computes the logits, with their versions."""


def hflm_program(package: str = "transformers") -> str:
    """Return the program's name and version for findings; `package` computes the logits."""
    return f"{release('lm-eval')} (HFLM, {release(package)})"


def build_hflm(ours: Transformer, encoding: TextEncoding, *, within: bool = False) -> Hflm:
    """Return an HFLM with the weights of `ours` in a transformers class; text is read as `encoding` does.

    The rows of the table are reordered by the tokenizer's ids, text first. With `within` the model has the text rows
    only, so that its probabilities are those within the text ids.

    Raises:
        MissingPackage: transformers or accelerate is not installed.
        UnsupportedModel: no transformers class computes the model.
    """
    _require_packages()
    model = write_hugging_face(ours, text_first(encoding.layout, within))
    return Hflm(_around(model, encoding), hflm_program())


def build_hflm_of_open_lm(reference: nn.Module, encoding: TextEncoding, *, within: bool = False) -> Hflm:
    """Return an HFLM around a model of the package open_lm, with the ids of `build_hflm`. It cannot generate text.

    Raises:
        MissingPackage: transformers or accelerate is not installed.
    """
    _require_packages()
    model = OpenLmLogits(reference, text_first(encoding.layout, within))
    return Hflm(_around(model, encoding), hflm_program("open_lm"))


class OpenLmLogits(nn.Module):
    """open_lm's model with the interface that HFLM needs to score texts."""

    rows: Tensor  # [V] int64

    def __init__(self, reference: nn.Module, rows: Sequence[int]) -> None:
        """Wrap a model. `rows` are the rows of the table that the ids 0, 1, … stand for."""
        from transformers import PretrainedConfig

        super().__init__()
        self.reference = reference
        self.config = PretrainedConfig()
        self.register_buffer("rows", torch.tensor(list(rows)))

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def tie_weights(self) -> None:
        """Do nothing, because open_lm's model has already tied its tables."""

    def forward(
        self,
        ids: Tensor,  # [B, T] int64
    ) -> SimpleNamespace:
        return SimpleNamespace(logits=self.reference(self.rows[ids])[0][..., self.rows])


def _require_packages() -> None:
    for name in NEEDED:
        if find_spec(name) is None:
            raise missing_package(name, "lm-eval's HFLM", "reference")


def _around(model: PreTrainedModel | OpenLmLogits, encoding: TextEncoding) -> HFLM:
    from lm_eval.models import huggingface

    prefix = encoding.end if encoding.bos is None else encoding.bos
    with quiet():  # HFLM warns about every model that is not a path
        return huggingface.HFLM(
            model,
            backend="causal",
            tokenizer=_tokenizer(encoding),
            max_length=encoding.max_length,
            batch_size=BATCH,
            add_bos_token=encoding.bos is not None,
            prefix_token_id=0 if prefix is None else prefix,  # without a prefix, no context is empty
            logits_cache=False,  # with the cache, some requests of version 0.4.13 get log-likelihoods of others
        )


def text_first(layout: VocabularyLayout, within: bool) -> Sequence[int]:
    """Return the rows of the table with the text rows first; with `within`, only the text rows."""
    text = layout.text_ids
    other_rows = () if within else (row for row in range(layout.rows or 0) if row not in text)
    return [*text, *other_rows]


def whole_tokens(encoding: TextEncoding) -> dict[int, str]:
    """Return the tokenizer's added tokens by id, which it finds in a text before any others."""
    content = json.loads(encoding.tokenizer.to_json())
    return {token["id"]: token["content"] for token in content["added_tokens"]}


def _tokenizer(encoding: TextEncoding) -> PreTrainedTokenizerFast:
    """Return the tokenizer for transformers. Only added tokens get a role, because a role would turn others into added
    tokens."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    content = json.loads(encoding.tokenizer.to_json())
    if encoding.bos is not None:
        content["post_processor"] = _beginning_with(encoding.bos)
    whole = whole_tokens(encoding)
    roles = {"bos_token": encoding.bos, "eos_token": encoding.end, "pad_token": encoding.end}
    return kind(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        clean_up_tokenization_spaces=False,
        **{role: whole[token] for role, token in roles.items() if token in whole},
    )


def _beginning_with(token: int) -> dict[str, object]:
    """Return a post-processor that puts a token before every text."""
    text = [{"SpecialToken": {"id": "first", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"first": {"id": "first", "ids": [token], "tokens": ["first"]}}
    pair = [*text, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": text, "pair": pair, "special_tokens": special}
