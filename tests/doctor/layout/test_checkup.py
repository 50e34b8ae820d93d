"""Real checkpoints: the miniature's, whose layout is known, and models that were never trained."""

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.data.tokens import read_tokens
from evalsvc.doctor.layout.checkup import conclusion, examine, layout_yaml, ranking_rows, summary
from evalsvc.errors import InvalidData
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.layout_presets import presets
from evalsvc.spec.protocol import plain_json

TRUTH = parse_layout(str(ROOT / "runs/layout.yaml")).resolve(583)
PAIRS = str(ROOT / "heldout_pairs.jsonl")
GOLDEN = Path(__file__).parents[2] / "golden" / "open_lm"


SETTINGS = Settings(devices="cpu", threads=1)


def examined(pairs: str, report: Callable[[int], None]) -> dict[str, Any]:
    path = ROOT / "runs/pretrained/checkpoints/epoch_5.pt"
    checkpoint = CheckpointRef(path=str(path), label="pretrained 5")
    return examine(checkpoint, pairs, SETTINGS, report, text_sizes=(512,), codebook_size=64, limit=16)


@functools.cache
def checkup() -> dict[str, Any]:
    told: list[int] = []
    found = examined(PAIRS, told.append)
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


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text_ids": [1]}', "line 1 has no `image_codes`; the layout doctor needs both"),
        ('{"text_ids": [], "image_codes": [1]}', "line 1 has no `text_ids` or `text`; the layout doctor needs both"),
        ('{"text_ids": [512], "image_codes": [64]}', r"no layout fits the model's 583 rows .*the text id 512"),
    ],
)
def test_pairs_that_are_none_or_fit_no_layout(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(line + "\n")
    with pytest.raises(InvalidData, match=words):
        examined(str(tmp_path / "pairs.jsonl"), lambda _: None)


def test_yaml_is_a_layout_that_writes_the_same_ids(tmp_path: Path) -> None:
    (tmp_path / "layout.yaml").write_text(layout_yaml(checkup()))
    read = parse_layout(str(tmp_path / "layout.yaml")).resolve(583)
    for record in read_tokens(PAIRS).records[:16]:
        pair = record.text_ids, record.image_codes
        assert read.sequence(*pair) == TRUTH.sequence(*pair)


def test_the_table_has_every_preset_and_what_the_tables_of_the_model_say() -> None:
    """Or who reads it does not know what was tried. Borders and targets that were never trained need no loss."""
    rows = ranking_rows(checkup())
    names = {name.strip() for row in rows for name in [row["layout"], *row["same ids"].split(",")]} - {""}
    dropped = {item["name"] for item in checkup()["dropped"]}
    assert names | dropped == {f"{preset} 512" for preset in presets()}
    assert dropped == {"split-tables 512"}
    best = rows[0]
    assert (best["layout"], best["template"]) == ("image-then-special 512", "text, image")
    assert (best["borders"], best["cold"]) == ("2/2", "0/123")
    [other, *_] = [row for row in rows if row["layout"] == "image-first 512"]
    cold, targets = map(int, other["cold"].split("/"))
    assert cold > targets / 2


def test_summary_and_json_hold_everything() -> None:
    lines = list(summary(checkup()))
    assert lines[0] == f"pretrained 5: 583 rows; 16 pairs of {PAIRS}"
    assert "(strongest first) at: 220, 512" in lines[1]
    assert lines[2] == "tables: rows that lie in one direction, as those do that were never a target: 438"
    found = json.loads(json.dumps(plain_json(checkup()), allow_nan=False))
    assert len(found["ranking"]) + len(found["reordered"]) + 1 == found["comparisons"]
    assert found["ranking"][0]["behind"] <= found["ranking"][1]["behind"]
    assert found["best"]["losses"]["image"]["n"] == 16
