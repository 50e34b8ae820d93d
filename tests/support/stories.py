"""stories260K, a real language model of 260 thousand weights: as ours, and under lm-eval's own HFLM."""

from __future__ import annotations

import json
from pathlib import Path

from lm_eval.models.huggingface import HFLM

from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.language.encoding import TextEncoding
from evalsvc.language.hflm import build_hflm
from evalsvc.language.lm import OpenLM
from evalsvc.models import Transformer
from evalsvc.models.loading import load_model
from evalsvc.spec.layout import parse_layout, text_only

BOS, END = 1, 2
WIDENED = {"text": {"offset": 0, "size": 512}, "image": {"offset": 512, "size": 256}}


def folder(shared: Path) -> Path:
    return shared / "golden" / "stories260k_openlm"


def load(shared: Path) -> Transformer:
    return load_model(folder(shared) / "stories260k_rotary.pt", config(shared), dtype="float32", device="cpu")


def config(shared: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder(shared) / "stories260k_rotary.json").read_text())
    return content


def load_widened(shared: Path, name: str) -> Transformer:
    files = folder(shared) / "forgetting"
    return load_model(files / f"t2i_260k_{name}.pt", str(files / "t2i_260k.json"), dtype="float32", device="cpu")


def open_lm(shared: Path, model: Transformer, max_length: int = 512, bos: int | None = BOS, **options: int) -> OpenLM:
    rows = model.config.vocab_size
    layout = text_only(rows) if rows == 512 else parse_layout(WIDENED).resolve(rows)
    tokenizer = read_tokenizer(folder(shared) / "tokenizer.json")
    return OpenLM(model, TextEncoding(tokenizer, layout, max_length, bos, END), **options)


def hflm(shared: Path, model: Transformer, max_length: int = 512, bos: bool = True) -> HFLM:
    return build_hflm(model, open_lm(shared, model, max_length, BOS if bos else None).encoding)
