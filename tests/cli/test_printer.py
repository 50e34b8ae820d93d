"""How documents, metrics and messages of the service are printed."""

import ast
import csv
import io
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from example_documents import example

import evalsvc
from evalsvc.cli.options import Format
from evalsvc.cli.printer import first_rows, print_fields, print_list, print_metrics, printed_to, show
from evalsvc.cli.submit import show_finished
from evalsvc.cli.terminal import say
from evalsvc.cli.wording import counted, duration, in_options
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


OF_REST = re.compile(r"\b(GET|PUT|POST|DELETE|PATCH) /v1/|\b[a-z_]+=true\b")


def test_fields_and_routes_become_options_and_commands() -> None:
    shown = {
        "post it again with replace=true": "post it again with --replace",
        "Post with `replace: true` to": "Post with `--replace` to",
        "delete with cancel=true (--cancel)": "delete with --cancel",
        "all the same: --force (force=true)": "all the same: --force",
        "add ?replace_shipped=true": "add --replace-shipped",
        "spool=copy if its store": "--spool copy if its store",
        "from=300 is greater than to=10; swap them": "--from 300 is greater than --to 10; swap them",
        "read the history with x=step": "read the history with --x step",
        "name one by PUT /v1/runs/mine/base, or": "name one by evalsvc runs mine --base RUN@STEP, or",
        "GET /v1/runs/{run}/artifacts lists": "evalsvc artifacts list RUN lists",
        "(POST /v1/evaluations).": "(evalsvc retry RUN@STEP --suite SUITE).",
        "POST /v1/evaluations/{id}/retry": "evalsvc retry ID",
        "the file /data/replace=trueish.pt": "the file /data/replace=trueish.pt",
    }
    assert {message: in_options(message) for message in shown} == shown


def raised_texts(naming: re.Pattern[str] = OF_REST, folder: str = "") -> Iterator[str]:
    """Yield the text of every error in files that match `naming`, with NAME for what is filled in.

    The command line itself is left out.
    """
    package = Path(evalsvc.__file__).parent
    for path in sorted((package / folder).rglob("*.py")):
        if "cli" in path.relative_to(package).parts:
            continue
        source = path.read_text()
        for node in ast.walk(ast.parse(source)) if naming.search(source) else ():
            if isinstance(node, ast.Raise):
                for part in ast.walk(node):
                    if isinstance(part, ast.JoinedStr):
                        yield "".join(str(v.value) if isinstance(v, ast.Constant) else "NAME" for v in part.values)


def test_no_error_sends_a_user_of_the_command_line_to_a_route() -> None:
    of_rest = [text for text in raised_texts() if OF_REST.search(text)]
    assert len(of_rest) >= 10, "the errors are found"
    assert [text for text in of_rest if OF_REST.search(in_options(text))] == []


@pytest.mark.parametrize("folder", ["api/routes", "store"])
def test_no_answer_of_rest_sends_its_client_to_a_command(folder: str) -> None:
    """A command in the answer to a request helps no one who has REST alone; the command line translates routes."""
    command = re.compile(r"\bevalsvc (runs|checkpoints|evaluations|plan|history|artifacts|items|protocol|suites) ")
    assert [text for text in raised_texts(command, folder) if command.search(text)] == []


def test_a_message_of_a_stranger_is_read_quickly() -> None:
    """The rules are tried on what any service answers; one that goes back and forth would hang the terminal."""
    begun = time.process_time()
    for text in ("evalsvc ", "GET /v1/runs/", "{a", "replace", "--a ("):
        in_options(text * 10_000)
    assert time.process_time() - begun < 1


def test_durations_and_counted_nouns() -> None:
    assert [counted(number, "task") for number in (0, 1, 1200)] == ["0 tasks", "1 task", "1,200 tasks"]
    texts = {0: "0 s", 89.4: "89 s", 90: "2 min", 5400: "1 h 30 min", 7200: "2 h", 187_200: "2 d 4 h"}
    assert {seconds: duration(seconds) for seconds in texts} == texts
