"""Candidates for a layout, their scores, a search that finds it wherever it is hidden, and a verdict that keeps still.

Most tests have a bigram for a model, trained on the pairs of the miniature under a layout of the test's choosing; the
last ones have real checkpoints: the miniature's, whose layout is known, and models that were never trained.
"""

import functools
import json
import math
import random
import statistics
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from bigram_witness import BigramWitness

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.data.tokens import Record, read_tokens
from evalsvc.doctor.layout.checkup import (
    conclusion,
    examine,
    in_errors,
    judge,
    layout_yaml,
    margin,
    ranking_rows,
    summary,
)
from evalsvc.doctor.layout.search import (
    TEMPLATES,
    Proposal,
    Search,
    Sizes,
    Witness,
    as_the_model_expects,
    find_sizes,
    propose,
    score,
)
from evalsvc.errors import InvalidData
from evalsvc.metrics.shares import standard_error
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.spec.layout_presets import Preset, presets
from evalsvc.spec.protocol import plain_json

ROWS = 590
"""More than any preset needs: there are gaps, and spare rows at the end."""

CODES = 24
"""Of each image, for speed: its first rows."""

RECORDS = [
    replace(record, image_codes=(record.image_codes or array("i"))[:CODES])
    for record in read_tokens(ROOT / "heldout_pairs.jsonl").records
]
TRAINING, PAIRS = RECORDS[16:], RECORDS[:16]


def without_prompts(layout: VocabularyLayout) -> None:
    """Pairs of ids have no text that a prompt could be encoded with."""
    if layout.prompt_form is not None:
        raise InvalidData("its prompt needs `text`")


proposed = functools.partial(propose, prompts_of=without_prompts)
CANDIDATES = proposed(ROWS, PAIRS, Sizes((512,), 64, ()), {})[0]
ORDERS = {name: preset for name, preset in presets().items() if isinstance(preset, Preset)}
"""Presets of published models are tried in test_published_layouts.py: their prompts need a tokenizer."""
MODELS = [name for name, preset in ORDERS.items() if name != "split-tables" and preset.special]


def hidden(preset: str, template: str = "text, image", seed: int | None = None) -> VocabularyLayout:
    fields = {"preset": preset, "text_size": 512, "codebook_size": 64, "template": list(TEMPLATES[template])}
    layout = parse_layout({**fields, "unconditional_template": None, "length": None}).resolve(ROWS)
    if seed is None:
        return layout
    rows = list(layout.special.values())
    random.Random(seed).shuffle(rows)
    return parse_layout({**layout.to_json(), "special": dict(zip(layout.special, rows, strict=True))})


def verdict_on(
    witness: Witness, candidates: Sequence[Proposal] = CANDIDATES, records: Sequence[Record] = PAIRS
) -> dict[str, Any]:
    search = Search(witness, records)
    search.run(candidates)
    return judge(search)


def written(layout: VocabularyLayout) -> list[list[int]]:
    return [layout.sequence(record.text_ids, record.image_codes).ids for record in PAIRS]


def failed(verdict: dict[str, Any]) -> list[str]:
    return [condition["name"] for condition in verdict["conditions"] if not condition["ok"]]


@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize(
    ("preset", "template", "seed"),
    [
        *((preset, "text, image", None) for preset in MODELS),
        ("image-then-special", "text, image", 1),
        ("negative-special", "text, image; no doc", 1),
        ("special-in-spare-rows", "image, text", 1),
        ("image-first", "image, text; no doc", 1),
    ],
)
def test_every_preset_is_found_with_its_special_tokens_in_any_order(
    preset: str, template: str, seed: int | None
) -> None:
    """No preset has the order of a seed, and there are 5,040: with wrong ones a template without them looks better."""
    truth = hidden(preset, template, seed)
    verdict = verdict_on(BigramWitness.trained(truth, TRAINING, ROWS))
    assert verdict["decided"], failed(verdict)
    assert written(parse_layout(verdict["layout"])) == written(truth)


@pytest.mark.parametrize("template", ["text, image; only image", "image, text; only doc"])
def test_what_the_model_does_not_know_is_not_decided(template: str) -> None:
    """A bigram that was never told where the text begins cannot tell whether anything stands before it."""
    verdict = verdict_on(BigramWitness.trained(hidden("image-then-special", template), TRAINING, ROWS))
    assert failed(verdict) == ["every other candidate is worse"]


@pytest.mark.parametrize("preset", ["image-then-special", "special-then-image", "image-first"])
def test_layout_that_is_not_among_the_candidates_is_not_replaced(preset: str) -> None:
    truth = hidden(preset)
    others = [item for item in CANDIDATES if item.layout.image_range != truth.image_range]
    verdict = verdict_on(BigramWitness.trained(truth, TRAINING, ROWS), others)
    assert not verdict["decided"]
    assert "the images are known" in failed(verdict)


def test_codes_of_another_tokenizer_are_not_believed() -> None:
    """Right blocks, wrong codes: the same as a permutation that nobody mentioned."""
    order = list(range(64))
    random.Random(0).shuffle(order)
    records = [
        replace(record, image_codes=array("i", [order[code] for code in record.image_codes or ()])) for record in PAIRS
    ]
    verdict = verdict_on(BigramWitness.trained(hidden("image-then-special"), TRAINING, ROWS), records=records)
    assert {"the images are known", "the order of the codes matters"} <= set(failed(verdict))


@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize("seed", range(3))
def test_untrained_models_are_never_believed(seed: int) -> None:
    """By chance alone the best of many looks good. A model of random bigrams, another for each seed."""
    rng = random.Random(seed)
    counts = {row: Counter(rng.choices(range(ROWS), k=100)) for row in range(ROWS)}
    verdict = verdict_on(BigramWitness(counts, ROWS, smoothing=1), CANDIDATES[::3])
    assert not verdict["decided"]
    assert "the images are known" in failed(verdict)


def test_few_pairs_need_a_wider_margin() -> None:
    """The error of two sequences is hardly known: five of them may be nothing."""
    witness = BigramWitness.trained(hidden("image-then-special"), TRAINING, ROWS)
    few, many = (verdict_on(witness, CANDIDATES[:4], PAIRS[:n]) for n in (3, 16))
    assert few["needed"] > 5 * many["needed"]
    assert (few["decided"], few["best"]["label"]) == (False, many["best"]["label"])
    assert many["decided"]


def test_marker_that_no_template_has_is_named() -> None:
    """After the images of this run comes a token of which no template knows."""
    fields = hidden("image-then-special").to_json()
    template = [*TEMPLATES["text, image"], "end"]
    truth = parse_layout({**fields, "special": {**fields["special"], "end": 589}, "template": template})
    verdict = verdict_on(BigramWitness.trained(truth, TRAINING, ROWS))
    assert "nothing else is expected" in failed(verdict)
    assert "which never occurs, has a probability of 0.99" in verdict["conditions"][-1]["found"]


def test_every_exchange_of_special_tokens_is_a_rival_and_none_is_scored_twice() -> None:
    """A layout that came twice would be its own rival, and could never win. Any row may be the first token's."""
    search = Search(BigramWitness.trained(hidden("image-then-special"), TRAINING, ROWS), PAIRS)
    search.run(CANDIDATES[:4])
    search.score(search.best.candidate)
    keys = [tuple(map(tuple, scored.candidate.sequences(PAIRS))) for scored in search.scores.values()]
    assert len(keys) == len(set(keys))
    special = search.best.candidate.layout.special
    exchanges = [special | {one: special[other], other: special[one]} for one, other in combinations(special, 2)]
    first = [special | {"doc": row} for row in range(583, ROWS)]
    for rows in (*exchanges, *first):
        layout = parse_layout({**search.best.candidate.layout.to_json(), "special": rows})
        assert tuple(map(tuple, written(layout))) in search.scores


def test_token_that_comes_twice_has_one_row() -> None:
    """The same separator before text and image, in a template of the trainer's own."""
    fields = hidden("image-then-special").to_json()
    template = ["sep", "TEXT", "sep", "IMAGE", "end"]
    truth = parse_layout({**fields, "special": {"sep": 580, "end": 581}, "template": template})
    guess = parse_layout({**truth.to_json(), "special": {"sep": 581, "end": 580}})
    witness = BigramWitness.trained(truth, TRAINING, ROWS)
    found = list(as_the_model_expects(witness, Proposal("mine.yaml", "its own", guess), PAIRS))
    assert [item.layout.special["sep"] for item in found] == [580]


FEW = [Record(array("i", [1, 2]), array("i", [0, 3, code]), "line 1") for code in (1, 2, 2)]
FEW_ROWS = 21


def candidate(template: str) -> Proposal:
    found = proposed(FEW_ROWS, FEW, Sizes((10,), 4, ()), {})[0]
    return next(item for item in found if item.label == f"image-then-special 10 ({template})")


FULL, NO_DOC, BARE = (candidate(f"text, image{end}") for end in ("", "; no doc", "; bare"))
WITNESS = BigramWitness.trained(FULL.layout, FEW, FEW_ROWS)


def test_total_is_the_sum_of_all_parts_and_a_first_token_that_is_no_marker_costs_its_block() -> None:
    """Else a template without a marker in front had one token less to pay for."""
    (sequence, *_) = sequences = FULL.sequences(FEW)
    losses = -math.fsum(math.log(WITNESS.probability(before, [after])) for before, after in pairwise(sequence))
    # Every row has a meaning, so nothing is charged for the end.
    assert score(WITNESS, FULL, sequences).totals[0] == pytest.approx(losses)
    assert list(score(WITNESS, BARE, BARE.sequences(FEW), enough=-math.inf).ends) == [math.log(10)] * 3


def test_expecting_more_behind_the_end_is_charged_and_not_infinitely() -> None:
    """Else `no doc` could not be told from a run that has it: it only leaves out what costs nothing. A probability of
    1, to the last bit, would make a candidate infinitely bad, and its margin NaN."""
    sequences = NO_DOC.sequences(FEW)
    expected = WITNESS.probability(sequences[0][-1], [14, 15])  # doc and /doc
    assert expected > 0.9
    assert score(WITNESS, NO_DOC, sequences).ends[0] == pytest.approx(-math.log(1 - expected))
    sure = BigramWitness({sequences[0][-1]: Counter({15: 1})}, FEW_ROWS, smoothing=1e-30)
    assert score(sure, NO_DOC, sequences[:1]).ends == [pytest.approx(12 * math.log(10))]


def test_behind_is_paired() -> None:
    full, short = (score(WITNESS, item, item.sequences(FEW)) for item in (FULL, NO_DOC))
    found = margin(full, short)
    differences = [theirs - ours for theirs, ours in zip(short.totals, full.totals, strict=True)]
    assert found.behind == pytest.approx(sum(differences) / 3)
    assert found.behind_nats_per_token == pytest.approx(found.behind / 5), "text and image tokens count"
    # The same marker is left out of every sequence, however hard the sequence is: nearly no error is left.
    apart = in_errors(statistics.fmean(full.totals), standard_error(full.totals))
    assert found.behind_standard_errors > 1_000 * abs(apart)


def test_margins_in_standard_errors() -> None:
    margins = [(2.0, 0.5, 4.0), (2.0, None, 0.0), (math.nan, 1.0, 0.0), (1.0, 0.0, math.inf), (-1.0, 0.0, -math.inf)]
    assert [in_errors(difference, stderr) for difference, stderr, _ in margins] == [margin for _, _, margin in margins]


def pair(text: Sequence[int] = (1, 2, 9), codes: Sequence[int] = (0, 3, 1, 3)) -> Record:
    return Record(array("i", text), array("i", codes), "line 1")


SIZES = Sizes((10,), 4, ())
OWN = {"preset": "image-then-special", "text_size": 10, "codebook_size": 4}


def test_every_preset_is_tried_or_dropped_and_same_ids_are_one_candidate() -> None:
    """Two candidates with equal losses would each keep the other from being decided, for ever."""
    candidates, dropped = proposed(21, [pair()], SIZES, {})
    labels = {label for candidate in candidates for label in (candidate.label, *candidate.same)}
    tried = {label.partition(" (")[0] for label in labels}
    assert (tried, dropped.keys()) == (
        {f"{preset} 10" for preset in ORDERS if preset != "split-tables"},
        {"split-tables 10", *(preset for preset in presets() if preset not in ORDERS)},
    )
    widened, bare = ["widened"], ["text, image; bare", "image, text; bare"]
    assert len(labels) == len(TEMPLATES) * (len(ORDERS) - 1 - len(widened)) + len(widened) * len(bare)
    written = [tuple(map(tuple, candidate.sequences([pair()]))) for candidate in candidates]
    assert len(written) == len(set(written))
    first = candidates[0]
    assert first.label == "image-then-special 10 (text, image)"
    assert "dense-image-then-special 10 (text, image)" in first.same
    # A gap tells layouts apart that an exact table does not.
    end = "image-at-end 10 (text, image)"
    for rows, apart in ((21, False), (24, True)):
        candidates, _ = proposed(rows, [pair()], SIZES, {})
        special_first = next(item for item in candidates if item.label == "special-then-image 10 (text, image)")
        assert (end not in special_first.same) == apart


def test_a_layout_that_does_not_fit_is_dropped_with_its_reason_and_an_own_one_comes_first() -> None:
    candidates, dropped = proposed(14, [pair()], SIZES, {})
    assert {item.template for item in candidates} == {"text, image; bare", "image, text; bare"}, "without special"
    assert "exceeds the table of 14 rows" in dropped["image-then-special 10"]
    candidates, dropped = proposed(21, [pair(text=[9])], Sizes((9, 10), 4, ()), {})
    assert not any(candidate.name.endswith(" 9") for candidate in candidates)
    assert any("has the text id 9; the text block has 0…8" in reason for reason in dropped.values())
    own = {"mine.yaml": parse_layout(OWN), "other.yaml": parse_layout(OWN | {"rows": 99})}
    candidates, dropped = proposed(21, [pair()], SIZES, own)
    assert candidates[0].label == "mine.yaml (its own)"
    assert "image-then-special 10 (text, image)" in candidates[0].same
    assert dropped["other.yaml"].startswith("the layout is for a table of 99 rows, the model has 21")


def test_sizes_are_inferred_from_table_and_data_or_taken_as_they_are() -> None:
    found = find_sizes(583, [pair(text=[511], codes=[63])])
    assert (found.text, found.codebook) == ((512, 519), 64)
    assert found.notes[0] == "codebook of 64 inferred from the highest code 63"
    assert found.notes[1].startswith("text sizes 512, 519 inferred from a table of 583 rows")
    assert {50_432, 50_277} <= set(find_sizes(66_944, [pair(codes=[16_383])]).text), "open_lm's own, padded"
    assert find_sizes(583, [pair()], [512, 500], 64) == Sizes((512, 500), 64, ())
    inside = find_sizes(512, [pair(text=[511], codes=[63])])
    assert (inside.text, inside.notes[1][:15]) == ((), "text sizes none"), "the codes may be ids of the text"
    with pytest.raises(InvalidData, match="more than the model's 512 rows"):
        find_sizes(512, [pair(text=[512], codes=[63])])


def test_silent_rows_are_those_without_any_use_but_the_pad() -> None:
    templates = {"template": ["text", "TEXT", "/text", "IMAGE"], "unconditional_template": None}
    candidate = Proposal("mine.yaml", "its own", parse_layout(OWN | templates).resolve(23))
    assert candidate.unclaimed_rows() == list(range(14, 23))
    assert candidate.silent_rows() == [14, 15, 18, 19, 21, 22]  # doc, /doc, image, /image and the rows of no block


def test_reordering_goes_through_a_map_that_is_there() -> None:
    own = parse_layout(OWN | {"image": {"map": [3, 1, 0, 2]}})
    candidates, _ = proposed(21, [pair()], SIZES, {"mine.yaml": own})
    moved = candidates[0].reordered([1, 0, 3, 2])
    assert list(moved.layout.image_ids or ()) == [11, 13, 12, 10]


TRUTH = parse_layout(str(ROOT / "runs/layout.yaml")).resolve(583)
PAIRS_FILE = str(ROOT / "heldout_pairs.jsonl")
GOLDEN = Path(__file__).parents[1] / "golden" / "open_lm"


SETTINGS = Settings(devices="cpu", threads=1)


def examined(pairs: str, report: Callable[[int], None]) -> dict[str, Any]:
    path = ROOT / "runs/pretrained/checkpoints/epoch_5.pt"
    checkpoint = CheckpointRef(path=str(path), label="pretrained 5")
    return examine(checkpoint, pairs, SETTINGS, report, text_sizes=(512,), codebook_size=64, limit=16)


@functools.cache
def checkup() -> dict[str, Any]:
    told: list[int] = []
    found = examined(PAIRS_FILE, told.append)
    assert told == list(range(1, len(told) + 1)), "the layouts are counted"
    return found


@pytest.mark.usefixtures("many_cases")
def test_true_layout_wins() -> None:
    """Against every preset at the sizes of the table and every exchange of special tokens."""
    findings = checkup()
    assert findings["decided"]
    layout = parse_layout(findings["layout"])
    assert (layout.text_ids, layout.image_ids) == (TRUTH.text_ids, TRUTH.image_ids)
    assert (layout.special, layout.template) == (TRUTH.special, TRUTH.template)
    assert findings["ranking"][0]["behind"] > 1
    assert min(rival["behind_standard_errors"] for rival in findings["ranking"]) > findings["needed"]


@pytest.fixture
def repeating_pairs(tmp_path: Path) -> str:
    path = tmp_path / "pairs.jsonl"
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(16):
            start = rng.randrange(16)
            codes = [(start + place // 4) % 16 for place in range(24)]
            file.write(json.dumps({"text_ids": [rng.randrange(40) for _ in range(6)], "image_codes": codes}) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("case", "text_size", "images_known"),
    [
        ("14_all_defaults_ema_optimizer_t2i_vocab", 89, False),
        ("11_rotary_gain_only_ln_postembed_tied_swiglu_torch", 57, True),
    ],
    ids=["untrained", "tied"],
)
def test_a_model_that_was_never_trained_is_refused(
    repeating_pairs: str, case: str, text_size: int, images_known: bool
) -> None:
    """Some candidate is always the best. With tied tables an untrained model expects what it has just read: where codes
    repeat, the image loss is then below ln of the codebook, under any layout and any order of the codes."""
    checkpoint = CheckpointRef(path=str(GOLDEN / case / "checkpoints" / "epoch_1.pt"))
    sizes = {"text_sizes": (text_size,), "codebook_size": 16}
    found = examine(checkpoint, repeating_pairs, SETTINGS, lambda _: None, **sizes)
    conditions = {condition["name"]: condition["ok"] for condition in found["conditions"]}
    assert (found["decided"], conditions["the images are known"]) == (False, images_known)
    assert not (images_known and conditions["the order of the codes matters"])
    assert conclusion(found).startswith("not decided")


def test_pairs_that_are_none_or_fit_no_layout(tmp_path: Path) -> None:
    for line, words in (
        ('{"text_ids": [1]}', "line 1 has no `image_codes`; the layout doctor needs both"),
        ('{"text_ids": [], "image_codes": [1]}', "line 1 has no `text_ids` or `text`; the layout doctor needs both"),
        ('{"text_ids": [512], "image_codes": [64]}', r"no layout fits the model's 583 rows .*the text id 512"),
    ):
        (tmp_path / "pairs.jsonl").write_text(line + "\n")
        with pytest.raises(InvalidData, match=words):
            examined(str(tmp_path / "pairs.jsonl"), lambda _: None)


def test_yaml_is_a_layout_that_writes_the_same_ids(tmp_path: Path) -> None:
    (tmp_path / "layout.yaml").write_text(layout_yaml(checkup()))
    read = parse_layout(str(tmp_path / "layout.yaml")).resolve(583)
    for record in read_tokens(PAIRS_FILE).records[:16]:
        pair = record.text_ids, record.image_codes
        assert read.sequence(*pair) == TRUTH.sequence(*pair)


def test_the_table_has_every_preset_and_what_the_tables_of_the_model_say() -> None:
    """Or who reads it does not know what was tried. Borders and targets that were never trained need no loss."""
    rows = ranking_rows(checkup())
    names = {name.strip() for row in rows for name in [row["layout"], *row["same ids"].split(",")]} - {""}
    dropped = {item["name"] for item in checkup()["dropped"]}
    published = {preset for preset in presets() if preset not in ORDERS}
    assert names | dropped == {f"{preset} 512" for preset in ORDERS} | published
    assert dropped == {"split-tables 512"} | published
    best = rows[0]
    assert (best["layout"], best["template"]) == ("image-then-special 512", "text, image")
    assert (best["borders"], best["cold"]) == ("2/2", "0/123")
    [other, *_] = [row for row in rows if row["layout"] == "image-first 512"]
    cold, targets = map(int, other["cold"].split("/"))
    assert cold > targets / 2


def test_summary_and_json_hold_everything() -> None:
    lines = list(summary(checkup()))
    assert lines[0] == f"pretrained 5: 583 rows; 16 pairs of {PAIRS_FILE}"
    assert "(strongest first) at: 220, 512" in lines[1]
    assert lines[2] == "tables: rows that lie in one direction, as those do that were never a target: 438"
    found = json.loads(json.dumps(plain_json(checkup()), allow_nan=False))
    assert len(found["ranking"]) + len(found["reordered"]) + 1 == found["comparisons"]
    assert found["ranking"][0]["behind"] <= found["ranking"][1]["behind"]
    assert found["best"]["losses"]["image"]["n"] == 16
