"""`evalsvc doctor`, `inspect`, `layout` and `verify`: outputs and exit codes; other tests have the findings."""

import json
from pathlib import Path
from unittest import mock

import pytest
from console import Shell

from evalsvc.cli.verify import exit_code, headline
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout
from evalsvc.verify import checkpoint, golden_checks, machine
from evalsvc.verify.agreement import Agreement, Untried
from evalsvc.verify.golden_checks import Golden


def test_the_doctor_shows_settings_with_their_source_and_what_is_missing(
    evalsvc: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh machine is fine; the data of a suite are missing once somebody wants that suite."""
    monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
    assert evalsvc("doctor").code == 0
    result = evalsvc("doctor loss")
    assert (result.code, "heldout_text.jsonl" in result.out) == (1, True)
    monkeypatch.setenv("EVALSVC_DATABASE_URL", "postgresql://evalsvc:secret@127.0.0.1:9/evalsvc")
    result = evalsvc("doctor --data-dir data")
    rows = {row[0]: row[1:] for row in result.cells if row and row[0].startswith("EVALSVC_")}
    assert rows["EVALSVC_PORT"] == ["8321", "default"]
    assert rows["EVALSVC_DEVICES"] == ["cpu", "environment"]
    assert rows["EVALSVC_DATA_DIR"] == ["data", "option"]
    assert "secret" not in result.out
    assert result.code == 1  # no database answers there


def test_inspect_shows_a_command_that_works(evalsvc: Shell) -> None:
    weights = ROOT / "runs/random-init/checkpoints/epoch_5.pt"
    result = evalsvc(f"inspect {weights}")
    assert (result.code, "open_lm, from ../open_lm_miniature.json" in " ".join(result.out.split())) == (0, True)
    [command] = [line for line in result.out.splitlines() if line.startswith("evalsvc run")]
    Path("ids.jsonl").write_text('{"text_ids": [1, 2, 3]}\n')
    Path("ids.yaml").write_text("tasks: [{kind: loss, data: ids.jsonl}]")
    ran = evalsvc(command.removeprefix("evalsvc ").replace("SUITE", "ids.yaml") + " --device cpu --threads 1")
    assert (ran.code, "loss/text" in ran.out) == (0, True), ran.err
    assert evalsvc(f"inspect {weights} --format json").json["model"]["hidden_dim"] == 96
    Path("no.pt").write_text("hello")
    assert (evalsvc("inspect no.pt").code, evalsvc("inspect no.pt --format json").json["identified"]) == (1, False)
    for nothing in ("nowhere.pt", "s3://bucket/a.pt", "'avg(a@1, a@2)'"):
        refused = evalsvc(f"inspect {nothing}")
        assert (refused.code, "on this machine; give the path of" in refused.err) == (2, True)


LAYOUT = f"layout {ROOT}/runs/random-init/checkpoints/epoch_5.pt --pairs {ROOT}/heldout_pairs.jsonl --text-size 512"
LAYOUT += " --codebook-size 64 --device cpu --threads 1 --output layout.yaml --findings all.json"


@pytest.mark.usefixtures("many_cases")
def test_a_layout_that_is_decided_is_written(evalsvc: Shell) -> None:
    result = evalsvc(LAYOUT)
    assert result.code == 0, result.err
    special = "special tokens: doc 576, /doc 577, text 578, /text 579, image 580, /image 581, pad 582"
    for words in ("the layout is image-then-special 512 (text, image)", special, "split-tables 512"):
        assert words in result.out
    layout = parse_layout(str(Path("layout.yaml").absolute()))
    assert (layout.image_ids, layout.special["/image"]) == (range(512, 576), 581)
    assert json.loads(Path("all.json").read_text())["decided"] is True


def test_a_layout_that_is_not_decided_is_no_file(evalsvc: Shell) -> None:
    result = evalsvc(f"{LAYOUT} --limit 2")
    assert (result.code, "not decided" in result.out, "use more pairs (--limit)" in result.out) == (1, True, True)
    assert not Path("layout.yaml").exists()
    assert json.loads(Path("all.json").read_text())["decided"] is False


RIGHT = Agreement.of_numbers("fid", "a program", 1.0, 1.0, 0.0)
WRONG = Agreement.of_numbers("kid", "a program", 1.0, 2.0, 0.0)
UNTRIED = Untried("loss", "a program", "not installed")
MACHINE = "verify machine --device cpu"


def test_exit_code_and_last_line() -> None:
    findings: list[Agreement | Untried]
    for findings, code, line in (
        ([], 2, "nothing was computed a second time"),
        ([UNTRIED], 2, "nothing was computed a second time; 1 could not be tried"),
        ([RIGHT, RIGHT], 0, "all 2 agree"),
        ([RIGHT, UNTRIED], 0, "all 1 agree; 1 could not be tried"),
        ([RIGHT, WRONG, UNTRIED], 1, "1 of 2 differ: kid; 1 could not be tried"),
    ):
        assert (exit_code(findings), headline(findings)) == (code, line)


@pytest.mark.usefixtures("one_thread")
class TestMachine:
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One check of a dozen: tests/verify runs all of them in a process."""
        monkeypatch.setattr(machine, "checks", lambda golden: [("noise", golden_checks.verify_noise)])

    def test_agrees(self, evalsvc: Shell) -> None:
        result = evalsvc(f"{MACHINE} --output all.json")
        assert (result.code, "noise of 128 codes" in result.out) == (0, True), result.err
        assert result.out.splitlines()[-1] == "all 1 agree"
        document = json.loads(Path("all.json").read_text())
        assert (document["agrees"], document["findings"][0]["verdict"]) == (True, "ok")
        assert document["versions"].keys() == {"evalsvc", "torch"}
        [line] = [row for row in evalsvc("doctor").cells if row[:1] == ["verify"]]
        assert line[1:5] == ["ok", "1", "rows", "agree"]

    def test_differs(self, evalsvc: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
        """JSON on stdout has nothing beside it; afterwards the doctor's exit code is 1."""
        monkeypatch.setattr(golden_checks, "stream_keys", lambda *_: golden_checks.torch.tensor([3]))
        result = evalsvc(f"{MACHINE} --output -")
        assert (result.code, [finding["verdict"] for finding in result.json["findings"]]) == (1, ["WRONG"])
        monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
        doctor = evalsvc("doctor")
        assert (doctor.code, "noise of 128 codes" in doctor.out) == (1, True)

    def test_settings_of_the_service_say_nothing_of_the_machine(
        self, evalsvc: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """A service that reads below its roots alone does not read what comes with evalsvc."""
        monkeypatch.setenv("EVALSVC_ROOTS", str(tmp_path))
        (tmp_path / "home").write_text("a file where the folder should be")
        seen: list[str] = []

        def look(golden: Golden) -> list[Agreement]:
            seen.append(golden.settings.roots)
            return [RIGHT]

        monkeypatch.setattr(machine, "checks", lambda golden: [("roots", look)])
        result = evalsvc(MACHINE)
        assert (result.code, seen) == (0, ["/"])
        assert "warning: the result is not kept for `evalsvc doctor`" in result.err


def test_weights_are_verified_without_a_service(evalsvc: Shell) -> None:
    weights = str(ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_5.pt")
    options = "--engine model=open_lm --engine scoring=hflm --n 12 --device cpu --output -"
    with mock.patch.object(checkpoint, "verify_tasks", return_value=[WRONG]) as verify_tasks:
        result = evalsvc(f"verify --checkpoint {weights} --suite miniature {options}")
    assert (result.code, result.json["agrees"]) == (1, False)
    [(tasks, request)] = [call.args for call in verify_tasks.call_args_list]
    assert all(task.checkpoint.path == weights and not task.items for task in tasks)
    assert "digits" in [task.spec.name for task in tasks]
    assert (list(request.engines), request.n) == ([("model", "open_lm"), ("scoring", "hflm")], 12)
    assert request.settings.device == "cpu"
