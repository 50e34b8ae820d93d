"""The alignment of figure 7."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from safetensors.torch import load_file
from study.alignment import align_rows, read_record
from study.scales import QUICK


@pytest.mark.usefixtures("one_thread")
def test_rows_are_aligned_once_and_measured_on_other_pairs(material: Any) -> None:
    scale = replace(QUICK, alignment_steps=5)
    align_rows(scale, material, 0)
    record = read_record(material, 0)
    assert len(record.losses) == len(record.temperatures) == 5
    assert record.losses[-1] < record.losses[0]
    assert record.temperatures[0] == pytest.approx(0.07)
    assert (record.batch, record.held_out_pairs) == (1024, 24)
    value, low, high = record.held_out
    assert low is not None
    assert high is not None
    assert 0 < low < value < high
    rows = load_file(material.aligned_rows(0))
    assert rows["rows"].tolist() == list(range(512, 576))
    assert rows["values"].isfinite().all()
    assert math.isfinite(value)

    times = [path.stat().st_mtime_ns for path in (material.aligned_rows(0), material.alignment_record(0))]
    align_rows(scale, material, 0)
    assert times == [path.stat().st_mtime_ns for path in (material.aligned_rows(0), material.alignment_record(0))]
