"""How documents are printed and written to files."""

import csv
import io
import json
from pathlib import Path

import pytest
from example_documents import example

from evalsvc.cli.options import Format
from evalsvc.cli.printer import first_rows, print_fields, print_list, printed_to, show
from evalsvc.cli.terminal import say
from evalsvc.errors import InvalidRequest
from evalsvc.spec import documents
from evalsvc.spec.documents import Document, EvaluationSummary, RunCheckpoint
from evalsvc.spec.documents.document import json_name

CHECKPOINT = RunCheckpoint(
    id=1,
    step=25,
    variant="raw",
    uri="=HYPERLINK(1)\x1b[31m",
    sha256=None,
    tokens_seen=None,
    created_at="2026-02-03T10:11:12.131+00:00",
    evaluations=[EvaluationSummary(id=7, suite="loss", state="failed")],
)


def shown(form: Format, rows: list[RunCheckpoint]) -> None:
    print_list(rows, ("step", "uri", "created_at", "evaluations"), form, "checkpoints", "there is none")


def test_a_list_has_three_forms(capsys: pytest.CaptureFixture[str]) -> None:
    shown("table", [CHECKPOINT])
    table = capsys.readouterr().out
    assert ["step", "uri", "created", "evaluations"] in [line.split() for line in table.splitlines()]
    assert "2026-02-03 10:11  loss failed" in table
    assert "\x1b" not in table
    shown("json", [CHECKPOINT])
    assert json.loads(capsys.readouterr().out)["checkpoints"][0]["evaluations"][0]["id"] == 7
    shown("csv", [CHECKPOINT])
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert json.loads(row["evaluations"]) == [{"id": 7, "suite": "loss", "state": "failed"}]
    assert not row["uri"].startswith("="), "a spreadsheet would compute it"
    shown("table", [])
    assert capsys.readouterr().out == "there is none\n"
    shown("json", [])
    assert json.loads(capsys.readouterr().out) == {"checkpoints": []}


def test_more_than_is_shown_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert first_rows(iter([CHECKPOINT] * 3), 2) == [CHECKPOINT] * 2
    assert capsys.readouterr().err == "the first 2 are shown; --limit shows more\n"
    assert len(first_rows(iter([CHECKPOINT] * 2), 2)) == 2
    assert capsys.readouterr().err == ""


def lose_the_service() -> None:
    say("half")
    raise InvalidRequest("lost")


def test_an_answer_is_written_whole_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answer.json"
    path.write_text("before")
    with pytest.raises(InvalidRequest, match="lost"), printed_to(path):
        lose_the_service()
    assert path.read_text() == "before"
    with printed_to(path):
        show(CHECKPOINT, "json")
    assert json.loads(path.read_text())["step"] == 25
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"wrote {path}\n")
    with (
        pytest.raises(InvalidRequest, match=r"--output .*: the folder .* does not exist"),
        printed_to(tmp_path / "no" / "a"),
    ):
        raise AssertionError("the service is not asked")


KINDS = [kind for kind in vars(documents).values() if isinstance(kind, type) and kind is not Document]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_of_a_document_is_shown(kind: type[Document], capsys: pytest.CaptureFixture[str]) -> None:
    document = example(kind)
    print_fields(document)
    lines = capsys.readouterr().out.splitlines()
    assert {json_name(name) for name in vars(document)} <= {line.partition(":")[0] for line in lines}
