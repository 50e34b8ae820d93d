"""`evalsvc tasks` and `metrics`."""

from pathlib import Path

import pytest
from console import Shell

from evalsvc.cli.tasks import describe_task, task_summaries
from evalsvc.metrics.definitions import DEFINITIONS
from evalsvc.spec import catalog


def test_all_kinds_and_metrics_are_a_row_of_a_table_each(evalsvc: Shell) -> None:
    shown = evalsvc("tasks").out
    assert [kind for kind in catalog.COMPONENTS["tasks"] if f"\n{kind} " not in shown] == []
    assert "evalsvc suites new --task KIND" in shown
    assert [item["kind"] for item in evalsvc("tasks --format json").json] == catalog.names("tasks")
    assert [row["kind"] for row in evalsvc("tasks --format csv").rows] == catalog.names("tasks")
    shown = evalsvc("metrics").out
    assert [definition for definition in DEFINITIONS if definition.names[0] not in shown] == []


def test_one_kind_and_one_metric_are_shown(evalsvc: Shell) -> None:
    shown = evalsvc("tasks text_to_image").out
    for words in ("needs: captions, the image decoder", "until.stderr", "number, above 0", "fid_infinity"):
        assert words in shown
    assert evalsvc("tasks text_to_image --format json").json == describe_task("text_to_image").to_json()
    assert "until.stderr" in {row["parameter"] for row in evalsvc("tasks text_to_image --format csv").rows}
    shown = " ".join(evalsvc("metrics captions/text_within").out.split())
    assert shown.startswith("text_within, image_within (task loss) Σ −ln p(token | an id of its type) / Σ tokens")
    for words in ("unit: nats/token; lower is better", "Cochran", "two checkpoints: compared item by item"):
        assert words in shown


@pytest.mark.parametrize("kind", catalog.COMPONENTS["tasks"])
def test_a_kind_says_what_it_measures_and_needs(kind: str) -> None:
    task = describe_task(kind)
    assert task.measures.endswith(".")
    assert task.needs
    assert task.metrics


def test_a_plug_ins_task_is_described(evalsvc: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says of its needs and metrics what it wants, or nothing."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "support" / "plug_ins")
    assert ("letters", "Counts letters.", "") in task_summaries()
    shown = evalsvc("tasks letters").out
    for words in ("letters: Counts letters.", "times", "By how much the number is multiplied."):
        assert words in shown
    assert "needs:" not in shown


def test_a_plug_in_that_cannot_be_imported_disturbs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.COMPONENTS["tasks"], "broken", "evalsvc_no_such_package:Task")
    found = {kind: needs for kind, _, needs in task_summaries()}
    assert "needs the package 'evalsvc_no_such_package'" in found["broken"]
    assert found["loss"]
