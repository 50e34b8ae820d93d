"""Two models on one text against the definition: one text at a time, all logits, float64."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from mixed_layouts import mixed_layout, plain_loss, with_heads_apart

from evalsvc.errors import InvalidData, NonFinite
from evalsvc.models.loading import load_model
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.tasks.forgetting.text_comparison import Comparison, Side, compare, passages, same_rows

WIDENED: Mapping[str, Any] = {
    "text": {"size": 80},
    "image": {"offset": -16, "size": 16},
    "special": {"doc": 80, "/doc": 81, "text": 82, "/text": 83, "image": 84, "/image": 85, "pad": 86},
    "template": ["doc", "text", "TEXT", "/text", "image", "IMAGE", "/image", "/doc"],
}
PLAIN: Mapping[str, Any] = {"text": {"size": 80}}
MOVED: Mapping[str, Any] = {"text": {"offset": 20, "size": 70}, "image": {"offset": 0, "size": 16}}
MIXED = mixed_layout(112, range(90), range(40, 56), doc=6, pad=56)
"""Text in four ranges, with a template; the texts have the special id 6."""
MOVED_MIXED = mixed_layout(112, range(10, 100), range(60, 76), doc=107)
TEXTS = [[5, 6, 7, 69], [1, 2], [9], list(range(20, 40)), [], [3, 3, 3, 3, 3, 3, 3]]
NAMES = [f"text.jsonl, line {number}" for number in range(1, len(TEXTS) + 1)]
POSITIONS = (3, 6)


@pytest.fixture(scope="module")
def files(open_lm_case: Path) -> tuple[Path, Path]:
    folder = open_lm_case / "checkpoints"
    return folder / "epoch_1.pt", folder / "ema_0.9_1_1.pt"


Given = Mapping[str, Any] | VocabularyLayout


def side(path: Path, layout: Given, heads_apart: bool = False) -> Side:
    model = load_model(path)
    resolved = layout if isinstance(layout, VocabularyLayout) else parse_layout(dict(layout)).resolve(112)
    return Side(path.stem, with_heads_apart(model) if heads_apart else model, resolved, "cpu")


def found_of(own: Side, base: Side, batch_tokens: int = 8192, in_template: bool = True, **given: Any) -> Comparison:
    some = passages(own.layout, base.layout, TEXTS, NAMES, 100, in_template)
    return compare(own, base, some, POSITIONS, batch_tokens, **given)


def log_probabilities(one: Side, text: list[int], in_template: bool) -> dict[int, torch.Tensor]:
    layout: VocabularyLayout = one.layout
    ids = layout.sequence(text, None).ids if in_template else [layout.text.offset + token for token in text]
    if not text:
        return {}
    logits = one.model.logits(torch.tensor([ids]))[0].double()
    if one.model.config.heads_apart and layout.image_range:
        logits[:, list(layout.image_range)] = -torch.inf
    before = layout.template.index("TEXT") if in_template else 0
    return {index: logits[before + index - 1].log_softmax(0) for index in range(len(text)) if before + index}


def slow(own: Side, base: Side, text: list[int], in_template: bool) -> dict[str, list[float]]:
    q_of, p_of = (log_probabilities(one, text, in_template) for one in (own, base))
    rows, base_rows = ([*chain(*each.layout.text_ranges)] for each in (own, base))
    shared = [row for row in rows if row - own.layout.text.offset + base.layout.text.offset in base_rows]
    base_shared = [row - own.layout.text.offset + base.layout.text.offset for row in shared]
    aligned = same_rows(own.layout, base.layout) and own.model.config.heads_apart == base.model.config.heads_apart
    start, base_start, image = own.layout.text.offset, base.layout.text.offset, own.layout.image_range
    columns: dict[str, list[float]] = {}
    for index in sorted(q_of.keys() & p_of.keys()):
        q, p = q_of[index], p_of[index]
        p_given, q_given = p[base_shared].log_softmax(0), q[shared].log_softmax(0)
        over = (p, q) if aligned else (p_given, q[shared])
        base_top = int(p.argmax()) if aligned else shared[int(p[base_shared].argmax())]
        losses = plain_loss(q, start + text[index], rows, image or ())
        base_losses = plain_loss(p, base_start + text[index], base_rows, ())
        numbers = {
            "nll": losses.nll,
            "within": losses.within,
            "image_mass": losses.image_mass,
            "base_nll": base_losses.nll,
            "base_within": base_losses.within,
            "kl": (over[0].exp() * (over[0] - over[1])).nansum(),  # 0 · (∞ - ∞) where image ids are impossible to both
            "kl_within": (p_given.exp() * (p_given - q_given)).sum(),
            "top1": base_top == int(q.argmax()),
        }
        for name, number in numbers.items():
            columns.setdefault(name, []).append(float(number))
    return columns


LAYOUTS = [
    *[(layout, base, False) for layout, base in ((WIDENED, WIDENED), (WIDENED, PLAIN), (PLAIN, WIDENED))],
    *[(layout, base, False) for layout, base in ((PLAIN, PLAIN), (WIDENED, MOVED), (MOVED, MOVED))],
    *[(layout, base, False) for layout, base in ((MIXED, MIXED), (MIXED, PLAIN), (WIDENED, MIXED))],
    *[(MIXED, base, True) for base in (MIXED, PLAIN, MOVED_MIXED)],
]


def has_template(layout: Given) -> bool:
    return isinstance(layout, VocabularyLayout) or "template" in layout


@pytest.mark.parametrize(("layout", "base_layout", "heads_apart"), LAYOUTS)
@pytest.mark.parametrize("in_template", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 20, 8192])
def test_equals_the_definition(
    files: tuple[Path, Path],
    layout: Given,
    base_layout: Given,
    heads_apart: bool,
    batch_tokens: int,
    in_template: bool,
) -> None:
    """Batches and their padding move nothing; with another layout each id meets its own counterpart; and no token of
    a caption stands before a text that is measured alone."""
    own, seen = side(files[0], layout, heads_apart), []
    base = side(files[1], base_layout, heads_apart and base_layout is not PLAIN)
    found = found_of(own, base, batch_tokens, in_template, report=seen.append)
    assert (seen[0], seen[-1], batch_tokens > 1 or len(seen) > 5) == (0, 6, True), "progress counts texts"
    special = in_template and has_template(layout) and has_template(base_layout)
    for index, text in enumerate(TEXTS):
        expected = slow(own, base, text, in_template)
        compared = found.texts[index]
        assert compared.tokens == (len(text) if special else max(len(text) - 1, 0))
        for name, total in asdict(compared.sums).items():
            assert total == pytest.approx(sum(expected.get(name, [])), rel=1e-4, abs=1e-5), name
        if len(text) < POSITIONS[1]:
            assert compared.late is None
            continue
        early, late = (position - 1 - (not special) for position in POSITIONS)
        both = [expected[name][late] - expected[name][early] for name in ("nll", "base_nll")]
        assert compared.late == pytest.approx(both, abs=1e-5)


def test_what_is_too_long_is_cut_for_both(files: tuple[Path, Path]) -> None:
    """The layout's length holds for the one that has it, and the other must not predict more."""
    widened, plain = parse_layout({**WIDENED, "length": 16}).resolve(112), parse_layout(PLAIN).resolve(112)

    def cut(base: VocabularyLayout, max_length: int, in_template: bool) -> tuple[list[int], int, bool, list[int]]:
        [passage] = passages(plain, base, [list(range(20, 40))], ["long"], max_length, in_template)
        return list(passage.targets), passage.first, passage.cut, [len(inputs) for inputs in passage.inputs]

    assert cut(widened, 100, True) == ([*range(21, 32)], 1, True, [11, 13])
    assert cut(widened, 8, True)[3] == [6, 8]
    assert cut(plain, 100, True)[::2] == ([*range(21, 40)], False)
    assert cut(widened, 100, False) == ([*range(21, 36)], 1, True, [15, 15])


def test_an_id_that_is_no_text_is_named(files: tuple[Path, Path]) -> None:
    layouts = [parse_layout(layout).resolve(112) for layout in (WIDENED, MOVED)]
    with pytest.raises(InvalidData, match=r"^line 9 has the text id 75; the text block has 0…69$"):
        passages(layouts[0], layouts[1], [[75, 1]], ["line 9"], 100, in_template=True)


@pytest.mark.parametrize("broken", ["epoch_1", "ema_0.9_1_1"])
def test_the_model_that_diverged_is_named(files: tuple[Path, Path], broken: str) -> None:
    """A base can have diverged as well as a checkpoint, and the message must not blame the wrong one."""
    sides = [side(path, WIDENED) for path in files]
    for one in sides:
        if one.label == broken:
            one.model.layers[0].attention.out_proj.weight[0, 0] = math.nan
    with pytest.raises(NonFinite, match=rf"^{broken}: the loss of text.jsonl, line \d is not finite; .*layers.0"):
        found_of(*sides)
