"""`evalsvc serve`: what keeps a service from starting is one line and exit code 2."""

from pathlib import Path

import pytest
from console import Command

from evalsvc.api.server import listen
from evalsvc.store.session import open_store


class TestServe:
    def test_port_in_use(self, command: Command) -> None:
        with listen("127.0.0.1", 0) as taken:
            port = taken.getsockname()[1]
            result = command("serve", "--port", str(port))
        assert result.code == 2
        assert result.err.startswith(f"error: port {port} of 127.0.0.1 is in use")
        assert "--port (EVALSVC_PORT)" in result.err

    def test_unwritable_data_dir(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        result = command("serve", "--port", "0", "--data-dir", str(tmp_path / "file" / "data"))
        assert result.code == 2
        assert "cannot be written: not a directory; change its permissions or choose another" in result.err
        assert "[data_directory_unusable]" in result.err

    def test_database_of_another_version(self, command: Command, tmp_path: Path) -> None:
        store = open_store(f"sqlite:///{tmp_path}/evalsvc.db", migrate=False)
        with store.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        store.close()
        for options in ([], ["--migrate"]):
            result = command("serve", "--port", "0", "--data-dir", str(tmp_path), *options)
            assert result.code == 2
            assert "has schema version 9999, this evalsvc needs" in result.err
            assert "[schema_version_mismatch]" in result.err

    def test_database_that_is_none(self, command: Command) -> None:
        result = command("serve", "--port", "0", "--database-url", "nonsense")
        assert (result.code, "is no database URL" in result.err) == (2, True)

    def test_address_that_others_reach(self, command: Command) -> None:
        result = command("serve", "--host", "0.0.0.0", "--port", "0")
        assert (result.code, "which has no token yet; make one first" in result.err) == (2, True)

    def test_missing_suites_folder(self, command: Command, tmp_path: Path) -> None:
        result = command("serve", "--port", "0", "--suites", str(tmp_path / "nowhere"))
        assert (result.code, "does not exist; create it or change --suites" in result.err) == (2, True)

    def test_port_that_is_no_number(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EVALSVC_PORT", "http")
        result = command("serve")
        assert (result.code, "EVALSVC_PORT is 'http'; it must be a whole number" in result.err) == (2, True)
