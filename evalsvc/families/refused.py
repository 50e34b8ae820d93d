"""Models and image tokenizers that evalsvc refuses by name, because it computes another arithmetic or none of them.

Each is recognised before a general reader fails on it, and the message says what evalsvc can do instead. The page
"Which models and files" lists the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from evalsvc.errors import UnsupportedModel


@dataclass(frozen=True)
class Refused:
    name: str
    reason: str
    """Clause that follows the name."""
    instead: str
    """What evalsvc can do, as an advice."""
    fields: tuple[Mapping[str, object], ...] = ()
    """Fields of a configuration, all of which one alternative has; None stands for any value but null."""
    tensors: frozenset[str] = frozenset()
    """Words between the dots of names of tensors, all of which a file has."""
    files: frozenset[str] = frozenset()
    """Names of files, one of which a folder has."""

    def describes(self, fields: Mapping[str, object]) -> bool:
        """Return whether a configuration is of this model."""

        def has(name: str, value: object) -> bool:
            present = fields.get(name)
            return present is not None and value in (None, present)

        return any(all(has(*item) for item in alternative.items()) for alternative in self.fields)


ALONE = "for language tasks, save its language model alone, model.{part}.save_pretrained(FOLDER), and give that folder"
LLAMAGEN_ONLY = "evalsvc computes LlamaGen's image tokenizer only: give the file as `decoder`, by llamagen-vq-16"

MODELS = (
    Refused(
        "Show-o2",
        "which draws images by a flow between latents and no codes",
        ALONE.format(part="showo"),
        fields=({"_class_name": "Showo2Qwen2_5"},),
        tensors=frozenset({"showo", "diffusion_head_a"}),
    ),
    Refused(
        "Show-o",
        "which fills in masked codes in parallel; evalsvc draws one code after another",
        ALONE.format(part="showo"),
        fields=({"_class_name": "Showo"},),
        tensors=frozenset({"showo"}),
    ),
    Refused(
        "JanusFlow",
        "which draws images by a flow between latents and no codes",
        ALONE.format(part="language_model"),
        fields=({"model_type": "multi_modality", "vision_gen_enc_config": None},),
        tensors=frozenset({"vision_gen_enc_model"}),
    ),
    Refused(
        "LlamaGen's text-to-image model",
        "whose captions are vectors of T5 and no ids",
        LLAMAGEN_ONLY.replace("the file", "vq_ds16_t2i.pt"),
        fields=({"model_type": "t2i"},),
        tensors=frozenset({"cls_embedding", "cap_proj"}),
    ),
    Refused(
        "LlamaGen's class-conditional model",
        "whose classes are vectors and no ids",
        LLAMAGEN_ONLY.replace("the file", "vq_ds16_c2i.pt"),
        fields=({"model_type": "c2i"},),
        tensors=frozenset({"cls_embedding", "wqkv"}),
    ),
    Refused(
        "nanochat's model",
        "which normalises its embeddings, squares its activation and caps its logits",
        "evaluate it by nanochat's own scripts; evalsvc computes none of these three",
        tensors=frozenset({"transformer", "wte", "c_q", "c_k", "c_v"}),
    ),
    Refused(
        "Infinity",
        "which draws all bits of the next scale in parallel, from vectors of T5",
        "evalsvc draws one code after another, and computes no part of such a model",
        tensors=frozenset({"pos_start", "text_proj_for_sos"}),
    ),
    Refused(
        "VAR",
        "which draws all codes of the next scale in parallel",
        "evalsvc draws one code after another, and computes no part of such a model",
        tensors=frozenset({"pos_start", "pos_1LC"}),
    ),
    Refused(
        "Emu3.5",
        "which writes a text of its own between the prompt and an image; evalsvc draws images from a fixed prompt",
        "for losses and language tasks, give as model a copy of config.json with model_type `qwen3`, whose arithmetic "
        "it has, and without auto_map",
        fields=({"model_type": "Emu3", "head_dim": None},),
    ),
)
"""Models, each before those whose description fits it too."""

DECODERS = (
    Refused(
        "Cosmos' tokenizer",
        "which is a program (TorchScript); evalsvc runs no program of a checkpoint",
        "without pictures, evaluate SimpleAR by the tasks `loss` and `language`, which need no decoder",
        files=frozenset({"decoder.jit", "encoder.jit", "autoencoder.jit"}),
    ),
    Refused(
        "IBQ, Emu3.5's image tokenizer",
        "whose codes are the entries of the largest product, and not the nearest ones",
        "without pictures, evaluate by the tasks `loss` and `language`, which need no decoder",
        fields=(
            {"n_embed": 131_072, "embed_dim": 256},
            {"sample_minimization_weight": None},
            {"entropy_temperature": None},
        ),
    ),
    Refused(
        "Emu3's language model",
        "which holds no image tokenizer",
        "give the folder of Emu3-VisionTokenizer, or transformers' folder of the whole model",
        fields=({"model_type": "Emu3"}, {"model_type": "emu3_text_model"}),
    ),
)


def refuse_model(source: str, fields: Mapping[str, object]) -> None:
    """Raise UnsupportedModel if the configuration of a model is of a model in the table; `source` names its file."""
    _refuse(source, (model for model in MODELS if model.describes(fields)))


def refuse_decoder(source: str, fields: Mapping[str, object]) -> None:
    """Raise UnsupportedModel if the configuration of a decoder is of a model or image tokenizer in the table."""
    _refuse(source, (entry for entry in (*DECODERS, *MODELS) if entry.describes(fields)))


def refuse_tensors(source: str, names: Iterable[str]) -> None:
    """Raise UnsupportedModel if the names of a file's tensors are those of a model in the table."""
    words = {word for name in names for word in name.split(".")}
    _refuse(source, (model for model in MODELS if model.tensors and model.tensors <= words))


def refuse_files(source: str, names: Iterable[str]) -> None:
    """Raise UnsupportedModel if a file, or a folder with these names, is of an image tokenizer in the table."""
    present = set(names)
    _refuse(source, (decoder for decoder in DECODERS if decoder.files & present))


def _refuse(source: str, entries: Iterator[Refused]) -> None:
    if (entry := next(entries, None)) is not None:
        raise UnsupportedModel(f"{source} is of {entry.name}, {entry.reason}; {entry.instead}")
