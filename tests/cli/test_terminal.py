"""What the command line prints, whoever wrote it."""

import time
from collections.abc import Callable

import pytest
from example_documents import example

from evalsvc.cli import (
    answers,
    checkpoints,
    completions,
    document_text,
    history_tables,
    items,
    progress,
    suite_text,
    tables,
    terminal,
)
from evalsvc.compare.curves import Curve, JoinedHistories, RunSeries, Tradeoff
from evalsvc.spec.documents import Checkpoint, EvaluationSummary, Metric, Parent, Posted
from evalsvc.spec.documents.history import Buckets, BucketSeries, History, ImportSource, LeftOutMetric
from evalsvc.spec.documents.items import Completion, Items, StepCompletions

EVIL = "\x1b[2J\x07fid\u202e[b]"

SERIES = RunSeries(
    metric=EVIL,
    run=EVIL,
    variant=EVIL,
    protocol="abc",
    differs={EVIL: EVIL},
    x=[1],
    value=[1.5],
    stderr=[None],
    low=[None],
    high=[None],
    n=[3],
    unit=EVIL,
    direction="lower",
    baseline=None,
    import_=[7],
    omitted=0,
)

METRIC = example(Metric, name=EVIL, unit=EVIL)

SIDE = {"value": 1.5, "stderr": 0.1, "low": 1.2, "high": 1.8, "import": 7}

POSTED = Posted(
    checkpoint=example(
        Checkpoint, uri=EVIL, tags={EVIL: EVIL}, parents=[example(Parent, name=EVIL)], run=EVIL, variant=EVIL
    ),
    evaluations=[example(EvaluationSummary, suite=EVIL, state=EVIL)],
    note=EVIL,
)

CURVE = Curve(metric=EVIL, unit=EVIL, direction="lower", protocol=EVIL, differs={}, series=[SERIES])

IMPORTS = {"7": ImportSource(source=EVIL, created_at="2026-02-03T10:11:12.131+00:00")}

HISTORY = History(run=EVIL, x="step", series=[SERIES], names=[], imports=IMPORTS, next_cursor=None)

LEFT_OUT = LeftOutMetric(metric=EVIL, step=1, variant=EVIL, message=EVIL)

BUCKETS = example(Buckets, series=[example(BucketSeries, metric=EVIL, variant=EVIL, unit=EVIL, differs={EVIL: EVIL})])

CURVES = JoinedHistories(runs=[EVIL], x="step", forced=False, curves=[CURVE], refused={}, imports={EVIL: IMPORTS})

TRADEOFF = Tradeoff(
    x="step",
    against=EVIL,
    columns=[],
    rows=[{"run": EVIL, "variant": EVIL, "step": 1, EVIL: SIDE}],
    imports={EVIL: IMPORTS},
)

ITEMS = Items(evaluation=1, state="succeeded", items={EVIL: [{EVIL: EVIL}, {}]})

COMPLETIONS = StepCompletions(
    step=1, variant=EVIL, task=EVIL, completions=[Completion(way=EVIL, prompt=EVIL, base=EVIL, text=EVIL)]
)


def show_bars() -> None:
    with progress.ProgressLines(0.01) as lines:
        lines.show(EVIL, 1, 2, EVIL)
        time.sleep(0.05)


SHOWN: dict[str, Callable[[], None]] = {
    "say": lambda: terminal.say(EVIL),
    "say_json": lambda: terminal.say_json({EVIL: EVIL + "\x7f\x9b"}),
    "complain": lambda: terminal.complain(EVIL),
    "metrics": lambda: tables.print_metrics([METRIC], {}),
    "history": lambda: history_tables.print_history(HISTORY),
    "left out": lambda: history_tables.print_history(HISTORY, left_out=[LEFT_OUT]),
    "buckets": lambda: history_tables.print_buckets(BUCKETS),
    "history as CSV": lambda: history_tables.write_history_csv(HISTORY),
    "curves": lambda: history_tables.print_curves(CURVES),
    "tradeoff": lambda: history_tables.print_tradeoff(TRADEOFF),
    "tradeoff as CSV": lambda: history_tables.write_tradeoff_csv(TRADEOFF),
    "document": lambda: document_text.print_document(POSTED.checkpoint),
    "posted": lambda: checkpoints.show_posted(POSTED),
    "completions": lambda: completions.print_completions([COMPLETIONS], everything=True),
    "rows": lambda: answers.print_rows([{EVIL: EVIL}], "table", "rows", ""),
    "tasks of a suite": lambda: suite_text.print_suite_tasks([{"name": EVIL, "kind": EVIL, EVIL: EVIL}]),
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
    variables: dict[str, str],
    colour: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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
