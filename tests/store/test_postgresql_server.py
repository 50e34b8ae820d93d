"""The tests' own PostgreSQL, which a stranger must be able to start as whoever they are."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

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
    become = []
    if os.geteuid() == 0:  # PostgreSQL looks the user up by name, so the machine must have the user
        user = next(entry for entry in pwd.getpwall() if entry.pw_uid != 0)
        become = ["unshare", "--user", f"--map-user={user.pw_uid}", f"--map-group={user.pw_gid}"]
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
