"""Comparisons as tables: what is said beside the numbers."""

import math

import pytest
from gate_documents import result, value

from evalsvc.cli.compare import print_contrasts, print_difference_curves
from evalsvc.cli.terminal import SCREEN
from evalsvc.compare.comparison import Options, compare_results
from evalsvc.compare.difference_curves import difference_curves
from evalsvc.spec.documents import Comparison


def test_a_comparison_says_whose_result_is_suspicious(capsys: pytest.CaptureFixture[str]) -> None:
    warning = {"code": "inputs_cut", "metric": "loss/total", "message": "9 sequences were cut"}
    found = {"a": "x@1", "b": "x@2", "level": 0.95, "contrasts": [], "warnings": {"a": [], "b": [warning]}}
    print_contrasts(Comparison.model_validate(found))
    assert capsys.readouterr().err == "warning: B, loss/total: 9 sequences were cut\n"


@pytest.mark.usefixtures("wide_pipe")
def test_a_comparison_says_which_items_it_leaves_out_and_how_many_verdicts_are_chance(
    capsys: pytest.CaptureFixture[str],
) -> None:
    items = {0: list(range(20)), 1: list(range(3, 21))}
    sides = []
    for name, indices in items.items():
        rows = [{"index": index, "x": math.sin(index + 9 * name)} for index in indices]
        metrics = [value("t/x", 0.0, 0.1, n=len(rows), items=("x",)), value("t/y", 0.0)]
        sides.append(result(*metrics, name=str(name), items={"t": rows}))
    print_contrasts(compare_results(*sides))
    shown = capsys.readouterr().out
    (first, second) = (line for line in shown.splitlines() if "t/x" in line or "t/y" in line)
    assert "3 only in A, 1 only in B" in first
    assert "only" not in second
    assert "2 metrics have a verdict at level 0.95, each by itself: if nothing had changed, about 0.1 would be" in shown


@pytest.mark.usefixtures("wide_pipe")
def test_right_answers_and_verdicts_on_all_metrics_together(capsys: pytest.CaptureFixture[str]) -> None:
    sides = []
    for right in (0, 1):
        items = {"t": [{"index": index, "x": float(index % 3 == right)} for index in range(21)]}
        metrics = [value("t/x", 1 / 3, 0.1, n=21, direction="higher", items=("x",)), value("t/y", 0.0)]
        sides.append(result(*metrics, items=items))
    print_contrasts(compare_results(*sides, Options(family="holm")))
    shown = capsys.readouterr().out
    for words in ("only A / B right", "7 / 7", "p (Holm, all metrics)", "2 metrics have a verdict, judged together by"):
        assert words in shown


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ((2.0, 1.0), ["the interval covers zero first at step 10", "the difference is beyond noise first at step 0"]),
        (
            (2.0, 1.0, 1.0),
            [
                "the interval covers zero first at step 10",
                "pointwise band: the interval covers zero at every step from 10 on; "
                "differences up to 0.02789 are not excluded",
                "the difference is beyond noise first at step 0",
            ],
        ),
        (
            (2.0, 0.5, 0.5),
            [
                "the interval covers zero at no step",
                "the difference is beyond noise first at step 0",
                "simultaneous band: the difference is beyond noise at every step from 0 on",
                "simultaneous band: the difference changes its sign between steps 0 and 10",
            ],
        ),
    ],
)
def test_curves_say_where_they_leave_the_noise(
    after: tuple[float, ...], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps apart from each other say nothing of what follows."""
    steps = [(10 * at, result(value("t/x", 1.0)), result(value("t/x", number))) for at, number in enumerate(after)]
    print_difference_curves(difference_curves("a", "b", steps, Options()))
    assert capsys.readouterr().out.rstrip().splitlines()[-len(said) :] == said


def test_a_comparison_is_a_screen_with_the_headline_and_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    """Two checkpoints with the benchmarks of a large suite printed hundreds of lines."""
    names = [f"t/same{number}" for number in range(80)]
    before = result(*[value(name, 1.0, 0.1) for name in names], value("t/worse", 1.0, 0.1), value("t/other", 1.0, 0.1))
    after = result(*[value(name, 1.0, 0.1) for name in names], value("t/worse", 9.0, 0.1), value("t/other", 1.0, 0.1))
    comparison = compare_results(before, after)
    print_contrasts(comparison, headline=["t/same7"], fits_screen=True)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    rows = [line.split()[1] for line in lines if " t/" in line]
    assert len(lines) <= SCREEN
    assert rows[:3] == ["t/same7", "t/worse", "t/same0"]
    hidden = len(comparison.contrasts) - len(rows)
    assert printed.err == f"not shown: {hidden} metrics ({hidden} indistinguishable); --all shows every metric\n"
    print_contrasts(comparison, whole=True)
    assert sum(" t/" in line for line in capsys.readouterr().out.splitlines()) == 82


def test_two_runs_are_a_row_for_each_metric(capsys: pytest.CaptureFixture[str]) -> None:
    """They printed 1,064 lines."""
    numbers = {f"t/{name}": at for at, name in enumerate("abcdefgh" * 8)} | {f"t/{at}": at for at in range(60)}
    steps = [
        (step, result(*[value(name, 1.0) for name in numbers]), result(*[value(name, change) for name in numbers]))
        for step, change in ((0, 2.0), (10, 1.0), (20, 1.0))
    ]
    comparison = difference_curves("a", "b", steps, Options())
    print_difference_curves(comparison, headline=["t/h"], every_step=False)
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines() if " t/" in line]
    assert len(printed.out.splitlines()) <= SCREEN
    assert rows[0][1:3] == ["t/h", "20"]
    assert f"not shown: {len(numbers) - len(rows)} metrics, companions among them\n" in printed.err
    assert "--metric NAME shows every step of a metric, and --all every metric\n" in printed.err
