"""Rows of metrics and statistics, by the programs themselves and by golden values."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from evalsvc.metrics import student
from evalsvc.metrics.frechet import Moments
from evalsvc.verify import golden_metrics
from evalsvc.verify.agreement import Finding
from evalsvc.verify.golden_files import Golden
from evalsvc.verify.golden_metrics import verify_metrics, verify_statistics

Wrong = Callable[[list[Finding]], list[str]]


def change(golden: Golden, part: str, name: str, factor: float) -> Golden:
    """Multiply a golden number, or the first number of a list, by a factor."""
    path = golden.folder / "values.json"
    content: dict[str, Any] = json.loads(path.read_text())
    value = content[part][name]
    content[part][name] = [value[0] * factor, *value[1:]] if isinstance(value, list) else value * factor
    path.write_text(json.dumps(content))
    return Golden("cpu", golden.folder)


@pytest.fixture
def without_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without torch-fidelity and clean-fid."""
    monkeypatch.setattr(golden_metrics, "installed", lambda package: None)


@pytest.mark.usefixtures("without_programs")
def test_metrics_agree_with_golden_values(wrong: Wrong) -> None:
    rows = list(verify_metrics(Golden("cpu")))
    assert len(rows) == 9
    assert wrong(rows) == []
    assert {row.note for row in rows} == {"golden value"}


@pytest.mark.usefixtures("without_programs")
def test_golden_values_that_are_off_by_a_thousandth_are_found(copied: Golden, wrong: Wrong) -> None:
    names = ("torch-fidelity/fid", "clean-fid/fid", "torch-fidelity/kid", "prdc/density")
    for name in names:
        copied = change(copied, "features", name, 1.001)
    rows = [f"{name} of 64 features, {program}" for program, name in (quantity.split("/") for quantity in names)]
    assert wrong(list(verify_metrics(copied))) == rows


@pytest.mark.usefixtures("without_programs")
def test_a_wrong_covariance_is_found(monkeypatch: pytest.MonkeyPatch, wrong: Wrong) -> None:
    """Divided by n instead of n - 1: off by half a percent with 256 images, and easily overlooked."""
    right = Moments.covariance.fget
    monkeypatch.setattr(Moments, "covariance", property(lambda moments: right(moments) * (moments.n - 1) / moments.n))
    assert "fid of 64 features, torch-fidelity" in wrong(list(verify_metrics(Golden("cpu"))))


@pytest.mark.usefixtures("many_cases")
def test_installed_programs_compute_now(wrong: Wrong) -> None:
    """A golden value is not looked at then: the features may be changed, and both sides with them."""
    rows = list(verify_metrics(Golden("cpu")))
    assert wrong(rows) == []
    assert [row.note for row in rows].count("computed now") == 5
    assert {row.program for row in rows} >= {"torch-fidelity 0.4.0", "clean-fid 0.1.35"}


def test_statistics_agree_with_scipy(wrong: Wrong) -> None:
    assert wrong(list(verify_statistics(Golden("cpu")))) == []


def test_a_wrong_interval_and_a_wrong_tail_are_found(
    copied: Golden, monkeypatch: pytest.MonkeyPatch, wrong: Wrong
) -> None:
    assert wrong(list(verify_statistics(change(copied, "student", "interval", 1.001)))) == ["interval of a mean of 12"]
    right = student.upper_tail
    monkeypatch.setattr(student, "upper_tail", lambda t, dof: right(t, dof + 0.01))
    student.critical_value.cache_clear()
    assert "Student's t, 20 values" in wrong(list(verify_statistics(Golden("cpu"))))
    student.critical_value.cache_clear()
