from typing import Any

from miniature_run import LAYOUT

from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout
from evalsvc.tasks.text_to_image.prompts import PromptSpec, read_prompts

TOKENIZER = str(ROOT / "tokenizer.json")


def spec(bos: Any) -> PromptSpec:
    layout = parse_layout({**LAYOUT, "text": {**LAYOUT["text"], "bos": bos}}).resolve(583)
    return PromptSpec(str(ROOT / "captions.jsonl"), 2, "first", 0, TOKENIZER, bos, 64, layout, layout.digest)


def test_the_layouts_beginning_stands_before_captions_and_in_their_digest() -> None:
    """The layout's own digest is the same, so the cache of prompts must know of it too."""
    plain, begun = read_prompts(spec(None)), read_prompts(spec(3))
    for record, other in zip(plain.records, begun.records, strict=True):
        start = record.ids.index(read_tokenizer(TOKENIZER).encode(record.text)[0])
        assert other.ids == (*record.ids[:start], 3, *record.ids[start:])
    assert plain.digest != begun.digest
    assert read_prompts(spec("none")).digest == plain.digest
