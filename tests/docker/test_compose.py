"""The Dockerfiles as a checker reads them, and the compose files as docker-compose does."""

import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from stack import resolved, seconds_of

from evalsvc.config import Settings, unknown_variables

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))

FILES = {"compose.yaml": ("gpu", "client"), "compose.cpu.yaml": ("demo",)}
"""With the profiles of each."""


@pytest.fixture(params=FILES)
def services(request: pytest.FixtureRequest, compose: str) -> dict[str, Any]:
    found: dict[str, Any] = resolved(DOCKER / request.param, *FILES[request.param])["services"]
    return found


def test_no_service_may_more_than_it_needs(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["init"], name
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"]), name
        assert not {"cap_add", "privileged"} & set(service), name
        assert "/tmp" in service["tmpfs"], name
        assert service.get("user", "") in ("", "999:999"), f"{name}: otherwise that of the image, which is 10001"


def test_only_the_service_is_published_and_only_to_this_machine(services: dict[str, Any]) -> None:
    ports = [(name, port["host_ip"], port["target"]) for name in services for port in services[name].get("ports", [])]
    assert ports == [("api", "127.0.0.1", Settings().port)]


def test_nothing_is_killed_while_it_finishes_what_runs(services: dict[str, Any]) -> None:
    for name in {"api", "worker"} & set(services):
        assert seconds_of(services[name]["stop_grace_period"]) > 2 * Settings().grace, name


def test_variables_are_settings_and_every_service_has_a_health_check_or_none(services: dict[str, Any]) -> None:
    """That of the image is for the service: a scheduler or client would be called ill by it."""
    for name, service in services.items():
        assert unknown_variables(service.get("environment", {})) == [], name
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


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_the_checker_finds_nothing(hadolint: str, file: Path) -> None:
    done = subprocess.run([hadolint, str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_nothing_of_the_checkout_but_the_package_reaches_a_build() -> None:
    """A list of what is left out would send every file that it does not know of, keys and data included."""
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    lines = [line for line in patterns if line and not line.startswith("#")]
    assert lines[0] == "*"
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert sent == {"LICENSE", "README.md", "evalsvc", "migrations", "pyproject.toml"}
