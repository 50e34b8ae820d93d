"""The suites that checkpoints are evaluated with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from study.scales import MINIATURE, QUICK
from study.suites import suites

from evalsvc.spec.suite import parse_suite


def test_suites_of_the_findings_are_valid(material: Any, tmp_path: Path) -> None:
    for scale in (MINIATURE, QUICK):
        for name, content in suites(scale, material).items():
            assert parse_suite(dict(content), name).tasks
