"""Sides take turns: the order, the median of a turn's calls, and a baseline whose code cannot evaluate a task."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness.measure import measure_times
from harness.side import Turn
from harness.suite import Bench, Task, name_of

from evalsvc.errors import InternalError


@dataclass
class FakeSide:
    """A side whose calls take given seconds, and that writes down who was asked."""

    name: str
    log: list[str]
    seconds: list[float] = field(default_factory=lambda: [1.0])
    cannot: str = ""
    turns: list[float] = field(default_factory=lambda: [1.0])
    """Factors of the turns."""

    def warm(self, task: Task) -> None:
        if name_of(task) == self.cannot:
            raise InternalError(f"the code of the {self.name} cannot evaluate: unknown key 'limit'")
        self.log.append(f"{self.name} {name_of(task)} warm")

    def time(self, task: Task, calls: int) -> Turn:
        self.log.append(f"{self.name} {name_of(task)} {calls}")
        factor = self.turns[len(self.log) % len(self.turns)]
        seconds = [factor * self.seconds[place % len(self.seconds)] for place in range(calls)]
        return Turn(cpu=seconds, wall=[2 * second for second in seconds])


def bench(*names: str, turns: int = 8, calls: int = 1) -> Bench:
    tasks = [{"kind": "loss", "name": name} for name in names]
    place = Path("suite")
    return Bench(
        name="suite",
        folder=place,
        weights=place,
        layout=place,
        base=None,
        headline=(),
        quality=(),
        seeded={},
        timed=tasks,
        turns=turns,
        calls=calls,
        digest="",
    )


def silent(line: str) -> None:
    assert line


def test_sides_take_turns_and_change_their_order() -> None:
    log: list[str] = []
    measure_times(FakeSide("candidate", log), FakeSide("baseline", log), bench("loss"), silent)
    sides = [line.split()[0] for line in log]
    assert log[:3] == ["candidate loss warm", "baseline loss warm", "candidate loss 1"]
    assert sides[2:6] == ["candidate", "baseline", "baseline", "candidate"]
    assert len(sides) == 2 + 2 * 8


def test_a_turn_is_the_median_of_its_calls() -> None:
    """One call that something interrupted does not count."""
    log: list[str] = []
    sides = FakeSide("candidate", log, [1.2, 50.0, 1.3]), FakeSide("baseline", log, [1.0, 0.9, 1.1])
    [timed] = measure_times(*sides, bench("loss", calls=3), silent)
    assert timed.name == "speed-loss"
    assert timed.candidate.cpu == [1.3] * 8
    assert timed.candidate.wall == [2.6] * 8
    assert timed.baseline is not None
    assert timed.baseline.cpu == [1.0] * 8
    assert timed.cpu is not None
    assert timed.cpu.median == pytest.approx(1.3)


def test_an_interval_is_called_that_of_the_run() -> None:
    """Printed without a word, it looked like the error of the ratio, of which it is the smaller part."""
    lines: list[str] = []
    candidate = FakeSide("candidate", [], turns=[1.0, 1.1, 1.2])
    measure_times(candidate, FakeSide("baseline", []), bench("loss"), lines.append)
    assert " within this run) of the baseline" in lines[0]
    assert "between runs of equal code" in lines[1]


def test_code_that_does_not_know_a_task_costs_only_this_comparison() -> None:
    log: list[str] = []
    sides = FakeSide("candidate", log), FakeSide("baseline", log, cannot="new")
    new, old = measure_times(*sides, bench("new", "old"), silent)
    assert new.baseline is None
    assert "unknown key 'limit'" in new.problem
    assert old.baseline is not None
    assert old.problem == ""


def test_a_candidate_that_cannot_evaluate_is_an_error() -> None:
    with pytest.raises(InternalError, match="candidate cannot evaluate"):
        measure_times(FakeSide("candidate", [], cannot="loss"), None, bench("loss"), silent)
