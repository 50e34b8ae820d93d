"""What the command line prints, whoever wrote it."""

from collections.abc import Callable
from typing import Any

import pytest
from example_documents import example

from evalsvc.cli import checkpoints, completions, progress, tables, terminal
from evalsvc.spec.documents import Checkpoint, EvaluationSummary, Metric, Parent, Posted

EVIL = "\x1b[2J\x07fid\u202e[b]"

SERIES = {
    "metric": EVIL,
    "run": EVIL,
    "variant": EVIL,
    "protocol": "abc",
    "differs": {EVIL: EVIL},
    "x": [1],
    "value": [1.5],
    "stderr": [None],
    "n": [3],
    "unit": EVIL,
    "direction": "lower",
    "import": [7],
    "omitted": 0,
}

METRIC = example(Metric, name=EVIL, unit=EVIL)

SIDE = {"value": 1.5, "stderr": 0.1, "import": 7}

POSTED = Posted(
    checkpoint=example(Checkpoint, uri=EVIL, parents=[example(Parent)], run=EVIL, variant=EVIL),
    evaluations=[example(EvaluationSummary, suite=EVIL, state=EVIL)],
)

CURVE = {"metric": EVIL, "unit": EVIL, "protocol": EVIL, "differs": {}, "series": [SERIES]}


IMPORTS = {"7": {"source": EVIL}}

HISTORY = {"run": EVIL, "x": "step", "series": [SERIES], "imports": IMPORTS}

TRADEOFF = {
    "x": "step",
    "against": EVIL,
    "columns": [],
    "rows": [{"run": EVIL, "variant": EVIL, "step": 1, EVIL: SIDE}],
    "imports": {EVIL: IMPORTS},
}


def show_bars() -> None:
    with progress.show_bars() as bars:
        bars.show(EVIL, 1, 2, EVIL)


SHOWN: dict[str, Callable[[], None]] = {
    "say": lambda: terminal.say(EVIL),
    "say_json": lambda: terminal.say_json({EVIL: EVIL + "\x7f\x9b"}),
    "complain": lambda: terminal.complain(EVIL),
    "metrics": lambda: tables.print_metrics([METRIC], {}),
    "history": lambda: tables.print_history(HISTORY),
    "history as CSV": lambda: tables.write_history_csv(HISTORY),
    "curves": lambda: tables.print_curves({"runs": [EVIL], "x": "step", "curves": [CURVE], "refused": {}}),
    "tradeoff": lambda: tables.print_tradeoff(TRADEOFF),
    "tradeoff as CSV": lambda: tables.write_tradeoff_csv(TRADEOFF),
    "posted": lambda: checkpoints.show_posted(POSTED),
    "completions": lambda: completions.print_completions(
        [{"step": 1, "variant": EVIL, "task": EVIL, "completions": [completion(EVIL)]}], everything=True
    ),
    "bars": show_bars,
}


def completion(text: str) -> dict[str, Any]:
    return {"way": text, "prompt": text, "base": text, "text": text}


@pytest.mark.parametrize("name", SHOWN)
def test_a_terminal_obeys_nothing_that_others_wrote(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of metrics, units and files reached the operator's terminal as they were."""
    SHOWN[name]()
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert "fid" in text
    assert [char for char in text if not (char.isprintable() or char == "\n")] == []
    assert "[b]" in "".join(text.split()), "brackets are no markup"
