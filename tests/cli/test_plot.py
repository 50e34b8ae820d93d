"""`evalsvc plot`: a metric in the terminal and as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from console import Command
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.cli import plot
from evalsvc.web import vega


@pytest.fixture
def measured(service: Any) -> None:
    for run, offset in (("run-a", 0.0), ("run-b", 1.0)):
        for step, value in ((0, 5.0), (1000, 3.0), (2000, float("nan")), (3000, 2.5)):
            enter(service.store, submission(step, run=run, uri=f"/{run}/{step}.pt"), suite("loss"))
            evaluate_whole(service.store, metric(value + offset), metric(1.25, "loss/image", stderr=None))


def test_a_pipe_gets_80_columns_without_colours(command: Command, measured: None) -> None:
    done = command("plot", "run-a", "run-b", "--metric", "loss/text")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.out
    assert lines[0].strip() == "loss/text (nats/token)"
    assert "● run-a  2.5 ± 0.1 at 3,000" in lines
    assert "■ run-b  3.5 ± 0.1 at 3,000" in lines
    assert "? a value that is no finite number" in lines
    assert "is the interval of each value at the level 95 %" in done.err


def test_without_a_metric_the_first_of_the_headline_is_drawn(command: Command, measured: None) -> None:
    first = command("plot", "run-a").out.splitlines()[0]
    headline = command("history", "run-a", "--last", "1").out
    assert first.split()[0] in headline


def test_a_difference_is_drawn_with_its_noise(command: Command, measured: None) -> None:
    done = command("plot", "run-b", "--metric", "loss/text", "--against", "run-a")
    assert done.out.strip().startswith("loss/text: run-b − run-a (")
    assert "difference  1 at 3,000" in done.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--metric", "loss/txt"), "no metric is named 'loss/txt'; did you mean 'loss/text'"),
        (("--theme", "dark"), "--theme is for files; give --output"),
        (("--output", "plot.jpg"), "does not end in .svg or .png"),
        (("--output", "nowhere/plot.svg"), "the folder nowhere does not exist"),
        (("run-b", "--against", "run-a", "--metric", "loss/text"), "--against is for one run"),
        (("--against", "run-b", "--scale", "log", "--metric", "loss/text"), "--against is for one run"),
        (tuple(f"run-{i}" for i in range(9)), "10 runs are given, and a plot has colours for 8"),
        (("nope", "--metric", "loss/text"), "no run is named 'nope'"),
    ],
)
def test_what_cannot_be_drawn_is_said(command: Command, measured: None, options: tuple[str, ...], words: str) -> None:
    done = command("plot", "run-a", *options)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_a_run_without_values_is_said(command: Command, service: Any) -> None:
    enter(service.store, submission(0, run="new"))
    done = command("plot", "new")
    assert done.code == 2
    assert "run new has no values yet" in done.err


@pytest.mark.parametrize(("package", "output"), [("vl-convert-python", ("--output", "plot.svg")), ("plotext", ())])
def test_without_its_package_a_plot_is_refused(
    command: Command, measured: None, monkeypatch: pytest.MonkeyPatch, package: str, output: tuple[str, ...]
) -> None:
    for module in (vega, plot):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    done = command("plot", "run-a", *output)
    assert (done.code, done.out) == (2, "")
    assert f"needs the package '{package}'; run: pip install" in done.err
    assert "[dashboard]" in done.err
    assert not Path("plot.svg").exists()


@pytest.mark.parametrize(("name", "head"), [("plot.svg", b"<svg"), ("PLOT.PNG", b"\x89PNG\r\n")])
def test_a_file_has_the_chart(command: Command, measured: None, child_process: None, name: str, head: bytes) -> None:
    done = command("plot", "run-a", "run-b", "--metric", "loss/text", "--theme", "dark", "--output", name)
    assert done.code == 0, done.err
    content = Path(name).read_bytes()
    assert content.startswith(head)
    assert done.out == f"{name}: {len(content):,} bytes\n"
    if name.endswith("svg"):
        assert b"run-b" in content
        assert b"loss/text" in content
        assert b"#0d1117" in content
