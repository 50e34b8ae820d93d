"""Measure evalsvc for CI: quality of a checkpoint, and speed against the code of a stored commit.

Writes two results into a folder, `candidate.json` and `baseline.json`, which the gate compares:

    python benchmarks/bench.py benchmarks/suites/quick.yaml --output build/bench
    evalsvc gate build/bench/candidate.json --baseline build/bench/baseline.json --rules benchmarks/suites/rules.yaml

Quality is evaluated once, with fixed seeds, and compared with stored values (`benchmarks/baselines/SUITE.json`). Times
are measured on both sides in one run, in turns: this checkout, and the code of the commit that
`benchmarks/baselines/commit.txt` names.

Prints a machine card, a table, and as last line one JSON document. The exit code is 0 if everything was measured, 1 if
a task failed, and 2 if an option, the suite or a file is wrong. The gate says whether something is worse.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from harness import baseline, document, history
from harness.document import BenchDocument, BenchSuite, TimedTask
from harness.draw import draw_history
from harness.machine import read_code, read_machine
from harness.measure import measure_times
from harness.side import THREADS, Side
from harness.suite import Bench, read_bench
from harness.times import times_as_metrics

from evalsvc.errors import EvalsvcError, os_reason
from evalsvc.spec.documents.results import ResultDocument

ROOT = Path(__file__).resolve().parents[1]

CANDIDATE, BASELINE = "candidate.json", "baseline.json"


@dataclass(frozen=True)
class Options:
    """What a person asks for."""

    suite: Path
    output: Path
    against: str | None
    history: Path | None
    store: bool
    slower: float
    """Share by which a drill makes each call of the candidate longer."""
    damage: float | None
    """Factor by which a drill scales the weights of one layer of the candidate."""

    @property
    def drill(self) -> str:
        """What is made worse on purpose; empty if nothing is."""
        parts = [f"calls slower by {self.slower:g}"] if self.slower else []
        return ", ".join([*parts, *([f"a layer scaled by {self.damage:g}"] if self.damage is not None else [])])


def run(options: Options) -> int:
    """Measure, write the files, print, and return the exit code.

    Raises:
        EvalsvcError: the suite, an option or a file is wrong.
    """
    started = time.perf_counter()
    bench = read_bench(options.suite)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in (CANDIDATE, BASELINE):  # what an earlier run left must not be judged if this one ends early
        (options.output / name).unlink(missing_ok=True)
    machine, code = read_machine(THREADS), read_code(ROOT)
    print(f"machine   {machine.processor}, {machine.cores} cores, {machine.threads} threads, load {machine.load}")
    print(f"code      {code.commit or 'no commit'}{' with changes' if code.changed else ''}")
    with _work_folder(options.output) as work:
        tree = baseline.find_code(options.against, ROOT, work) if bench.timed else None
        print(f"against   {tree.label if tree else 'nothing'}", flush=True)
        quality, timed = _measure(options, bench, tree, work)
    run_id = secrets.token_hex(8)
    times = times_as_metrics(timed, run_id, of_baseline=False)
    measured = document.joined(document.trimmed(quality), times)
    result = BenchDocument(
        **vars(measured),
        format=document.FORMAT,
        run=run_id,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - started, 1),
        suite=BenchSuite(name=bench.name, digest=bench.digest, headline=list(bench.headline)),
        machine=machine,
        code=code,
        baseline_code=tree.label if tree else "",
        timed=list(timed),
        seeds=document.between_seeds(quality, bench.seeded),
        drill=options.drill,
    )
    _write(options, bench, result, quality)
    _print_end(result)
    return 1 if quality.errors else 0


def _measure(
    options: Options, bench: Bench, tree: baseline.Tree | None, work: Path
) -> tuple[ResultDocument, list[TimedTask]]:
    weights = bench.weights
    if options.damage is not None:
        from harness.drill import LAYER, scale_layer  # needs torch

        weights = scale_layer(weights, work / "damaged" / "checkpoints" / weights.name, LAYER, options.damage)
    with ExitStack() as stack:
        candidate = stack.enter_context(Side("candidate", ROOT, bench, work, slower=options.slower))
        quality = candidate.evaluate(weights) if bench.quality else document.EMPTY
        _print_values(quality, bench)
        other = stack.enter_context(Side("baseline", tree.folder, bench, work)) if tree and bench.timed else None
        return quality, measure_times(candidate, other, bench, lambda line: print(line, flush=True))


def _write(options: Options, bench: Bench, result: BenchDocument, quality: ResultDocument) -> None:
    """Write both results, the stored baseline if that was asked for, and the history with its charts."""
    stored = baseline.FOLDER / f"{bench.name}.json"
    if options.store:
        baseline.store_quality(stored, quality)
    before = document.joined(
        baseline.read_quality(stored), times_as_metrics(result.timed, result.run, of_baseline=True)
    )
    document.write(options.output / CANDIDATE, result)
    document.write(options.output / BASELINE, before)
    if options.history is not None:
        entries = history.of_suite(history.append(options.history, history.entry_of(result)), bench.name)
        for file in draw_history(options.output / "history", entries, bench.headline):
            print(f"history   {file}")


@contextmanager
def _work_folder(output: Path) -> Iterator[Path]:
    """Make a folder for the data of the sides, and remove all of it but the baseline's code in the end."""
    work = (output / "work").resolve()
    try:
        yield work
    finally:
        for folder in work.glob("*"):
            if folder.name != "code":
                shutil.rmtree(folder, ignore_errors=True)


def _print_values(quality: ResultDocument, bench: Bench) -> None:
    seeds = document.between_seeds(quality, bench.seeded)
    for metric in quality.metrics:
        if metric.name not in bench.headline:
            continue
        error = "" if metric.stderr is None else f" ± {float(metric.stderr):.2g}"
        line = f"{metric.name:24} {float(metric.value):8.4g}{error} {metric.unit}, n = {metric.n:,}"
        if spread := seeds.get(metric.name):
            line += f"; median of {len(spread.values)} seeds {spread.median:.4g}, deviation {spread.deviation:.2g}"
        print(line, flush=True)


def _print_end(result: BenchDocument) -> None:
    for task, error in result.errors.items():
        print(f"failed    {task}: {error.message}")
    if result.drill:
        print(f"drill     {result.drill}")
    print(f"{result.seconds:.0f} s")
    ratios = {timed.name: timed.cpu.mean for timed in result.timed if timed.cpu is not None}
    print(json.dumps({"benchmark": "bench", "ratios": ratios, "seconds": result.seconds, "drill": result.drill}))


def parse(arguments: Sequence[str]) -> Options:
    """Return the options of a command line; `--schema` and wrong options end the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path, nargs="?", help="YAML file, such as benchmarks/suites/quick.yaml")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), help="folder of the results [build/bench]")
    parser.add_argument("--against", help="commit, or root of a checkout, that times are measured against, or `none`")
    parser.add_argument("--history", type=Path, help="file of JSON lines to add this commit to, and to draw")
    parser.add_argument("--store", action="store_true", help="take the values of quality as the baseline from now on")
    parser.add_argument("--schema", action="store_true", help="write the JSON schema of the document, and end")
    drills = parser.add_argument_group("drills, which show that the gate fails")
    drills.add_argument("--drill-slower", type=float, default=0.0, metavar="SHARE", help="make calls longer, by 0.3")
    drills.add_argument("--drill-damage", type=float, metavar="FACTOR", help="scale one layer of the weights, by 1.05")
    chosen = parser.parse_args(arguments)
    if chosen.schema:
        document.SCHEMA.write_text(json.dumps(document.schema(), indent=1) + "\n")
        parser.exit()
    if chosen.suite is None:
        parser.error("the suite is missing; name a YAML file, such as benchmarks/suites/quick.yaml")
    if not 0 <= chosen.drill_slower <= 100:
        parser.error(f"--drill-slower {chosen.drill_slower:g}: give a share from 0 to 100")
    options = Options(
        chosen.suite,
        chosen.output,
        chosen.against,
        chosen.history,
        chosen.store,
        chosen.drill_slower,
        chosen.drill_damage,
    )
    if options.drill and (options.store or options.history):
        parser.error("a drill is no measurement; leave --store and --history out")
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    try:
        code = run(options)
    except EvalsvcError as error:
        print(f"bench: {error.message}", file=sys.stderr)
        code = 2
    except OSError as error:
        print(f"bench: {error.filename or options.output}: {os_reason(error)}", file=sys.stderr)
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
