"""How soon a browser shows the first chart of a history: evalsvc's pages next to those of three trackers.

Every side gets the same history: runs with metrics at steps, drawn at random. Every visit is a new process of Chromium
with an empty profile; each service has answered the same page before. Sides take turns. Measured are, from the start of
the navigation:

- *first*: until the first chart has its lines;
- *in view*: until all charts in the viewport have theirs, or `LONGEST` seconds;
- *requests* and *bytes* that the browser asked for and received until then, and the requests to other hosts, which
  have no network to go to.

    python benchmarks/trackers.py [--quick] [--peers FOLDER] [--chromium PATH] [--pictures FOLDER]

Peers are installed into an environment of their own (`--peers` keeps it), since none is a dependency of evalsvc. Needs
playwright and Chromium, and the extra `dashboard`. Prints a card, a table and as last line one JSON document; `ratios`
are the peer's seconds to the first chart over evalsvc's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from compare import service
from history import Mlflow
from playwright.sync_api import sync_playwright
from side_by_side import machine, print_last_line

from evalsvc.client import Client
from evalsvc.config import Settings

OURS = "evalsvc"

PEERS = ("mlflow>=3,<4", "tensorboard>=2.20,<3", "trackio>=0.4")

LONGEST = 60.0

START_SECONDS = 120.0

BROWSER = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")

VIEW = {"width": 1280, "height": 800}


@dataclass(frozen=True)
class Sizes:
    runs: int = 5
    metrics: int = 50
    steps: int = 2_000
    turns: int = 5


QUICK = Sizes(runs=2, metrics=3, steps=50, turns=1)

Curves = Mapping[str, Mapping[str, Sequence[float]]]
"""Values by run and metric; the place of a value is its step."""


def drawn_curves(sizes: Sizes) -> Curves:
    """Return noisy curves that fall."""
    own = random.Random(0)
    return {
        f"run-{run}": {
            f"bench{metric:02d}/loss": [2 + 4 / (1 + step / 100) + own.gauss(0, 0.05) for step in range(sizes.steps)]
            for metric in range(sizes.metrics)
        }
        for run in range(sizes.runs)
    }


@dataclass(frozen=True)
class Side:
    """Pages of a tracker."""

    url: str
    """Address of the page that lays all runs over each other."""
    chart: str
    """Selector of a chart, drawn or not."""
    lines: str
    """Selector of what a chart has once its lines are drawn."""


@dataclass
class Visit:
    """What a browser did until the charts in view were drawn."""

    first: float = 0.0
    in_view: float | None = None
    """None: not within LONGEST seconds."""
    requests: int = 0
    bytes: int = 0
    others: list[str] = field(default_factory=list)
    """Other hosts that the page asked for something."""


STATE = """([chart, lines]) => {
  const charts = [...document.querySelectorAll(chart)].filter((element) => {
    const box = element.getBoundingClientRect();
    return box.width > 0 && box.bottom > 0 && box.top < innerHeight;
  });
  const drawn = charts.filter((element) => element.querySelector(lines));
  return { seconds: performance.now() / 1000, charts: charts.length, drawn: drawn.length };
}"""


def visit(side: Side, chromium: str, picture: Path | None = None) -> Visit:
    """Open the page in a new browser, and wait for its charts."""
    result = Visit()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(BROWSER))
        page = browser.new_context(viewport=VIEW).new_page()
        own = urlsplit(side.url).netloc
        devtools = page.context.new_cdp_session(page)
        devtools.send("Network.enable")
        devtools.on("Network.loadingFinished", lambda event: _count(result, int(event["encodedDataLength"])))
        page.on("request", lambda request: _ask(result, urlsplit(request.url).netloc, own))
        page.goto(side.url, wait_until="commit")
        until = time.monotonic() + LONGEST
        while time.monotonic() < until:
            state = page.evaluate(STATE, [side.chart, side.lines])
            if state["drawn"] and not result.first:
                result.first = state["seconds"]
            if state["drawn"] and state["drawn"] == state["charts"]:
                result.in_view = state["seconds"]
                break
            page.wait_for_timeout(20)
        if picture is not None:
            page.screenshot(path=picture)
        browser.close()
    if not result.first:
        raise RuntimeError(f"{side.url} showed no chart within {LONGEST:g} s")
    return result


def _count(result: Visit, size: int) -> None:
    result.requests += 1
    result.bytes += size


def _ask(result: Visit, host: str, own: str) -> None:
    if host and host != own:
        result.others.append(host)


@contextmanager
def evalsvc_side(folder: Path, curves: Curves) -> Iterator[Side]:
    """Import the history into a service of ours."""
    settings = Settings(data_dir=str(folder))
    folder.mkdir()
    with service(settings) as url, Client(url, timeout=600) as client:
        for run, metrics in curves.items():
            for metric, values in metrics.items():
                series = {"metric": metric, "step": list(range(len(values))), "value": list(values)}
                client.import_values(run, "drawn at random", [series])
        first, *others = curves
        query = "&".join(f"with={run}" for run in others)
        yield Side(f"{url}/runs/{first}?{query}", ".chart", "svg, canvas")


@contextmanager
def mlflow_side(program: Path, folder: Path, curves: Curves) -> Iterator[Side]:
    """Log the history to MLflow's tracking server, on SQLite."""
    folder.mkdir()
    port = _free_port()
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder)]
    command = [str(program / "mlflow"), "server", *store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with _server(command, folder, f"http://127.0.0.1:{port}/health"):
        peer = Mlflow(f"http://127.0.0.1:{port}")
        for metrics in curves.values():
            peer.write(peer.new_run(), metrics)
        url = f"http://127.0.0.1:{port}/#/experiments/{peer.experiment}/runs?compareRunsMode=CHART"
        yield Side(url, ".js-plotly-plot", ".scatterlayer path.js-line")


TENSORBOARD = """
import json, sys
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
for run, metrics in json.load(open(sys.argv[1])).items():
    writer = EventFileWriter(f"{sys.argv[2]}/{run}", max_queue_size=1000)
    for step, values in enumerate(zip(*metrics.values())):
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in zip(metrics, values)]
        writer.add_event(Event(wall_time=1e9 + step, step=step, summary=Summary(value=scalars)))
    writer.close()
"""


@contextmanager
def tensorboard_side(program: Path, folder: Path, curves: Curves) -> Iterator[Side]:
    """Write event files, and serve them."""
    _write_by(program, TENSORBOARD, folder, curves)
    port = _free_port()
    logs = ["--logdir", str(folder / "logs"), "--port", str(port), "--load_fast=false", "--reload_interval", "5"]
    with _server([str(program / "tensorboard"), *logs], folder, f"http://127.0.0.1:{port}/data/environment"):
        _wait_for_scalars(f"http://127.0.0.1:{port}", curves)
        yield Side(f"http://127.0.0.1:{port}/#timeseries", "scalar-card", "line-chart canvas, line-chart svg path")


def _wait_for_scalars(url: str, curves: Curves) -> None:
    """Wait until TensorBoard has read the last value of all runs."""
    wanted = {run: len(next(iter(metrics.values()))) - 1 for run, metrics in curves.items()}
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        tag = next(iter(next(iter(curves.values()))))
        last = {run: _last_step(url, run, tag) for run in wanted}
        if last == wanted:
            return
        time.sleep(0.5)
    raise RuntimeError(f"TensorBoard has read {last} of {wanted}")


def _last_step(url: str, run: str, tag: str) -> int | None:
    query = {"run": run, "tag": tag}
    answer = httpx2.get(f"{url}/data/plugin/scalars/scalars", params=query, trust_env=False, timeout=60)
    return int(answer.json()[-1][1]) if answer.is_success and answer.json() else None


TRACKIO = """
import json, sys
import trackio
for run, metrics in json.load(open(sys.argv[1])).items():
    trackio.init(project="history", name=run)
    for step, values in enumerate(zip(*metrics.values())):
        trackio.log(dict(zip(metrics, values)), step=step)
    trackio.finish()
"""


def _write_by(program: Path, script: str, folder: Path, curves: Curves, **variables: str) -> None:
    """Have a peer's own package write the history."""
    folder.mkdir()
    (folder / "curves.json").write_text(json.dumps(curves))
    command = [str(program / "python"), "-P", "-c", script, str(folder / "curves.json"), str(folder / "logs")]
    subprocess.run(command, check=True, env=_environment() | variables, cwd=folder, stdout=subprocess.DEVNULL)


@contextmanager
def trackio_side(program: Path, folder: Path, curves: Curves) -> Iterator[Side]:
    """Log the history by Trackio's package, and show its dashboard."""
    variables = {"TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1"}
    _write_by(program, TRACKIO, folder, curves, **variables)
    port = _free_port()
    script = (
        f"import trackio; trackio.show(project='history', server_port={port}, open_browser=False, block_thread=True)"
    )
    command = [str(program / "python"), "-P", "-c", script]
    with _server(command, folder, f"http://127.0.0.1:{port}/", **variables):
        yield Side(f"http://127.0.0.1:{port}/?project=history", ".vega-embed", "canvas, svg")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@contextmanager
def _server(command: Sequence[str], folder: Path, health: str, **variables: str) -> Iterator[None]:
    """Run a peer's server until the end of the block; it is ready once `health` answers."""
    log = folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=_environment() | variables,
            cwd=folder,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(health):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text()[-2000:])
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # it may have children of its own
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, trust_env=False).is_success
    except httpx2.TransportError:
        return False


def install(folder: Path) -> Path:
    """Install the peers that are not there; return the folder of their programs."""
    program = folder / "bin"
    if not (program / "python").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([program / "python", "-P", "-m", "pip", "install", "--quiet", *PEERS], check=True)
    return program


def versions(program: Path) -> dict[str, str]:
    """Return the versions of the peers."""
    script = "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in %r}))"
    names = [peer.partition(">")[0] for peer in PEERS]
    done = subprocess.run([program / "python", "-P", "-c", script % names], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two runs of three short metrics, one turn")
    parser.add_argument("--peers", type=Path, help="environment of the peers; without it, they are installed")
    parser.add_argument("--only", nargs="*", default=["mlflow", "tensorboard", "trackio"], help="peers to measure")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="program to drive")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each side, to look at")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else Sizes()
    curves = drawn_curves(sizes)
    peers: dict[str, Any] = {"mlflow": mlflow_side, "tensorboard": tensorboard_side, "trackio": trackio_side}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evalsvc-trackers-")))
        program = install(arguments.peers or folder / "peers") if arguments.only else Path()
        named = versions(program) if arguments.only else {}
        sides = {OURS: stack.enter_context(evalsvc_side(folder / "evalsvc", curves))}
        for name in arguments.only:
            sides[name] = stack.enter_context(peers[name](program, folder / name, curves))
        print(f"{sizes.runs} runs × {sizes.metrics} metrics × {sizes.steps:,} steps; {sizes.turns} turns; {named}")
        print(machine(), "\n")
        if arguments.pictures is not None:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
        for name, side in sides.items():  # once without a watch: what is first read or compiled is so now
            visit(side, arguments.chromium, arguments.pictures and arguments.pictures / f"{name}.png")
        visits: dict[str, list[Visit]] = {name: [] for name in sides}
        for _ in range(sizes.turns):
            for name, side in sides.items():
                visits[name].append(visit(side, arguments.chromium))
    _print(visits, named)


def _print(visits: Mapping[str, Sequence[Visit]], named: Mapping[str, str]) -> None:
    first = {name: statistics.median(each.first for each in seen) for name, seen in visits.items()}
    in_view = {name: [each.in_view for each in seen if each.in_view is not None] for name, seen in visits.items()}
    print(f"{'side':12} {'first':>7} {'in view':>8} {'requests':>9} {'MB':>6}  other hosts")
    for name, seen in visits.items():
        all_drawn = statistics.median(in_view[name]) if in_view[name] else float("nan")
        hosts = ", ".join(sorted({host for each in seen for host in each.others})) or "none"
        print(
            f"{name:12} {first[name]:7.2f} {all_drawn:8.2f} {seen[-1].requests:9} {seen[-1].bytes / 1e6:6.2f}  {hosts}"
        )
    print_last_line(
        "trackers",
        {name: value / first[OURS] for name, value in first.items() if name != OURS},
        versions=named,
        first=first,
        in_view={name: statistics.median(column) if column else None for name, column in in_view.items()},
        requests={name: seen[-1].requests for name, seen in visits.items()},
        bytes={name: seen[-1].bytes for name, seen in visits.items()},
        other_hosts={name: sorted({host for each in seen for host in each.others}) for name, seen in visits.items()},
    )


if __name__ == "__main__":
    main()
