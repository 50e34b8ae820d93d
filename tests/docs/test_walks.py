"""The paths of three values through the code: as traced over a real request, and as `architecture.md` tells them.

A path grows by a helper here and a callback there, and nobody sees the sum. The page shows it with every change.
"""

import json
import sys
import urllib.request
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import gate_documents
import pytest
from app_in_process import app_in_process
from dashboard_history import RUN, dashboard_on_port
from walk import Walk, walking

from evalsvc.cli.program import main
from evalsvc.miniature import ROOT

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "architecture.md"

# Whole evaluations of nothing less than the application, with every call watched.
pytestmark = pytest.mark.usefixtures("many_cases")


def posted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    run = ROOT / "runs"
    with (
        walking("api.routes.checkpoints.post_checkpoint", "body", "store.runs.posting.submit") as walk,
        app_in_process(folder, roots=str(ROOT)) as app,
    ):
        weights, layout = run / "pretrained" / "checkpoints" / "epoch_5.pt", str(run / "layout.yaml")
        assert app.post(weights, suites=["loss"], layout=layout).status_code == 201
    return walk


def charted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    with walking("store.history.buckets.read_buckets") as walk, walk.pausing(), dashboard_on_port(folder) as dashboard:
        address = f"{dashboard.url}/panels/curve.json?run={RUN}&metric=loss/text"
        with walk.going_on(), urllib.request.urlopen(address) as answer:
            assert json.load(answer)["layer"]
    return walk


def gated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    monkeypatch.chdir(folder)
    for name, value in (("candidate", 1.0), ("baseline", 1.3)):
        metrics = [gate_documents.value("loss/image", value), gate_documents.value("loss/text", value + 1)]
        Path(f"result-of-the-{name}.json").write_text(json.dumps(gate_documents.document(*metrics)))
    arguments = ["gate", "result-of-the-candidate.json", "--baseline", "result-of-the-baseline.json"]
    monkeypatch.setattr(sys, "argv", ["evalsvc", *arguments])
    with walking("cli.gate.gate", "candidate") as walk, pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    return walk


WALKS: dict[str, Callable[[Path, pytest.MonkeyPatch], Walk]] = {
    "A post until its rows": posted,
    "A history until its chart": charted,
    "A gate from its files to the exit code": gated,
}


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Walk]:
    with pytest.MonkeyPatch.context() as patch:
        return {title: walk(tmp_path_factory.mktemp("walk"), patch) for title, walk in WALKS.items()}


def on_page(title: str) -> list[str]:
    """Return the functions below a title of the page."""
    text = PAGE.read_text().partition(f"### {title}\n")[2]
    return text.partition("```text output\n")[2].partition("```")[0].splitlines()


@pytest.mark.parametrize("title", WALKS)
def test_the_page_tells_the_walk(title: str, walks: dict[str, Walk]) -> None:
    assert on_page(title) == walks[title].functions, "\n".join(walks[title].functions)


def test_a_post_passes_at_most_thirty_functions(walks: dict[str, Walk]) -> None:
    """It was 47 once, in 13 packages."""
    assert len(walks["A post until its rows"].functions) <= 30


def test_a_chart_takes_the_document_of_the_history(walks: dict[str, Walk]) -> None:
    """A number was nine things on its way, two of them texts of JSON inside of one process."""
    walk = walks["A history until its chart"]
    assert "bytes" not in walk.types
    assert walk.functions[-1].startswith("web.")
    assert {kind for kind in walk.types if kind.endswith(("Buckets", "BucketSeries", "Point", "Curve"))} == {
        "Buckets",
        "BucketSeries",
    }


def test_a_gate_comes_back_to_the_command_line_once(walks: dict[str, Walk]) -> None:
    """With the report: where a command and its packages take turns, neither can be read alone."""
    rooms = [name.partition(".")[0] for name in walks["A gate from its files to the exit code"].functions]
    returns = [before for before, after in pairwise(rooms) if after == "cli" != before]
    assert len(returns) <= 2, returns
