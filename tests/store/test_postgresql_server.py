"""The tests' own PostgreSQL, which a stranger must be able to start as whoever they are."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from postgresql_server import PostgresqlServer

SCRIPT = """
import os
import psycopg
import pytest
from postgresql_server import PostgresqlServer
with PostgresqlServer() as server:
    [version] = psycopg.connect(server.url.replace("+psycopg", "")).execute("SHOW server_version_num").fetchone()
    print(os.geteuid() != 0, int(version) >= 150000)
"""


@pytest.mark.usefixtures("child_process")
def test_it_starts_without_root() -> None:
    """Where root runs the tests, as a user of a namespace of its own, who is not root there."""
    become = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
    support = str(Path(__file__).parents[1] / "support")
    environment = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    done = subprocess.run(
        [*become, sys.executable, "-c", SCRIPT],
        env=environment | {"PYTHONPATH": os.pathsep.join([support, *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True True\n", done.stderr


@pytest.mark.usefixtures("child_process")
def test_it_keeps_what_was_committed() -> None:
    """Tests of outages stop it in every way, and would blame evalsvc for what is lost."""
    with PostgresqlServer() as server:
        address = server.url.replace("+psycopg", "")
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (number integer)")
        for number, end in enumerate((server.stop, server.kill)):
            with psycopg.connect(address, autocommit=True) as connection:
                connection.execute("INSERT INTO kept VALUES (%s)", (number,))
            end()
            server.start()
        with psycopg.connect(address) as connection:
            assert connection.execute("SELECT number FROM kept ORDER BY number").fetchall() == [(0,), (1,)]
