"""Whether every interval, test and gate holds what it says: simulated data of which the truth is known.

Each cell is one number or test of the product, on one kind of data, at one size; `simulated/` has them. The data are
generated here, and all that is said of them comes from the product's own functions. Of each cell the table has

    coverage  how often the interval of level 0.95 holds the truth; bounds .92 to .98
    alarms    how often a test finds what does not exist; bound 1.5 times the nominal rate
    bias      the mean error of the estimate, in its standard errors; bound one half
    spread    the mean standard error over the standard deviation of the estimate

each with its Monte-Carlo error, and a cell fails where it is outside its bounds by more than three of these. Below the
smallest number of items at which the product makes a claim the bound is that it makes none. `before` is the same figure
before the estimators were mended, quoted and not simulated here.

    python benchmarks/calibration.py [--quick] [--only PATTERN] [--reps-scale X] [--output FILE]
    python benchmarks/calibration.py --seeds 40 [--quick]

`--seeds` gates a checkpoint of the miniature against itself under so many seeds, and a damaged one.

Prints a card, a table, and as last line one JSON document. The exit code is 1 if a cell is outside its bounds.
"""

from __future__ import annotations

import os

# Matrices are small: two threads for one product are slower than two cells side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from side_by_side import machine, print_last_line
from simulated import ALL
from simulated.cells import CHUNK, FEWEST, QUICK, Cell, Draw, Row

CELLS: Mapping[str, Cell] = {cell.name: cell for cell in ALL}

Work = tuple[str, int, int]
"""The cell's name, the chunk, and its repetitions."""


def wanted(arguments: argparse.Namespace) -> dict[str, int]:
    """The repetitions of each cell that is to be simulated, by name."""
    scale = arguments.reps_scale * (QUICK if arguments.quick else 1.0)
    return {
        name: max(round(cell.reps * scale), min(cell.reps, FEWEST))
        for name, cell in CELLS.items()
        if (cell.quick or not arguments.quick) and _matches(name, arguments.only)
    }


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, f"*{pattern}*") for pattern in patterns)


def chunks(reps: Mapping[str, int]) -> Iterator[Work]:
    for name, count in reps.items():
        for place, start in enumerate(range(0, count, CHUNK)):
            yield name, place, min(CHUNK, count - start)


def simulate(work: Work) -> tuple[str, int, list[Draw], float]:
    """One chunk, in a process of the pool."""
    name, chunk, reps = work
    started = time.process_time()
    draws = CELLS[name].simulate(chunk, reps)
    return name, chunk, draws, time.process_time() - started


def rows(reps: Mapping[str, int], processes: int) -> Iterator[Row]:
    """The cells as they are done."""
    work = list(chunks(reps))
    missing = {name: sum(name == other for other, _, _ in work) for name in reps}
    found: dict[str, dict[int, list[Draw]]] = {name: {} for name in reps}
    seconds = dict.fromkeys(reps, 0.0)
    with multiprocessing.Pool(processes) as pool:
        for name, chunk, draws, spent in pool.imap_unordered(simulate, work):
            found[name][chunk] = draws
            seconds[name] += spent
            missing[name] -= 1
            if not missing[name]:
                yield _row(name, found.pop(name), seconds[name])


def _row(name: str, parts: Mapping[int, Sequence[Draw]], seconds: float) -> Row:
    return Row(CELLS[name], [draw for place in sorted(parts) for draw in parts[place]], seconds)


COLUMNS = (f"{'data':34}", f"{'n':>12}", "claims", f"{'coverage':>13}", f"{'false alarms':>17}", " nominal")
HEAD = " ".join((*COLUMNS, f"{'bias/error':>13}", "spread"))


def print_row(row: Row) -> None:
    cell = row.cell
    columns = (
        f"{cell.data:34}",
        f"{cell.n:>12}",
        f"{row.claims:6.2f}" if row.claims else f"{'none':>6}",
        f"{row.coverage or '':>13}",
        f"{row.alarms or '':>17}",
        f"{'' if cell.nominal is None else f'{cell.nominal:.4g}':>8}",
        f"{row.bias or '':>13}",
        "" if row.spread is None else f"{row.spread:6.2f}",
    )
    print(" ".join(columns).rstrip())
    if row.verdicts:
        print(f"{'':6}{', '.join(f'{verdict} {share:.3f}' for verdict, share in row.verdicts.items())}")
    if cell.before:
        print(f"{'':6}before: {cell.before}")
    for problem in row.problems:
        print(f"{'':6}{f'outside, accepted: {problem}; {cell.accepted}' if cell.accepted else f'OUTSIDE: {problem}'}")


def to_json(row: Row) -> dict[str, Any]:
    rates = {"coverage": row.coverage, "alarms": row.alarms, "bias": row.bias}
    return {
        "cell": row.cell.name,
        "repetitions": len(row.draws),
        "claims": row.claims,
        **{name: None if rate is None else [round(number, 6) for number in rate] for name, rate in rates.items()},
        "nominal": row.cell.nominal,
        "spread": row.spread,
        "verdicts": row.verdicts,
        "before": row.cell.before,
        "seconds": round(row.seconds, 2),
        "outside": row.problems,
        "accepted": row.cell.accepted,
    }


def print_table(found: Sequence[Row]) -> None:
    family = ""
    for row in found:
        if row.cell.family != family:
            family = row.cell.family
            print(f"\n{family}\n{HEAD}")
        print_row(row)


def simulate_table(arguments: argparse.Namespace) -> int:
    """Simulate, print, and return how many cells are outside their bounds."""
    reps = wanted(arguments)
    if not reps:
        print(f"no cell matches {', '.join(arguments.only)}; families: {', '.join(sorted({c.family for c in ALL}))}")
        return 1
    print(f"machine   {machine()}, {arguments.processes} processes")
    print(f"cells     {len(reps)}, {sum(reps.values()):,} data sets")
    started = time.perf_counter()
    by_name: dict[str, Row] = {}
    for row in rows(reps, arguments.processes):
        by_name[row.cell.name] = row
        if sys.stderr.isatty():
            print(f"\r{len(by_name)}/{len(reps)} {row.cell.name:80.80}", end="", file=sys.stderr)
    families = list(dict.fromkeys(CELLS[name].family for name in reps))
    found = sorted((by_name[name] for name in reps), key=lambda row: families.index(row.cell.family))
    print_table(found)
    outside = [row for row in found if row.problems and not row.cell.accepted]
    accepted = sum(bool(row.problems) for row in found) - len(outside)
    seconds = time.perf_counter() - started
    print(f"\n{len(found)} cells in {seconds:.0f} s; outside their bounds {len(outside)}, and {accepted} with a reason")
    for row in outside:
        print(f"  {row.cell.name}: {'; '.join(row.problems)}")
    documents = [to_json(row) for row in found]
    if arguments.output:
        arguments.output.write_text(json.dumps(documents, indent=1))
    print_last_line("calibration", {}, cells=documents, outside=[row.cell.name for row in outside])
    return len(outside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the repetitions, without the slow cells")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="cells whose name has it")
    parser.add_argument("--reps-scale", type=float, default=1.0, help="times as many repetitions [1]")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that share the cells [cores]")
    parser.add_argument("--output", type=Path, help="a JSON file with all cells")
    parser.add_argument("--seeds", type=int, help="gate the miniature's checkpoint under so many seeds instead")
    arguments = parser.parse_args()
    if arguments.seeds:
        from simulated.seeds import gate_seeds

        failed = gate_seeds(arguments.seeds, arguments.quick)
    else:
        failed = simulate_table(arguments)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
