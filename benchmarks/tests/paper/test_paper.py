"""The command of all findings."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import paper


def modules() -> list[ModuleType]:
    return [module for name, module in vars(paper).items() if hasattr(module, "FINDING")]


def test_every_file_of_a_finding_is_computed_with_the_others() -> None:
    files = {path.stem for path in Path(paper.__file__).parent.glob("*.py") if "FINDING = Finding(" in path.read_text()}
    assert {finding.name for finding in paper.FINDINGS} == files


def test_every_finding_says_how_it_is_run_alone() -> None:
    for module in modules():
        assert f"benchmarks/paper/{module.FINDING.name}.py --work DIR" in str(module.__doc__)
