"""What the command line prints, whoever wrote it."""

import io
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import typer
from example_documents import example
from rich.cells import cell_len

from evalsvc.cli import history, items, printer, progress, submit, terminal
from evalsvc.cli.terminal import confirm, style_of, table_lines, wrapped
from evalsvc.compare.curves import Curve, JoinedHistories, RunSeries, Tradeoff
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents import Checkpoint, EvaluationSummary, Metric, Parent, Posted
from evalsvc.spec.documents.history import Buckets, BucketSeries, History, ImportSource, LeftOutMetric, ValueSeries
from evalsvc.spec.documents.results import Completion, Items, StepCompletions

EVIL = "\x1b[2J\x07fid\u202e[b]"

LENGTH_ONE = {"x": [1], "value": [1.5], "stderr": [None], "low": [None], "high": [None], "n": [3], "import_": [7]}
VALUES = example(ValueSeries, metric=EVIL, variant=EVIL, unit=EVIL, differs={EVIL: EVIL}, groups=None, **LENGTH_ONE)

SERIES = RunSeries(**vars(VALUES), run=EVIL)

METRIC = example(Metric, name=EVIL, unit=EVIL)
SIDE = {"value": 1.5, "stderr": 0.1, "low": 1.2, "high": 1.8, "import": 7}
PARENTS = [example(Parent, name=EVIL)]
CHECKPOINT = example(Checkpoint, uri=EVIL, tags={EVIL: EVIL}, parents=PARENTS, run=EVIL, variant=EVIL)
POSTED = Posted(checkpoint=CHECKPOINT, evaluations=[example(EvaluationSummary, suite=EVIL, state=EVIL)], note=EVIL)
CURVE = Curve(metric=EVIL, unit=EVIL, direction="lower", protocol=EVIL, differs={}, series=[SERIES])
IMPORTS = {"7": ImportSource(source=EVIL, created_at="2026-02-03T10:11:12.131+00:00")}
HISTORY = History(run=EVIL, x="step", series=[SERIES], names=[], imports=IMPORTS, next_cursor=None)
LEFT_OUT = LeftOutMetric(metric=EVIL, step=1, variant=EVIL, message=EVIL)
BUCKETS = example(Buckets, series=[example(BucketSeries, metric=EVIL, variant=EVIL, unit=EVIL, differs={EVIL: EVIL})])
CURVES = JoinedHistories(runs=[EVIL], x="step", forced=False, curves=[CURVE], refused={}, imports={EVIL: IMPORTS})
TRADED = [{"run": EVIL, "variant": EVIL, "step": 1, EVIL: SIDE}]
TRADEOFF = Tradeoff(x="step", against=EVIL, columns=[], rows=TRADED, imports={EVIL: IMPORTS})
ITEMS = Items(evaluation=1, state="succeeded", items={EVIL: [{EVIL: EVIL}, {}]})
COMPLETIONS = StepCompletions(
    step=1, variant=EVIL, task=EVIL, completions=[Completion(way=EVIL, prompt=EVIL, base=EVIL, text=EVIL)]
)
WHOLE = history.Shown(whole=True)


def show_bars() -> None:
    with progress.ProgressLines(0.01) as lines:
        lines.show(EVIL, 1, 2, EVIL)
        time.sleep(0.05)


SHOWN: dict[str, Callable[[], None]] = {
    "say": lambda: terminal.say(EVIL),
    "say_json": lambda: terminal.say_json({EVIL: EVIL + "\x7f\x9b"}),
    "complain": lambda: terminal.complain(EVIL),
    "metrics": lambda: printer.print_metrics([METRIC], {}),
    "history": lambda: history.print_history(HISTORY, shown=WHOLE),
    "left out": lambda: history.print_history(HISTORY, shown=WHOLE, left_out=[LEFT_OUT]),
    "buckets": lambda: history.print_buckets(BUCKETS),
    "history as CSV": lambda: terminal.write_rows(history.history_rows(HISTORY)),
    "curves": lambda: history.print_curves(CURVES, shown=WHOLE),
    "tradeoff": lambda: history.print_tradeoff(TRADEOFF),
    "tradeoff as CSV": lambda: terminal.write_rows(history.tradeoff_rows(TRADEOFF)),
    "document": lambda: printer.print_fields(CHECKPOINT),
    "posted": lambda: submit.show_posted(POSTED),
    "completions": lambda: items.print_completions([COMPLETIONS], everything=True),
    "rows": lambda: printer.print_rows([{EVIL: EVIL}], "table", "rows", ""),
    "tasks of a suite": lambda: printer.print_suite_tasks([{"name": EVIL, "kind": EVIL, EVIL: EVIL}]),
    "items": lambda: items.print_items(ITEMS, limit=1),
    "bars": show_bars,
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_terminal_obeys_nothing_that_others_wrote(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of metrics, units and files reached the operator's terminal as they were."""
    SHOWN[name]()
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert "fid" in text
    assert [char for char in text if not (char.isprintable() or char == "\n")] == []
    assert "[b]" in "".join(text.split()), "brackets are no markup"


@pytest.mark.parametrize(
    ("variables", "colour"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1", "TERM": "xterm"}, True),
        ({"FORCE_COLOR": "1", "TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm"}, False),
    ],
)
def test_colour_is_for_terminals_and_for_whoever_asks(
    variables: dict[str, str], colour: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TERM", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    terminal.print_table(["", "metric"], [["WORSE", "pairs/text"], ["better", "pairs/image"]])
    terminal.complain("it failed")
    shown = capsys.readouterr()
    assert ("\x1b[31mWORSE" in shown.out, "\x1b[32mbetter" in shown.out) == (colour, colour)
    assert ("31m" in shown.err) == colour
    assert ("\x1b" in shown.out) <= ("FORCE_COLOR" in variables)


def test_a_table_in_a_pipe_has_120_columns_and_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """`doctor layout` and the gate printed up to 400."""
    sentence = "; ".join(f"reason {number} is given" for number in range(12))
    rows = [
        [f"pairs/general_text_gap_within_{number}", "9a3f0c1d2e4b5a69", sentence, "360 in 60"] for number in range(3)
    ]
    terminal.print_table(["metric", "protocol", "why", "n"], rows, drop=("protocol", "n"), below=("why",))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 120
    assert {word for row in rows for cell in row for word in cell.split()} <= set(shown.split())
    assert "no room for" not in shown


COLUMNS = ["metric", "protocol", "step", "value", "error", "n", "why"]
NAMES = ["pairs/image", "pairs/general_text_gap_within", "coco/fid (sampling.guidance_scale=3.0)", "図/画像の損失"]
WHY = "worse by 0.0213, beyond the tolerance 0.0018 and the noise 0.012"
ROWS = [[name, "9a3f0c1d2e4b5a69", "3000", "1.76012", "± 0.0021", "360 in 60", WHY] for name in NAMES]
DROP = ("protocol", "n", "error")


def lines_at(width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(terminal, "terminal_width", lambda: width)
    return [line.plain for line in table_lines(COLUMNS, ROWS, drop=DROP)]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_a_table_fits_its_terminal_and_loses_no_name(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_at(width, monkeypatch)
    assert max(map(cell_len, lines)) <= width
    assert "…" not in "".join(lines)
    words = set("".join(f"{line} " for line in lines).split())
    assert {"3000", "1.76012"} <= words
    if width >= 80:
        assert {word for name in NAMES for word in name.split()} <= words


def test_columns_go_in_their_order_and_only_where_they_must(monkeypatch: pytest.MonkeyPatch) -> None:
    last = [lines_at(width, monkeypatch)[-1] for width in (200, 130, 110, 100, 60)]
    notes = [line if line.startswith("(no room for: ") else "" for line in last]
    assert notes == sorted(notes, key=len)
    assert notes[0] == ""
    assert {*notes[1:-1]} <= {"", "(no room for: protocol)", "(no room for: protocol, n)"}
    assert notes[-1] == "(no room for: protocol, n, error)"
    assert [line.plain for line in table_lines(["a", "b"], [])] == ["a  b", "────"], "without rows there is a head"


@pytest.mark.parametrize("text", ["", " a", "two words", "a/very_long.name@with-signs:and=more,of;them", "図" * 9, WHY])
@pytest.mark.parametrize("width", [3, 10, 80])
def test_wrapping_loses_nothing(text: str, width: int) -> None:
    lines = wrapped(text, width)
    assert max(map(cell_len, lines)) <= width
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert wrapped("pairs/general_text_gap", 10) == ["pairs/", "general_", "text_gap"], "behind its signs"
    assert wrapped("-0.07557", 7) == ["-0.0755", "7"]


@pytest.mark.parametrize(
    ("cell", "style"),
    [("WORSE", "red"), ("worse (forced)", "red"), ("not_judged", "red"), ("better", "green"), ("a worse one", "")],
)
def test_words_in_colour(cell: str, style: str) -> None:
    assert style_of(cell) == style


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that waits for an answer for ever is worse than one that fails."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(InvalidRequest, match=r"the command would queue 5 evaluations, .* give --yes"):
        confirm("queue 5 evaluations", yes=False)
    with pytest.raises(InvalidRequest, match=r"run a would be deleted, and .*; give --yes"):
        confirm("run a", False, "a")
    confirm("queue 5 evaluations", yes=True)
    confirm("run a", True, "a")


def test_only_yes_goes_on_and_a_deletion_wants_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for typed, goes_on in (("y\n", True), ("n\n", False), ("\n", False)):
        monkeypatch.setattr(sys, "stdin", Terminal(typed))
        with nullcontext() if goes_on else pytest.raises(typer.Exit):
            confirm("queue 5 evaluations", yes=False)
    monkeypatch.setattr(sys, "stdin", Terminal("run-a\n"))
    confirm("run run-a", False, "run-a")
    monkeypatch.setattr(sys, "stdin", Terminal("run-b\n"))
    with pytest.raises(InvalidRequest, match="'run-b' was typed instead of 'run-a', so nothing was deleted"):
        confirm("run run-a", False, "run-a")
