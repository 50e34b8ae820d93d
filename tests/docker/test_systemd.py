"""The units of systemd are units, confine what they start, and start commands that exist with settings that exist."""

import configparser
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from doc_blocks import DOCS, ROOT, read_blocks
from doc_commands import check_command
from programs import find_program, output_of

from evalsvc.api.server import DRAIN_SECONDS
from evalsvc.cluster.certificates import CA, CERT, KEY
from evalsvc.config import Settings, setting_help
from evalsvc.service.coordinator import STOP_PATIENCE

FOLDER = ROOT / "docker" / "systemd"
PAGE = DOCS / "how-to" / "deploy.md"
UNITS = sorted(path.name for path in FOLDER.glob("*.service"))
PROGRAM = "/opt/evalsvc/bin/evalsvc"

EXPOSURE = 2.0
"""What `systemd-analyze security` may find at most, of 10. A unit without any sandbox has 9.6."""

SECONDS = {"s": 1, "min": 60}


@pytest.fixture
def systemd_analyze(child_process: None) -> str:
    return find_program("systemd-analyze", "Debian's package systemd")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A copy of the units, with a program in the place of evalsvc's, which is not installed."""
    folder = tmp_path / "units"
    folder.mkdir()
    for name in UNITS:
        (folder / name).write_text((FOLDER / name).read_text().replace(PROGRAM, str(shutil.which("true"))))
    drop_in = folder / "evalsvc-serve.service.d"
    drop_in.mkdir()
    shutil.copy(FOLDER / "postgresql.conf", drop_in)
    return folder


def values(name: str, key: str, section: str = "Service") -> list[str]:
    """What a unit gives a key, in its order: a key may be given many times."""
    found, inside = [], ""
    for line in (FOLDER / name).read_text().splitlines():
        if line.startswith("["):
            inside = line.strip("[]")
        elif inside == section and line.startswith(f"{key}="):
            found.append(line.partition("=")[2])
    return found


def environment(name: str) -> dict[str, str]:
    words = [word for line in values(name, "Environment") for word in shlex.split(line)]
    return {variable: value for variable, _, value in (word.partition("=") for word in words)}


def test_units_are_units(systemd_analyze: str, units: Path) -> None:
    """On a machine that systemd does not run, it warns of that, too."""
    said = output_of(systemd_analyze, "verify", "--man=no", *sorted(units.glob("*.service")))
    assert [line for line in said.splitlines() if str(units) in line or ".service" in line] == []


@pytest.mark.parametrize("name", UNITS)
def test_units_are_confined(systemd_analyze: str, units: Path, name: str) -> None:
    limit = f"--threshold={int(10 * EXPOSURE)}"
    output_of(systemd_analyze, "security", "--offline=true", "--no-pager", limit, units / name)
    table = output_of(systemd_analyze, "security", "--offline=true", "--json=short", units / name)
    open_to = {row["name"] for row in json.loads(table) if row["set"] is False}
    allowed = {
        "evalsvc-worker.service": {"PrivateDevices=", "MemoryDenyWriteExecute="},
        "evalsvc-serve.service": {"MemoryDenyWriteExecute="},  # the engine of charts cannot do without
    }.get(name, set())
    assert not open_to & {"PrivateDevices=", "MemoryDenyWriteExecute=", "NoNewPrivileges=", "ProtectSystem="} - allowed


@pytest.mark.parametrize("name", UNITS)
def test_commands_exist(name: str) -> None:
    [command] = values(name, "ExecStart")
    program, *words = shlex.split(command)
    assert program == PROGRAM
    check_command([re.sub(r"\$\{(\w+)\}", lambda found: environment(name)[found[1]], word) for word in words])


@pytest.mark.parametrize("name", [*UNITS, "postgresql.conf"])
def test_settings_exist_and_credentials_that_are_named_are_loaded(name: str) -> None:
    loaded = {line.partition(":")[0] for line in values(name, "LoadCredential")}
    named = {CA, CERT, KEY} if environment(name).get("EVALSVC_TLS") == "%d" else set()
    named |= {value.removeprefix("@%d/") for value in environment(name).values() if value.startswith("@%d/")}
    assert named == loaded != set()
    given = {variable for variable in environment(name) if variable.startswith("EVALSVC_")}
    assert set() != given <= {variable for variable, _, _ in setting_help()}
    # The environment of a process is shown to its user, and by `systemctl show` to everybody.
    for secret in ("EVALSVC_TOKEN", "EVALSVC_DATABASE_URL"):
        assert environment(name).get(secret, "@").startswith("@"), "only a path of a secret"


def test_a_worker_is_another_user_with_a_folder_of_its_own() -> None:
    """It opens files of strangers: the database and the tokens of the service are out of reach."""
    made = re.findall(r"^u (\S+) ", (FOLDER / "evalsvc.sysusers").read_text(), re.MULTILINE)
    assert {user for name in UNITS for key in ("User", "SupplementaryGroups") for user in values(name, key)} == set(
        made
    )
    assert len({user for name in UNITS for user in values(name, "User")}) == len(UNITS), "so is the scheduler"
    folder = environment("evalsvc-serve.service")["EVALSVC_DATA_DIR"]
    assert environment("evalsvc-worker.service")["EVALSVC_DATA_DIR"] == folder, "spooled files have one path"
    assert f"/var/lib/evalsvc-worker:{folder}" in values("evalsvc-worker.service", "BindPaths")
    assert values("evalsvc-worker.service", "BindReadOnlyPaths") == [f"-{folder}/spool -{folder}/shared"]


@pytest.mark.parametrize("name", ["evalsvc-serve.service", "evalsvc-worker.service"])
def test_units_have_the_time_that_their_end_takes(name: str) -> None:
    [text] = values(name, "TimeoutStopSec")
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()  # type: ignore[union-attr]
    assert int(number) * SECONDS[unit] > Settings().grace + STOP_PATIENCE + DRAIN_SECONDS
    assert values(name, "KillMode") == ["mixed"], "the command ends its own processes"
    assert values(name, "Restart") == ["always"]


def test_lines_without_which_something_broke() -> None:
    assert values("evalsvc-serve.service", "MemoryDenyWriteExecute") == [], "every chart as SVG or PNG was an error"
    assert values("evalsvc-worker.service", "OOMPolicy") == ["continue"], "one process without memory stops no unit"


def test_drop_ins_of_the_page_replace_lines_that_units_have() -> None:
    [text] = [block.text for block in read_blocks(PAGE) if block.language == "ini"]
    drop_in = configparser.ConfigParser(strict=False)
    drop_in.read_string(text)
    program, *words = shlex.split(drop_in["Service"]["ExecStart"])
    assert program == PROGRAM
    check_command(words)
    [command] = values("evalsvc-scheduler.service", "ExecStart")
    assert shlex.split(command)[1] == words[0]
