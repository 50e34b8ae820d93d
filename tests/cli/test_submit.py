"""`evalsvc submit`: what it prints, where, and its exit codes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_in_process import app_on_port
from console import Shell
from queue_steps import evaluate_whole, metric

from evalsvc.cli.weights import uploaded_model
from evalsvc.client import Client
from evalsvc.messages import ShardError
from evalsvc.miniature import ROOT

WAIT = "submit run-a 25 epoch_1.pt --suite loss --wait"


@pytest.mark.usefixtures("service", "weights")
class TestSubmit:
    def test_posts_and_says_what_was_entered(self, evalsvc: Shell, tmp_path: Path) -> None:
        result = evalsvc("submit run-a 25 epoch_1.pt --suite loss --tag lr=3e-4 --spool link")
        assert (result.code, result.err) == (0, "")
        assert result.out == "checkpoint 1: run-a step 25 raw\nevaluation 1: loss queued\n"
        (tmp_path / "layout.yaml").write_text("text: {size: 50432}")
        assert evalsvc("submit run-a 30 epoch_1.pt --model open_lm_160m --layout layout.yaml").code == 0
        assert evalsvc("""submit run-a 50 epoch_1.pt --layout '{"text": {"size": 9}}'""").code == 0

    def test_wait_shows_progress_and_metrics(self, evalsvc: Shell, service: Any) -> None:
        service.coordinator.working = True
        result = evalsvc(WAIT)
        assert (result.code, "loss/text" in result.out, "± 0.1" in result.out) == (0, True, True)
        assert "loss: pairs 8 of 8 sequences" in result.err

    def test_wait_fails_with_the_evaluation(self, evalsvc: Shell, service: Any) -> None:
        service.coordinator.working, service.coordinator.error = True, ShardError("non_finite", "layer 3 gives NaN")
        result = evalsvc(WAIT)
        assert result.code == 1
        assert "error: evaluation 1 (loss), task text, pairs: layer 3 gives NaN [non_finite]" in result.err

    def test_ctrl_c_leaves_the_evaluation_and_says_how_to_follow_it(
        self, evalsvc: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It ended without a word, as if the evaluation had ended with it."""

        def press(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Client, "wait", press)
        result = evalsvc(WAIT)
        assert result.code == 130
        assert "the service goes on; follow it: evalsvc evaluations 1 --wait\n" in result.err

    def test_conflict(self, evalsvc: Shell, weights: Path) -> None:
        weights.with_name("other.pt").write_bytes(b"other")
        evalsvc("submit run-a 25 epoch_1.pt")
        result = evalsvc("submit run-a 25 other.pt")
        assert (result.code, "[conflict]" in result.err) == (2, True)
        assert evalsvc("submit run-a 25 other.pt --replace").code == 0


def test_mixtures_are_one_curve_against_a_metric(evalsvc: Shell, service: Any, weights: Path) -> None:
    for step in (0, 20):
        evalsvc(f"submit run-a {step} {weights}")
    for number, step in enumerate((0, 50, 100)):
        mixture = f"lerp(run-a@0, run-a@20, {step / 100:g})"
        posted = f"checkpoint {3 + number}: mix step {step} raw, {mixture}\nevaluation {1 + number}: loss queued\n"
        assert evalsvc(f"submit mix {step} '{mixture}' --suite loss").out == posted
    evaluate_whole(service.store, metric(2.0), metric(1.25, "loss/image", stderr=None))
    line = "history mix --metric loss/image --against loss/text"
    rows = [row for row in evalsvc(line).cells if "raw" in row]
    assert rows == [["mix", "raw", step, "2", "±", "0.1", "1.25"] for step in ("0", "50", "100")]
    ends = ("", " stderr", " low", " high", " source")
    columns = [f"{name}{end}" for name in ("loss/text", "loss/image") for end in ends]
    csv = [row.split(",") for row in evalsvc(f"{line} --format csv").out.splitlines()]
    assert csv[0] == ["run", "variant", "step", *columns]
    assert csv[2] == ["mix", "raw", "50", "2.0", "0.1", "1.75", "2.25", "", "1.25", "", "", "", ""]
    found = evalsvc("history mix --against loss/text --format json").json
    assert [row["loss/image"]["value"] for row in found["rows"]] == [1.25] * 3


@pytest.fixture(scope="module")
def taking_uploads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    with app_on_port(tmp_path_factory.mktemp("taking"), upload_bytes=10_000_000) as (url, state):
        yield url, state


def test_an_uploaded_file_is_sent_with_its_model(evalsvc: Shell, taking_uploads: tuple[str, Any]) -> None:
    """The files next to a checkpoint say what its model is, and are not sent: their content is."""
    url, state = taking_uploads
    file = ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_1.pt"
    line = f"submit sent 25 {file} --upload --suite loss --url {url}"
    result = evalsvc(line)
    assert re.fullmatch(r"after \d s: reading 1 of 1 MB; sending 1 of 1 MB\n", result.err)
    assert result.out == "checkpoint 1: sent step 25 raw\nevaluation 1: loss queued\n"
    [spooled] = (state.settings.data_path / "spool" / "1").iterdir()
    assert spooled.read_bytes() == file.read_bytes()
    assert evalsvc(line).out == result.out


def test_a_model_that_transformers_computes_is_sent_with_its_configuration(tmp_path: Path) -> None:
    """A worker finds no config.json next to an uploaded file."""
    fields = '{"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 80}'
    (tmp_path / "config.json").write_text(fields)
    (tmp_path / "model.safetensors").touch()
    description = uploaded_model(str(tmp_path / "model.safetensors"), "transformers")
    assert description is not None
    assert (description["family"], description["vocab_size"]) == ("transformers", 80)
    assert "transformers_config" in description
