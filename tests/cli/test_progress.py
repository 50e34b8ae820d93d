"""What the command line says while it waits."""

import io
import re
import sys
import time

import pytest
from example_documents import example

from evalsvc.cli import progress
from evalsvc.cli.progress import print_news, show_bars, show_transfer
from evalsvc.spec.documents import Error, Evaluation, Interim, Metric, Progress, Retry, Task


def evaluation(retry: Retry | None = None, interim: Interim | None = None) -> Evaluation:
    progress = example(Progress, unit="sequences")
    task = example(Task, name="loss", progress=progress, retry=retry, interim=interim)
    return example(Evaluation, id=7, tasks=[task])


def test_news_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = print_news()
    error = Error(code="out_of_memory", message="the worker ran out of memory")
    metric = example(Metric, name="loss/text", value=1.5, stderr=0.25, protocol="p1")
    for at in ("2026-05-04T10:00:00+00:00", "2026-05-04T10:00:00+00:00", "2026-05-04T10:00:08+00:00"):
        report(evaluation(Retry(shards=1, at=at, error=error)))
        report(evaluation(interim=Interim(done=256, metrics=[metric], protocols={})))
    report(evaluation())
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" at ")[0] for line in lines if "retried" in line] == ["loss is retried"] * 2
    assert lines[0].endswith(":00: the worker ran out of memory [out_of_memory]")
    assert sum("after 256 sequences: text 1.5" in line for line in lines) == 1


def test_several_values_of_one_name_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = [
        example(Metric, name="coco/fid", value=10 * scale, stderr=0.5, protocol=f"p{scale:.0f}") for scale in (1.0, 3.0)
    ]
    sampling = {"p1": {"guidance_scale": 1.0}, "p3": {"guidance_scale": 3.0}}
    protocols: dict[str, dict[str, object]] = {name: {"sampling": fields} for name, fields in sampling.items()}
    print_news()(evaluation(interim=Interim(done=64, metrics=metrics, protocols=protocols)))
    said = "fid (sampling.guidance_scale=1.0) 10 ± 0.5, fid (sampling.guidance_scale=3.0) 30 ± 0.5"
    assert capsys.readouterr().err == f"loss after 64 sequences: {said}\n"


def test_without_a_terminal_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job in CI printed nothing until its end. The work says nothing while the lines are printed."""
    monkeypatch.setattr(progress, "EVERY", 0.02)
    with show_bars() as bars:
        time.sleep(0.05)
        bars.show("pairs", 96, None, "sequences")
        bars.show("pairs", 128, 4000, "sequences")
        bars.show("evil\x1b[2J", 1, 2, "images")
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(": nothing has begun yet")
    assert lines[-1].startswith("after ")
    assert lines[-1].endswith(" s: pairs 128 of 4,000 sequences; evil\\x1b[2J 1 of 2 images")
    assert 3 <= len(lines) <= 6
    time.sleep(0.05)
    assert capsys.readouterr().err == "", "the lines end with the work"


def test_a_line_that_says_nothing_new_comes_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ "After 2 min: nothing has begun yet" was printed five times in a row while a model was loaded."""
    monkeypatch.setattr(progress, "EVERY", 0.01)
    with show_bars() as bars:
        bars.show("mine", 0, None, "is being planned")
        time.sleep(0.4)
        bars.show("mine", 0, 165, "images (85 real, 80 sampled)")
        time.sleep(0.05)
        bars.show("mine", 32, 165, "images (85 real, 80 sampled)")
        bars.show("other", 0, None, "")
        time.sleep(0.05)
    lines = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert 3 <= lines.count("mine is being planned") <= 6, "at 10, 30, 70, 150 and 310 ms"
    assert "mine 0 of 165 images (85 real, 80 sampled), loading or at work on the first" in lines
    assert "mine 32 of 165 images (85 real, 80 sampled); other waits, or is being planned" in lines
    assert lines[-1] == "mine 32 of 165 images (85 real, 80 sampled)", "an error says what became of the other"


def test_work_of_a_moment_has_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with show_bars() as bars:
        bars.show("pairs", 1, 2, "sequences")
    assert capsys.readouterr().err == "after 0 s: pairs 1 of 2 sequences\n"
    with show_bars():
        pass
    assert capsys.readouterr().err == "", "no work, no line"


def send(error: OSError | None) -> None:
    with show_transfer() as report:
        report("reading", 0, 300_000)
        report("sending", 2_000_000, 5_200_000)
        if error is not None:
            raise error


def test_a_transfer_in_a_pipe_ends_with_all_its_bytes_unless_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """A report comes before the part of the file that it counts; a small file has a whole MB."""
    send(None)
    assert capsys.readouterr().err == "after 0 s: reading 1 of 1 MB; sending 6 of 6 MB\n"
    with pytest.raises(OSError, match="lost"):
        send(OSError("lost"))
    assert capsys.readouterr().err.endswith("; sending 2 of 6 MB\n")


def test_a_terminal_gets_a_bar_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with show_transfer() as report:
        report("sending", 500_000_000, 2_000_000_000)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "2000/2000 MB" in text
    assert max(map(len, re.split("[\r\n]", text))) <= 80
