"""The dashboard on a long history: how soon pages are there, and what they cost the service.

The history has 50 runs with 50 metrics at 2,000 steps each, written to the store as evaluations leave it: 5 million
values, 100,000 checkpoints and evaluations. Every visit has a browser profile of its own, without a cache; the service
has answered each page once before, and its own cache of answers stays. Measured are, of each page:

- *paint*: from the start of the navigation to the first contentful paint;
- *charts*: until every chart in the viewport has its picture;
- *served*: seconds of a request for the page's HTML alone, without a browser, and whether the same request with the
  tag of the answer gives 304;
- *processor*: seconds of processor time that the service takes for such a request, on average. It depends little on
  other work of the machine; the other times hold for a machine without.

And of the service: resident memory above that of the idle service, at the end and at its peak; and the share of a core
that browser and service together take while a page is open and nothing changes, above that with an empty page.

    python benchmarks/dashboard.py [--quick] [--chromium PATH]

Needs playwright and Chromium, and the extra `dashboard`. Prints a card, a table and as last line one JSON document;
`met` says which limits held. There is no peer and no ratio.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
from compare import service
from long_history import STEP, History, fill
from playwright.sync_api import Browser, sync_playwright
from side_by_side import machine, print_last_line

from evalsvc.config import Settings

LIMITS = {"paint": 1.0, "charts": 2.0, "memory": 150.0, "idle": 0.2}
"""Seconds, seconds, MB and per cent of a core."""

BROWSER = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")


@dataclass(frozen=True)
class Sizes:
    history: History = field(default_factory=History)
    turns: int = 5
    idle: float = 120.0
    """Seconds for which a page is open; before them it is open for half as long."""


QUICK = Sizes(History(runs=4, metrics=8, steps=100), turns=2, idle=6.0)

DRAWN = """() => {
  const charts = [...document.querySelectorAll(".chart")].filter((chart) => {
    const box = chart.getBoundingClientRect();
    return box.bottom > 0 && box.top < innerHeight;
  });
  const drawn = charts.every((chart) => chart.querySelector("svg, canvas"));
  return document.readyState === "complete" && drawn && { seconds: performance.now() / 1000, charts: charts.length };
}"""

PAINT = """() => {
  const [entry] = performance.getEntriesByName("first-contentful-paint");
  return entry ? entry.startTime / 1000 : null;
}"""


@dataclass
class Visits:
    """Seconds of each visit of a page."""

    paint: list[float] = field(default_factory=list)
    charts: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    number: int = 0
    """Charts in view."""
    bytes: int = 0
    """Bytes of the page, not compressed."""
    not_modified: bool = True


def addresses(history: History) -> dict[str, str]:
    """Return the pages, by what they show."""
    last = (history.steps - 1) * STEP
    several = "&".join(f"with=run-{number:02d}" for number in range(1, min(8, history.runs)))
    return {
        "all runs": "/",
        "runs by a metric": "/?sort=metric%3Abench00%2Floss",
        "groups of runs": "/?group=across%3Aseed",
        "a run": "/runs/run-00",
        "five runs over each other": f"/runs/run-00?{'&'.join(several.split('&')[:4])}",
        "eight runs over each other": f"/runs/run-00?{several}",
        "one chart": "/panels/curve.html?run=run-00&metric=bench00%2Floss",
        "two checkpoints": f"/compare?a=run-00%400&b=run-00%40{last}",
        "two runs": "/compare?a=run-00&b=run-01",
        "an evaluation": "/evaluations/1",
        "status": "/status",
    }


def visit(browser: Browser, url: str, visits: Visits) -> None:
    """Open a page in a profile of its own, and close it when the charts in view are drawn."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(url, wait_until="commit")
    found = page.wait_for_function(DRAWN, timeout=120_000, polling=20).json_value()
    page.wait_for_function(PAINT, timeout=120_000)
    visits.paint.append(page.evaluate(PAINT))
    visits.charts.append(found["seconds"])
    visits.number = found["charts"]
    context.close()


def ask(http: httpx2.Client, path: str, own: psutil.Process, visits: Visits) -> None:
    """Ask for a page without a browser, and again with the tag of the answer."""
    begun, before = time.perf_counter(), processor([own])
    answer = http.get(path).raise_for_status()
    visits.served.append(time.perf_counter() - begun)
    visits.processor.append(processor([own]) - before)
    visits.bytes = len(answer.content)
    again = http.get(path, headers={"If-None-Match": answer.headers["etag"]})
    visits.not_modified &= again.status_code == httpx2.codes.NOT_MODIFIED


def service_process(settings: Settings) -> psutil.Process:
    """Return the process of the service of a data folder."""
    [found] = [
        child
        for child in psutil.Process().children()
        if "serve" in child.cmdline() and child.environ().get("EVALSVC_DATA_DIR") == settings.data_dir
    ]
    return found


def megabytes(process: psutil.Process) -> tuple[float, float]:
    """Return the resident memory of a process, and its peak."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    kilobytes = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return int(kilobytes["VmRSS"]) / 1e3, int(kilobytes["VmHWM"]) / 1e3


def processor(processes: Sequence[psutil.Process]) -> float:
    """Return the processor time that processes have taken, in seconds."""
    return sum(times.user + times.system for process in processes for times in [process.cpu_times()])


def idle_shares(browser: Browser, url: str, own: psutil.Process, seconds: float) -> dict[str, float]:
    """Return per cents of a core that browser and service together take with an empty page, and with the first page."""
    page, shares = browser.new_context().new_page(), {}
    for name, address in {"an empty page": "about:blank", "a page": url}.items():
        page.goto(address)
        page.wait_for_function(DRAWN, timeout=120_000)
        page.wait_for_timeout(1e3 * seconds / 2)
        running = [own, *(child for child in psutil.Process().children(recursive=True) if "chrom" in child.name())]
        before = processor(running)
        page.wait_for_timeout(1e3 * seconds)
        shares[name] = 100 * (processor(running) - before) / seconds
    page.context.close()
    return shares


@dataclass(frozen=True)
class Measured:
    pages: Mapping[str, Visits]
    first: Mapping[str, float]
    """Seconds of each page's first request after the start of the service."""
    memory: Mapping[str, float]
    """MB: idle, at the end, and at the peak."""
    idle: Mapping[str, float]


def until_ready(http: httpx2.Client, patience: float = 60.0) -> None:
    """Return when the service is ready and has been so for three seconds: its workers start meanwhile."""
    latest = time.monotonic() + patience
    while (answer := http.get("/readyz")).is_error:
        if time.monotonic() > latest:
            answer.raise_for_status()
        time.sleep(0.2)
    time.sleep(3)


def measure(settings: Settings, chromium: str, sizes: Sizes) -> Measured:
    pages = {name: Visits() for name in addresses(sizes.history)}
    first: dict[str, float] = {}
    with service(settings) as url, httpx2.Client(base_url=url, timeout=600, trust_env=False) as http:
        own = service_process(settings)
        until_ready(http)
        idle, _ = megabytes(own)
        for name, path in addresses(sizes.history).items():
            ask(http, path, own, found := Visits())
            first[name] = found.served[0]
        with sync_playwright() as playwright:
            for turn in range(sizes.turns + 1):
                for name, path in addresses(sizes.history).items():
                    # A process of its own for each visit: one browser keeps compiled scripts between profiles.
                    browser = playwright.chromium.launch(executable_path=chromium, args=list(BROWSER))
                    visits = pages[name] if turn else Visits()
                    visit(browser, url + path, visits)
                    ask(http, path, own, visits)
                    browser.close()
            browser = playwright.chromium.launch(executable_path=chromium, args=list(BROWSER))
            shares = idle_shares(browser, url, own, sizes.idle)
            browser.close()
        now, peak = megabytes(own)
    return Measured(pages, first, {"idle": idle, "end": now, "peak": peak}, shares)


def rows(found: Measured) -> Iterator[str]:
    """Yield the lines of the table."""
    heads = "".join(f"{head:>8}" for head in ("paint", "max", "charts", "max", "served", "first", "process"))
    yield f"{'page':28} {'charts':>6}{heads}  304   kB"
    for name, visits in found.pages.items():
        times = [
            statistics.median(visits.paint),
            max(visits.paint),
            statistics.median(visits.charts),
            max(visits.charts),
            statistics.median(visits.served),
            found.first[name],
            statistics.fmean(visits.processor),
        ]
        columns = "".join(f"{seconds:8.3f}" for seconds in times)
        same = "yes" if visits.not_modified else "no"
        yield f"{name:28} {visits.number:6}{columns}  {same:3} {visits.bytes / 1e3:5.0f}"
    yield "memory of the service: " + ", ".join(f"{name} {value:.0f} MB" for name, value in found.memory.items())
    yield "browser and service with " + ", ".join(
        f"{name} {value:.2f} % of a core" for name, value in found.idle.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four runs with eight metrics at 100 steps, two turns")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="Chromium's program [from the path]")
    arguments = parser.parse_args()
    if arguments.chromium is None:
        sys.exit("Chromium is not on the path; install it (apt-get install chromium), or give --chromium PATH")
    sizes = QUICK if arguments.quick else Sizes()
    with tempfile.TemporaryDirectory(prefix="evalsvc-dashboard-") as folder:
        settings = Settings(data_dir=folder)
        begun = time.perf_counter()
        fill(settings, sizes.history)
        size = (settings.data_path / "evalsvc.db").stat().st_size
        print(f"{sizes.history}; {sizes.turns} turns; {machine()}")
        print(f"written in {time.perf_counter() - begun:.0f} s, {size / 1e6:,.0f} MB\n", flush=True)
        found = measure(settings, arguments.chromium, sizes)
    print("\n".join(rows(found)))
    figures = {
        "paint": max(statistics.median(visits.paint) for visits in found.pages.values()),
        "charts": max(statistics.median(visits.charts) for visits in found.pages.values()),
        "memory": found.memory["peak"] - found.memory["idle"],
        "idle": found.idle["a page"] - found.idle["an empty page"],
    }
    print_last_line(
        "dashboard",
        {},
        figures=figures,
        limits=LIMITS,
        met={name: value < LIMITS[name] for name, value in figures.items()},
        not_modified={name: visits.not_modified for name, visits in found.pages.items()},
        charts={name: visits.number for name, visits in found.pages.items()},
        idle=found.idle,
        memory=found.memory,
    )


if __name__ == "__main__":
    main()
