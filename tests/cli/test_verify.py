"""`evalsvc verify`: the command, its outputs and exit codes. What is compared is tested in tests/verify."""

import json
from pathlib import Path

import pytest
from console import Command

from evalsvc.cli.verify import exit_code, headline
from evalsvc.verify import golden_checks, machine
from evalsvc.verify.agreement import Agreement, Untried
from evalsvc.verify.golden_files import Golden

RIGHT = Agreement.of_numbers("fid", "a program", 1.0, 1.0, 0.0)
WRONG = Agreement.of_numbers("kid", "a program", 1.0, 2.0, 0.0)
UNTRIED = Untried("loss", "a program", "not installed")


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


class TestMachine:
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
        """One check of a dozen: tests/verify runs all of them in a process."""
        monkeypatch.setattr(machine, "checks", lambda golden: [("noise", golden_checks.verify_noise)])

    def test_agrees(self, command: Command, tmp_path: Path) -> None:
        result = command("verify", "machine", "--device", "cpu", "--output", "all.json")
        assert result.code == 0, result.err
        assert "noise of 128 codes" in result.out
        assert result.out.splitlines()[-1] == "all 1 agree"
        document = json.loads((tmp_path / "all.json").read_text())
        assert document["agrees"] is True
        assert document["versions"].keys() == {"evalsvc", "torch"}
        assert document["findings"][0]["verdict"] == "ok"
        line = next(line for line in command("doctor").out.splitlines() if line.split()[:1] == ["verify"])
        assert line.split()[1:5] == ["ok", "1", "rows", "agree"]

    def test_differs(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        """JSON on stdout has nothing beside it; afterwards the doctor's exit code is 1."""
        monkeypatch.setattr(golden_checks, "stream_keys", lambda *_: golden_checks.torch.tensor([3]))
        result = command("verify", "machine", "--device", "cpu", "--output", "-")
        assert result.code == 1
        document = json.loads(result.out)
        assert [finding["verdict"] for finding in document["findings"]] == ["WRONG"]
        monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
        doctor = command("doctor")
        assert doctor.code == 1
        assert "noise of 128 codes" in doctor.out

    def test_a_data_folder_that_cannot_be_written_is_a_warning(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "home").write_text("a file where the folder should be")
        result = command("verify", "machine", "--device", "cpu")
        assert result.code == 0
        assert "warning: the result is not kept for `evalsvc doctor`" in result.err

    def test_settings_of_the_service_say_nothing_of_the_machine(
        self, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """A service that reads below its roots alone does not read what comes with evalsvc."""
        monkeypatch.setenv("EVALSVC_ROOTS", str(tmp_path))
        seen: list[str] = []

        def look(golden: Golden) -> list[Agreement]:
            seen.append(golden.settings.roots)
            return [RIGHT]

        monkeypatch.setattr(machine, "checks", lambda golden: [("roots", look)])
        assert command("verify", "machine", "--device", "cpu").code == 0
        assert seen == ["/"]

    def test_a_device_that_is_not_there(self, command: Command) -> None:
        result = command("verify", "machine", "--device", "cuda:99")
        assert (result.code, result.out) == (2, "")
        assert "--device: there is no device 'cuda:99'" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["machine", "--output", "no/where.json"], "--output no/where.json: the folder no does not exist"),
        (["machine", "--threads", "0"], "--threads"),
        (["mine@3", "--checkpoint", "a.pt"], "verify needs either RUN@STEP or --checkpoint FILE, and both are given"),
        (["--suite", "loss"], "verify needs either RUN@STEP or --checkpoint FILE, and neither is given"),
        (["--checkpoint", "a.pt"], "--checkpoint is given without --suite; name the suite"),
        (["machine", "--suite", "loss"], "--suite is given with machine; leave --suite out"),
    ],
)
def test_bad_arguments(command: Command, arguments: list[str], words: str) -> None:
    result = command("verify", *arguments)
    assert result.code == 2
    assert words in result.err
    assert "Traceback" not in result.err
