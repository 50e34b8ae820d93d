"""The line of the doctor on the last `evalsvc verify machine`."""

import json
from pathlib import Path
from typing import Any

import pytest

from evalsvc.config import Settings
from evalsvc.doctor import verification
from evalsvc.doctor.checks import Check, check_verification
from evalsvc.doctor.verification import FILE, keep_verification, present_versions

RESULT: dict[str, Any] = {
    "agrees": True,
    "versions": present_versions(),
    "device": "cuda (NVIDIA H100)",
    "at": "2026-01-01T00:00:00+00:00",
    "findings": [{"quantity": "logits", "verdict": "ok", "difference": 0.0}],
}


def line(folder: Path, **settings: str) -> Check:
    return check_verification(Settings(data_dir=str(folder), **settings))


def test_not_run(tmp_path: Path) -> None:
    found = line(tmp_path / "nowhere")
    assert (found.ok, found.needed, found.found, found.do) == (False, False, "not run", "run: evalsvc verify machine")


def test_agreed(tmp_path: Path) -> None:
    keep_verification(tmp_path, RESULT)
    found = line(tmp_path)
    assert (found.ok, found.do) == (True, "")
    assert found.found == "1 rows agree on cuda (NVIDIA H100), 2026-01-01T00:00:00+00:00"
    untried = {"quantity": "features of Inception", "verdict": "not tried"}
    keep_verification(tmp_path, RESULT | {"findings": [*RESULT["findings"], untried]})
    assert line(tmp_path).found.startswith("1 rows agree, 1 not tried, on cuda")


def test_differed(tmp_path: Path) -> None:
    """Workers of this machine would store wrong numbers; a service whose workers are on other machines would not."""
    keep_verification(tmp_path, RESULT | {"agrees": False, "findings": [{"quantity": "fid", "verdict": "WRONG"}]})
    found = line(tmp_path)
    assert (found.ok, found.needed) == (False, True)
    assert found.found.startswith("fid on cuda")
    assert not line(tmp_path, scheduler="tcp://127.0.0.1:9").needed


def test_of_other_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_verification(tmp_path, RESULT | {"versions": {"evalsvc": "0.0.1", "torch": "2.10.0"}})
    found = line(tmp_path)
    assert (found.ok, found.needed) == (False, False)
    assert found.found.startswith("of evalsvc 0.0.1, torch 2.10.0 on cuda")
    assert found.do == "the versions have changed; run: evalsvc verify machine"

    def missing(name: str) -> str:
        raise verification.metadata.PackageNotFoundError(name)

    keep_verification(tmp_path, RESULT)
    monkeypatch.setattr(verification.metadata, "version", missing)
    assert not line(tmp_path).ok, "torch is no longer installed"


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"agrees": true}', json.dumps(RESULT | {"findings": 3}), "{" * 100_000],
)
def test_a_damaged_file_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    found = line(tmp_path)
    assert (found.ok, found.needed, found.do) == (False, False, "run: evalsvc verify machine")
    assert str(tmp_path / FILE) in found.found
