"""The check that shares no code with evalsvc, so that both would have to be wrong in the same way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from check import PAGE, RESULTS, differences_of, mean, paired_error, sequence, sums
from miniature_run import pretrained
from plain_model import PlainModel
from task_runs import metrics, run_task

from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.miniature import ROOT as MINIATURE
from evalsvc.models import load_model
from evalsvc.spec.layout import parse_layout


def test_the_plain_model_of_the_check_is_the_transformer() -> None:
    """The check shares no code with evalsvc, so that both would have to be wrong in the same way."""
    run = MINIATURE / "runs" / "pretrained"
    checkpoint = run / "checkpoints" / "epoch_3.pt"
    ids = list(range(3, 120, 2))
    plain = PlainModel(checkpoint, run / "open_lm_miniature.json").losses(ids)
    with torch.inference_mode():
        logits = load_model(checkpoint)(torch.tensor([ids[:-1]])).double()[0]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    assert torch.allclose(plain, expected, atol=2e-5)


def test_the_plain_sequences_of_the_check_are_the_layouts() -> None:
    path = MINIATURE / "runs" / "layout.yaml"
    plain, layout = yaml.safe_load(path.read_text()), parse_layout(str(path)).resolve(583)
    assert sequence(plain, [5, 6], [0, 63]) == layout.sequence([5, 6], [0, 63]).ids


@pytest.mark.parametrize(("text_prefix", "before", "after"), [("bos", [], []), ("layout", [576, 578], [579, 577])])
def test_the_loss_of_english_is_that_of_the_text_alone(text_prefix: str, before: list[int], after: list[int]) -> None:
    """Held-out English was measured behind `<doc><text>`, tokens that the base never saw: 13.34 for 13.89."""
    run, text = MINIATURE / "runs" / "pretrained", str(MINIATURE / "heldout_text.jsonl")
    rows = [json.loads(line)["text_ids"] for line in Path(text).read_text().splitlines()[:4]]
    models = [PlainModel(run / "checkpoints" / f"epoch_{n}.pt", run / "open_lm_miniature.json") for n in (4, 0)]
    expected, base = (sums(model, [[*before, *row, *after] for row in rows], range(512)) for model in models)
    given = {"text_prefix": text_prefix, "kind": "loss", "data": str(MINIATURE / "heldout_pairs.jsonl"), "limit": 2}
    general = metrics(run_task(pretrained(4), **given, general_text=text, general_text_limit=4))
    alone = metrics(run_task(pretrained(4), **given | {"data": text, "limit": 4}))
    forgotten = metrics(
        run_task(pretrained(4), pretrained(0), kind="forgetting", text=text, text_limit=4, text_prefix=text_prefix)
    )
    tokens = sum(len(row) for row in rows) - (4 if text_prefix == "bos" else 0)
    assert sum(count for _, count in expected) == tokens
    for metric in (general["loss/general_text"], alone["loss/text"], forgotten["forgetting/loss"]):
        assert metric["value"] == pytest.approx(mean(expected), rel=1e-5)
    assert forgotten["forgetting/loss_change"]["value"] == pytest.approx(mean(expected) - mean(base), rel=1e-5)
    assert ("loss/special" in alone) == bool(after)


def test_the_paired_error_of_the_check_is_that_of_the_metrics() -> None:
    before = [(10.0, 5), (12.0, 4), (9.0, 6), (20.0, 9)]
    after = [(11.0, 5), (11.5, 4), (10.0, 6), (19.0, 9)]
    counts = [row[1] for row in before]
    moved = ratio_of_sums([b[0] - a[0] for a, b in zip(before, after, strict=True)], counts)
    assert moved is not None
    assert moved.stderr == pytest.approx(paired_error(before, after))
    assert moved.value == pytest.approx(mean(after) - mean(before))


def test_the_page_says_what_the_committed_numbers_say(tmp_path: Path) -> None:
    assert {path.stem for path in RESULTS.glob("*.json")} == {"miniature", "real"}
    assert differences_of(PAGE, RESULTS) == []
    results = json.loads((RESULTS / "miniature.json").read_text())
    changed = results["readings"]["pairs/total of pretrained-3 less random-3"]["difference"]
    changed[-1] += 0.01
    (tmp_path / "miniature.json").write_text(json.dumps(results))
    assert len(differences_of(PAGE, tmp_path)) == 1, "the report of figure 3 is another, and the page is that of before"
