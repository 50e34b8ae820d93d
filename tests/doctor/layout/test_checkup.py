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


def examined(pairs: str = PAIRS, report: Callable[[int], None] = lambda _: None, limit: int = 16) -> dict[str, Any]:
    path = ROOT / "runs/pretrained/checkpoints/epoch_5.pt"
    checkpoint = CheckpointRef(path=str(path), label="pretrained 5")
    return examine(checkpoint, pairs, SETTINGS, report, text_sizes=(512,), codebook_size=64, limit=limit)


@functools.cache
def checkup() -> dict[str, Any]:
    return examined()


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
    """Images of 24 codes of 16, each of which comes four times in a row."""
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


def test_progress_counts_layouts() -> None:
    said: list[int] = []
    examined(report=said.append, limit=2)
    assert said == list(range(1, len(said) + 1))


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
        examined(str(tmp_path / "pairs.jsonl"))


class TestReport:
    def test_yaml_is_a_layout_that_writes_the_same_ids(self, tmp_path: Path) -> None:
        found = checkup()
        (tmp_path / "layout.yaml").write_text(layout_yaml(found))
        read = parse_layout(str(tmp_path / "layout.yaml")).resolve(583)
        for record in read_tokens(PAIRS).records[:16]:
            pair = record.text_ids, record.image_codes
            assert read.sequence(*pair) == TRUTH.sequence(*pair)

    def test_table_has_every_preset(self) -> None:
        """Or who reads it does not know what was tried."""
        rows = ranking_rows(checkup())
        names = {name.strip() for row in rows for name in [row["layout"], *row["same ids"].split(",")]} - {""}
        dropped = {item["name"] for item in checkup()["dropped"]}
        assert names | dropped == {f"{preset} 512" for preset in presets()}
        assert dropped == {"split-tables 512"}
        assert (rows[0]["layout"], rows[0]["template"]) == ("image-then-special 512", "text, image")

    def test_tables_of_the_model_speak_for_the_truth_alone(self) -> None:
        """Borders that are seen, and targets that were never trained: evidence without any loss."""
        rows = {row["layout"]: row for row in reversed(ranking_rows(checkup()))}
        best = rows["image-then-special 512"]
        assert (best["borders"], best["cold"]) == ("2/2", "0/123")
        cold, targets = map(int, rows["image-first 512"]["cold"].split("/"))
        assert cold > targets / 2

    def test_summary_and_json_hold_everything(self) -> None:
        lines = list(summary(checkup()))
        assert lines[0] == f"pretrained 5: 583 rows; 16 pairs of {PAIRS}"
        assert "(strongest first) at: 220, 512" in lines[1]
        assert lines[2] == "tables: rows that lie in one direction, as those do that were never a target: 438"
        found = json.loads(json.dumps(plain_json(checkup()), allow_nan=False))
        assert found["decided"] is True
        assert parse_layout(found["layout"]).special == TRUTH.special
        assert len(found["ranking"]) + len(found["reordered"]) + 1 == found["comparisons"]
        assert found["ranking"][0]["behind"] <= found["ranking"][1]["behind"]
        assert found["best"]["losses"]["image"]["n"] == 16
