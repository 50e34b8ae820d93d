"""How documents and metrics are printed: lists, files, labels, and what is said beside the numbers."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from example_documents import example

from evalsvc.cli.options import Format
from evalsvc.cli.printer import first_rows, print_fields, print_list, print_metrics, printed_to, show
from evalsvc.cli.submit import show_finished
from evalsvc.cli.terminal import say
from evalsvc.errors import InvalidRequest
from evalsvc.spec import documents
from evalsvc.spec.documents import Document, Evaluation, EvaluationSummary, Metric, RunCheckpoint, Task, TaskWarning
from evalsvc.spec.documents.document import json_name

Captured = pytest.CaptureFixture[str]

CHECKPOINT = example(
    RunCheckpoint,
    id=1,
    step=25,
    uri="=HYPERLINK(1)\x1b[31m",
    created_at="2026-02-03T10:11:12.131+00:00",
    evaluations=[EvaluationSummary(id=7, suite="loss", state="failed")],
)


def test_a_list_has_three_forms(capsys: Captured) -> None:
    def shown(form: Format, rows: list[RunCheckpoint]) -> str:
        print_list(rows, ("step", "uri", "created_at", "evaluations"), form, "checkpoints", "there is none")
        return capsys.readouterr().out

    table = shown("table", [CHECKPOINT])
    assert ["step", "uri", "created", "evaluations"] in [line.split() for line in table.splitlines()]
    assert ("2026-02-03 10:11  loss failed" in table, "\x1b" in table) == (True, False)
    assert json.loads(shown("json", [CHECKPOINT]))["checkpoints"][0]["evaluations"][0]["id"] == 7
    [row] = csv.DictReader(io.StringIO(shown("csv", [CHECKPOINT])))
    assert json.loads(row["evaluations"]) == [{"id": 7, "suite": "loss", "state": "failed"}]
    assert not row["uri"].startswith("="), "a spreadsheet would compute it"
    assert shown("table", []) == "there is none\n"
    assert json.loads(shown("json", [])) == {"checkpoints": []}


def test_more_than_is_shown_is_said(capsys: Captured) -> None:
    for count, said in ((3, "the first 2 are shown; --limit shows more\n"), (2, "")):
        assert first_rows(iter([CHECKPOINT] * count), 2) == [CHECKPOINT] * 2
        assert capsys.readouterr().err == said


def lose_the_service() -> None:
    say("half")
    raise InvalidRequest("lost")


def test_an_answer_is_written_whole_or_not_at_all(tmp_path: Path, capsys: Captured) -> None:
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


KINDS = [kind for kind in vars(documents).values() if isinstance(kind, type) and kind is not Document]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_of_a_document_is_shown(kind: type[Document], capsys: Captured) -> None:
    document = example(kind)
    print_fields(document)
    lines = capsys.readouterr().out.splitlines()
    assert {json_name(name) for name in vars(document)} <= {line.partition(":")[0] for line in lines}


def metric(name: str, n: int = 7, **fields: object) -> Metric:
    return example(Metric, **{"name": name, "n": n, "unit": "", "baseline": None, "protocol": "p", **fields})


def rows(text: str, words: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if words in line]


def finished(scales: Sequence[float], *warnings: TaskWarning) -> Evaluation:
    """An evaluation of a metric under protocols of different guidance scales."""
    metrics = [metric("coco/fid", 64, value=10 * scale, stderr=0.5, protocol=f"p{scale}") for scale in scales]
    protocols: Any = {f"p{scale}": {"data": "ab", "sampling": {"guidance_scale": scale}} for scale in scales}
    task = example(Task, metrics=metrics, protocols=protocols, warnings=list(warnings))
    return example(Evaluation, tasks=[task, example(Task, metrics=[], protocols={}, warnings=[])])


def test_values_of_one_name_are_told_apart_and_suspicions_are_told(capsys: Captured) -> None:
    show_finished(finished((1.0, 3.0)))
    assert rows(capsys.readouterr().out, "coco/fid") == [
        "coco/fid (sampling.guidance_scale=1.0) 10 ± 0.5 64",
        "coco/fid (sampling.guidance_scale=3.0) 30 ± 0.5 64",
    ]
    show_finished(finished([3.0]))
    assert "coco/fid  " in capsys.readouterr().out, "one alone needs no label"
    show_finished(finished((), TaskWarning(code="inputs_cut", metric="loss/total", message="9\x1b[31m were cut")))
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "warning: loss/total: 9\\x1b[31m were cut\n")


def test_items_in_groups_are_told_with_what_that_means(capsys: Captured) -> None:
    shapes = {"captions": (1300, 60), "images": (60, 60), "old": (7, None)}
    metrics = [metric(f"t/{name}", n, value=1.0, stderr=0.1, groups=groups) for name, (n, groups) in shapes.items()]
    print_metrics(metrics, {})
    shown = capsys.readouterr().out
    assert rows(shown, "t/") == ["t/captions 1 ± 0.1 1,300 in 60", "t/images 1 ± 0.1 60", "t/old 1 ± 0.1 7"]
    assert "n: 1,300 in 60 is 1,300 items in 60 independent groups, over which the standard error is taken" in shown
    print_metrics(metrics[1:], {})
    assert "independent groups" not in capsys.readouterr().out


def test_yardsticks_and_errors_that_are_no_numbers_stand_next_to_their_metric(capsys: Captured) -> None:
    """Every loss had two rows, and nothing in the table said what a model that knows nothing has."""
    metrics = [
        metric("pairs/text", value=2.31, stderr=0.01, baseline=4.158883),
        metric("pairs/text_perplexity", value=10.1, stderr=0.1, baseline=64.0),
        metric("pairs/text_unigram", value=3.9, stderr=0.1, protocol="other"),
        metric("pairs/a", value="NaN", stderr="NaN"),
    ]
    print_metrics(metrics, {})
    assert rows(capsys.readouterr().out, "pairs/") == [
        "pairs/text 2.31 ± 0.01 perplexity 10.1; unigram 3.9; chance 4.159 7",
        "pairs/a NaN ± NaN 7",
    ]


def test_the_resizing_of_a_fid_is_said_with_the_number(capsys: Captured) -> None:
    """clean-fid's and torch-fidelity's FID of the same images are 7.10 and 6.88."""
    ids = {"a": "pil-bicubic", "b": "tf1-bilinear", "c": "pil-bicubic-crop", "d": None}
    protocols = {identity: {"resize": resize} if resize else {} for identity, resize in ids.items()}
    print_metrics([metric(f"t/{identity}", protocol=identity) for identity in ids], protocols)
    assert rows(capsys.readouterr().out, "resized") == [
        "t/a: images were resized as by clean-fid (resize: pil-bicubic); another resizing is another metric",
        "t/b: images were resized as by torch-fidelity (resize: tf1-bilinear); another resizing is another metric",
    ]
