"""Files of other tools: what their columns mean, what of them is a value, and where they are wrong."""

import json
import math
from pathlib import Path

import pytest

from evalsvc.cli import imports
from evalsvc.cli.imports import Defaults, FileSeries, Head, read_series, requests
from evalsvc.errors import InvalidData, UnknownName

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
    return {series.head.metric: series for series in read_series(path, metrics, Defaults(**defaults))}


def test_long(tmp_path: Path) -> None:
    found = read(tmp_path / "a.csv", LONG, unit="points", protocol="by hand")
    fid, acc = found["coco/fid"], found["arc/acc"]
    assert (fid.step, fid.value, fid.stderr, fid.n) == ([30, 10], [31.5, "NaN"], [0.25, None], [30000, None])
    assert fid.head == Head("points", "lower", "ema", "cfg 3", "coco/fid")
    assert acc.head == Head("fraction", "none", "raw", "by hand", "arc/acc")


def test_json_lines_are_the_same(tmp_path: Path) -> None:
    keys = LONG.splitlines()[0].split(",")
    lines = [dict(zip(keys, line.split(","), strict=True)) for line in LONG.splitlines()[1:]]
    lines[0] |= {"step": 30, "value": 31.5, "n": 30000}  # type: ignore[dict-item]
    text = "\n".join(json.dumps(line) for line in lines)
    for name, series in read(tmp_path / "a.jsonl", text).items():
        other = read(tmp_path / "a.csv", LONG)[name]
        assert (series.head, series.step, series.value, series.n) == (other.head, other.step, other.value, other.n)


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
        read_series(tmp_path / name, (), Defaults())
    assert words in error.value.message


def test_a_metric_that_the_file_has_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"no metric of .*a.csv is named 'coco/fd'; did you mean 'coco/fid'"):
        read(tmp_path / "a.csv", LONG, "coco/fd")


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
