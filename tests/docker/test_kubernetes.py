"""The manifests build, follow Kubernetes' schemas, fit together, and name commands, settings and routes that exist."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from doc_blocks import DOCS, ROOT, find_block
from doc_commands import check_command
from programs import find_program, output_of

from evalsvc.access_tokens import TOKEN
from evalsvc.api.server import DRAIN_SECONDS
from evalsvc.cluster.certificates import write_certificates
from evalsvc.config import Settings, setting_help
from evalsvc.service.coordinator import STOP_PATIENCE

FOLDER = ROOT / "docker" / "k8s"
PAGE = DOCS / "how-to" / "deploy.md"

OLDEST, NEWEST = "1.29", "1.37"

Object = dict[str, Any]
Build = Callable[[str], list[Object]]


@pytest.fixture(scope="session")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the manifests with the secrets that an operator adds, and the overlay that the page shows."""
    folder = tmp_path_factory.mktemp("kubernetes") / "k8s"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("certificates", "database_url"))
    write_certificates(folder / "base" / "certificates")
    (folder / "postgresql" / "database_url").write_text("postgresql://evalsvc:secret@db.example/evalsvc\n")
    (folder / "mine").mkdir()
    (folder / "mine" / "kustomization.yaml").write_text(find_block(PAGE, "yaml", "../postgresql"))
    return folder


@pytest.fixture(scope="session")
def build(child_process: None, manifests: Path) -> Build:
    kubectl = find_program("kubectl", "Debian's package of this name")
    return cache(lambda overlay: list(yaml.safe_load_all(output_of(kubectl, "kustomize", manifests / overlay))))


OVERLAYS = pytest.mark.parametrize("overlay", ["base", "cpu", "mine"])


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
        item["name"]: item["value"] for item in container.get("env", [])
    }


@pytest.mark.parametrize(("overlay", "version"), [("mine", OLDEST), ("mine", NEWEST), ("cpu", NEWEST)])
def test_objects_follow_the_schemas(build: Build, overlay: str, version: str) -> None:
    for item in build(overlay):
        assert kubernetes_validate.validate(item, version, strict=True) == version


@OVERLAYS
def test_pods_are_restricted(build: Build, overlay: str) -> None:
    """What the level `restricted` of Kubernetes' pod security asks for, which the namespace enforces; and more."""
    [namespace] = named(build(overlay), "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods(build(overlay)).values():
        spec, context = pod["spec"], pod["spec"]["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"], context["runAsGroup"]) == (True, 10001, 10001)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (spec["enableServiceLinks"], spec["automountServiceAccountToken"]) == (False, False)
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"secret", "persistentVolumeClaim", "emptyDir"}
    for name, container in containers(build(overlay)):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert container["resources"]["limits"]["memory"], name


@OVERLAYS
def test_what_is_named_is_there(build: Build, overlay: str) -> None:
    objects = build(overlay)
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


@OVERLAYS
def test_commands_and_settings_exist(build: Build, overlay: str) -> None:
    settings = {variable: default for variable, default, _ in setting_help()}
    for name, container in containers(build(overlay)):
        assert set(variables(container, build(overlay))) <= set(settings), name
        if "command" not in container:
            check_command(container["args"])
    [script] = [container["args"][0] for name, container in containers(build(overlay)) if name == "first-token"]
    [command] = re.findall(r"^ *evalsvc (.*) > ", script, re.MULTILINE)
    check_command(command.split())


@OVERLAYS
def test_addresses_ports_probes_and_devices(build: Build, overlay: str) -> None:
    objects = build(overlay)
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


@OVERLAYS
def test_a_pod_has_the_time_that_its_end_takes(build: Build, overlay: str) -> None:
    objects = build(overlay)
    [api] = [container for name, container in containers(objects) if name == "api"]
    needed = float(variables(api, objects)["EVALSVC_GRACE"]) + STOP_PATIENCE + DRAIN_SECONDS
    grace = {name: pod["spec"]["terminationGracePeriodSeconds"] for name, pod in pods(objects).items()}
    assert min(grace["evalsvc-api"], grace["evalsvc-worker"]) > needed
    for name in ("evalsvc-api", "evalsvc-scheduler"):
        spec = named(objects, "Deployment")[name]["spec"]
        assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate"), (
            "one at a time, so the old one ends first"
        )


def test_secrets_are_never_committed(short_process: None) -> None:
    secrets = ["base/certificates/key.pem", "postgresql/database_url"]
    ignored = subprocess.run(
        ["git", "check-ignore", *secrets], cwd=FOLDER, capture_output=True, text=True, check=False
    ).stdout
    assert ignored.split() == secrets


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
