"""`evalsvc history` and `import`: what they print."""

import os
from pathlib import Path
from typing import Any

import pytest
from console import Shell
from example_documents import example
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.cli.history import Shown, print_curves, print_history
from evalsvc.cli.terminal import SCREEN
from evalsvc.client import Client
from evalsvc.compare.curves import join_histories
from evalsvc.spec.documents.history import Gap, History, ValueSeries


@pytest.fixture
def measured(service: Any) -> None:
    for step, value in ((0, 2.5), (25, float("nan"))):
        enter(service.store, submission(step, tokens_seen=step * 4), suite("loss"))
        evaluate_whole(service.store, metric(value), metric(1.25, "loss/image", stderr=None))


def test_table_csv_and_json(evalsvc: Shell, measured: None) -> None:
    assert [row[3:] for row in evalsvc("history run-a --metric loss/text").cells if "loss/text" in row] == [
        ["0", "2.5", "±", "0.1", "8", "nats/token"],
        ["25", "NaN", "±", "0.1", "8", "nats/token"],
    ]
    rows = evalsvc("history run-a --format csv --x tokens").rows
    assert [(row["metric"], row["tokens"], row["value"], row["stderr"]) for row in rows] == [
        ("loss/image", "0", "1.25", ""),
        ("loss/image", "100", "1.25", ""),
        ("loss/text", "0", "2.5", "0.1"),
        ("loss/text", "100", "NaN", "0.1"),
    ]
    found = evalsvc("history run-a --format json").json
    assert [series["metric"] for series in found["series"]] == ["loss/image", "loss/text"]


def test_a_file_gets_the_table_or_the_rows(evalsvc: Shell, measured: None) -> None:
    table = evalsvc("history run-a").out
    written = evalsvc("history run-a --output table.txt")
    assert (written.code, written.out, written.err) == (0, "", "wrote table.txt\n")
    assert Path("table.txt").read_text() == table
    assert evalsvc("history run-a run-a --points 1 --format csv --output points.csv").code == 0
    assert Path("points.csv").read_text().startswith("metric,variant,protocol,")


def test_import_of_a_file(evalsvc: Shell, service: Any) -> None:
    """An import that was cut off is begun again from the start; what was entered before stays as it is."""
    Path("old.csv").write_text("step,metric,value\n10,coco/fid,31.5\n0,coco/fid,NaN\n")
    line = "import run-a old.csv --direction lower --protocol '30,000 captions'"
    assert evalsvc(line).out == "2 values of 1 metric: 2 new, 0 replaced, 0 unchanged\n"
    assert evalsvc(line).out == "2 values of 1 metric: 0 new, 0 replaced, 2 unchanged\n"
    Path("old.csv").write_text("step,metric,value\n10,coco/fid,30\n")
    refused = evalsvc(line)
    assert (refused.code, "coco/fid at step 10 is 31.5, imported, and not 30.0" in refused.err) == (2, True)
    assert "0 new, 1 replaced" in evalsvc(f"{line} --replace --source jane").out
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
    assert {row[-1] for row in shown.cells if "coco/fid" in row} == {"wandb"}
    assert "wandb" not in "".join(line for line in shown.out.splitlines() if "loss/" in line)
    assert sources("run-a", "metric") == {("coco/fid", "wandb"), ("loss/image", ""), ("loss/text", "")}
    both = evalsvc("history run-a run-b --metric coco/fid").out
    assert both.count("31.5 (imported)") == both.count("30 (imported)") == 2
    assert sources("run-a run-b --metric coco/fid", "run") == {("run-a", "wandb"), ("run-b", "jane")}
    along = "history run-a --metric coco/fid --against loss/text"
    assert "31.5 (imported)" in evalsvc(along).out
    [point] = [row for row in evalsvc(f"{along} --format csv").rows if row["step"] == "0"]
    assert (point["coco/fid source"], point["loss/text source"]) == ("wandb", "")
    found = evalsvc(f"{along} --format json").json
    assert [row["coco/fid"] and row["coco/fid"]["import"] for row in found["rows"]] == [1, None]
    assert found["imports"]["run-a"]["1"]["source"] == "wandb"


def test_run_without_values(evalsvc: Shell, service: Any) -> None:
    for run in ("run-a", "run-b"):
        enter(service.store, submission(25, run=run))
    assert evalsvc("history run-a").out.startswith("run run-a has no values yet; ")
    assert evalsvc("history run-a --format csv").out == ""
    assert evalsvc("history run-a run-b").out == "runs run-a, run-b have no values yet\n"


def test_protocols_are_told_apart_by_their_fields_and_share_no_curve(
    evalsvc: Shell, service: Any, measured: None
) -> None:
    assert "differs" not in evalsvc("history run-a").out
    for step in (25, 50):
        enter(service.store, submission(step, run="run-b"), suite("loss"))
        evaluate_whole(service.store, metric(3.5, limit=2), metric(1.5, "loss/image"))
    both = evalsvc("history run-a run-b --metric loss/image")
    assert (both.code, both.err) == (0, "")
    assert [row for row in both.cells if row and "─" not in row[0]][1:] == [
        ["step", "run-a", "run-b"],
        ["0", "1.25"],
        ["25", "1.25", "1.5", "±", "0.1"],
        ["50", "1.5", "±", "0.1"],
    ]
    refused = evalsvc("history run-a run-b")
    assert refused.code == 2
    assert "loss/text: run-a and run-b differ in limit 1 → 2; evaluate one of them again" in refused.err
    assert ("[not_comparable]" in refused.err, "loss/image" in refused.out, "3.5" in refused.out) == (True, True, False)
    forced = evalsvc("history run-a run-b --metric loss/text --force")
    assert (forced.code, forced.err) == (0, "")
    assert "of several protocols, forced" in forced.out
    assert "run-b limit=2" in forced.out
    rows = evalsvc("history run-a run-b --format csv --force").rows
    texts = {(row["run"], row["differs"]) for row in rows if row["metric"] == "loss/text"}
    assert texts == {("run-a", "limit=1"), ("run-b", "limit=2")}
    enter(service.store, submission(50), suite("loss"))
    evaluate_whole(service.store, metric(7.5, limit=2))
    rows = evalsvc("history run-a --format csv").rows
    assert [(row["metric"], row["differs"], row["step"], row["value"]) for row in rows[2:]] == [
        ("loss/text", "limit=1", "0", "2.5"),
        ("loss/text", "limit=1", "25", "NaN"),
        ("loss/text", "limit=2", "50", "7.5"),
    ]
    assert "limit=2" in evalsvc("history run-a").out


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


def rows(shown: str) -> list[str]:
    """The rows of a table, without their protocols."""
    return [" ".join(line.split()[:1] + line.split()[3:]) for line in shown.splitlines() if "/" in line.split(" ")[0]]


@pytest.mark.usefixtures("wide_pipe")
def test_a_table_has_the_headline_with_its_yardsticks(evalsvc: Shell, with_headline: None) -> None:
    result = evalsvc("history run-a --last 1")
    assert rows(result.out) == [
        "pairs/image 30 2.5 ± 0.1 perplexity 12.25; unigram 3.75; chance 6.25 8 nats/token",
        "digits/fid not measured fid is left out: 8 images, and it needs 2,049",
    ]
    assert result.err == "1 more metric is not in the headline; --all shows every metric\n"
    for options, names in (
        ("--metric pairs/*", ["pairs/image", "pairs/text"]),
        ("--metric pairs/image_perplexity", ["pairs/image_perplexity"]),
        ("--all", ["pairs/image", "pairs/image_perplexity", "pairs/image_unigram", "pairs/text", "digits/fid"]),
    ):
        shown = evalsvc(f"history run-a --last 1 {options}")
        assert ([row.split()[0] for row in rows(shown.out)], shown.err) == (names, "")


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
    assert "pairs/image (nats/token, chance 6.25, protocol" in one_metric


def long_history(steps: int, run: str = "long", **fields: Any) -> History:
    columns = {name: [None] * steps for name in ("stderr", "low", "high", "n", "groups", "import_")}
    columns |= {"x": list(range(steps)), "value": [1.5] * steps}
    series = [example(ValueSeries, metric=f"loss/{name}", baseline=9.0, **columns) for name in "ab"]
    return History(run=run, x="step", series=series, names=[], imports={}, next_cursor=None, **fields)


@pytest.mark.parametrize("width", [80, 120, None])
def test_a_history_is_a_screen_with_the_newest_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int | None
) -> None:
    monkeypatch.setattr("evalsvc.cli.terminal.terminal_width", lambda: width)
    print_history(long_history(200), shown=Shown(fits_screen=True))
    shown = capsys.readouterr()
    kept = sum(line.startswith("loss/a") for line in shown.out.splitlines())
    assert 10 <= len(shown.out.splitlines()) <= SCREEN
    assert shown.err == f"the last {kept} of 200 steps are shown; --all and --metric NAME show all\n"
    assert " 199 " in shown.out
    print_history(long_history(200), shown=Shown())
    assert sum(line.startswith("loss/") for line in capsys.readouterr().out.splitlines()) == 400


def test_steps_without_values_are_shown_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    gaps = [example(Gap, step=step, message=f"lost\n{step}") for step in range(30)]
    print_history(long_history(2, gaps=gaps), shown=Shown())
    shown = capsys.readouterr()
    assert [row.split()[0] for row in shown.out.splitlines() if " lost⏎" in row] == [
        str(step) for step in range(10, 30)
    ]
    assert shown.err.startswith("more steps have no values; select steps by --from and --to")


def test_several_runs_share_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    histories = [long_history(200, run) for run in ("run-a", "run-b")]
    print_curves(join_histories(histories, lambda _: {}), shown=Shown(fits_screen=True))
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    kept = sum(line.startswith("loss/a") for line in lines)
    assert ["metric", "step", "run-a", "run-b"] in [line.split() for line in lines]
    assert (len(lines) <= SCREEN, kept > 5) == (True, True)
    assert f"the last {kept} of 200 steps are shown" in shown.err
