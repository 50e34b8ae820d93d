"""`evalsvc history` and `import`: what they print, and what files of other tools mean."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from console import Shell
from example_documents import example
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.cli import imports
from evalsvc.cli.history import Shown, print_curves, print_history
from evalsvc.cli.imports import FileSeries, Head, read_series, requests
from evalsvc.cli.terminal import SCREEN
from evalsvc.client import Client
from evalsvc.compare.curves import join_histories
from evalsvc.errors import InvalidData, UnknownName
from evalsvc.spec.documents.history import Gap, History, ValueSeries


@pytest.fixture
def measured(service: Any) -> None:
    for step, value in ((0, 2.5), (25, float("nan"))):
        enter(service.store, submission(step, tokens_seen=step * 4), suite("loss"))
        evaluate_whole(service.store, metric(value), metric(1.25, "loss/image", stderr=None))


def test_table_csv_and_json(evalsvc: Shell, measured: None) -> None:
    [(head, *rows)] = blocks(evalsvc("history run-a --metric loss/text").out).values()
    assert head == "(Text loss, nats/token)"
    assert rows == ["0 2.5 ± 0.1 8", "25 NaN ± 0.1 8"]
    rows = evalsvc("history run-a --format csv --x tokens").rows
    assert [(row["metric"], row["tokens"], row["value"], row["stderr"]) for row in rows] == [
        ("loss/image", "0", "1.25", ""),
        ("loss/image", "100", "1.25", ""),
        ("loss/text", "0", "2.5", "0.1"),
        ("loss/text", "100", "NaN", "0.1"),
    ]
    found = evalsvc("history run-a --format json").json
    assert [series["metric"] for series in found["series"]] == ["loss/image", "loss/text"]


def test_import_of_a_file(evalsvc: Shell, service: Any) -> None:
    """An import that was cut off is begun again from the start; what was entered before stays as it is."""
    line = "import run-a old.csv --direction lower --protocol '30,000 captions'"
    for value, options, end in (
        ("31.5", "", "1 new, 0 replaced, 0 unchanged\n"),
        ("31.5", "", "0 new, 0 replaced, 1 unchanged\n"),
        ("30", "", ""),
        ("30", " --replace --source jane", "0 new, 1 replaced, 0 unchanged\n"),
    ):
        Path("old.csv").write_text(f"step,metric,value\n10,coco/fid,{value}\n")
        done = evalsvc(line + options)
        assert done.out == (f"1 value of 1 metric: {end}" if end else ""), done.err
        refused = (done.code, "coco/fid at step 10 is 31.5, imported, and not 30.0" in done.err)
        assert refused == ((0, False) if end else (2, True))
    found = evalsvc("history run-a --format json").json
    assert [item["source"] for item in found["imports"].values()] == ["old.csv", "jane"]


def test_imported_values_are_marked_wherever_they_are_shown(evalsvc: Shell, service: Any, measured: None) -> None:
    """In one series with measured ones, or beside another run's, nothing else tells them apart."""
    Path("old.csv").write_text("step,metric,value\n0,coco/fid,31.5\n50,coco/fid,30\n")
    for run, source in (("run-a", "wandb"), ("run-b", "jane")):
        assert "2 new" in evalsvc(f"import {run} old.csv --direction lower --source {source}").out

    def sources(line: str, name: str) -> set[tuple[str, str]]:
        return {(row[name], row["source"]) for row in evalsvc(f"history {line} --format csv").rows}

    shown = evalsvc("history run-a")
    assert "imported from" in shown.out
    marked = {name: {row.endswith(" wandb") for row in rows} for name, (_, *rows) in blocks(shown.out).items()}
    assert marked == {"coco/fid": {True}, "loss/image": {False}, "loss/text": {False}}
    assert sources("run-a", "metric") == {("coco/fid", "wandb"), ("loss/image", ""), ("loss/text", "")}
    both = evalsvc("history run-a run-b --metric coco/fid").out
    assert both.count("31.5 (imported)") == both.count("30 (imported)") == 2
    assert sources("run-a run-b --metric coco/fid", "run") == {("run-a", "wandb"), ("run-b", "jane")}
    along = "history run-a --metric coco/fid --against loss/text"
    assert "31.5 (imported)" in evalsvc(along).out
    [point] = [row for row in evalsvc(f"{along} --format csv").rows if row["step"] == "0"]
    assert (point["coco/fid source"], point["loss/text source"]) == ("wandb", "")


def test_run_without_values(evalsvc: Shell, service: Any) -> None:
    for run in ("run-a", "run-b"):
        enter(service.store, submission(25, run=run))
    assert evalsvc("history run-a").out.startswith("run run-a has no values yet; ")
    assert evalsvc("history run-a --format csv").out == ""
    assert evalsvc("history run-a run-b").out == "runs run-a, run-b have no values yet\n"


def test_protocols_are_told_apart_by_their_fields_and_share_no_curve(
    evalsvc: Shell, service: Any, measured: None
) -> None:
    for run, step in (("run-a", 50), ("run-b", 25), ("run-b", 50)):
        enter(service.store, submission(step, run=run), suite("loss"))
        evaluate_whole(service.store, metric(3.5, limit=2), metric(1.5, "loss/image"))
    both = evalsvc("history run-a run-b --metric loss/image")
    assert (both.code, both.err) == (0, "")
    assert [row for row in both.cells if row and "─" not in row[0]][1:] == [
        ["step", "run-a", "run-b"],
        ["0", "1.25"],
        ["25", "1.25", "1.5", "±", "0.1"],
        ["50", "1.5", "±", "0.1", "1.5", "±", "0.1"],
    ]
    alone = evalsvc("history run-a --format csv --metric loss/text").rows
    assert [(row["differs"], row["step"]) for row in alone] == [("limit=1", "0"), ("limit=1", "25"), ("limit=2", "50")]
    assert "limit=2" in evalsvc("history run-a").out
    for step in (0, 25, 50):
        enter(service.store, submission(step, run="run-c"), suite("loss"))
        evaluate_whole(service.store, metric(4.5, limit=3))
    refused = evalsvc("history run-b run-c")
    assert refused.code == 2
    assert "loss/text: run-b and run-c differ in limit 2 → 3; evaluate one of them again" in refused.err
    assert ("[not_comparable]" in refused.err, "loss/image" in refused.out, "3.5" in refused.out) == (True, True, False)
    forced = evalsvc("history run-b run-c --metric loss/text --force")
    assert (forced.code, forced.err) == (0, "")
    assert ("of several protocols, forced" in forced.out, "run-c limit=3" in forced.out) == (True, True)
    rows = evalsvc("history run-b run-c --format csv --force").rows
    texts = {(row["run"], row["differs"]) for row in rows if row["metric"] == "loss/text"}
    assert texts == {("run-b", "limit=2"), ("run-c", "limit=3")}


PAIRS = "headline: [pairs/image, digits/fid64]\ntasks:\n"
PAIRS += "  - {kind: loss, name: pairs, data: datasets:d.jsonl}\n"
PAIRS += "  - {kind: text_to_image, name: digits, captions: datasets:c.jsonl, decoder: movqgan-67M,  samples: 8}\n"

LACK = {"code": "left_out", "metric": "digits/fid", "message": "fid is left out: 8 images, and it needs 2,049"}


@pytest.fixture
def with_headline(service: Any) -> None:
    """Four checkpoints evaluated by a suite with a headline, one of whose metrics could not be measured."""
    with Client(os.environ["EVALSVC_URL"]) as client:
        client.put_suite("pairs", PAIRS)
    loss = {"baseline": 6.25, "unit": "nats/token"}
    metrics = [metric(2.5, "pairs/image", **loss), metric(12.25, "pairs/image_perplexity")]
    metrics += [metric(3.75, "pairs/image_unigram", limit=9, direction="none"), metric(1.5, "pairs/text", **loss)]
    for step in (0, 10, 20, 30):
        enter(service.store, submission(step), suite("pairs"))
        evaluate_whole(service.store, *metrics, warnings=[LACK])


def blocks(shown: str) -> dict[str, list[str]]:
    """Return the rows of each metric, after the rest of the line above them."""
    found: dict[str, list[str]] = {}
    for line in shown.splitlines():
        name, _, rest = " ".join(line.split()).partition(" ")
        if "/" in name:
            found[name] = [rest]
        elif found and name.isdigit():
            found[[*found][-1]].append(f"{name} {rest}")
    return found


def rows(shown: str) -> list[str]:
    return [" ".join(line.split()[:1] + line.split()[3:]) for line in shown.splitlines() if "/" in line.split(" ")[0]]


@pytest.mark.usefixtures("wide_pipe")
def test_a_table_has_the_headline_with_its_yardsticks(evalsvc: Shell, with_headline: None) -> None:
    result = evalsvc("history run-a --last 1")
    found = blocks(result.out)
    assert {name: rows for name, (_, *rows) in found.items()} == {
        "pairs/image": ["30 2.5 ± 0.1 perplexity 12.25; unigram 3.75 8"],
        "digits/fid": ["30 not measured fid is left out: 8 images, and it needs 2,049"],
    }
    assert found["pairs/image"][0] == "(Image loss, nats/token, chance 6.25)"
    [(head, *rows), _] = blocks(evalsvc("history run-a").out).values()
    assert head == "(Image loss, nats/token, perplexity 12.25; unigram 3.75; chance 6.25)"
    assert rows == [f"{step} 2.5 ± 0.1 8" for step in (0, 10, 20, 30)], "what never changes is said once"
    assert result.err == "1 more metric is not in the headline; --all shows every metric\n"
    for options, names in (
        ("--metric pairs/*", ["pairs/image", "pairs/text"]),
        ("--metric pairs/image_perplexity", ["pairs/image_perplexity"]),
        ("--all", ["pairs/image", "pairs/image_perplexity", "pairs/image_unigram", "pairs/text", "digits/fid"]),
    ):
        shown = evalsvc(f"history run-a --last 1 {options}")
        assert ([*blocks(shown.out)], shown.err) == (names, "")


def test_files_for_programs_have_every_metric_and_a_part_of_the_steps(evalsvc: Shell, with_headline: None) -> None:
    assert len(evalsvc("history run-a --format json").json["series"]) == 4
    assert len(evalsvc("history run-a --format csv --last 1").rows) == 4
    for options, steps in {
        "--from 10 --to 20": ["10", "20"],
        "--last 2": ["20", "30"],
        "--to 20 --last 2": ["10", "20"],
        "--last 99": ["0", "10", "20", "30"],
        "--from 40": [],
        "--points 2": ["10", "30"],
    }.items():
        shown = evalsvc(f"history run-a --metric pairs/text --format csv {options}")
        assert [row["step"] for row in shown.rows] == steps
    assert [row.split() for row in rows(evalsvc("history run-a --points 2").out)] == [
        ["pairs/image", end, "2.5", "2.5", "2.5", "2.5", "2", "nats/token"] for end in ("10", "30")
    ]


def test_several_runs_show_the_headline_of_each(evalsvc: Shell, service: Any, with_headline: None) -> None:
    enter(service.store, submission(10, run="run-b"), suite("without-headline"))
    evaluate_whole(service.store, metric(3.5, "pairs/image", baseline=6.25), metric(1.0, "other/text"))
    names = [row[0] for row in evalsvc("history run-a run-b").cells if "/" in "".join(row)]
    assert list(dict.fromkeys(names)) == ["pairs/image", "other/text"]
    one_metric = evalsvc("history run-a run-b --metric pairs/image").out
    assert "pairs/image (Image loss, nats/token, chance 6.25, protocol" in one_metric


def long_history(steps: int, run: str = "long", **fields: Any) -> History:
    columns = {name: [None] * steps for name in ("stderr", "low", "high", "n", "groups", "import_")}
    columns |= {"x": list(range(steps)), "value": [1.5] * steps}
    series = [example(ValueSeries, metric=f"loss/{name}", baseline=9.0, **columns) for name in "ab"]
    return History(run=run, x="step", series=series, names=[], imports={}, next_cursor=None, **fields)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("width", [80, 120, None])
def test_a_history_is_a_screen_with_the_newest_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int | None, several: bool
) -> None:
    monkeypatch.setattr("evalsvc.cli.terminal.terminal_width", lambda: width)
    runs = [long_history(200, run) for run in ("run-a", "run-b")]

    def shown(how: Shown) -> tuple[list[str], str]:
        if several:
            print_curves(join_histories(runs, lambda _: {}), shown=how)
        else:
            print_history(runs[0], shown=how)
        printed = capsys.readouterr()
        return printed.out.splitlines(), printed.err

    lines, said = shown(Shown(fits_screen=True))
    kept = sum(line.startswith("loss/a") if several else line[:1].isdigit() for line in lines) // (1 + (not several))
    assert (10 <= len(lines) <= SCREEN, kept > 5) == (True, True)
    assert said == f"the last {kept} of 200 steps are shown; --all and --metric NAME show all\n"
    assert any("199 " in line for line in lines)
    assert (["metric", "step", "run-a", "run-b"] in [line.split() for line in lines]) == several
    lines, _ = shown(Shown())
    assert sum(line.startswith("loss/") or line[:1].isdigit() for line in lines) >= 400


def test_steps_without_values_are_shown_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    gaps = [example(Gap, step=step, message=f"lost\n{step}") for step in range(30)]
    print_history(long_history(2, gaps=gaps), shown=Shown())
    shown = capsys.readouterr()
    assert [row.split()[0] for row in shown.out.splitlines() if " lost⏎" in row] == [
        str(step) for step in range(10, 30)
    ]
    assert shown.err.startswith("more steps have no values; select steps by --from and --to")


WANDB = """\
"Step","sun-1 - loss","sun-1 - loss__MIN","sun-1 - loss__MAX","sun-1 - _step","sun-1 - acc"
"0","2.5","2.5","2.5","0",""
"100","NaN","1.5","1.5","100","0.25"
"""

TENSORBOARD = "Wall time,Step,Value\n1700000000.25,10,1.5\n1700000001.5,20,-inf\n"

LONG = """\
step,metric,value,stderr,n,unit,direction,variant,protocol
30,coco/fid,31.5,0.25,30000,,lower,ema,cfg 3
10,coco/fid,nan,,,,lower,ema,cfg 3
30,arc/acc,0.5,,,fraction,,,
"""


def read(path: Path, text: str, *metrics: str, **defaults: str) -> dict[str, FileSeries]:
    path.write_text(text)
    return {series.head.metric: series for series in read_series(path, metrics, Head(**defaults))}


def test_long_as_csv_and_json_lines(tmp_path: Path) -> None:
    found = read(tmp_path / "a.csv", LONG, unit="points", protocol="by hand")
    fid, acc = found["coco/fid"], found["arc/acc"]
    assert (fid.step, fid.value, fid.stderr, fid.n) == ([30, 10], [31.5, "NaN"], [0.25, None], [30000, None])
    assert fid.head == Head("points", "lower", "ema", "cfg 3", "coco/fid")
    assert acc.head == Head("fraction", "none", "raw", "by hand", "arc/acc")
    keys = LONG.splitlines()[0].split(",")
    lines = [dict(zip(keys, line.split(","), strict=True)) for line in LONG.splitlines()[1:]]
    lines[0] |= {"step": 30, "value": 31.5, "n": 30000}  # type: ignore[dict-item]
    text = "\n".join(json.dumps(line) for line in lines)
    assert read(tmp_path / "a.jsonl", text, unit="points", protocol="by hand") == {
        name: replace(series, lines={step: line - 1 for step, line in series.lines.items()})
        for name, series in found.items()
    }
    with pytest.raises(UnknownName, match=r"no metric of .*a.csv is named 'coco/fd'; did you mean 'coco/fid'"):
        read(tmp_path / "a.csv", LONG, "coco/fd")


def test_weights_and_biases(tmp_path: Path) -> None:
    """An empty cell is no value, NaN is one; the ends of its smoothing are no metrics."""
    found = read(tmp_path / "a.csv", WANDB)
    assert {name: (series.step, series.value) for name, series in found.items()} == {
        "loss": ([0, 100], [2.5, "NaN"]),
        "acc": ([100], [0.25]),
    }
    lines = '{"_step": 5, "loss": 2.5, "_runtime": 3.5}\n\n{"_step": 6, "loss": null, "acc": 1, "_runtime": 4}\n'
    found = read(tmp_path / "a.jsonl", lines)
    assert {name: (series.step, series.value) for name, series in found.items()} == {
        "loss": ([5], [2.5]),
        "acc": ([6], [1.0]),
    }
    assert list(read(tmp_path / "a.csv", WANDB, "acc")) == ["acc"]


def test_tensorboard_and_large_steps(tmp_path: Path) -> None:
    """By way of a float, 2**53 + 1 tokens would become 2**53."""
    found = read(tmp_path / "a.csv", TENSORBOARD, "train/loss")
    assert (found["train/loss"].step, found["train/loss"].value) == ([10, 20], [1.5, "-Infinity"])
    found = read(tmp_path / "a.csv", f"step,metric,value\n{2**53 + 1},a,1\n1e3,a,1\n")
    assert found["a"].step == [2**53 + 1, 1000]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "", "a.csv has no values; give a CSV file with a header line and values, or JSON lines"),
        ("a.csv", "step,metric,value\n", "has no values"),
        ("a.csv", "step,metric,value\n1,a,x\n", "line 2, a: value is 'x'; write a number, NaN, Inf"),
        ("a.csv", "step,metric,value\n1.5,a,1\n", "line 2, a: step is '1.5'; write a whole number of at"),
        ("a.csv", "step,metric,value\n-1,a,1\n", "step is '-1'; write a whole number"),
        ("a.csv", "step,metric,value\n1,a\n", "line 2, a: value is 'None'"),
        ("a.csv", "step,metric,value\n1,a,1,2\n", "line 2 has more cells than the header has columns"),
        ("a.csv", "step,metric,value\n1,,1\n", "line 2 names no metric; write the name of the metric, or remove"),
        ("a.csv", "step,metric,value\n1,a,1\n2,a,1\n1,a,2\n", "line 4, a: step 1 is also in line 2; remove one"),
        (
            "a.csv",
            "epoch,loss\n1,2\n",
            "has the columns epoch, loss; none of them is a step; name the column of steps st",
        ),
        ("a.csv", TENSORBOARD, "which does not name its metric; name the metric by --metric"),
        ("a.csv", "Step,a - loss,b - loss\n1,2,3\n", "has columns of several runs: a, b; export a file for each run"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.jsonl", "[1]", "line 1 is [1]; write one JSON object per line"),
        ("a.jsonl", '{"step": true, "metric": "a", "value": 1}', "step is 'True'; write a number"),
        ("a.jsonl", '{"step": 1, "loss": [1]}', "line 1, loss: value is '[1]'"),
        ("a.csv", "\x00\xff", ""),
        ("a.csv", b"step,metric,value\n1,\xff,2\n", "a.csv is neither CSV nor JSON lines in UTF-8"),
        ("b.csv", None, "b.csv cannot be read: no such file or directory"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, name: str, text: str | bytes | None, words: str) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InvalidData) as error:
        read_series(tmp_path / name, (), Head())
    assert words in error.value.message


def test_requests_have_every_value_once_and_never_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "VALUES_AT_ONCE", 4)
    text = "step,a,b,c\n" + "".join(f"{step},{step}.5,{step},\n" for step in range(7))
    series = list(read(tmp_path / "a.csv", text).values())
    parts = list(requests(series))
    assert [sum(len(item["step"]) for item in part) for part in parts] == [4, 4, 4, 2]
    values = {(item["metric"], step) for part in parts for item in part for step in item["step"]}
    assert values == {(name, step) for name in "ab" for step in range(7)}
    assert all(math.isfinite(value) for part in parts for item in part for value in item["value"])
    monkeypatch.setattr(imports, "SERIES_AT_ONCE", 1)
    assert [len(part) for part in requests(series)] == [1] * 4
