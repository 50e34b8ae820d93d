"""A service under random faults: run for a while, see it to its end, and judge what it has left.

make soak SOAK="--seconds 900"
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import SystemRandom
from signal import SIGTERM
from typing import Any

from soak_database import Database, PostgresqlDatabase, SqliteDatabase
from soak_faults import FAULTS, TTL, possible
from soak_judgement import Found, Hit, Judgement, all_over, any_running, found_by, judge, progress, unnamed_copies
from soak_schedule import Planned, schedule
from soak_trainer import Ledger, Trainer
from soak_world import World
from sqlalchemy.exc import SQLAlchemyError

from evalsvc.cli.demo import checkpoints
from evalsvc.miniature import ROOT

WORKERS = 2
SUITE = "soak"
STALLED = 420
"""Seconds without any progress after which a run has hung; a shard that was hit often waits for up to 375."""

LATEST = 6.0
"""Seconds that a fault waits for a shard to be running."""

SETTINGS = {
    "EVALSVC_THREADS": "1",
    "EVALSVC_WORKER_TTL": str(TTL),
    "EVALSVC_GRACE": "2",
    # Small batches: shards that last long enough to be hit.
    "EVALSVC_BATCH_TOKENS": "256",
    # One shard may well be hit three times; how often anything was charged is judged at the end.
    "EVALSVC_MAX_ATTEMPTS": "50",
    "OMP_NUM_THREADS": "1",
}

LOSS = {"kind": "loss", "name": "pairs", "data": str(ROOT / "heldout_pairs.jsonl"), "shards": 6}
IMAGES = {
    "kind": "text_to_image",
    "name": "digits",
    "captions": str(ROOT / "captions.jsonl"),
    "samples": 16,
    "decoder": str(ROOT / "movqgan" / "movqgan_miniature.ckpt"),
    "classifier": str(ROOT / "classifier.safetensors"),
    "metrics": [],
    "batch": 4,
    "shard_size": 4,
    "keep": 4,
}
CLOZE = {"kind": "language", "name": "cloze", "benchmarks": ["cloze"], "include_path": [str(ROOT)], "limit": 60}
SHORT_TASKS = (LOSS, IMAGES)
ALL_TASKS = (LOSS, CLOZE, IMAGES)


@dataclass(frozen=True)
class Plan:
    """How a run goes."""

    seed: int
    seconds: float
    """How long faults happen; the end may take as long as it makes progress."""
    database: str
    external: bool
    gap: float
    """Seconds between two faults, on average."""
    tasks: Sequence[dict[str, Any]]
    files: Sequence[tuple[str, int, Path]]

    @property
    def options(self) -> str:
        """What gives this schedule again."""
        where = f"--database {self.database} --cluster {'external' if self.external else 'own'}"
        return f"--seed {self.seed} --seconds {self.seconds:g} --gap {self.gap:g} {where}"

    @property
    def name(self) -> str:
        return (
            f"{self.database}, {'an external scheduler' if self.external else 'workers of its own'}, seed {self.seed}"
        )


class SoakFailure(AssertionError):
    """Says what is wrong, how to have it again, and what had happened."""


def undisturbed(folder: Path, plan: Plan) -> tuple[Ledger, dict[Path, Found]]:
    """What is posted and what the evaluations find, by checkpoint file, when nothing happens."""
    world = _world(folder, "sqlite", external=False)
    trainer = Trainer(world.url, SUITE, plan.tasks, plan.files, backlog=len(plan.files))
    try:
        trainer.start(limit=len(plan.files))
        _wait(world, lambda: trainer.posted_all() and all_over(world.store))
        trainer.close()
        world.stop()
        with world.store.reading() as session:
            found = {post.file: found_by(session, post.evaluation) for post in trainer.ledger.posts}
        return trainer.ledger, found
    finally:
        trainer.end()
        world.close()


def run(folder: Path, plan: Plan, expected: Mapping[Path, Found]) -> Judgement:
    """Faults for a while, then the end; raises SoakFailure where anything is not as it must be."""
    world = _world(folder, plan.database, plan.external)
    trainer = Trainer(world.url, SUITE, plan.tasks, plan.files, backlog=3)
    hits: list[Hit] = []
    try:
        trainer.start()
        _wait(world, lambda: progress(world.store)[0] > 0)
        _disturb(world, trainer, schedule(plan.seed, plan.seconds, possible(world), plan.gap), hits)
        world.undo_all()
        _close(world, trainer)
        _wait(world, lambda: all_over(world.store) and not unnamed_copies(world.store, world.data_dir))
        code = world.stop()
        judgement = judge(world, trainer.ledger, hits, expected)
        judgement.require(code in (0, -SIGTERM), f"the service ended with {code}")
        if judgement.wrong:
            raise SoakFailure(_report(plan, hits, world, judgement.wrong))
        return judgement
    except SoakFailure:
        raise
    except Exception as error:
        raise SoakFailure(
            _report(plan, hits, world, [f"{type(error).__name__}: {error}", *trainer.ledger.failures])
        ) from error
    finally:
        trainer.end()
        world.close()


def _world(folder: Path, database: str, external: bool) -> World:
    folder.mkdir(parents=True)
    kept: Database = SqliteDatabase(folder) if database == "sqlite" else PostgresqlDatabase()
    try:
        return World(folder, kept, workers=WORKERS, external=external, settings=SETTINGS)
    except BaseException:
        kept.close()
        raise


def _disturb(world: World, trainer: Trainer, planned: Sequence[Planned], hits: list[Hit]) -> None:
    begun = time.monotonic()
    for fault in planned:
        while not _is_due(world, time.monotonic() - begun - fault.at):
            world.supervise()
            time.sleep(0.05)
        at, seconds = datetime.now(UTC), time.monotonic() - begun
        if what := FAULTS[fault.kind].inject(world, trainer, fault.draw):
            hits.append(Hit(at, seconds, fault.kind, what))


def _is_due(world: World, late: float) -> bool:
    """A fault waits for something that it may hit, but not for ever."""
    if late < 0:
        return False
    with suppress(SQLAlchemyError):
        return late > LATEST or any_running(world.store)
    return True


def _close(world: World, trainer: Trainer) -> None:
    """Let the clients come to their end, which needs a service."""
    from threading import Thread

    closing = Thread(target=trainer.close)
    closing.start()
    while closing.is_alive():
        world.supervise()
        time.sleep(0.05)


def _wait(world: World, condition: Callable[[], bool]) -> None:
    """Until it is so; no time limit as long as there is progress."""
    last, since = (-1, -1), time.monotonic()
    while True:
        world.supervise()
        with suppress(SQLAlchemyError):  # the database is being set up, or comes back
            if condition():
                return
            now = progress(world.store)
            if now != last:
                last, since = now, time.monotonic()
        if time.monotonic() - since > STALLED:
            raise AssertionError(f"no progress for {STALLED} s, after {last[0]} attempts and {last[1]} values")
        time.sleep(0.1)


def _report(plan: Plan, hits: Sequence[Hit], world: World, wrong: Sequence[str]) -> str:
    lines = [f"a fault run went wrong; make soak SOAK='{plan.options}' has its schedule again:"]
    lines += [f"  - {item}" for item in wrong]
    lines += ["faults:", *(f"  {hit.seconds:7.1f} s  {hit.at:%H:%M:%S.%f}  {hit.kind}: {hit.what}" for hit in hits)]
    lines += ["the end of the service's log:", *world.service.log.read_text().splitlines()[-60:]]
    return "\n".join(lines)


def table(plan: Plan, judgement: Judgement) -> str:
    """The figures, for people."""
    lines = [f"== {plan.name}: {plan.seconds:.0f} s of faults"]
    for name, value in judgement.figures.items():
        if name == "recovery":
            lines.append("  from a fault to the next attempt that began: number, median, longest")
            lines += [
                f"    {kind:20} {n:4d} {middle:7.2f} s {longest:7.2f} s" for kind, (n, middle, longest) in value.items()
            ]
        else:
            lines.append(f"  {name}: {json.dumps(value)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900, help="of faults, shared by the runs [900]")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(1 << 31), help="[a random one]")
    parser.add_argument("--gap", type=float, default=7.0, help="seconds between two faults, on average [7]")
    parser.add_argument("--checkpoints", type=int, default=6, help="of the miniature, at most 12 [6]")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), help="[both]")
    parser.add_argument("--cluster", choices=("own", "external"), help="[both]")
    chosen = parser.parse_args(arguments)
    databases = [chosen.database] if chosen.database else ["sqlite", "postgresql"]
    clusters = [chosen.cluster == "external"] if chosen.cluster else [False, True]
    plans = [
        Plan(
            chosen.seed + index,
            chosen.seconds / (len(databases) * len(clusters)),
            database,
            external,
            chosen.gap,
            ALL_TASKS,
            checkpoints()[-chosen.checkpoints :],
        )
        for index, (external, database) in enumerate(
            (external, database) for external in clusters for database in databases
        )
    ]
    folder = Path(tempfile.mkdtemp(prefix="evalsvc-soak-"))
    print(f"seed {chosen.seed}; computing the undisturbed values", flush=True)
    _, expected = undisturbed(folder / "undisturbed", plans[0])
    for index, plan in enumerate(plans):
        print(f"running {plan.name} for {plan.seconds:.0f} s", flush=True)
        try:
            print(table(plan, run(folder / str(index), plan, expected)), flush=True)
        except SoakFailure as failure:
            print(f"{failure}\nlogs and data are in {folder / str(index)}", file=sys.stderr)
            return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
