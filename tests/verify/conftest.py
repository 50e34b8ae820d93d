import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from evalsvc.verify.agreement import Agreement, Finding
from evalsvc.verify.golden_files import GOLDEN, Golden


@pytest.fixture
def copied(tmp_path: Path) -> Golden:
    """A copy of the golden values for the test to change."""
    return Golden("cpu", Path(shutil.copytree(GOLDEN, tmp_path / "golden")))


@pytest.fixture
def nudge(copied: Golden) -> Callable[[str, str, float], None]:
    """Add a number to the first element of a tensor of `copied`."""

    def change(file: str, tensor: str, by: float) -> None:
        path = copied.folder / f"{file}.safetensors"
        tensors = load_file(path)
        tensors[tensor].view(-1)[0] += by
        save_file(tensors, path)

    return change


@pytest.fixture
def wrong() -> Callable[[list[Finding]], list[str]]:
    """The quantities of the rows that differ, of findings that were all tried."""

    def quantities(findings: list[Finding]) -> list[str]:
        assert findings
        assert all(isinstance(finding, Agreement) for finding in findings), findings
        return [finding.quantity for finding in findings if finding.verdict == "WRONG"]

    return quantities
