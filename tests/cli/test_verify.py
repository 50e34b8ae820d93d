"""`evalsvc verify`: the command, its outputs and exit codes. What is compared is tested in tests/verify."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from console import Shell

from evalsvc.cli.verify import exit_code, headline
from evalsvc.miniature import ROOT
from evalsvc.verify import checkpoint, golden_checks, machine
from evalsvc.verify.agreement import Agreement, Finding, Untried
from evalsvc.verify.checkpoint import VerifyRequest
from evalsvc.verify.golden_files import Golden
from evalsvc.verify.recorded import RecordedTask

RIGHT = Agreement.of_numbers("fid", "a program", 1.0, 1.0, 0.0)
WRONG = Agreement.of_numbers("kid", "a program", 1.0, 2.0, 0.0)
UNTRIED = Untried("loss", "a program", "not installed")
MACHINE = "verify machine --device cpu"


@pytest.mark.parametrize(
    ("findings", "code", "line"),
    [
        ([], 2, "nothing was computed a second time"),
        ([UNTRIED], 2, "nothing was computed a second time; 1 could not be tried"),
        ([RIGHT, RIGHT], 0, "all 2 agree"),
        ([RIGHT, UNTRIED], 0, "all 1 agree; 1 could not be tried"),
        ([RIGHT, WRONG, UNTRIED], 1, "1 of 2 differ: kid; 1 could not be tried"),
    ],
)
def test_exit_code_and_last_line(findings: list[Agreement | Untried], code: int, line: str) -> None:
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


def test_weights_are_verified_without_a_service(evalsvc: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = str(ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_5.pt")
    seen: list[tuple[list[str], VerifyRequest]] = []

    def verify_tasks(tasks: Sequence[RecordedTask], request: VerifyRequest) -> list[Finding]:
        seen.append(([task.spec.name for task in tasks], request))
        assert all(task.checkpoint.path == weights and not task.items for task in tasks)
        return [WRONG]

    monkeypatch.setattr(checkpoint, "verify_tasks", verify_tasks)
    options = "--engine model=open_lm --engine scoring=hflm --n 12 --device cpu --output -"
    result = evalsvc(f"verify --checkpoint {weights} --suite miniature {options}")
    assert (result.code, result.json["agrees"]) == (1, False)
    [(tasks, request)] = seen
    assert "digits" in tasks
    assert (list(request.engines), request.n) == ([("model", "open_lm"), ("scoring", "hflm")], 12)
    assert request.settings.device == "cpu"
