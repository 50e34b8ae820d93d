"""The command of all findings."""

from __future__ import annotations

from types import ModuleType

import paper


def modules() -> list[ModuleType]:
    return [module for name, module in vars(paper).items() if hasattr(module, "FINDING")]


def test_every_finding_says_how_it_is_run_alone() -> None:
    for module in modules():
        assert f"benchmarks/paper/{module.FINDING.name}.py --work DIR" in str(module.__doc__)
