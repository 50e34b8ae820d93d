"""Metrics as tables: what tells two of one name apart, and what is said beside them."""

from collections.abc import Sequence
from typing import Any

import pytest
from example_documents import example

from evalsvc.cli.printer import print_metrics
from evalsvc.cli.submit import show_finished
from evalsvc.spec.documents import Evaluation, Metric, Task, TaskWarning

SCALES = {scale: {"data": "ab", "sampling": {"guidance_scale": scale}} for scale in (1.0, 3.0)}


def measured(scales: Sequence[float]) -> dict[str, Any]:
    """A metric under protocols of different guidance scales, as a task has it."""
    metrics = [metric("coco/fid", 64, value=10 * scale, stderr=0.5, protocol=f"p{scale:.0f}") for scale in scales]
    return {"metrics": metrics, "protocols": {f"p{scale:.0f}": SCALES[scale] for scale in scales}}


def metric(name: str, n: int, **fields: object) -> Metric:
    return example(Metric, **{"name": name, "n": n, "unit": "", "baseline": None, **fields})


def finished(*tasks: dict[str, Any]) -> Evaluation:
    whole = [example(Task, **{"warnings": [], **fields}) for fields in tasks]
    return example(Evaluation, tasks=whole)


def test_several_values_of_one_name_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    show_finished(finished(measured((1.0, 3.0)), measured(())))
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if "coco/fid" in line]
    assert rows == [
        "coco/fid (sampling.guidance_scale=1.0) 10 ± 0.5 64",
        "coco/fid (sampling.guidance_scale=3.0) 30 ± 0.5 64",
    ]
    show_finished(finished(measured([3.0])))
    assert "coco/fid  " in capsys.readouterr().out, "one alone needs no label"


def test_items_in_groups_are_told_with_what_that_means(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        metric(f"t/{name}", n, value=1.0, stderr=0.1, protocol="p", groups=groups)
        for name, n, groups in (("captions", 1300, 60), ("images", 60, 60), ("old", 7, None))
    ]
    print_metrics(rows, {})
    shown = capsys.readouterr().out
    found = {line.split()[0]: line.split("0.1")[1].split() for line in shown.splitlines() if line.strip()[:2] == "t/"}
    assert found == {"t/captions": ["1,300", "in", "60"], "t/images": ["60"], "t/old": ["7"]}
    assert "n: 1,300 in 60 is 1,300 items in 60 independent groups, over which the standard error is taken" in shown
    print_metrics(rows[1:], {})
    assert "independent groups" not in capsys.readouterr().out


def test_a_standard_error_that_is_no_number_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    print_metrics([metric("t/a", 7, value="NaN", stderr="NaN", protocol="p")], {})
    assert ["t/a", "NaN", "±", "NaN", "7"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_what_is_suspicious_is_told_with_the_metric_and_beside_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    warning = TaskWarning(code="inputs_cut", metric="loss/total", message="9 sequences\x1b[31m were cut")
    show_finished(finished({"metrics": [], "protocols": {}, "warnings": [warning]}))
    told = capsys.readouterr()
    assert told.err == "warning: loss/total: 9 sequences\\x1b[31m were cut\n"
    assert told.out == ""


def test_yardsticks_stand_next_to_their_metric(capsys: pytest.CaptureFixture[str]) -> None:
    """Every loss had two rows, and nothing in the table said what a model that knows nothing has."""
    rows = [
        metric("pairs/text", 7, value=2.31, stderr=0.01, protocol="p", baseline=4.158883),
        metric("pairs/text_perplexity", 7, value=10.1, stderr=0.1, protocol="p", baseline=64.0),
        metric("pairs/text_unigram", 7, value=3.9, stderr=0.1, protocol="other"),
    ]
    print_metrics(rows, {})
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if "pairs/" in line]
    assert shown == ["pairs/text 2.31 ± 0.01 perplexity 10.1; unigram 3.9; chance 4.159 7"]


def test_the_resizing_of_a_fid_is_said_with_the_number(capsys: pytest.CaptureFixture[str]) -> None:
    """clean-fid's and torch-fidelity's FID of the same images are 7.10 and 6.88."""
    ids = {"a": "pil-bicubic", "b": "tf1-bilinear", "c": "pil-bicubic-crop", "d": None}
    protocols = {identity: {"resize": resize} if resize else {} for identity, resize in ids.items()}
    rows = [metric(f"t/{identity}", 7, protocol=identity) for identity in ids]
    print_metrics(rows, protocols)
    lines = [line for line in capsys.readouterr().out.splitlines() if "resized" in line]
    assert lines == [
        "t/a: images were resized as by clean-fid (resize: pil-bicubic); another resizing is another metric",
        "t/b: images were resized as by torch-fidelity (resize: tf1-bilinear); another resizing is another metric",
    ]
    print_metrics(rows[2:], protocols)
    assert "resized" not in capsys.readouterr().out
