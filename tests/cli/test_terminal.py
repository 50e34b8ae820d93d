"""What the command line prints, whoever wrote it, and what it says while it waits."""

import io
import re
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress

import pytest
import typer
from example_documents import example
from rich.cells import cell_len

from evalsvc.cli import history, items, printer, progress, submit, terminal
from evalsvc.cli.progress import print_news, show_bars, show_transfer
from evalsvc.cli.terminal import confirm, style_of, table_lines, wrapped
from evalsvc.compare.curves import Curve, JoinedHistories, RunSeries, Tradeoff
from evalsvc.errors import InvalidRequest
from evalsvc.spec.documents import (
    Checkpoint,
    Error,
    Evaluation,
    EvaluationSummary,
    Interim,
    Metric,
    Parent,
    Posted,
    Progress,
    Retry,
    Task,
)
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


def print_bars() -> None:
    with show_bars() as bars:
        bars.show(EVIL, 1, 2, EVIL)


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
    "bars": print_bars,
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


def test_colour_is_for_terminals_and_for_whoever_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("FORCE_COLOR", "NO_COLOR", "TERM", "CLICOLOR_FORCE")
    for values in ((), ("1", None, "xterm"), ("1", "1", "xterm"), (None, None, "xterm")):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in zip(names, values, strict=False):
            if value:
                monkeypatch.setenv(name, value)
        terminal.print_table(["", "metric"], [["WORSE", "pairs/text"], ["better", "pairs/image"]])
        terminal.complain("it failed")
        shown, colour = capsys.readouterr(), values == ("1", None, "xterm")
        assert ("\x1b[31mWORSE" in shown.out, "\x1b[32mbetter" in shown.out) == (colour, colour)
        assert ("31m" in shown.err) == colour
        assert ("\x1b" in shown.out) <= ("1" in values)


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


def test_words_in_colour() -> None:
    styles = {"WORSE": "red", "worse (forced)": "red", "not_judged": "red", "better": "green", "a worse one": ""}
    assert {cell: style_of(cell) for cell in styles} == styles


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that waits for an answer for ever is worse than one that fails."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    for what, name, words in (
        ("queue 5 rows", "", "the command would queue 5 rows,"),
        ("run a", "a", "run a would be"),
    ):
        confirm(what, True, name)
        with pytest.raises(InvalidRequest, match=rf"{words} .* give --yes"):
            confirm(what, False, name)


def test_only_yes_goes_on_and_a_deletion_wants_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    other = pytest.raises(InvalidRequest, match="'run-b' was typed instead of 'run-a', so nothing was deleted")
    for typed, name, end in (
        ("y", "", nullcontext()),
        ("n", "", pytest.raises(typer.Exit)),
        ("", "", pytest.raises(typer.Exit)),
        ("run-a", "run-a", nullcontext()),
        ("run-b", "run-a", other),
    ):
        monkeypatch.setattr(sys, "stdin", Terminal(f"{typed}\n"))
        with end:
            confirm("run run-a", False, name)


def evaluation(retry: Retry | None = None, interim: Interim | None = None) -> Evaluation:
    progress = example(Progress, unit="sequences")
    task = example(Task, name="loss", progress=progress, retry=retry, interim=interim)
    return example(Evaluation, id=7, tasks=[task])


def test_news_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = print_news()
    error = Error(code="out_of_memory", message="the worker ran out of memory")
    metric = example(Metric, name="loss/text", value=1.5, stderr=0.25, protocol="p1")
    for at in ("2026-05-04T10:00:00+00:00", "2026-05-04T10:00:00+00:00", "2026-05-04T10:00:08+00:00"):
        report(evaluation(Retry(shards=1, at=at, error=error)))
        report(evaluation(interim=Interim(done=256, metrics=[metric], protocols={})))
    report(evaluation())
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" at ")[0] for line in lines if "retried" in line] == ["loss is retried"] * 2
    assert lines[0].endswith(":00: the worker ran out of memory [out_of_memory]")
    assert sum("after 256 sequences: text 1.5" in line for line in lines) == 1


def test_without_a_terminal_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job in CI printed nothing until its end. The work says nothing while the lines are printed."""
    monkeypatch.setattr(progress, "EVERY", 0.02)
    with show_bars() as bars:
        time.sleep(0.05)
        bars.show("pairs", 96, None, "sequences")
        bars.show("pairs", 128, 4000, "sequences")
        bars.show("evil\x1b[2J", 1, 2, "images")
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(": nothing has begun yet")
    assert lines[-1].startswith("after ")
    assert lines[-1].endswith(" s: pairs 128 of 4,000 sequences; evil\\x1b[2J 1 of 2 images")
    assert 3 <= len(lines) <= 6
    time.sleep(0.05)
    assert capsys.readouterr().err == "", "the lines end with the work"


def test_a_line_that_says_nothing_new_comes_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ "After 2 min: nothing has begun yet" was printed five times in a row while a model was loaded."""
    monkeypatch.setattr(progress, "EVERY", 0.01)
    with show_bars() as bars:
        bars.show("mine", 0, None, "is being planned")
        time.sleep(0.4)
        bars.show("mine", 0, 165, "images (85 real, 80 sampled)")
        time.sleep(0.05)
        bars.show("mine", 32, 165, "images (85 real, 80 sampled)")
        bars.show("other", 0, None, "")
        time.sleep(0.05)
    lines = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert 3 <= lines.count("mine is being planned") <= 6, "at 10, 30, 70, 150 and 310 ms"
    assert "mine 0 of 165 images (85 real, 80 sampled), loading or at work on the first" in lines
    assert "mine 32 of 165 images (85 real, 80 sampled); other waits, or is being planned" in lines
    assert lines[-1] == "mine 32 of 165 images (85 real, 80 sampled)", "an error says what became of the other"


def test_a_transfer_in_a_pipe_ends_with_all_its_bytes_unless_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """A report comes before the part of the file that it counts; a small file has a whole MB."""
    with show_bars():
        pass
    assert capsys.readouterr().err == "", "no work, no line"
    whole = "after 0 s: reading 1 of 1 MB; sending 6 of 6 MB\n"
    for error, end in ((None, whole), (OSError, "; sending 2 of 6 MB\n")):
        with suppress(OSError), show_transfer() as report:
            report("reading", 0, 300_000)
            report("sending", 2_000_000, 5_200_000)
            if error is not None:
                raise error
        assert capsys.readouterr().err.endswith(end)


def test_a_terminal_gets_a_bar_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with show_transfer() as report:
        report("sending", 500_000_000, 2_000_000_000)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())
    assert "2000/2000 MB" in text
    assert max(map(len, re.split("[\r\n]", text))) <= 80
