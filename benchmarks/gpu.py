"""Whether evalsvc computes right on this card, takes the memory that it predicts, and how fast it is: in one command.

    python benchmarks/gpu.py [--device cuda|cuda:N|cpu] [--small] [--only SECTION …] [--minutes 8] [--output gpu.json]
    python benchmarks/gpu.py --list

Runs from a checkout with what is installed there, and downloads nothing: a section that needs a package that is missing
is left out, and says which. Sections run one after the other in a process of their own; where one takes that process
down, another goes on with the rest. Each has half of the time that is left, the last one all of it. At the time limit
the kit stops with what it has.

Prints the card, a table as it goes, and as last line one JSON document; `--output` writes it to a file after every
section. The exit code is 1 if a check failed, 2 if the options are wrong. A goal that is missed is no failure: its
distance is what the table is for.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

HERE = Path(__file__).resolve()
# The checkout itself: a bare machine does not have evalsvc installed.
sys.path.insert(1, str(HERE.parents[1]))

MINUTES = 8.0
LACKS = "the kit needs the package {package!r}; benchmarks/README.md says what to carry"
WIDEST = 60
"""Characters of a value in the table; the document has all of them."""
GRACE = 15.0
"""Seconds before the limit at which the section that runs is stopped, so that the document is out in time."""


@dataclass
class Outcome:
    """What became of one section."""

    kind: str
    state: str = "not begun"
    """`done`, `failed` (a check, or an error), `left out`, `stopped` at the time limit, or `not begun`."""
    reason: str = ""
    seconds: float = 0.0
    peak_gib: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failed_checks(self) -> list[str]:
        return [row["what"] for row in self.rows if row["kind"] == "check" and not row["met"]]


# in the process of the sections: it alone imports torch


def run_sections(names: Sequence[str], device: str, small: bool) -> None:
    """Run sections and write what they yield to standard output, one JSON document a line."""
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not to get between the lines

    def say(event: str, **content: object) -> None:
        print(json.dumps({"event": event, **content}), file=stream)

    try:
        import torch
        from on_card.catalog import SECTIONS
        from on_card.kit import GIB, MOST_GIB, Kit
        from on_card.machine import read_card

        from evalsvc.errors import MissingPackage
        from evalsvc.precision import use_full_float32
    except ModuleNotFoundError as error:
        say("refused", reason=LACKS.format(package=error.name))
        return

    use_full_float32()
    where = torch.device(device)
    if where.type == "cuda":
        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
        where = torch.device("cuda", where.index or 0)
        if where.index >= cards:
            reason = f"torch {torch.__version__} sees {cards} CUDA cards"
            say("refused", reason=f"--device is {device}, which is not there: {reason}; give another, or cpu")
            return
        torch.cuda.set_device(where)
        total = torch.cuda.get_device_properties(where).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, MOST_GIB * GIB / total), where)
    say("card", **read_card(where).to_json())
    for section in SECTIONS:
        if section.name not in names:
            continue
        say("begin", section=section.name)
        missing = [package for package in section.needs if importlib.util.find_spec(package) is None]
        if missing:
            say("end", state="left out", reason=f"{', '.join(missing)} not installed")
            continue
        kit = Kit(where, small)
        kit.release()
        started, state, reason, peak = time.perf_counter(), "done", "", 0
        try:
            for row in section.run(kit):
                say("row", **asdict(row))
            peak = kit.peak_bytes()
        except MissingPackage as error:
            state, reason = "left out", str(error)
        except ModuleNotFoundError as error:
            own = (error.name or "evalsvc").partition(".")[0] in ("evalsvc", "on_card")
            state, reason = ("failed", str(error)) if own else ("left out", f"{error.name} not installed")
        except Exception as error:
            state, reason = "failed", f"{type(error).__name__}: {error}"
            traceback.print_exc()
        seconds = round(time.perf_counter() - started, 2)
        try:
            kit.release()
        except RuntimeError:  # the error has taken the card's context with it: only another process can go on
            say("end", state="failed", reason=reason, seconds=seconds)
            raise
        say("end", state=state, reason=reason, seconds=seconds, peak_gib=round(peak / GIB, 2))


# in the process that was started: it prints, and survives what happens to the other


class Kept:
    """The document so far."""

    def __init__(self, arguments: argparse.Namespace, outcomes: dict[str, Outcome]) -> None:
        self.options = {"device": arguments.device, "small": arguments.small, "minutes": arguments.minutes}
        self.output: Path | None = arguments.output
        self.card: dict[str, Any] = {}
        self.outcomes = outcomes
        self.refused = ""

    @property
    def failed(self) -> list[str]:
        return [name for name, outcome in self.outcomes.items() if outcome.state == "failed"]

    def document(self) -> dict[str, Any]:
        sections = {name: asdict(outcome) for name, outcome in self.outcomes.items()}
        return {
            "benchmark": "gpu",
            "ratios": {},
            "card": self.card,
            "options": self.options,
            "failed": self.failed,
            "sections": sections,
        }

    def write(self) -> None:
        if self.output is not None:
            self.output.write_text(json.dumps(self.document(), indent=1))


def run_all(kept: Kept, deadline: float) -> None:
    """Run the sections in another process, and what is left in a new one where that dies."""
    while left := [name for name, outcome in kept.outcomes.items() if outcome.state == "not begun"]:
        current, until = None, deadline
        for event in _events(left, kept.options, deadline):
            name = event.pop("event")
            if name == "refused":
                kept.refused = event["reason"]
                return
            if name == "card":
                if not kept.card:
                    _print_card(event)
                kept.card = event
            elif name == "begin":
                current, until = event["section"], event["until"]
                kept.outcomes[current].state = "stopped"  # until it says otherwise
            elif current is not None and name == "row":
                kept.outcomes[current].rows.append(event)
                _print_row(current, event)
            elif current is not None:
                _end(kept.outcomes[current], event)
                _print_end(current, kept.outcomes[current])
                kept.write()
                current = None
        late = time.monotonic() >= deadline
        if current is not None:
            outcome = kept.outcomes[current]
            outcome.state, outcome.reason = "failed", "its process died"
            if time.monotonic() >= until:
                outcome.state, outcome.reason = "stopped", "time limit" if late else "its half of the time left is over"
            _print_end(current, outcome)
        elif not late and [name for name in left if kept.outcomes[name].state == "not begun"]:
            for name in left:  # it died before it had begun one: the next would, too
                if kept.outcomes[name].state == "not begun":
                    kept.outcomes[name] = Outcome(kept.outcomes[name].kind, "failed", "no process could be started")
        if late:
            break
    kept.write()


def _events(names: Sequence[str], options: Mapping[str, Any], deadline: float) -> Iterator[dict[str, Any]]:
    """What a process that runs these sections says, until it ends, or the time of the section that runs is over: half
    of the time left, all of it for the last section."""
    command = [sys.executable, str(HERE), "--child", "--device", options["device"], "--only", *names]
    process = subprocess.Popen(command + ["--small"] * options["small"], stdout=subprocess.PIPE, text=True)

    def kill_at(until: float) -> threading.Timer:
        timer = threading.Timer(max(0.0, until - time.monotonic()), process.kill)
        timer.start()
        return timer

    timer = kill_at(deadline)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "begin":
                left = deadline - time.monotonic()
                event["until"] = deadline if event["section"] == names[-1] else deadline - left / 2
                timer.cancel()
                timer = kill_at(event["until"])
            yield event
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def _end(outcome: Outcome, event: Mapping[str, Any]) -> None:
    for key, value in event.items():
        setattr(outcome, key, value)
    if outcome.state == "done" and outcome.failed_checks:
        outcome.state, outcome.reason = "failed", f"not as it should be: {'; '.join(outcome.failed_checks)}"


def _print_card(card: Mapping[str, Any]) -> None:
    memory = f", {card['memory_gib']} GiB" if card["memory_gib"] else ""
    print(f"card      {card['name']}{memory}")
    print(f"software  torch {card['torch']}, CUDA {card['cuda'] or '–'}, Python {card['python']}")
    print(f"machine   {card['processor']}")
    for name, value in card["settings"].items():
        print(f"{name:10}{value}")
    print(flush=True)


def _print_row(section: str, row: Mapping[str, Any]) -> None:
    value = row["value"]
    shown = value if isinstance(value, str) else f"{value:.4g}"
    shown = shorten(f"{shown} {row['unit']}".strip(), WIDEST)
    mark = {None: "", True: "ok", False: "FAILS" if row["kind"] == "check" else "missed"}[row["met"]]
    print(f"{section:14}{row['what']:58} {shown:>26} {row['bound']:>9} {mark}".rstrip(), flush=True)


def _print_end(name: str, outcome: Outcome) -> None:
    peak = f", {outcome.peak_gib:.1f} GiB" if outcome.peak_gib else ""
    reason = f": {outcome.reason}" if outcome.reason else ""
    print(f"{name:14}{outcome.state} in {outcome.seconds:.1f} s{peak}{reason}\n", flush=True)


def _print_summary(kept: Kept) -> None:
    states = [f"{name} {outcome.state}" for name, outcome in kept.outcomes.items() if outcome.state != "done"]
    print(f"summary   {len(kept.outcomes) - len(states)} of {len(kept.outcomes)} sections done")
    for state in states:
        print(f"          {state}")
    if late := [name for name, outcome in kept.outcomes.items() if outcome.state in ("stopped", "not begun")]:
        options = f"--device {kept.options['device']}" + " --small" * kept.options["small"]
        print(f"to go on  python benchmarks/gpu.py {options} --only {' '.join(late)}")
    print()


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name):
        raise argparse.ArgumentTypeError(f"{name!r} is no device; give cuda, cuda:N or cpu")
    return name


def _parse(sections: Mapping[str, Any]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda", type=_device, help="cuda, cuda:N or cpu [%(default)s]")
    parser.add_argument("--small", action="store_true", help="tiny shapes: shows that the kit works")
    parser.add_argument("--only", nargs="+", metavar="SECTION", choices=list(sections), help="these sections [all]")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="when to stop [%(default)g]")
    parser.add_argument("--output", type=Path, help="a file for the JSON document")
    parser.add_argument("--list", action="store_true", help="name the sections and what they ask")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    started = time.monotonic()
    try:
        from on_card.catalog import SECTIONS
    except ModuleNotFoundError as error:
        print(LACKS.format(package=error.name), file=sys.stderr)
        return 2
    sections = {section.name: section for section in SECTIONS}
    arguments = _parse(sections)
    if arguments.child:
        run_sections(arguments.only, arguments.device, arguments.small)
        return 0
    if arguments.list:
        for section in SECTIONS:
            needs = f" (needs {', '.join(section.needs)})" if section.needs else ""
            print(f"{section.name:12} {section.kind:7} {section.question}{needs}")
        return 0
    wanted = {name: Outcome(section.kind) for name, section in sections.items() if name in (arguments.only or sections)}
    kept = Kept(arguments, wanted)
    run_all(kept, started + 60 * arguments.minutes - GRACE)
    if kept.refused:
        print(kept.refused, file=sys.stderr)
        return 2
    _print_summary(kept)
    print(json.dumps(kept.document()))
    return 1 if kept.failed else 0


if __name__ == "__main__":
    sys.exit(main())
