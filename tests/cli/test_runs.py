"""`evalsvc runs`, `checkpoints`, `delete`, `plan`, `submit` and `watch`."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import pytest
from app_in_process import app_on_port
from console import Command, Shell
from queue_steps import enter, evaluate_whole, measure, metric, submission, suite

from evalsvc.cli.runs import parse_planned
from evalsvc.cli.weights import uploaded_model
from evalsvc.client import Client
from evalsvc.messages import ShardError
from evalsvc.miniature import ROOT


def test_runs_are_listed_and_shown_with_their_latest_and_best_values(evalsvc: Shell, service: Any) -> None:
    assert evalsvc("runs").out == "no run exists yet; evalsvc submit posts a checkpoint\n"
    enter(service.store, submission(5, tags={"lr": "1e-4"}, tokens_seen=640), suite())
    enter(service.store, submission(10, variant="ema"))
    assert ["run-a", "2", "10"] in [row[:3] for row in evalsvc("runs").cells]
    [run] = evalsvc("runs --format json").json["runs"]
    assert (run["name"], run["last_step"]) == ("run-a", 10)
    lines = [" ".join(row) for row in evalsvc("runs run-a").cells]
    assert "base: run run-a, step 0, variant raw, named no" in lines
    assert "id step variant uri images tokens seen created evaluations" in lines
    assert [line.split()[:3] for line in lines if line[:1].isdigit()] == [["1", "5", "raw"], ["2", "10", "ema"]]
    shown = evalsvc("checkpoints run-a@5")
    assert {"step: 5", 'tags: {"lr": "1e-4"}', "in_use: yes", "sha256:"} <= set(shown.out.splitlines())
    assert ["1", "quick", "queued"] in shown.cells
    for name in ("run-a@10:ema", "2"):
        assert evalsvc(f"checkpoints {name} --format json").json["variant"] == "ema"
    for step, value in ((15, 2.0), (20, 3.0)):
        measure(service.store, step, value)
    row = ["loss/text", "raw", "nats/token", "3", "20", "2", "5", "3", "steps"]
    assert row in evalsvc("history run-a --newest").cells


def test_renaming_and_deleting(evalsvc: Shell, service: Any) -> None:
    """Where the service says `cancel=true`, which is no word of the command line, the option is named."""
    enter(service.store, submission(5), suite())
    enter(service.store, submission(10))
    assert evalsvc("runs run-a --name run-z").out == "run run-a is renamed to run-z\n"
    for name, deleted in (
        ("run-z@5", "checkpoint run-z@5 is deleted: 1 evaluation, 0 values, 0 artifacts, 0 bytes of files\n"),
        ("run-z", "run run-z is deleted: 1 checkpoint, 0 evaluations, 0 values, 0 artifacts, 0 bytes of files\n"),
    ):
        if "@" in name:
            refused = evalsvc(f"delete {name} --yes")
            assert (refused.code, "--cancel" in refused.err) == (2, True)
        assert evalsvc(f"delete {name} --yes --cancel").out == deleted


def test_a_base_is_set_and_shown(evalsvc: Shell, service: Any, weights: Path) -> None:
    evalsvc(f"submit run-a 25 {weights}")
    assert evalsvc("runs run-b --base run-a@25").out == "base of run-b: run-a step 25 raw (checkpoint 1)\n"
    assert "base: run run-a, step 25, variant raw, named yes, checkpoint 1" in evalsvc("runs run-b").out


@pytest.fixture
def posted(service: Any) -> None:
    enter(service.store, submission(5), suite())
    enter(service.store, submission(10, variant="ema"))
    enter(service.store, submission(5, run="run-b"))


def test_checkpoints_are_listed_with_their_evaluations(evalsvc: Shell, posted: None) -> None:
    shown = evalsvc("checkpoints")
    assert [row[0] for row in shown.cells if "@" in "".join(row)] == ["run-a@5", "run-a@10:ema", "run-b@5"]
    assert "quick queued" in shown.out
    assert "run-a@5" not in evalsvc("checkpoints run-a --from 6").out
    found = evalsvc("checkpoints --state queued --format json").json
    assert [checkpoint["id"] for checkpoint in found["checkpoints"]] == [1]
    assert "the first 1 are shown" in evalsvc("checkpoints --limit 1").err


def test_a_result_is_a_file_that_compare_reads(evalsvc: Shell, service: Any, posted: None) -> None:
    warning = {"code": "left_out", "metric": "loss/x", "message": "too few"}
    evaluate_whole(service.store, metric(2.0), warnings=[warning])
    shown = evalsvc("checkpoints run-a@5 --result")
    assert ("run 'run-a' step 5: quick succeeded" in shown.out, "loss/text" in shown.out) == (True, True)
    assert "loss/x: not measured by quick: too few" in evalsvc("checkpoints run-a@5").out
    assert evalsvc("checkpoints run-a@5 --result --format json --output a.json").code == 0
    compared = evalsvc("compare a.json a.json")
    assert (compared.code, "loss/text" in compared.out) == (0, True), compared.err


def test_a_plan_is_set_and_shown(evalsvc: Shell, service: Any) -> None:
    assert "run run-a has no suite in its plan" in evalsvc("plan run-a --none").out
    said = evalsvc("plan run-a loss/500 text-quick@1000..9000/1000 --when-behind newest")
    assert ["loss", "500"] in said.cells
    assert ["text-quick", "1,000", "1000", "9000"] in said.cells
    assert said.out.endswith("when behind: newest\n")
    assert evalsvc("plan run-a").out == said.out
    assert evalsvc("plan run-a --format json").json["suites"][0]["every"] == 500
    limited = evalsvc("plan run-a loss --when-behind refuse --at-most 3").out
    assert limited.endswith("when behind: refuse, while 3 other steps wait\n")


def test_planned_suites() -> None:
    found = [vars(parse_planned(text)) for text in ("loss", "loss/500", "my.suite@5..", "loss@5..10/5")]
    expected = [("loss", 1, None, None), ("loss", 500, None, None), ("my.suite", 1, 5, None), ("loss", 5, 5, 10)]
    assert [tuple(of[name] for name in ("suite", "every", "first", "last")) for of in found] == expected


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

    def test_wait_shows_progress_and_metrics_and_fails_with_the_evaluation(self, evalsvc: Shell, service: Any) -> None:
        service.coordinator.working = True
        result = evalsvc(WAIT)
        assert (result.code, "loss/text" in result.out, "± 0.1" in result.out) == (0, True, True)
        assert "loss: pairs 8 of 8 sequences" in result.err
        service.coordinator.error = ShardError("non_finite", "layer 3 gives NaN")
        result = evalsvc(WAIT.replace("25", "30"))
        assert result.code == 1
        assert "error: evaluation 2 (loss), task text, pairs: layer 3 gives NaN [non_finite]" in result.err

    def test_ctrl_c_leaves_the_evaluation_and_says_how_to_follow_it(self, evalsvc: Shell) -> None:
        """It ended without a word, as if the evaluation had ended with it."""
        with mock.patch.object(Client, "wait", side_effect=KeyboardInterrupt):
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


MINIATURE = ROOT / "runs" / "pretrained" / "checkpoints"
STEPS = [0, 10, 20, 80, 300, 3000]
OPTIONS = ("--run", "run-a", "--settle", "0.1", "--every", "0.1")


@pytest.fixture
def signals(child_process: None) -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def url(service: Any, signals: None) -> str:
    """The address of a service by whose plan every step of the run is evaluated."""
    url = os.environ["EVALSVC_URL"]
    plan = {"suites": [{"suite": "loss", "every": 1}]}
    httpx2.put(f"{url}/v1/runs/run-a/plan", json=plan).raise_for_status()
    return url


def test_watching_once_posts_what_is_there_and_ends(tmp_path: Path, command: Command, url: str) -> None:
    folder = shutil.copytree(MINIATURE, tmp_path / "checkpoints")
    (folder / "optimizer_1.pt").write_bytes(b"x")
    first = command("watch", str(folder), *OPTIONS, "--once")
    lines = first.out.splitlines()
    left = "optimizer_1.pt: not posted, since a training job keeps its own state in such files, and no weights\n"
    assert (first.code, first.err, len(lines)) == (0, left, len(STEPS))
    assert lines[3] == "epoch_3.pt: step 80 raw is checkpoint 4; loss"
    again = command("watch", str(folder), *OPTIONS, "--once")
    assert (again.code, again.out) == (0, "")
    assert again.err == f"{left}nothing to post: the service has all 6 checkpoints in {folder}\n"


def test_watching_once_says_what_was_refused_by_its_exit_code(tmp_path: Path, command: Command, url: str) -> None:
    (folder := tmp_path / "checkpoints").mkdir()
    shutil.copy(MINIATURE / "epoch_1.pt", folder)
    assert command("watch", str(folder), *OPTIONS, "--once").code == 0
    shutil.copy(MINIATURE / "epoch_2.pt", folder / "epoch_1.pt")
    refused = command("watch", str(folder), *OPTIONS, "--once", "--steps-per-epoch", "10")
    assert "epoch_1.pt is not posted: run 'run-a' has a checkpoint at step 10" in refused.err
    assert ("--replace" in refused.err, refused.code) == (True, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_watcher_ends_quietly_by_a_signal(tmp_path: Path, url: str, number: int) -> None:
    (folder := tmp_path / "checkpoints").mkdir()
    shutil.copy(MINIATURE / "epoch_1.pt", folder)
    line = [sys.executable, "-m", "evalsvc.cli", "watch", str(folder), *OPTIONS]
    watcher = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    assert watcher.stdout.readline().startswith("epoch_1.pt: step 10 raw is checkpoint 1")
    watcher.send_signal(number)
    assert watcher.communicate(timeout=30) == ("", "")
    assert watcher.returncode == 0
