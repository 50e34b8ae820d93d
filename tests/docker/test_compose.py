"""The compose files, as docker-compose reads them."""

import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from stack import resolved, seconds_of

from evalsvc.config import Settings, unknown_variables

DOCKER = Path(__file__).parents[2] / "docker"

FILES = {"compose.yaml": ("gpu", "client"), "compose.cpu.yaml": ("demo",)}
"""With the profiles of each."""

pytestmark = pytest.mark.usefixtures("compose")


@pytest.fixture(params=FILES)
def services(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The services of a file, those of all its profiles."""
    found: dict[str, Any] = resolved(DOCKER / request.param, *FILES[request.param])["services"]
    return found


@pytest.mark.parametrize(("file", "profile"), [(file, name) for file in FILES for name in ("", *FILES[file])])
def test_the_files_are_right_with_each_profile(compose: str, file: str, profile: str) -> None:
    options = [f"--profile={profile}"] if profile else []
    command = [compose, f"--file={DOCKER / file}", *options, "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_service_may_more_than_it_needs(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"], name
        assert "/tmp" in service["tmpfs"], name
        assert not service.get("privileged"), name
        # Otherwise it is that of the image, which is 10001.
        assert service.get("user", "") in ("", "999:999"), name


def test_only_the_service_is_published_and_only_to_this_machine(services: dict[str, Any]) -> None:
    ports = [(name, port["host_ip"], port["target"]) for name in services for port in services[name].get("ports", [])]
    assert ports == [("api", "127.0.0.1", Settings().port)]


def test_nothing_is_killed_while_it_finishes_what_runs(services: dict[str, Any]) -> None:
    for name in {"api", "worker"} & set(services):
        assert seconds_of(services[name]["stop_grace_period"]) > 2 * Settings().grace, name


def test_variables_are_settings(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert unknown_variables(service.get("environment", {})) == [], name


def test_every_service_has_a_health_check_or_none(services: dict[str, Any]) -> None:
    """That of the image is for the service: a scheduler or client would be called ill by it."""
    for name, service in services.items():
        if service["image"] == "evalsvc-api" and name != "api":
            check = service["healthcheck"]
            assert check.get("disable") or check["test"], name


def test_secrets_are_made_once_and_are_nobody_elses(tmp_path: Path, short_process: None) -> None:
    script = shutil.copy(DOCKER / "make-secrets.sh", tmp_path)
    subprocess.run(["sh", script], check=True, capture_output=True)
    folder = tmp_path / "secrets"
    password, url = ((folder / name).read_text() for name in ("database_password", "database_url"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o644}
    assert len(password) == 64
    address = Settings.load({"EVALSVC_DATABASE_URL": f"@{folder / 'database_url'}"}).database
    assert address == f"postgresql+psycopg://evalsvc:{password}@database/evalsvc"
    subprocess.run(["sh", script], check=True, capture_output=True)
    assert (folder / "database_url").read_text() == url
