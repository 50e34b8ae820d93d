"""The computation of all findings in a work folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paper
import pytest
from study.computing import Computation, estimated_minutes
from study.runs import distinct
from study.scales import MINIATURE, QUICK


def test_all_findings_fit_into_their_time(material: Any) -> None:
    def minutes(scale: Any) -> float:
        return sum(
            estimated_minutes(
                scale, distinct(run for finding in paper.FINDINGS for run in finding.runs(scale, material))
            )
        )

    assert minutes(MINIATURE) < 100
    assert minutes(QUICK) < 4


def test_a_work_folder_has_one_computation_at_a_time(material: Any, tmp_path: Path) -> None:
    """Two services on one database, or two trainings in one folder, would end each other much later."""
    computation = Computation(QUICK, tmp_path, material)
    with computation._claimed(), pytest.raises(SystemExit, match=f"another computation runs in {tmp_path}"):
        computation.compute([])
    with computation._claimed():
        pass
