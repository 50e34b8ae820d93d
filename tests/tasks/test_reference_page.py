"""The text of docs/reference/tasks.md."""

from pathlib import Path

import pytest

from evalsvc.spec import catalog
from evalsvc.spec.suite import parse_suite
from evalsvc.tasks.reference_page import describe_task, page, section, task_summaries

PLUG_INS = Path(__file__).parents[1] / "support" / "plug_ins"


@pytest.mark.parametrize("kind", catalog.COMPONENTS["tasks"])
def test_a_kind_says_what_it_measures_and_needs(kind: str) -> None:
    task = describe_task(kind)
    assert task.measures.endswith(".")
    assert task.needs
    assert task.metrics


@pytest.mark.parametrize("kind", catalog.COMPONENTS["tasks"])
def test_the_example_of_the_page_is_a_suite(kind: str) -> None:
    _, _, rest = section(describe_task(kind)).partition("```yaml suite\n")
    assert parse_suite(rest.partition("```")[0], "example").tasks[0].kind == kind


def test_a_plug_ins_task_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says of its needs and metrics what it wants, or nothing; the page has what comes with evalsvc."""
    monkeypatch.syspath_prepend(PLUG_INS)
    assert ("letters", "Counts letters.", "") in task_summaries()
    found = section(describe_task("letters"))
    assert "| `times` | integer | `1` | By how much the number is multiplied. |" in found
    assert "letters" not in page()


def test_a_plug_in_that_cannot_be_imported_disturbs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.COMPONENTS["tasks"], "broken", "evalsvc_no_such_package:Task")
    found = {kind: needs for kind, _, needs in task_summaries()}
    assert "needs the package 'evalsvc_no_such_package'" in found["broken"]
    assert found["loss"]
