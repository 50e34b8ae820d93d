"""The history drawn: the dashboard's charts along commits, and a page with a table."""

import json
from pathlib import Path
from typing import Any

import pytest
from harness.document import Ratio
from harness.draw import charts, draw_history, page_of
from harness.history import Entry, Value
from programs import lacking

from evalsvc.web import vega


def entries() -> list[Entry]:
    """Three commits; the last one's loss is of another protocol."""

    def ratio(mean: float) -> Ratio:
        return Ratio(median=mean, mean=mean, low=mean - 0.02, high=mean + 0.02, level=0.95, turns=12)

    def value(number: float, protocol: str) -> Value:
        ends = {"low": number - 0.04, "high": number + 0.04}
        return Value(value=number, stderr=0.02, n=300, unit="nats/token", direction="lower", protocol=protocol, **ends)

    return [
        Entry(
            commit=commit * 40,
            time="2026-11-28T04:31:00+00:00",
            suite="quick",
            baseline_code="base",
            processor="processor",
            ratios={"speed-loss": ratio(mean), "speed-sampling": ratio(1.0)},
            values={"pairs/image": value(1.75, protocol)},
        )
        for commit, mean, protocol in (("a", 1.0, "p"), ("b", 1.02, "p"), ("c", 1.3, "q"))
    ]


def points(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return list(spec["datasets"]["points"])


def test_ratios_and_the_headline_have_a_chart_each() -> None:
    specs = charts(entries(), ["pairs/image", "pairs/missing"])
    assert set(specs) == {"speed", "pairs/image"}
    speed = [(row["run"], row["x"], row["y"]) for row in points(specs["speed"])]
    assert speed[:3] == [("loss", 1, 1.0), ("loss", 2, 1.02), ("loss", 3, 1.3)]
    assert {row["run"] for row in points(specs["speed"])} == {"loss", "sampling"}
    assert specs["speed"]["datasets"]["lines"] == [{"y": 1.0, "text": "the baseline's code"}]
    low, high = points(specs["speed"])[2]["low"], points(specs["speed"])[2]["high"]
    assert low == pytest.approx(1.28)
    assert high == pytest.approx(1.32)


def test_another_protocol_is_another_curve() -> None:
    rows = points(charts(entries(), ["pairs/image"])["pairs/image"])
    assert [row["series"] for row in rows] == ["pairs/image p", "pairs/image p", "pairs/image q"]
    assert rows[0]["low"] < 1.75 < rows[0]["high"]


def test_the_axis_is_that_of_commits() -> None:
    """The dashboard's own axis is called after training steps."""
    text = json.dumps(charts(entries(), []))
    assert '"title": "commit"' in text
    assert '"title": "training step"' not in text


def test_the_page_has_the_newest_commit_first() -> None:
    lines = page_of(entries(), ["pairs/image"], ["speed.svg"]).splitlines()
    assert "![speed by commit](speed.svg)" in lines
    assert any("within one run" in line and "between runs of equal code" in line for line in lines)
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == "| | commit | loss | sampling | pairs/image |"
    assert table[2].startswith("| 3 | cccccccccc | 1.300 (1.280–1.320) | 1.000")
    assert table[2].endswith("| 1.75 ± 0.02 |")
    assert len(table) == 5


def test_without_the_package_that_draws_there_is_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vega, "is_installed", lambda: False)
    assert [file.name for file in draw_history(tmp_path, entries(), ["pairs/image"])] == ["index.md"]


def test_charts_are_drawn(tmp_path: Path, child_process: None) -> None:
    if not vega.is_installed():
        lacking("dashboard", "needs vl-convert-python, of the extra `dashboard`")
    files = draw_history(tmp_path / "history", entries(), ["pairs/image"])
    assert [file.name for file in files] == ["speed.svg", "pairs-image.svg", "index.md"]
    for file in files[:2]:
        text = file.read_text()
        assert text.startswith("<svg")
        assert ">commit</text>" in text
