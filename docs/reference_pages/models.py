"""Tables of docs/how-to/models.md: which models evalsvc evaluates, from which files, and which it refuses by name.

A row is about models of families in the catalog. `python docs/generate.py` writes the tables into the page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evalsvc.families.refused import DECODERS, MODELS
from evalsvc.spec import catalog
from evalsvc.spec.layout_presets import presets
from reference_pages.markdown import NONE, code, codes, table

PAGE = Path(__file__).parents[1] / "how-to" / "models.md"


@dataclass(frozen=True)
class ImageModels:
    models: str
    families: Sequence[str]
    """Their `model_type`, by which the catalog lists their family."""
    files: str
    preset: str | None
    decoder: str | None
    """Kind of the image tokenizer; None if evalsvc has none."""
    sampling: Sequence[float | int | None] = ()
    """Guidance, temperature, top-k and top-p of the authors' scripts."""

    @property
    def works(self) -> str:
        return "all" if self.decoder and self.preset else "losses, text"


CHAMELEON, EMU3, JANUS = ("chameleon",), ("Emu3", "emu3", "emu3_text_model"), ("multi_modality", "janus")

IMAGE_MODELS = (
    ImageModels("Liquid", ("gemma",), "transformers'", "liquid", "chameleon", (7, 0.99, 4096, 0.96)),
    ImageModels("SimpleAR", ("qwen2",), "transformers'", "simplear", None, (6, 1, None, None)),
    ImageModels("Chameleon", CHAMELEON, "transformers', Meta's", "chameleon", "chameleon", (3, 0.7, None, 0.9)),
    ImageModels("Anole", CHAMELEON, "Meta's, its trainer's", "anole", "chameleon", (3, 0.7, None, 0.9)),
    ImageModels("Lumina-mGPT", CHAMELEON, "transformers'", None, "chameleon"),
    ImageModels("Emu3-Gen, Emu3-Stage1", EMU3, "the authors', transformers'", "emu3", "emu3", (3, 1, 2048, None)),
    ImageModels("Janus-Pro", JANUS, "the authors', transformers'", "janus", "llamagen", (5, 1, None, None)),
    ImageModels("Janus-1.3B", JANUS, "the authors', transformers'", "janus-1.3b", "llamagen", (5, 1, None, None)),
)

LANGUAGE_MODELS = {
    "llama": "Llama 1 to 3, SmolLM2, and others with its arithmetic",
    "mistral": "Mistral",
    "qwen2": "Qwen 2 and 2.5",
    "qwen3": "Qwen 3, dense",
    "olmo2": "OLMo 2",
    "gemma": "Gemma, the first version",
    "gpt_neox": "GPT-NeoX, Pythia",
}


def tables() -> Sequence[str]:
    """Return the tables of the page, in the order in which the page has them."""
    known, named = catalog.COMPONENTS["families"], presets()
    image_rows = [
        (
            row.models,
            codes(name for name in row.families if name in known),
            row.files,
            code(row.preset) if row.preset in named else NONE,
            code(row.decoder) if row.decoder else NONE,
            ", ".join(NONE if value is None else f"{value:,}" for value in row.sampling) or NONE,
            row.works,
        )
        for row in IMAGE_MODELS
        if not known.keys().isdisjoint(row.families)
    ]
    head = ("models", "`model_type`", "files", "layout", "decoder", "sampling", "tasks")
    return (
        table(head, image_rows),
        table(("`model_type`", "language models"), ((code(name), text) for name, text in LANGUAGE_MODELS.items())),
        table(("refused", "reason"), ((entry.name, sentence(entry.reason)) for entry in (*MODELS, *DECODERS))),
    )


def sentence(clause: str) -> str:
    """Return a reason, which messages have as a relative clause, as a statement about the model."""
    return clause.removeprefix("which ").replace("whose ", "its ", 1)


def with_tables(text: str) -> str:
    """Return the text of the page with its first tables as they are now."""
    fresh = iter(tables())
    return re.sub(r"(?:^\|.*\n)+", lambda old: f"{next(fresh, old[0].rstrip())}\n", text, flags=re.MULTILINE)
