"""The demo, with one checkpoint of the twelve; all of them are what `make demo` runs."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import psutil
import pytest
from queue_steps import metric, next_shard, plan, ran, result, store_result
from shown_intervals import shown_intervals, stored_intervals

from evalsvc.cli import demo, terminal
from evalsvc.client import Client
from evalsvc.errors import AssetMissing
from evalsvc.installation import PYTHON, pip_install
from evalsvc.spec import documents
from evalsvc.web import vega
from evalsvc.web.pages.run import RunPage

MEASURED = {
    "pairs": ("pairs/image", "pairs/text"),
    "text": ("text/text",),
    "digits": ("digits/fid64", "digits/agreement"),
    "forgetting": ("cloze/acc",),
}
"""What the tasks of the suite bring back of what the table shows."""

COMPLETION = {"prompt": "Simply put", "way": "greedy", "text": " it", "base": None}


def test_what_is_posted_is_waited_for_and_shown(service: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    every = demo.checkpoints()
    assert [step for run, step, _ in every if run == "pretrained"] == [0, 10, 20, 80, 300, 3000]
    assert (len(every), all(file.exists() for _, _, file in every)) == (12, True)
    [checkpoint] = [found for found in every if found[:2] == ("pretrained", 20)]
    monkeypatch.setattr(demo, "checkpoints", lambda: [checkpoint])
    monkeypatch.setattr(demo, "RUNS", ("pretrained",))
    with Client(os.environ["EVALSVC_URL"]) as client:
        evaluations = demo.post_all(client)
        assert list(evaluations.values()) == ["pretrained step 20"]
        seen: list[tuple[int, float | None]] = []

        def work(queue: documents.Queue) -> None:
            seen.append((queue.queued, queue.seconds_left))
            while assignment := next_shard(service.store):
                task = assignment.request.task
                metrics = [metric(1.5, name) for name in MEASURED.get(task.name, ())]
                items = [COMPLETION] if task.kind == "completions" else []
                stages = {"plan": plan(1), "run": ran(), "merge": result(*metrics, items=items)}
                assert store_result(service.store, assignment, stages[assignment.request.stage])

        assert demo.wait_all(client, evaluations, work) == []
        assert [queued for queued, _ in seen] == [1, 0], "what waits, and then that nothing does"
        assert demo.read_table(client) == {"pretrained": {20: dict.fromkeys(demo.COLUMNS, "1.500±0.100")}}
        assert demo.write_files(client, tmp_path / "files") == []
        assert demo.read_answers(client) == {"Simply put": {("pretrained", 20): " it"}}


@pytest.mark.timeout(400)  # on a busy machine
@pytest.mark.usefixtures("child_process")
def test_a_checkpoint_goes_from_post_to_table(
    inception_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The service once looked for the weights in the demo's own folder, and every image task failed."""
    monkeypatch.setenv("EVALSVC_ASSETS", str(inception_path.parent))
    [last] = [file for run, step, file in demo.checkpoints() if (run, step) == ("pretrained", 3000)]
    monkeypatch.setattr(demo, "VERIFIED_ON", 20)
    # As step 0, so that it is its own base.
    monkeypatch.setattr(demo, "checkpoints", lambda: [("pretrained", 0, last)])
    monkeypatch.setattr(demo, "RUNS", ("pretrained",))
    with demo.started_service(tmp_path, "cpu,cpu", inception_path.parent) as url, Client(url) as client:
        seen: list[float | None] = []
        failures = demo.wait_all(client, demo.post_all(client), lambda queue: seen.append(queue.seconds_left))
        assert failures == []
        assert any(left is not None for left in seen), "of one checkpoint, the time left is known before its end"
        cells = demo.read_table(client)["pretrained"][0]
        answers = demo.read_answers(client)
        files = demo.write_files(client, tmp_path / "files")
        stored = stored_intervals(client, "pretrained@0")
        shown = shown_intervals(client, url, "pretrained@0", partial(run_command, url))
        assert demo.verify_last(url, "cpu,cpu") == []
    assert {place: ends for place, ends in shown.items() if ends != stored} == {}, "one value has one interval"
    assert sum(low is not None for low, _ in stored.values()) > 0.7 * len(stored) > 60
    printed = capfd.readouterr().out
    assert printed.startswith("evalsvc verify pretrained@0 --suite miniature --engine extractor=clean-fid --n 20\n")
    assert "all 5 agree; 2 could not be tried" in printed, printed
    assert set(cells) == set(demo.COLUMNS)
    numbers = {name: float(cell.partition("±")[0]) for name, cell in cells.items()}
    assert numbers["agreement"] > 0.8
    assert numbers["cloze (chance .25)"] < 0.35
    kept = {path.name: path.stat().st_size for path in files}
    assert all(kept.values())
    assert kept.keys() == {f"pretrained-0-{name}" for name in ("grid.png", "forgetting.txt", "completions.txt")}
    assert [prompt.split()[0] for prompt in answers] == ["Simply", "Translate"]
    assert all("‹image" in texts["pretrained", 0] for texts in answers.values())


def run_command(url: str, *arguments: str) -> str:
    command, env = [sys.executable, "-m", "evalsvc.cli", *arguments], os.environ | {"EVALSVC_URL": url}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def test_lines_fit_a_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of runs were cut, and a checkpoint took three lines."""
    monkeypatch.setattr(terminal, "terminal_width", lambda: 80)
    cells = ("9.399±0.012", "6.967±0.030", "13.670±0.104", "0.793±0.023", "1.167±0.034", "0.922±0.017")
    demo._print_table({run: {3000: dict(zip(demo.COLUMNS, cells, strict=True))} for run in demo.RUNS})
    demo._print_answers({"A prompt " * 20: {(demo.RUNS[1], 3000): "an answer " * 20}})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line in demo.RUNS] == list(demo.RUNS)
    assert [line.split() for line in lines if line.startswith("3000")] == [["3000", *cells]] * 2


def test_what_is_not_installed_is_said_before_the_address_of_a_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda module: None)
    monkeypatch.setattr(vega, "is_installed", lambda: False)
    assert demo.verify_last("http://127.0.0.1:1", "cpu,cpu") == []
    demo._say_dashboard("http://127.0.0.1:8321")
    printed = capsys.readouterr().out
    assert (pip_install("reference") in printed, pip_install("dashboard") in printed) == (True, True)
    assert "evalsvc verify pretrained@3000 --suite miniature --engine extractor=clean-fid" in printed
    address = urlsplit(printed.splitlines()[-1])
    assert (address.scheme, address.netloc) == ("http", "127.0.0.1:8321")
    _, runs, run = address.path.split("/")
    page = RunPage.parse([("run", run), *parse_qsl(address.query)])
    assert (runs, page.run, page.also) == ("runs", *demo.RUNS[:1], demo.RUNS[1:])


def test_missing_weights_are_said_before_anything_starts(tmp_path: Path) -> None:
    with (
        pytest.raises(AssetMissing, match="evalsvc assets pull inception"),
        demo.started_service(tmp_path, "cpu", tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


ENDLESS = """
import sys, time
from evalsvc.cli import demo, main
demo.locate_asset = lambda *_: None
demo.post_all = lambda client: time.sleep(60)
sys.argv = ["evalsvc", "demo", "--devices", "cpu"]
main()
"""


@pytest.mark.usefixtures("child_process")
def test_the_service_ends_with_the_demo(tmp_path: Path) -> None:
    """After SIGTERM, as of `timeout` and of a job that is cancelled, the service and its workers went on for ever."""
    command = [*PYTHON, "-c", ENDLESS]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert line.startswith("evalsvc listens on http://127.0.0.1:")
    assert children
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert list(tmp_path.iterdir()) == []
