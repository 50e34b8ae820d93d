"""What the command line says, whoever wrote it, and while it waits."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from gate_documents import result, value

from evalsvc.cli import terminal
from evalsvc.cli.terminal import print_contrasts, print_metrics, print_news, show_finished
from evalsvc.compare.contrast import compare_results


def evaluation(retry: dict[str, Any] | None = None, interim: dict[str, Any] | None = None) -> dict[str, Any]:
    task = {"name": "loss", "progress": {"unit": "sequences"}, "retry": retry, "interim": interim}
    return {"id": 7, "tasks": [task]}


def waits_until(at: str) -> dict[str, Any]:
    return {"shards": 1, "at": at, "error": {"code": "out_of_memory", "message": "the worker ran out of memory"}}


def test_news_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = print_news()
    metric = {"name": "loss/text", "value": 1.5, "stderr": 0.25, "protocol": "p1"}
    for at in ("2026-05-04T10:00:00+00:00", "2026-05-04T10:00:00+00:00", "2026-05-04T10:00:08+00:00"):
        report(evaluation(waits_until(at)))
        report(evaluation(interim={"done": 256, "metrics": [metric], "protocols": {}}))
    report(evaluation())
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" at ")[0] for line in lines if "tried again" in line] == ["loss is tried again"] * 2
    assert lines[0].endswith(":00: the worker ran out of memory [out_of_memory]")
    assert sum("after 256 sequences: text 1.5" in line for line in lines) == 1


SCALES = {scale: {"data": "ab", "sampling": {"guidance_scale": scale}} for scale in (1.0, 3.0)}


def measured(scales: Sequence[float]) -> dict[str, Any]:
    """A metric under protocols of different guidance scales, as a task has it."""
    metrics = [
        {"name": "coco/fid", "value": 10 * scale, "stderr": 0.5, "n": 64, "unit": "", "protocol": f"p{scale:.0f}"}
        for scale in scales
    ]
    return {"metrics": metrics, "protocols": {f"p{scale:.0f}": SCALES[scale] for scale in scales}}


class TestGuidanceScales:
    """Several values of one name stood under each other, and nothing said which was which."""

    def test_in_the_table_of_what_was_found(self, capsys: pytest.CaptureFixture[str]) -> None:
        tasks = [{"name": "coco", "error": None, **measured(scales)} for scales in ((1.0, 3.0), ())]
        show_finished({"id": 1, "suite": {"name": "coco"}, "error": None, "tasks": tasks})
        rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if "coco/fid" in line]
        assert rows == [
            "coco/fid (sampling.guidance_scale=1.0) 10 ± 0.5 64",
            "coco/fid (sampling.guidance_scale=3.0) 30 ± 0.5 64",
        ]
        show_finished(
            {"id": 1, "suite": {"name": "coco"}, "error": None, "tasks": [{"error": None, **measured([3.0])}]}
        )
        assert "coco/fid  " in capsys.readouterr().out, "one alone needs no label"

    def test_in_the_news(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_news()(evaluation(interim={"done": 64, **measured((1.0, 3.0))}))
        said = "fid (sampling.guidance_scale=1.0) 10 ± 0.5, fid (sampling.guidance_scale=3.0) 30 ± 0.5"
        assert capsys.readouterr().err == f"loss after 64 sequences: {said}\n"


def test_items_in_groups_are_told_with_what_that_means(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"name": f"t/{name}", "value": 1.0, "stderr": 0.1, "n": n, "unit": "", "protocol": "p", "groups": groups}
        for name, n, groups in (("captions", 1300, 60), ("images", 60, 60), ("old", 7, None))
    ]
    print_metrics(rows, {})
    shown = capsys.readouterr().out
    found = {line.split()[0]: line.split("0.1")[1].split() for line in shown.splitlines() if line.strip()[:2] == "t/"}
    assert found == {"t/captions": ["1,300", "in", "60"], "t/images": ["60"], "t/old": ["7"]}
    assert "n: 1,300 in 60 is 1,300 items in 60 independent groups, over which the standard error is taken" in shown
    print_metrics(rows[1:], {})
    assert "independent groups" not in capsys.readouterr().out


def test_what_is_suspicious_is_told_with_the_metric_and_beside_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    warning = {"code": "inputs_cut", "metric": "loss/total", "message": "9 sequences\x1b[31m were cut"}
    task = {"name": "loss", "metrics": [], "protocols": {}, "error": None, "warnings": [warning]}
    show_finished({"id": 4, "suite": {"name": "quick"}, "error": None, "tasks": [task]})
    told = capsys.readouterr()
    assert told.err == "warning: loss/total: 9 sequences\\x1b[31m were cut\n"
    assert told.out == ""


def test_a_comparison_says_whose_result_is_suspicious(capsys: pytest.CaptureFixture[str]) -> None:
    warning = {"code": "inputs_cut", "metric": "loss/total", "message": "9 sequences were cut"}
    print_contrasts({"a": "x@1", "b": "x@2", "level": 0.95, "contrasts": [], "warnings": {"a": [], "b": [warning]}})
    assert capsys.readouterr().err == "warning: B, loss/total: 9 sequences were cut\n"


def test_a_comparison_says_which_items_it_leaves_out_and_how_many_verdicts_are_chance(
    capsys: pytest.CaptureFixture[str],
) -> None:
    items = {0: list(range(20)), 1: list(range(3, 21))}
    sides = []
    for name, indices in items.items():
        rows = [{"index": index, "x": math.sin(index + 9 * name)} for index in indices]
        metrics = [value("t/x", 0.0, 0.1, n=len(rows), items=("x",)), value("t/y", 0.0)]
        sides.append(result(*metrics, name=str(name), items={"t": rows}))
    print_contrasts(compare_results(*sides).to_json())
    shown = capsys.readouterr().out
    (first, second) = (line for line in shown.splitlines() if "t/x" in line or "t/y" in line)
    assert "3 only A has, 1 only B has" in first
    assert "only" not in second
    assert "2 metrics have a verdict at level 0.95, each by itself: if nothing had changed, about 0.1 would be" in shown


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

METRIC = {"name": EVIL, "value": 1.5, "stderr": 0.1, "n": 3, "unit": EVIL, "protocol": "abc"}

SIDE = {"value": 1.5, "stderr": 0.1, "import": 7}

POSTED = {
    "checkpoint": {"id": 1, "uri": EVIL, "parents": [1], "run": EVIL, "step": 1, "variant": EVIL},
    "evaluations": [{"id": 1, "suite": EVIL, "state": EVIL}],
}

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
    with terminal.show_bars() as bars:
        bars.show(EVIL, 1, 2, EVIL)


SHOWN: dict[str, Callable[[], None]] = {
    "say": lambda: terminal.say(EVIL),
    "say_json": lambda: terminal.say_json({EVIL: EVIL + "\x7f\x9b"}),
    "complain": lambda: terminal.complain(EVIL),
    "metrics": lambda: terminal.print_metrics([METRIC], {}),
    "history": lambda: terminal.print_history(HISTORY),
    "history as CSV": lambda: terminal.write_csv(HISTORY),
    "curves": lambda: terminal.print_curves({"runs": [EVIL], "x": "step", "curves": [CURVE], "refused": {}}),
    "tradeoff": lambda: terminal.print_tradeoff(TRADEOFF),
    "tradeoff as CSV": lambda: terminal.write_tradeoff_csv(TRADEOFF),
    "posted": lambda: terminal.show_posted(POSTED),
    "completions": lambda: terminal.print_completions(
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
