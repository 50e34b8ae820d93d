"""Charts of estimates as dots with intervals."""

from __future__ import annotations

from study.dot_chart import Dot, dot_chart
from study.measured import Estimate

from evalsvc.web.curves import Line


def test_dots_have_their_intervals_and_lines() -> None:
    dots = [Dot("seed 0", "random", Estimate(1.0, 0.5, 1.5)), Dot("seed 1", "pre-trained", Estimate(2.0, None, None))]
    spec = dot_chart(dots, "fid64", [Line(0.0, "no difference")])
    datasets = spec["datasets"]
    assert isinstance(datasets, dict)
    assert datasets["points"][0] == {"label": "seed 0", "group": "random", "x": 1.0, "low": 0.5, "high": 1.5}
    assert "seed 0 1 (0.5 to 1.5)" in str(spec["description"])
