"""Manifests of Kubernetes and units of systemd are valid, confined, and name commands and settings that exist."""

import configparser
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from doc_blocks import DOCS, ROOT, find_block, read_blocks
from doc_commands import check_command
from programs import find_program, output_of

from evalsvc.access_tokens import TOKEN
from evalsvc.api.server import DRAIN_SECONDS
from evalsvc.cluster.certificates import CA, CERT, KEY, write_certificates
from evalsvc.config import Settings, setting_help
from evalsvc.service.coordinator import STOP_PATIENCE

MANIFESTS = ROOT / "docker" / "k8s"
PAGE = DOCS / "how-to" / "deploy.md"

OLDEST, NEWEST = "1.29", "1.37"

Object = dict[str, Any]
Build = Callable[[str], list[Object]]


@pytest.fixture(scope="session")
def build(child_process: None, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds the manifests with the secrets that an operator adds, and the overlay that the page shows."""
    folder = tmp_path_factory.mktemp("kubernetes") / "k8s"
    shutil.copytree(MANIFESTS, folder, ignore=shutil.ignore_patterns("certificates", "database_url"))
    write_certificates(folder / "base" / "certificates")
    (folder / "postgresql" / "database_url").write_text("postgresql://evalsvc:secret@db.example/evalsvc\n")
    (folder / "mine").mkdir()
    (folder / "mine" / "kustomization.yaml").write_text(find_block(PAGE, "yaml", "../postgresql"))
    kubectl = find_program("kubectl", "Debian's package of this name")
    return cache(lambda overlay: list(yaml.safe_load_all(output_of(kubectl, "kustomize", folder / overlay))))


@pytest.fixture(params=["base", "cpu", "mine"])
def overlay(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def objects(build: Build, overlay: str) -> list[Object]:
    return build(overlay)


def named(objects: list[Object], kind: str) -> dict[str, Object]:
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


def pods(objects: list[Object]) -> dict[str, Object]:
    return {name: item["spec"]["template"] for name, item in named(objects, "Deployment").items()}


def containers(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for pod in pods(objects).values():
        for item in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            yield item["name"], item


def variables(container: Object, objects: list[Object]) -> dict[str, str]:
    maps = named(objects, "ConfigMap")
    shared = [maps[source["configMapRef"]["name"]]["data"] for source in container.get("envFrom", [])]
    return {name: text for data in shared for name, text in data.items()} | {
        item["name"]: item.get("value", "") for item in container.get("env", [])
    }


@pytest.mark.parametrize(("overlay", "version"), [("mine", OLDEST), ("mine", NEWEST), ("cpu", NEWEST)])
def test_objects_follow_the_schemas(build: Build, overlay: str, version: str) -> None:
    for item in build(overlay):
        assert kubernetes_validate.validate(item, version, strict=True) == version


def test_pods_are_restricted(objects: list[Object]) -> None:
    """What the level `restricted` of Kubernetes' pod security asks for, which the namespace enforces; and more."""
    [namespace] = named(objects, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods(objects).values():
        spec, context = pod["spec"], pod["spec"]["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"], context["runAsGroup"]) == (True, 10001, 10001)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (spec["enableServiceLinks"], spec["automountServiceAccountToken"]) == (False, False)
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"secret", "persistentVolumeClaim", "emptyDir"}
    for name, container in containers(objects):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert container["resources"]["limits"]["memory"], name


def test_what_is_named_is_there(objects: list[Object]) -> None:
    for volume in [volume for pod in pods(objects).values() for volume in pod["spec"]["volumes"]]:
        if claim := volume.get("persistentVolumeClaim"):
            assert claim["claimName"] in named(objects, "PersistentVolumeClaim")
        if secret := volume.get("secret"):
            assert secret["secretName"] in named(objects, "Secret")
    labels = [pod["metadata"]["labels"] for pod in pods(objects).values()]
    selectors = [item["spec"]["selector"] for item in named(objects, "Service").values()]
    selectors += [item["spec"]["podSelector"]["matchLabels"] for item in named(objects, "NetworkPolicy").values()]
    for selector in selectors:
        assert any(selector.items() <= found.items() for found in labels), selector
    everyone = named(objects, "NetworkPolicy")["evalsvc"]["spec"]["podSelector"]["matchLabels"]
    assert all(everyone.items() <= found.items() for found in labels), "no pod is without a policy"


def test_commands_and_settings_exist(objects: list[Object]) -> None:
    for name, container in containers(objects):
        assert set(variables(container, objects)) <= {variable for variable, *_ in setting_help()}, name
        if "command" not in container:
            check_command(container["args"])
    [script] = [container["args"][0] for name, container in containers(objects) if name == "first-token"]
    [command] = re.findall(r"^ *evalsvc (.*) > ", script, re.MULTILINE)
    check_command(command.split())


def test_addresses_ports_probes_and_devices(objects: list[Object], overlay: str) -> None:
    ports = {name: item["spec"]["ports"][0] for name, item in named(objects, "Service").items()}
    expected = {"evalsvc": Settings().port, "evalsvc-scheduler": 8786}
    assert {name: port["port"] for name, port in ports.items()} == expected
    for name, container in containers(objects):
        for word in container.get("args", []):
            if word.startswith("tls://"):
                assert word == f"tls://evalsvc-scheduler:{ports['evalsvc-scheduler']['port']}", name
        for port in container.get("ports", []):
            assert str(port["containerPort"]) == container["args"][container["args"].index("--port") + 1]
        probes = {kind: probe["httpGet"]["path"] for kind, probe in container.items() if "httpGet" in probe}
        known = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
        assert probes == (known if name == "api" else {}), "routes that need no token"
        if name == "worker":
            devices = variables(container, objects)["EVALSVC_DEVICES"]
            gpus = container["resources"]["limits"].get("nvidia.com/gpu")
            assert (devices, gpus) == (("cpu", None) if overlay == "cpu" else ("all", 1))
            assert container["image"].startswith("evalsvc-worker-cpu" if overlay == "cpu" else "")
            [threads] = [item["valueFrom"] for item in container["env"] if item["name"] == "EVALSVC_THREADS"]
            assert threads == {"resourceFieldRef": {"containerName": "worker", "resource": "requests.cpu"}}
            assert ("tolerations" in pods(objects)["evalsvc-worker"]["spec"]) == (overlay != "cpu")
    [budget] = named(objects, "PodDisruptionBudget").values()
    worker = pods(objects)["evalsvc-worker"]["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= worker.items()


def test_a_pod_has_the_time_that_its_end_takes(objects: list[Object]) -> None:
    [api] = [container for name, container in containers(objects) if name == "api"]
    needed = float(variables(api, objects)["EVALSVC_GRACE"]) + STOP_PATIENCE + DRAIN_SECONDS
    grace = {name: pod["spec"]["terminationGracePeriodSeconds"] for name, pod in pods(objects).items()}
    assert min(grace["evalsvc-api"], grace["evalsvc-worker"]) > needed
    for name in ("evalsvc-api", "evalsvc-scheduler"):
        spec = named(objects, "Deployment")[name]["spec"]
        assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate"), "one at a time: the old one ends first"


def test_secrets_are_never_committed(short_process: None) -> None:
    secrets = ["base/certificates/key.pem", "postgresql/database_url"]
    assert output_of("git", "-C", MANIFESTS, "check-ignore", *secrets).split() == secrets


def test_the_first_token_is_made_once(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child_process: None
) -> None:
    """A pod that starts again must not make another token, also where the operator has emptied the file."""
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path))
    [container] = [container for name, container in containers(build("base")) if name == "first-token"]
    script = container["args"][0].replace("/data/", f"{tmp_path}/")
    evalsvc = f'evalsvc() {{ "{sys.executable}" -m evalsvc.cli "$@"; }}\n'

    def start_pod() -> str:
        output_of(*container["command"], evalsvc + script)
        return (tmp_path / "first-token").read_text()

    token = start_pod()
    assert TOKEN.fullmatch(token.strip())
    assert (tmp_path / "first-token").stat().st_mode & 0o777 == 0o600
    assert start_pod() == token
    (tmp_path / "first-token").write_text("")
    assert start_pod() == ""


# Units of systemd


SYSTEMD = ROOT / "docker" / "systemd"
UNITS = sorted(path.name for path in SYSTEMD.glob("*.service"))
PARTS = [name for name in UNITS if name != "evalsvc-backup.service"]
PROGRAM = "/opt/evalsvc/bin/evalsvc"


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A copy of the units, with a program in the place of evalsvc's, which is not installed."""
    folder = tmp_path / "units"
    folder.mkdir()
    for name in UNITS:
        (folder / name).write_text((SYSTEMD / name).read_text().replace(PROGRAM, str(shutil.which("true"))))
    drop_in = folder / "evalsvc-serve.service.d"
    drop_in.mkdir()
    for name in ("postgresql.conf", "https.conf"):
        shutil.copy(SYSTEMD / name, drop_in)
    shutil.copy(SYSTEMD / "evalsvc-backup.timer", folder)
    return folder


def values(name: str, key: str, section: str = "Service") -> list[str]:
    """What a unit gives a key, in its order: a key may be given many times."""
    found, inside = [], ""
    for line in (SYSTEMD / name).read_text().splitlines():
        if line.startswith("["):
            inside = line.strip("[]")
        elif inside == section and line.startswith(f"{key}="):
            found.append(line.partition("=")[2])
    return found


def environment(name: str) -> dict[str, str]:
    words = [word for line in values(name, "Environment") for word in shlex.split(line)]
    return {variable: value for variable, _, value in (word.partition("=") for word in words)}


@pytest.mark.parametrize("name", UNITS)
def test_units_are_units_and_confined(child_process: None, units: Path, name: str) -> None:
    """On a machine that systemd does not run, it warns of that, too."""
    analyze = find_program("systemd-analyze", "Debian's package systemd")
    said = output_of(analyze, "verify", "--man=no", units / "evalsvc-backup.timer", *units.glob("*.service"))
    assert [line for line in said.splitlines() if str(units) in line or ".service" in line] == []
    limit = "--threshold=20"  # 2.0 of 10; a unit without any sandbox has 9.6
    output_of(analyze, "security", "--offline=true", "--no-pager", limit, units / name)
    table = output_of(analyze, "security", "--offline=true", "--json=short", units / name)
    open_to = {row["name"] for row in json.loads(table) if row["set"] is False}
    allowed = {
        "evalsvc-worker.service": {"PrivateDevices=", "MemoryDenyWriteExecute="},
        "evalsvc-serve.service": {"MemoryDenyWriteExecute="},  # without, every chart as SVG or PNG was an error
    }.get(name, set())
    confined = {"PrivateDevices=", "MemoryDenyWriteExecute=", "NoNewPrivileges=", "ProtectSystem="}
    assert open_to & confined == allowed
    expected = ["continue"] if name == "evalsvc-worker.service" else []
    assert values(name, "OOMPolicy") == expected, "one process without memory stops no unit of workers"


@pytest.mark.parametrize("name", UNITS)
def test_commands_exist(name: str) -> None:
    [command] = values(name, "ExecStart")
    program, *words = shlex.split(command)
    assert program == PROGRAM
    check_command([re.sub(r"\$\{(\w+)\}", lambda found: environment(name)[found[1]], word) for word in words])


@pytest.mark.parametrize("name", [*PARTS, "postgresql.conf", "https.conf"])
def test_settings_exist_and_credentials_that_are_named_are_loaded(name: str) -> None:
    loaded = {line.partition(":")[0] for line in values(name, "LoadCredential")}
    named = {CA, CERT, KEY} if environment(name).get("EVALSVC_TLS") == "%d" else set()
    named |= {value.partition("%d/")[2] for value in environment(name).values() if "%d/" in value}
    assert named == loaded != set()
    given = {variable for variable in environment(name) if variable.startswith("EVALSVC_")}
    assert set() != given <= {variable for variable, _, _ in setting_help()}
    # The environment of a process is shown to its user, and by `systemctl show` to everybody.
    for secret in ("EVALSVC_TOKEN", "EVALSVC_DATABASE_URL"):
        assert environment(name).get(secret, "@").startswith("@"), "only a path of a secret"


def test_a_worker_is_another_user_with_a_folder_of_its_own() -> None:
    """It opens files of strangers: the database and the tokens of the service are out of reach."""
    made = re.findall(r"^u (\S+) ", (SYSTEMD / "evalsvc.sysusers").read_text(), re.MULTILINE)
    assert set(made) == {
        item for name in UNITS for key in ("User", "SupplementaryGroups") for item in values(name, key)
    }
    assert len({user for name in PARTS for user in values(name, "User")}) == len(PARTS), "so is the scheduler"
    assert values("evalsvc-backup.service", "User") == values("evalsvc-serve.service", "User")
    folder = environment("evalsvc-serve.service")["EVALSVC_DATA_DIR"]
    assert environment("evalsvc-worker.service")["EVALSVC_DATA_DIR"] == folder, "spooled files have one path"
    assert f"/var/lib/evalsvc-worker:{folder}" in values("evalsvc-worker.service", "BindPaths")
    assert values("evalsvc-worker.service", "BindReadOnlyPaths") == [f"-{folder}/spool -{folder}/shared"]


@pytest.mark.parametrize("name", ["evalsvc-serve.service", "evalsvc-worker.service"])
def test_units_have_the_time_that_their_end_takes(name: str) -> None:
    [text] = values(name, "TimeoutStopSec")
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()
    assert int(number) * {"s": 1, "min": 60}[unit] > Settings().grace + STOP_PATIENCE + DRAIN_SECONDS
    assert values(name, "KillMode") == ["mixed"], "the command ends its own processes"
    assert values(name, "Restart") == ["always"]


def test_drop_ins_of_the_page_replace_lines_that_units_have() -> None:
    [text] = [block.text for block in read_blocks(PAGE) if block.language == "ini"]
    drop_in = configparser.ConfigParser(strict=False)
    drop_in.read_string(text)
    program, *words = shlex.split(drop_in["Service"]["ExecStart"])
    assert program == PROGRAM
    check_command(words)
    [command] = values("evalsvc-scheduler.service", "ExecStart")
    assert shlex.split(command)[1] == words[0]
