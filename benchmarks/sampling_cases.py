"""The cases of `sampling.py`: which model draws what, and the sides that draw it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import sampling_sides as sides
import torch
from loss import Case as Shape
from loss import build_ours, build_theirs
from repeated_heads import repeat_heads
from sampling_sides import PROMPT_LENGTH, Draw
from tiny_llama import write_tiny_llama
from transformers import LlamaForCausalLM
from widened_llama import TOKENIZER, save_folder, widen

from evalsvc.models import Transformer, load_model
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams
from evalsvc.sampling.sampler import runnable_path
from evalsvc.spec.layout import VocabularyLayout, parse_layout

OURS, STATIC_CACHE, CTRANSLATE2 = "evalsvc", "transformers, static cache", "CTranslate2"
GROUPED, REPEATED = "evalsvc, heads grouped", "evalsvc, heads repeated"
CODES = 64
"""Codes of the image tokenizer by which a real model is widened."""


@dataclass(frozen=True)
class Case:
    """The number of images and codes that are drawn, and their layout."""

    name: str
    dtype: torch.dtype
    batch: int
    length: int
    """Number of codes of an image."""
    repetitions: int
    layout: VocabularyLayout

    @property
    def codes(self) -> int:
        return self.batch * self.length

    @property
    def image_ids(self) -> range:
        image = self.layout.image_range
        assert image is not None
        return image

    def spec(self, model: Transformer) -> SamplerSpec:
        spec = SamplerSpec(self.image_ids, self.length, SamplingParams(), self.batch, bucket=PROMPT_LENGTH)
        return replace(spec, path=runnable_path(model, spec))

    def prompts(self) -> list[Prompt]:
        pick = random.Random(0)
        text = range(self.layout.text.size)
        return [Prompt(str(row), tuple(pick.choices(text, k=PROMPT_LENGTH))) for row in range(self.batch)]


@dataclass(frozen=True)
class Contest:
    """A case with the sides that draw it; the first one is measured against the others."""

    case: Case
    model: Transformer
    """Model of the first side."""
    spec: SamplerSpec
    sides: dict[str, Draw]
    caches: dict[str, Transformer]
    """Model whose keys and values are counted, by side of evalsvc."""


@contextmanager
def contest(name: str, folder: Path | None, quick: bool) -> Iterator[Contest]:
    """Build the sides of a case. `folder` has the Llama of the cases in `NEED_MODEL`; a tiny one if `quick`."""
    with TemporaryDirectory(prefix="evalsvc-sampling-") as temporary:
        work = Path(temporary)
        if name not in NEED_MODEL:
            yield random_contest(name, quick)
            return
        if quick or folder is None:
            folder = work / "tiny"
            write_tiny_llama(folder)
        yield NEED_MODEL[name](name, folder, work, quick)


# open_lm_160m with the paper's vocabulary, and a small one that shows only that the benchmark works.
FULL_SHAPE = Shape(768, 12, 12, parse_layout("image-then-special").resolve(66_823), 8, 3)
QUICK_SHAPE = Shape(
    256, 4, 4, parse_layout({"preset": "image-then-special", "text_size": 511, "codebook_size": 64}).resolve(582), 8, 3
)
KINDS = {"fp32-32": (torch.float32, 32), "bf16-32": (torch.bfloat16, 32), "fp32-1": (torch.float32, 1)}


def random_contest(name: str, quick: bool) -> Contest:
    """Build a contest of random weights against Hugging Face's Llama with the same weights."""
    dtype, batch = KINDS[name]
    shape = QUICK_SHAPE if quick else FULL_SHAPE
    case = (
        Case(name, dtype, min(batch, 8), 40, 2, shape.layout)
        if quick
        else Case(name, dtype, batch, 1_024, 3, shape.layout)
    )
    model = build_ours(shape).to(dtype)
    theirs = build_theirs(shape, model)
    spec, prompts = case.spec(model), case.prompts()
    found = {OURS: sides.ours(model, prompts, spec), STATIC_CACHE: sides.hugging_face(theirs, prompts, case.image_ids)}
    return Contest(case, model, spec, found, {OURS: model})


def real_case(name: str, layout: VocabularyLayout, quick: bool) -> Case:
    return Case(name, torch.float32, 4, 40, 2, layout) if quick else Case(name, torch.float32, 32, 256, 3, layout)


def real_contest(name: str, folder: Path, work: Path, quick: bool) -> Contest:
    """Build a contest of a widened Llama against Hugging Face's static cache, and CTranslate2 if installed."""
    widened = widen(folder, CODES, seed=0)
    case = real_case(name, widened.layout, quick)
    model = _ours(widened.model, widened.tokenizer, work / "widened")
    spec, prompts = case.spec(model), case.prompts()
    theirs = widened.model.requires_grad_(False).eval()
    found = {OURS: sides.ours(model, prompts, spec), STATIC_CACHE: sides.hugging_face(theirs, prompts, case.image_ids)}
    if find_spec("ctranslate2") is None:
        print(f"{name}: without CTranslate2, which is not installed: pip install ctranslate2")
    else:
        found[CTRANSLATE2] = sides.ctranslate2(work / "widened", work / "ctranslate2", prompts, case.image_ids)
    return Contest(case, model, spec, found, {OURS: model})


def grouped_contest(name: str, folder: Path, work: Path, quick: bool) -> Contest:
    """Build a contest of a Llama whose query heads share keys against one with a copy for every query head."""
    widened = widen(folder, CODES, seed=0)
    case = real_case(name, widened.layout, quick)
    grouped = _ours(widened.model, widened.tokenizer, work / "grouped")
    repeated = _ours(repeat_heads(widened.model), widened.tokenizer, work / "repeated")
    prompts = case.prompts()
    found = {
        side: sides.ours(model, prompts, case.spec(model)) for side, model in ((GROUPED, grouped), (REPEATED, repeated))
    }
    return Contest(case, grouped, case.spec(grouped), found, {GROUPED: grouped, REPEATED: repeated})


def _ours(model: LlamaForCausalLM, tokenizer: Path, folder: Path) -> Transformer:
    save_folder(model, folder)
    shutil.copy(tokenizer, folder / TOKENIZER)
    return load_model(folder)


NEED_MODEL: dict[str, Callable[[str, Path, Path, bool], Contest]] = {
    "real-32": real_contest,
    "grouped-32": grouped_contest,
}


def case_names(folder: Path | None, quick: bool) -> Sequence[str]:
    """Return the names of the cases that can run with this folder."""
    return [*KINDS, *NEED_MODEL] if quick or folder else list(KINDS)
