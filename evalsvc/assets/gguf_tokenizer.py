"""The tokenizer in a GGUF file's metadata, as the files `tokenizer.json` and `tokenizer_config.json`."""

from __future__ import annotations

from typing import Any

CONTROL = 3
"""Type of tokens that stand for no text, such as the end of a text, in `tokenizer.ggml.token_type`."""

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

SPLITS: dict[str, list[dict[str, Any]]] = {
    # As SmolLM2's own tokenizer.json: every digit stands alone, also behind several spaces.
    "smollm": [{"type": "Digits", "individual_digits": True}, BYTES],
}
"""Steps that split a text before its tokens are joined, by the names in `tokenizer.ggml.pre`."""


def tokenizer_content(values: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `tokenizer.json`: a byte-level BPE without a post-processor, which adds no token itself."""
    tokens: list[str] = values["tokenizer.ggml.tokens"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, (token, kind) in enumerate(zip(tokens, values["tokenizer.ggml.token_type"], strict=True))
            if kind == CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": SPLITS[values["tokenizer.ggml.pre"]]},
        "post_processor": None,
        "decoder": BYTES,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": values["tokenizer.ggml.merges"],
        },
    }


def tokenizer_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `tokenizer_config.json`, for transformers: the roles of tokens, and the chat template.

    The class is the general one: transformers' class of GPT-2 would replace the steps of `tokenizer.json`.
    """
    tokens: list[str] = values["tokenizer.ggml.tokens"]
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{role: tokens[values[f"tokenizer.ggml.{name}_token_id"]] for role, name in roles.items()},
        "add_bos_token": values["tokenizer.ggml.add_bos_token"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": values["llama.context_length"],
        "chat_template": values["tokenizer.chat_template"],
    }
