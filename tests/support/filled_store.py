"""A database and a data folder with something of everything that a backup must bring back, and what they hold."""

import hashlib
import math
import os
import sqlite3
import tarfile
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import msgpack
import sqlalchemy as sa
from history_reference import Point, write
from posts_and_results import act, enter, enter_virtual, kept_artifact, metric, plan, submission, suite
from queue_steps import cancel, dispatched, evaluate_whole, store_result

from evalsvc.config import Settings
from evalsvc.files.artifacts import keep_content
from evalsvc.files.items import keep_items, pack_items
from evalsvc.files.outputs import keep_output
from evalsvc.messages import ShardResult
from evalsvc.store.backup import FOLDERS
from evalsvc.store.data_folder import claim_data_folder
from evalsvc.store.lock import CoordinatorLock, database_id
from evalsvc.store.runs.deletion import delete_run
from evalsvc.store.session import Store
from evalsvc.store.tables import Artifact, Base, Checkpoint, Suite, now
from evalsvc.store.tokens import create_token, revoke_token

Rows = dict[str, list[tuple[Any, ...]]]


def settings_of(store: Store, folder: Path) -> Settings:
    return Settings(data_dir=str(folder), database_url=store.url)


def fill(store: Store, folder: Path) -> Settings:
    """Enter runs, results, files, tokens and all else through the functions of the service."""
    settings = settings_of(store, folder)
    lock = CoordinatorLock(store.url)
    lock.begin_term(store)
    claim_data_folder(folder, database_id(store), store.url)
    _evaluate(store, settings)
    _leave_unfinished(store, settings)
    _enter_the_rest(store)
    _spool(store, folder)
    _keep_statistics(settings.statistics_path)
    return settings


def _evaluate(store: Store, settings: Settings) -> None:
    for step, content in enumerate((b"grid\0", b"grid\0", b"\x89PNG" * 300)):
        artifact = kept_artifact(keep_content(settings.artifacts_path, content), "größe 🙂\n.png")
        details = {"prompt": "🐈 \x01", "none": None, "deep": [{"z": 1, "a": [0.1]}]}
        artifact = replace(artifact, size=len(content), details=details)
        items = [{"index": index, "loss": math.pi * index, "text": os.urandom(800).hex()} for index in range(100)]
        packed = keep_items(settings.items_path, pack_items(items[: 100 if step else 3]))
        enter(store, submission(step, run="run-a", tags={"lr": 1e-4}), suite())
        evaluate_whole(store, metric(0.1 + step), artifacts=[artifact], items=packed)
    with store.transaction() as session:
        session.execute(sa.update(Artifact).where(Artifact.id == 1).values(pruned_at=now()))
    enter_virtual(store, "mean", "avg(run-a@0, run-a@1)", suite())
    evaluate_whole(store, metric(5e-324))
    enter(store, submission(1, run="gone"), suite())
    act(store, delete_run, "gone", cancel=True)


def _leave_unfinished(store: Store, settings: Settings) -> None:
    """An evaluation with outputs in files and in rows, one that runs, and one that was cancelled."""
    enter(store, submission(3, run="run-b"), suite())
    store_result(store, dispatched(store, "plan"), plan(3))
    for large in (True, False):
        run = dispatched(store, "run")
        output = msgpack.packb({"features": b"\xff\0" * (100_000 if large else 3), "sum": 0.1})
        place = {"task": run.task_id, "shard": run.shard_id, "attempt": run.attempt}
        store_result(store, run, ShardResult(keep_output(settings.outputs_path, output, **place)))
    dispatched(store, "run")
    [evaluation] = enter(store, submission(4, run="run-b"), suite())
    cancel(store, evaluation)


def _enter_the_rest(store: Store) -> None:
    points = [Point(step, value, None, None) for step, value in enumerate((math.nan, math.inf, -math.inf, -0.0, 1e308))]
    write(store, {"lower/x": [*points, Point(2**63 - 1, 0.1, 0.2, 5)]}, "imported", "elsewhere")
    with store.transaction() as session:
        create_token(session, "trainer", "submit", 30.5)
        create_token(session, "old", "admin", None)
        session.add(Suite(name="given", content={"tasks": []}, digest="d" * 64))
    act(store, revoke_token, "old")


def _spool(store: Store, folder: Path) -> None:
    with store.transaction() as session:
        for checkpoint in session.scalars(sa.select(Checkpoint).where(Checkpoint.id.in_((1, 2)))):
            checkpoint.spool, checkpoint.spool_state = "copy", "ready"
            place = folder / "spool" / str(checkpoint.id) / Path(checkpoint.path).name
            files = [place] if checkpoint.id == 1 else [place / "a" / "b.distcp", place / "größe .metadata"]
            for file in files:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(os.urandom(1000))
                os.utime(file, ns=(10**18 + 7, 10**18 + 7))


def _keep_statistics(folder: Path) -> None:
    answers = folder / "answers" / ("a" * 64) / f"{'b' * 64}.json"
    answers.parent.mkdir(parents=True)
    answers.write_text("{}")
    (folder / "coco.npz").write_bytes(b"PK" * 100)


def rows_of(store: Store) -> Rows:
    """Every row of every table, but for the identity of the database, which a restored one has of its own."""
    rows: Rows = {}
    with store.reading() as session:
        for table in Base.metadata.sorted_tables:
            columns = [column for column in table.c if column.name != "database_id"]
            found = session.execute(sa.select(*columns).order_by(*table.primary_key.columns))
            rows[table.name] = [tuple(row) for row in found]
    return rows


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content of each file that a backup has, and the time of change where it is kept."""
    folders = [home / name for home in (folder, folder / "shared") for name in FOLDERS]
    files = [path for inside in folders for path in sorted(inside.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): (
            path.read_bytes(),
            path.stat().st_mtime_ns if path.is_relative_to(folder / "spool") else 0,
        )
        for path in files
    }


DATABASE = "evalsvc.db"


@dataclass
class Member:
    name: str
    content: bytes
    info: dict[str, Any] = field(default_factory=dict)
    """Attributes of the header that differ from a regular file's, such as `type`."""


def read_members(path: Path) -> dict[str, Member]:
    members = {}
    with tarfile.open(path) as tar:
        for info in tar:
            content = tar.extractfile(info)
            assert content is not None
            members[info.name] = Member(info.name, content.read(), {"pax_headers": info.pax_headers})
    return members


def write_members(path: Path, members: Iterable[Member]) -> Path:
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.size = len(member.content)
            size = member.info.pop("size", info.size)
            for name, value in member.info.items():
                setattr(info, name, value)
            if size == info.size:
                tar.addfile(info, BytesIO(member.content))
            else:
                info.size = size  # a lie: the header alone, and less content
                stream.write(info.tobuf(tarfile.PAX_FORMAT) + member.content.ljust(512, b"\0"))
    return write_signed(path, stream.getvalue())


def write_signed(path: Path, content: bytes) -> Path:
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())
    return path


def changed_database(content: bytes, *statements: str) -> bytes:
    """The database of a backup after these statements, without checks of foreign keys."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(content[:18] + b"\1\1" + content[20:])  # a database in memory has no WAL
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        return connection.serialize()
