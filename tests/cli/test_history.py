"""`evalsvc history` and `evalsvc import`: what they print."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from console import Command
from example_documents import example
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.cli.history import Shown, print_curves, print_history
from evalsvc.cli.terminal import SCREEN
from evalsvc.client import Client
from evalsvc.compare.curves import join_histories
from evalsvc.spec.documents.history import History, ValueSeries


@pytest.fixture
def measured(service: Any) -> None:
    for step, value in ((0, 2.5), (25, float("nan"))):
        enter(service.store, submission(step, tokens_seen=step * 4), suite("loss"))
        evaluate_whole(service.store, metric(value), metric(1.25, "loss/image", stderr=None))


def test_table_csv_and_json(command: Command, measured: None) -> None:
    lines = command("history", "run-a", "--metric", "loss/text").out.splitlines()
    cells = [line.split() for line in lines if "loss/text" in line]
    assert [row[3:] for row in cells] == [
        ["0", "2.5", "±", "0.1", "8", "nats/token"],
        ["25", "NaN", "±", "0.1", "8", "nats/token"],
    ]
    rows = list(csv.DictReader(io.StringIO(command("history", "run-a", "--format", "csv", "--x", "tokens").out)))
    assert [(row["metric"], row["tokens"], row["value"], row["stderr"]) for row in rows] == [
        ("loss/image", "0", "1.25", ""),
        ("loss/image", "100", "1.25", ""),
        ("loss/text", "0", "2.5", "0.1"),
        ("loss/text", "100", "NaN", "0.1"),
    ]
    found = json.loads(command("history", "run-a", "--format", "json").out)
    assert [series["metric"] for series in found["series"]] == ["loss/image", "loss/text"]


def test_a_file_gets_the_table_or_the_rows(command: Command, measured: None) -> None:
    table = command("history", "run-a").out
    written = command("history", "run-a", "--output", "table.txt")
    assert (written.code, written.out, written.err) == (0, "", "wrote table.txt\n")
    assert Path("table.txt").read_text() == table
    assert command("history", "run-a", "run-a", "--points", "1", "--format", "csv", "--output", "points.csv").code == 0
    assert Path("points.csv").read_text().startswith("metric,variant,protocol,")
    refused = command("history", "run-a", "--output", "no/table.txt")
    assert (refused.code, "--output no/table.txt: the folder no does not exist" in refused.err) == (2, True)


def test_import_of_a_file(command: Command, service: Any, tmp_path: Path) -> None:
    """An import that was cut off is begun again from the start; what was entered before stays as it is."""
    (tmp_path / "old.csv").write_text("step,metric,value\n10,coco/fid,31.5\n0,coco/fid,NaN\n")
    arguments = ("import", "run-a", "old.csv", "--direction", "lower", "--protocol", "30,000 captions")
    assert command(*arguments).out == "2 values of 1 metric: 2 new, 0 replaced, 0 unchanged\n"
    assert command(*arguments).out == "2 values of 1 metric: 0 new, 0 replaced, 2 unchanged\n"
    (tmp_path / "old.csv").write_text("step,metric,value\n10,coco/fid,30\n")
    refused = command(*arguments)
    assert (refused.code, "coco/fid at step 10 is 31.5, imported, and not 30.0" in refused.err) == (2, True)
    assert "0 new, 1 replaced" in command(*arguments, "--replace", "--source", "jane").out
    found = json.loads(command("history", "run-a", "--format", "json").out)
    assert [item["source"] for item in found["imports"].values()] == ["old.csv", "jane"]


def test_imported_values_are_marked_wherever_they_are_shown(
    command: Command, service: Any, measured: None, tmp_path: Path
) -> None:
    """In one series with measured ones, or beside another run's, nothing else tells them apart."""
    (tmp_path / "old.csv").write_text("step,metric,value\n0,coco/fid,31.5\n50,coco/fid,30\n")
    arguments = ("old.csv", "--direction", "lower")
    assert "2 new" in command("import", "run-a", *arguments, "--source", "wandb").out
    assert "2 new" in command("import", "run-b", *arguments, "--source", "jane").out

    def values(*options: str) -> list[dict[str, Any]]:
        return list(csv.DictReader(io.StringIO(command("history", *options, "--format", "csv").out)))

    shown = command("history", "run-a").out
    assert "imported from" in shown
    assert [line.split()[-1] for line in shown.splitlines() if "coco/fid" in line] == ["wandb"] * 2
    assert "wandb" not in "".join(line for line in shown.splitlines() if "loss/" in line)
    assert {(row["metric"], row["source"]) for row in values("run-a")} == {
        ("coco/fid", "wandb"),
        ("loss/image", ""),
        ("loss/text", ""),
    }
    both = command("history", "run-a", "run-b", "--metric", "coco/fid").out
    assert both.count("31.5 (imported)") == both.count("30 (imported)") == 2
    assert {(row["run"], row["source"]) for row in values("run-a", "run-b", "--metric", "coco/fid")} == {
        ("run-a", "wandb"),
        ("run-b", "jane"),
    }
    along = ("run-a", "--metric", "coco/fid", "--against", "loss/text")
    assert "31.5 (imported)" in command("history", *along).out
    points = {row["step"]: (row["coco/fid source"], row["loss/text source"]) for row in values(*along)}
    assert points["0"] == ("wandb", "")
    found = json.loads(command("history", *along, "--format", "json").out)
    assert [row["coco/fid"] and row["coco/fid"]["import"] for row in found["rows"]] == [1, None]
    assert found["imports"]["run-a"]["1"]["source"] == "wandb"


def test_run_without_values(command: Command, service: Any) -> None:
    enter(service.store, submission(25))
    assert command("history", "run-a").out.startswith("run run-a has no values yet; ")
    assert command("history", "run-a", "--format", "csv").out == ""
    enter(service.store, submission(25, run="run-b"))
    assert command("history", "run-a", "run-b").out == "runs run-a, run-b have no values yet\n"


def test_another_protocol_is_told_apart_by_its_fields(command: Command, service: Any, measured: None) -> None:
    assert "differs" not in command("history", "run-a").out
    enter(service.store, submission(50), suite("loss"))
    evaluate_whole(service.store, metric(7.5, limit=2))
    rows = list(csv.DictReader(io.StringIO(command("history", "run-a", "--format", "csv").out)))
    assert [(row["metric"], row["differs"], row["step"], row["value"]) for row in rows[2:]] == [
        ("loss/text", "limit=1", "0", "2.5"),
        ("loss/text", "limit=1", "25", "NaN"),
        ("loss/text", "limit=2", "50", "7.5"),
    ]
    assert "limit=2" in command("history", "run-a").out


@pytest.fixture
def another(service: Any, measured: None) -> None:
    """A second run, of which one metric was measured by another protocol."""
    for step in (25, 50):
        enter(service.store, submission(step, run="run-b"), suite("loss"))
        evaluate_whole(service.store, metric(3.5, limit=2), metric(1.5, "loss/image"))


def test_several_runs_side_by_side(command: Command, another: None) -> None:
    result = command("history", "run-a", "run-b", "--metric", "loss/image")
    assert (result.code, result.err) == (0, "")
    assert [line.split() for line in result.out.splitlines() if line.strip() and "─" not in line][1:] == [
        ["step", "run-a", "run-b"],
        ["0", "1.25"],
        ["25", "1.25", "1.5", "±", "0.1"],
        ["50", "1.5", "±", "0.1"],
    ]


def test_several_runs_of_different_protocols(command: Command, another: None) -> None:
    refused = command("history", "run-a", "run-b")
    assert refused.code == 2
    assert "loss/text: run-a and run-b differ in limit 1 → 2; evaluate one of them again" in refused.err
    assert "[not_comparable]" in refused.err
    assert "loss/image" in refused.out
    assert "3.5" not in refused.out
    forced = command("history", "run-a", "run-b", "--metric", "loss/text", "--force")
    assert (forced.code, forced.err) == (0, "")
    assert "of several protocols, forced" in forced.out
    assert "run-b limit=2" in forced.out
    rows = list(csv.DictReader(io.StringIO(command("history", "run-a", "run-b", "--format", "csv", "--force").out)))
    assert {(row["run"], row["differs"]) for row in rows if row["metric"] == "loss/text"} == {
        ("run-a", "limit=1"),
        ("run-b", "limit=2"),
    }


PAIRS = "headline: [pairs/image, digits/fid64]\ntasks:\n"
PAIRS += "  - {kind: loss, name: pairs, data: datasets:d.jsonl}\n"
PAIRS += "  - {kind: text_to_image, name: digits, captions: datasets:c.jsonl, decoder: movqgan-67M,  samples: 8}\n"

LACK = {"code": "left_out", "metric": "digits/fid", "message": "fid is left out: 8 images, and it needs 2,049"}


@pytest.fixture
def with_headline(service: Any) -> None:
    """Four checkpoints evaluated by a suite with a headline, one of whose metrics could not be measured."""
    with Client(os.environ["EVALSVC_URL"]) as client:
        client.put_suite("pairs", PAIRS)
    for step in (0, 10, 20, 30):
        enter(service.store, submission(step), suite("pairs"))
        loss = {"baseline": 6.25, "unit": "nats/token"}
        evaluate_whole(
            service.store,
            metric(2.5, "pairs/image", **loss),
            metric(12.25, "pairs/image_perplexity"),
            metric(3.75, "pairs/image_unigram", limit=9, direction="none"),
            metric(1.5, "pairs/text", **loss),
            warnings=[LACK],
        )


def rows(shown: str) -> list[str]:
    """The rows of a table, without their protocols."""
    return [" ".join(line.split()[:1] + line.split()[3:]) for line in shown.splitlines() if "/" in line.split(" ")[0]]


@pytest.mark.usefixtures("wide_pipe")
def test_a_table_has_the_headline_with_its_yardsticks(command: Command, with_headline: None) -> None:
    result = command("history", "run-a", "--last", "1")
    assert rows(result.out) == [
        "pairs/image 30 2.5 ± 0.1 perplexity 12.25; unigram 3.75; chance 6.25 8 nats/token",
        "digits/fid not measured fid is left out: 8 images, and it needs 2,049",
    ]
    assert result.err == "1 more metric is not in the headline; --all shows every metric\n"
    named = command("history", "run-a", "--last", "1", "--metric", "pairs/*")
    assert [row.split()[0] for row in rows(named.out)] == ["pairs/image", "pairs/text"]
    assert named.err == ""
    alone = command("history", "run-a", "--last", "1", "--metric", "pairs/image_perplexity")
    assert [row.split()[:3] for row in rows(alone.out)] == [["pairs/image_perplexity", "30", "12.25"]]
    whole = command("history", "run-a", "--last", "1", "--all")
    names = [row.split()[0] for row in rows(whole.out)]
    assert names == ["pairs/image", "pairs/image_perplexity", "pairs/image_unigram", "pairs/text", "digits/fid"]
    assert whole.err == ""


def test_files_for_programs_have_every_metric(command: Command, with_headline: None) -> None:
    found = json.loads(command("history", "run-a", "--format", "json").out)
    assert len(found["series"]) == 4
    lines = command("history", "run-a", "--format", "csv", "--last", "1").out.splitlines()
    assert len(lines) == 1 + 4


def test_a_part_of_the_steps(command: Command, with_headline: None) -> None:
    def steps(*options: str) -> list[str]:
        shown = command("history", "run-a", "--metric", "pairs/text", "--format", "csv", *options)
        return [row["step"] for row in csv.DictReader(io.StringIO(shown.out))]

    assert steps("--from", "10", "--to", "20") == ["10", "20"]
    assert steps("--last", "2") == ["20", "30"]
    assert steps("--to", "20", "--last", "2") == ["10", "20"]
    assert steps("--last", "99") == ["0", "10", "20", "30"]
    assert steps("--from", "40") == []
    assert steps("--points", "2") == ["10", "30"]
    shown = command("history", "run-a", "--points", "2")
    assert [row.split() for row in rows(shown.out)] == [
        ["pairs/image", end, "2.5", "2.5", "2.5", "2.5", "2", "nats/token"] for end in ("10", "30")
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--from", "20", "--to", "10"), "--from 20 is greater than --to 10; swap the two"),
        (("--points", "3", "--last", "2"), "--points shows one run, and several runs, --against or --last is given"),
        (("run-b", "--points", "3"), "--points shows one run"),
        (("--points", "3", "--against", "pairs/text"), "--points shows one run"),
        (("--points", "0"), "'--points': Input should be greater than or equal to 1"),
        (("--points", "9" * 20), "'--points': Input should be less than or equal to 10000"),
        (("--last", "0"), "'--last': Input should be greater than or equal to 1"),
        (("--last", "-1"), "'--last': Input should be greater than or equal to 1"),
        (("--from", "-5"), "'--from': Input should be greater than or equal to 0"),
        (("--from", "1e3"), "'--from': Input should be a valid integer"),
        (("--to", "9" * 30), "to: input should be"),
        (("--metric", "pairs/imag"), "did you mean 'pairs/image'"),
    ],
)
def test_options_that_make_no_sense(
    options: tuple[str, ...], words: str, command: Command, with_headline: None
) -> None:
    result = command("history", "run-a", *options)
    assert (result.code, result.out) == (2, "")
    assert words in " ".join(result.err.replace("│", " ").split())


def test_several_runs_show_the_headline_of_each(command: Command, service: Any, with_headline: None) -> None:
    enter(service.store, submission(10, run="run-b"), suite("without-headline"))
    evaluate_whole(service.store, metric(3.5, "pairs/image", baseline=6.25), metric(1.0, "other/text"))
    result = command("history", "run-a", "run-b")
    names = [line.split()[0] for line in result.out.splitlines() if "/" in line]
    assert list(dict.fromkeys(names)) == ["pairs/image", "other/text"]
    one_metric = command("history", "run-a", "run-b", "--metric", "pairs/image")
    assert "pairs/image (nats/token, chance 6.25, protocol" in one_metric.out


def long_history(steps: int, run: str = "long") -> History:
    columns = {name: [None] * steps for name in ("stderr", "low", "high", "n", "groups", "import_")}
    columns |= {"x": list(range(steps)), "value": [1.5] * steps}
    series = [example(ValueSeries, metric=f"loss/{name}", baseline=9.0, **columns) for name in "ab"]
    return History(run=run, x="step", series=series, names=[], imports={}, next_cursor=None)


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


def test_several_runs_share_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    histories = [long_history(200, run) for run in ("run-a", "run-b")]
    print_curves(join_histories(histories, lambda _: {}), shown=Shown(fits_screen=True))
    shown = capsys.readouterr()
    kept = sum(line.startswith("loss/a") for line in shown.out.splitlines())
    assert ["metric", "step", "run-a", "run-b"] in [line.split() for line in shown.out.splitlines()]
    assert (len(shown.out.splitlines()) <= SCREEN, kept > 5) == (True, True)
    assert f"the last {kept} of 200 steps are shown" in shown.err
