"""Recorded losses and benchmarks, computed a second time; open_lm's place is taken by transformers' StableLM."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from miniature_run import pretrained
from recorded_tasks import evaluated
from torch import Tensor, nn

from evalsvc.config import Settings
from evalsvc.miniature import ROOT
from evalsvc.models import load_model
from evalsvc.verify import logits
from evalsvc.verify.agreement import Agreement, Finding, Untried, all_agree
from evalsvc.verify.hugging_face import write_hugging_face
from evalsvc.verify.recorded import RecordedTask, VerifyRequest, verify_tasks

pytestmark = pytest.mark.usefixtures("reference_models", "one_thread")

LOSS: dict[str, Any] = {
    "kind": "loss",
    "name": "pairs",
    "data": str(ROOT / "heldout_pairs.jsonl"),
    "limit": 6,
    "general_text": str(ROOT / "heldout_text.jsonl"),
    "general_text_limit": 3,
}


class StableLm(nn.Module):
    """The miniature as a model of transformers, called as open_lm's models are."""

    def __init__(self, tensors: Any) -> None:
        super().__init__()
        ours = load_model(pretrained(3).path)
        ours.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
        self.model = write_hugging_face(ours)

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        return (self.model(ids).logits,)


@pytest.fixture(autouse=True)
def _stable_lm_for_open_lm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "build_open_lm", lambda config, tensors, dtype: StableLm(tensors))


def verify(task: RecordedTask, n: int, *metrics: str) -> dict[str, Finding]:
    request = VerifyRequest(Settings.load(threads=1), metrics, n)
    return {finding.quantity: finding for finding in verify_tasks([task], request)}


def with_value(task: RecordedTask, name: str, value: float) -> RecordedTask:
    metrics = [replace(metric, value=value) if metric.name == name else metric for metric in task.metrics]
    return replace(task, metrics=metrics)


def recorded(findings: dict[str, Finding]) -> Sequence[str]:
    """Return the metrics whose recorded values were compared."""
    return [name for name, finding in findings.items() if getattr(finding, "note", "").startswith("recorded")]


def test_recorded_losses_are_verified() -> None:
    task = evaluated(pretrained(3), **LOSS)
    found = verify(task, 6)
    assert all_agree(list(found.values()))
    kinds = ["text", "image", "special", "total", "text_within", "image_within", "image_mass"]
    assert recorded(found) == [f"pairs/{kind}" for kind in [*kinds, "general_text", "general_text_within"]]
    assert "pairs: mean losses of each of 6 sequences" in found
    assert "pairs/general_text: logits of 3 sequences" in found


def test_a_wrong_loss_is_named() -> None:
    task = with_value(evaluated(pretrained(3), **LOSS), "pairs/image", 2.0)
    found = verify(task, 6, "pairs/image")
    assert [name for name, finding in found.items() if finding.verdict != "ok"] == ["pairs/image"]
    assert [name for name in found if "/" in name and ":" not in name] == ["pairs/image"], "no other was asked for"
    assert all_agree(list(verify(task, 3).values())), "three sequences say nothing of the value of six"


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"limit": 2}])
def test_losses_of_another_type_or_protocol_are_computed_again(change: dict[str, Any]) -> None:
    """Of a file that has changed since, there is nothing to hold the recorded value to."""
    task = evaluated(pretrained(3), **{**LOSS, "general_text": None, "general_text_limit": None, **change})
    if "limit" in change:
        parameters = {**task.spec.parameters, "limit": 6}
        task = replace(task, spec=replace(task.spec, parameters=parameters))
    found = verify(task, 6)
    assert recorded(found) == []
    tried = [finding for finding in found.values() if isinstance(finding, Agreement)]
    assert all_agree(tried)
    others = [finding.reason for finding in found.values() if isinstance(finding, Untried)]
    assert all("by another protocol, with another limit" in reason for reason in others)
    assert bool(others) == ("limit" in change)


def test_images_are_encoded_before_their_losses_are_verified() -> None:
    """A task `loss` with images: the codes are those of the task's decoder."""
    fields = {
        "data": str(ROOT / "captions.jsonl"),
        "images": str(ROOT / "images.safetensors"),
        "decoder": str(ROOT / "movqgan" / "movqgan_miniature.ckpt"),
    }
    task = evaluated(pretrained(3), kind="loss", name="pairs", limit=3, **fields)
    found = verify(task, 3)
    assert all_agree(list(found.values()))
    assert "pairs/image" in recorded(found)


def test_recorded_benchmarks_are_verified() -> None:
    """Those of `forgetting` are the checkpoint's own; what compares it with its base is not computed again."""
    fields: dict[str, Any] = {"benchmarks": ["cloze"], "include_path": [str(ROOT)], "limit": 4}
    task = evaluated(pretrained(1), pretrained(0), kind="forgetting", **fields)
    found = verify(task, 4)
    assert all_agree(list(found.values()))
    assert recorded(found) == ["cloze/acc", "cloze/acc_within"]
    wrong = verify(with_value(task, "cloze/acc", 9.0), 4, "cloze/acc")
    assert [name for name, finding in wrong.items() if finding.verdict != "ok"] == ["cloze/acc"]
    assert "cloze/acc_within" not in wrong
    assert recorded(verify(task, 2)) == []
