"""lm-eval's own model, HFLM, around an open_lm model that is written for transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from evalsvc.errors import MissingPackage
from evalsvc.language.encoding import TextEncoding
from evalsvc.language.hub import quiet
from evalsvc.models import Transformer
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.verify.hugging_face import write_hugging_face

NEEDED = ("transformers", "accelerate")
"""What HFLM imports besides lm-eval."""

BATCH = 16


def hflm_program() -> str:
    """Return the name of the program with its version, as findings have it."""
    try:
        return f"lm-eval {version('lm_eval')} (HFLM, transformers {version('transformers')})"
    except PackageNotFoundError:
        return "lm-eval (HFLM)"


def build_hflm(ours: Transformer, encoding: TextEncoding, *, within: bool = False) -> Any:
    """Return an HFLM with the weights of `ours`, in float32 on the CPU, which reads text as `encoding` does.

    The rows of the table are brought into the order of the tokenizer's ids, text first. With `within` the model has the
    text rows alone, so that its probabilities are those within the text ids.

    Raises:
        MissingPackage: transformers or accelerate is not installed.
        UnsupportedModel: no class of transformers computes the model.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise MissingPackage(f"{' and '.join(missing)} not installed; run: pip install 'evalsvc[reference]'")
    from lm_eval.models.huggingface import HFLM

    model = write_hugging_face(ours, text_first(encoding.layout, within))
    prefix = encoding.end if encoding.bos is None else encoding.bos
    with quiet():  # it warns of every model that is not a path
        return HFLM(
            model,
            tokenizer=_tokenizer(encoding),
            max_length=encoding.max_length,
            batch_size=BATCH,
            add_bos_token=encoding.bos is not None,
            prefix_token_id=0 if prefix is None else prefix,  # without one, no context is empty
            logits_cache=False,  # with it, some requests of version 0.4.13 get log-likelihoods of others
        )


def text_first(layout: VocabularyLayout, within: bool) -> Sequence[int]:
    """Return the rows of the table with the text rows first; with `within`, these alone."""
    text = layout.text_ids
    others = () if within else (row for row in range(layout.rows or 0) if row not in text)
    return [*text, *others]


def whole_tokens(encoding: TextEncoding) -> dict[int, str]:
    """Return the tokens that the tokenizer finds in a text before anything else, by id: its added tokens."""
    content = json.loads(encoding.tokenizer.to_json())
    return {token["id"]: token["content"] for token in content["added_tokens"]}


def _tokenizer(encoding: TextEncoding) -> Any:
    """Return the tokenizer for transformers. Only tokens that it keeps whole get a role, as a role makes them whole."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    kind: Any = PreTrainedTokenizerFast
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


def _beginning_with(token: int) -> dict[str, Any]:
    """Return the post-processor that puts a token before every text."""
    text = [{"SpecialToken": {"id": "first", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"first": {"id": "first", "ids": [token], "tokens": ["first"]}}
    pair = [*text, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": text, "pair": pair, "special_tokens": special}
