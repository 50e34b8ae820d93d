"""The service under random faults: nothing is lost, nothing that is finished runs again, and no number moves."""

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import SystemRandom

import pytest
from soak import SHORT_TASKS, Plan, run, table, undisturbed
from soak_database import SqliteDatabase
from soak_faults import FAULTS
from soak_judgement import Found, judge
from soak_schedule import schedule
from soak_trainer import Ledger
from soak_world import World
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from evalsvc.cli.demo import checkpoints
from evalsvc.store.tables import Artifact, Attempt, Checkpoint, MetricValue, Shard

# There is no limit to how slow a busy machine may be, as long as it gets on.
pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("child_process")]

SECONDS, GAP = 34, 2.6


def plan(database: str, *, external: bool) -> Plan:
    seed = SystemRandom().randrange(1 << 31)
    return Plan(seed, SECONDS, database, external, GAP, SHORT_TASKS, checkpoints()[-2:])


Undisturbed = tuple[Path, Ledger, dict[Path, Found]]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A run to which nothing happens: its folder, what was posted, and what was found."""
    folder = tmp_path_factory.mktemp("soak") / "undisturbed"
    ledger, expected = undisturbed(folder, plan("sqlite", external=False))
    return folder, ledger, expected


@pytest.mark.parametrize(("database", "external"), [("sqlite", False), ("postgresql", True)])
def test_a_service_under_random_faults_ends_as_one_that_nothing_happens_to(
    quiet: Undisturbed, tmp_path: Path, database: str, external: bool
) -> None:
    """Workers, commands, scheduler and service killed, workers stopped, the database away or locked, checkpoints posted
    again and replaced, evaluations cancelled and retried: `make soak` does the same for longer."""
    chosen = plan(database, external=external)
    judgement = run(tmp_path / "world", chosen, quiet[2])
    print(table(chosen, judgement))
    assert judgement.figures["succeeded"] > 0


def test_a_seed_is_a_schedule_in_which_every_kind_has_its_turn() -> None:
    """A run that failed can be had again, and a short one leaves out no kind of fault."""
    kinds = list(FAULTS)
    planned = schedule(7, 600, kinds, 5)
    assert planned == schedule(7, 600, kinds, 5)
    assert planned != schedule(8, 600, kinds, 5)
    assert {item.kind for item in planned[: len(kinds)]} == set(kinds)
    assert len(planned) == 120
    assert all(earlier.at < later.at for earlier, later in pairwise(planned))
    most = [kind for kind in kinds if kind != "lock-database"]
    assert {item.kind for item in schedule(1, SECONDS, most, GAP)} == set(most), "in the short runs, too"


def _post_is_lost(session: Session, folder: Path) -> None:
    session.execute(update(Checkpoint).where(Checkpoint.id == 1).values(step=7))


def _last_bit(session: Session, folder: Path) -> None:
    value = session.scalars(select(MetricValue).where(MetricValue.value > 0).limit(1)).one()
    assert value.value is not None
    value.value *= 1 + 2**-52


def _succeeded_ran_again(session: Session, folder: Path) -> None:
    session.add(
        Attempt(shard_id=1, number=2, outcome="succeeded", finished_at=session.get_one(Attempt, (1, 1)).started_at)
    )


def _never_ended(session: Session, folder: Path) -> None:
    session.get_one(Attempt, (1, 1)).finished_at = None


def _charged(session: Session, folder: Path) -> None:
    session.execute(update(Shard).where(Shard.id == 2).values(failed_attempts=1))


def _orphan(session: Session, folder: Path) -> None:
    (folder / "data" / "artifacts" / "00").mkdir(exist_ok=True)
    (folder / "data" / "artifacts" / "00" / ("0" * 64)).touch()


def _file_is_gone(session: Session, folder: Path) -> None:
    digest = session.scalars(select(Artifact.sha256).limit(1)).one()
    (folder / "data" / "artifacts" / digest[:2] / digest).unlink()


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (_post_is_lost, "was stored as"),
        (_last_bit, "has other values"),
        (_succeeded_ran_again, "ran again after it had succeeded"),
        (_never_ended, "never ended"),
        (_charged, "1 shards were charged, 0 faults may charge one"),
        (_orphan, "files that nothing names"),
        (_file_is_gone, "rows name files that are not there"),
    ],
)
def test_the_judgement_notices(
    quiet: Undisturbed, tmp_path: Path, harm: Callable[[Session, Path], None], complaint: str
) -> None:
    """One that finds everything right whatever is wrong would pass every run."""
    folder, ledger, expected = quiet
    copy = shutil.copytree(folder, tmp_path / "copy")
    world = World(copy, SqliteDatabase(copy), workers=2, external=False, settings={})
    try:
        assert judge(world, ledger, [], expected).wrong == []
        with world.store.transaction() as session:
            harm(session, copy)
        assert any(complaint in line for line in judge(world, ledger, [], expected).wrong)
    finally:
        world.close()
