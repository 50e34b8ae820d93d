"""`evalsvc demo`: evaluate the bundled miniature runs with a service of their own."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import typer
from typer import Option

from evalsvc.assets import locate_asset
from evalsvc.cli.options import FAILED
from evalsvc.cli.progress import show_bars
from evalsvc.cli.terminal import complain, one_line, print_table, say, wrapped
from evalsvc.client import Client
from evalsvc.config import Settings
from evalsvc.errors import InternalError
from evalsvc.installation import PYTHON, pip_install
from evalsvc.miniature import ROOT
from evalsvc.spec.documents import Queue
from evalsvc.web import vega

commands = typer.Typer()

RUNS = ("pretrained", "random-init")
SUITE = "miniature"
START_TIMEOUT = 60.0

COLUMNS = {
    "image loss": "pairs/image",
    "caption loss": "pairs/text",
    "text loss": "text/text",
    "cloze (chance .25)": "cloze/acc",
    "fid64": "digits/fid64",
    "agreement": "digits/agreement",
}

KEPT_KINDS: Mapping[str, str | None] = {"grid": None, "forgetting": "text", "completions": "text"}
"""Kinds of artifacts that the demo writes into files, with their forms: image grids and pages."""

VERIFIED_BY, VERIFIED_ON = "extractor=clean-fid", 16
"""Engine that the demo compares with at the end, and number of items of each task: few enough for a few seconds."""

DASHBOARD = f"/runs/{RUNS[0]}?" + urlencode({"with": RUNS[1], "along": "log"})
"""Address of the page to look at first: both runs over each other, on an axis that shows the first steps, too."""

WIDTH = 80
"""Width of the lines about completions, in characters."""

Table = Mapping[str, Mapping[int, Mapping[str, str]]]
Answers = Mapping[str, Mapping[tuple[str, int], str]]


@commands.command()
def demo(
    leave: Annotated[bool, Option("--exit", help="End after the numbers, without a dashboard.")] = False,
    data_dir: Annotated[
        Path | None, Option(help="Data folder of the service.", show_default="a temporary folder")
    ] = None,
    output: Annotated[
        Path | None, Option(help="Folder for image grids and pages.", show_default="a new folder, which is kept")
    ] = None,
    devices: Annotated[str, Option(help="Devices with one worker process each.")] = "cpu,cpu",
) -> None:
    """Evaluate the small run that comes with evalsvc: losses, images, FID, and forgotten English.

    If clean-fid is installed, items of the last checkpoint are computed a second time, with features by clean-fid.
    Image grids and pages are written into a folder, which is kept when the demo ends. The service runs until Ctrl-C,
    and the last line is the address of its dashboard.

    The demo needs the asset `inception`: evalsvc assets pull inception.
    """
    # As at Ctrl-C, the service is stopped and its folder removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="evalsvc-demo-") as temporary:
        folder = data_dir or Path(temporary)
        assets = Settings.load().assets_path
        with started_service(folder, devices, assets) as url, Client(url) as client:
            say(f"evalsvc listens on {url}")
            evaluations = post_all(client)
            with show_bars() as bars:
                begun = time.monotonic()

                def report(queue: Queue) -> None:
                    spent, done = int(time.monotonic() - begun), len(evaluations) - queue.queued - queue.running
                    whole = None if queue.seconds_left is None else spent + math.ceil(queue.seconds_left)
                    bars.show("miniature", spent, whole, f"s, {done} of {len(evaluations)} checkpoints")

                failures = wait_all(client, evaluations, report)
            _print_table(read_table(client))
            paths = write_files(client, output or Path(tempfile.mkdtemp(prefix="evalsvc-demo-files-")))
            if paths:
                say(f"image grids and pages of every checkpoint are in {paths[0].parent}:")
                for run in RUNS:
                    names = [path.name for path in paths if path.name.startswith(f"{run}-")]
                    for name in names[-len(KEPT_KINDS) :]:
                        say(f"  {name}")
                say()
            _print_answers(read_answers(client))
            failures = failures or verify_last(url, devices)
            for failure in failures:
                complain(failure)
            if not leave and not failures:
                _say_dashboard(url)
                try:
                    signal.pause()
                except KeyboardInterrupt:
                    say()
        if failures:
            raise typer.Exit(FAILED)


@contextmanager
def started_service(data_dir: Path, devices: str, assets: Path) -> Iterator[str]:
    """Start a service process on a free port, yield its address, and stop the process at the end of the block."""
    locate_asset("inception", assets)
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "service.log"
    command = [*PYTHON, "-m", "evalsvc.cli", "serve", "--port", "0", "--data-dir", str(data_dir)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--devices", devices],
            stdout=stream,
            stderr=subprocess.STDOUT,
            # The data folder is new; assets that are installed need no second download.
            env=os.environ | {"EVALSVC_ASSETS": str(assets)},
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while (match := re.search(r"listens on (http://\S+)", log.read_text())) is None:
            if time.monotonic() > deadline or process.poll() is not None:
                last = (log.read_text().strip().splitlines() or ["nothing"])[-1]
                problem = f"the service of the demo did not start, and its log ends with: {last}"
                raise InternalError(f"{problem}; keep the log by --data-dir DIR")
            time.sleep(0.05)
        yield match[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def checkpoints() -> list[tuple[str, int, Path]]:
    files = []
    for run in RUNS:
        folder = ROOT / "runs" / run
        # The names of the files have only epochs; the index has the training steps.
        for name, step in map(str.split, (folder / "steps.txt").read_text().splitlines()):
            files.append((run, int(step), folder / "checkpoints" / name))
    return sorted(files, key=lambda entry: (entry[1], entry[0]))


def post_all(client: Client) -> dict[int, str]:
    """Post every checkpoint of both runs, and return the checkpoints' names by the id of the evaluation."""
    evaluations = {}
    for run, step, file in checkpoints():
        posted = client.submit(run, step, str(file), suites=[SUITE], layout=str(ROOT / "runs" / "layout.yaml"))
        for evaluation in posted.evaluations:
            evaluations[evaluation.id] = f"{run} step {step}"
    return evaluations


def wait_all(client: Client, evaluations: Mapping[int, str], report: Callable[[Queue], None]) -> list[str]:
    """Return a line for each failed task. `report` gets the queue, again and again."""
    failures: list[str] = []
    for evaluation, name in evaluations.items():
        tasks = client.wait(evaluation, report=lambda _: report(client.status().queue)).tasks
        failures += [f"{name}, {task.name}: {task.error.message}" for task in tasks if task.error is not None]
    return failures


def read_table(client: Client) -> Table:
    """Return values ± standard errors by run, step and column."""
    columns = {metric: column for column, metric in COLUMNS.items()}
    table: dict[str, dict[int, dict[str, str]]] = {run: {} for run in RUNS}
    for run, rows in table.items():
        for series in client.history(run).series:
            if series.metric in columns:
                for step, value, stderr in zip(series.x, series.value, series.stderr, strict=True):
                    error = "" if stderr is None else f"±{stderr:.3f}"
                    cell = value if isinstance(value, str) else f"{value:.3f}{error}"
                    rows.setdefault(step, {})[columns[series.metric]] = cell
    return table


def write_files(client: Client, folder: Path) -> list[Path]:
    """Write the image grids and pages of every checkpoint into `folder`, and return the paths by run and step."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for run in RUNS:
        for artifact in sorted(client.artifacts(run), key=lambda artifact: artifact.step):
            if artifact.kind in KEPT_KINDS:
                form, name = KEPT_KINDS[artifact.kind], Path(artifact.name)
                path = folder / f"{run}-{artifact.step}-{name.stem}{'.txt' if form else name.suffix}"
                path.write_bytes(client.artifact_content(artifact.id, form).content)
                written.append(path)
    return written


def read_answers(client: Client) -> Answers:
    texts: dict[str, dict[tuple[str, int], str]] = {}
    for run in RUNS:
        for step in client.completions(run):
            for item in step.completions:
                if item.way == "greedy":
                    texts.setdefault(item.prompt, {})[run, step.step] = item.text
    return texts


def verify_last(url: str, devices: str) -> list[str]:
    """Compute the first items of the last checkpoint a second time; return a line if an item differs."""
    step = max(step for run, step, _ in checkpoints() if run == RUNS[0])
    command = ["verify", f"{RUNS[0]}@{step}", "--suite", SUITE, "--engine", VERIFIED_BY]
    if not all(find_spec(module) for module in ("torch_fidelity", "cleanfid", "scipy")):
        say(f"to have clean-fid compute the features: {pip_install('reference')}, then evalsvc {' '.join(command)}")
        return []
    command += ["--n", str(VERIFIED_ON)]
    say(f"evalsvc {' '.join(command)}")
    sys.stdout.flush()
    device = devices.partition(",")[0]
    # One thread, like each of two workers on two cores: another number may round to other image codes.
    where = ["--threads", "1", *([] if device == "all" else ["--device", device])]
    environment = os.environ | {"EVALSVC_URL": url}
    done = subprocess.run([*PYTHON, "-m", "evalsvc.cli", *command, *where], env=environment, check=False)
    return [f"evalsvc {' '.join(command)} ended with {done.returncode}"] if done.returncode else []


def _print_table(table: Table) -> None:
    for run, rows in table.items():
        say(run)
        lines = [[str(step), *(cells.get(name, "") for name in COLUMNS)] for step, cells in sorted(rows.items())]
        print_table(["step", *COLUMNS], lines)


def _print_answers(answers: Answers) -> None:
    for prompt, texts in answers.items():
        say("\n".join(wrapped(one_line(prompt), WIDTH)))
        for (run, step), text in texts.items():
            line = f"  {run:>11} {step:>4} │ {one_line(text)}"
            say(line if len(line) <= WIDTH else f"{line[: WIDTH - 2]} …")
        say()


def _say_dashboard(url: str) -> None:
    if not vega.is_installed():
        say(f"the dashboard has tables, and no charts; for charts: {pip_install('dashboard')}")
    say(f"serving until Ctrl-C; open the dashboard in a browser:\n{url}{DASHBOARD}")
