"""Both images, really built and run: by compose.yaml, with PostgreSQL, on read-only roots and as their own user.

And the Dockerfiles as a checker reads them, and the compose files as docker-compose does.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import DOCS, read_blocks
from doc_commands import check_command, commands
from images import Image
from machines import wait_for
from programs import find_program, output_of
from sqlalchemy import make_url
from stack import Stack, resolved, seconds_of

from evalsvc.config import Settings, unknown_variables
from evalsvc.miniature import ROOT as MINIATURE

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
USER = 10001

# Of the first test of each image, which builds it; on a busy machine.
pytestmark = pytest.mark.timeout(3600)

READY = """
import http.client, json
service = http.client.HTTPConnection("127.0.0.1", 8321, timeout=30)
service.request("GET", "/readyz")
answer = service.getresponse()
print(json.dumps([answer.status, json.loads(answer.read())]))
"""


def test_the_image_of_the_service_has_neither_torch_nor_weights(api_image: Image) -> None:
    assert api_image.megabytes < 650, "with its base; torch for CPUs alone has more"
    names = {path.name for path in api_image.packages.iterdir()}
    assert names.isdisjoint({"torch", "numpy", "lm_eval", "pip"})
    package = api_image.packages / "evalsvc"
    assert list(package.rglob("*.pt")) == []
    for needed in ("migrations/versions", "suites/miniature.yaml", "api", "miniature/captions.jsonl"):
        assert (package / needed).exists(), needed


def test_the_image_of_the_service_says_what_it_is(api_image: Image) -> None:
    config = api_image.config
    assert config["User"] == f"{USER}:{USER}"
    assert (config["Entrypoint"], config["Cmd"]) == (["evalsvc"], ["serve"])
    labels = {name.rpartition(".")[2]: text for name, text in config["Labels"].items()}
    assert labels["title"] == "evalsvc-api"
    assert labels["revision"] == "0123abc"
    for folder in ("data", "data/spool", "data/shared", "certificates", "credentials", "runs"):
        found = (api_image.root / folder).stat()
        assert (found.st_uid, found.st_gid) == (USER, USER), folder
    writable = [path for path in (api_image.root / "opt").rglob("*") if path.lstat().st_uid != 0]
    assert writable == [], "a process of the user must not change the program"


@contextmanager
def services(folder: Path, images: dict[str, Image], database: str, runs: Path) -> Iterator[Stack]:
    """Those of compose.yaml, with a PostgreSQL of the tests in the place of its own."""
    folder.mkdir()
    address = make_url(database)
    socket_folder = Path(str(address.query["host"]))
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700)
    url = address.update_query_dict({"host": "/run/postgresql"}).set(drivername="postgresql")
    (secrets / "database_url").write_text(url.render_as_string(hide_password=False))
    variables = {"CHECKPOINTS": str(runs), "EVALSVC_DEVICES": "cpu", "EVALSVC_UPLOAD_BYTES": "1000000000"}
    document = resolved(DOCKER / "compose.yaml", "gpu", "client", **variables)
    document["secrets"]["database_url"]["file"] = str(secrets / "database_url")
    name = ".s.PGSQL.5432"
    with closing(Stack(folder, document, images, {f"/run/postgresql/{name}": str(socket_folder / name)})) as stack:
        yield stack


def test_the_service_runs_from_its_image(api_image: Image, empty_postgresql: str, tmp_path: Path) -> None:
    """With certificates and a token that it makes, on a read-only root; workers join it from another machine."""
    runs = tmp_path / "runs"
    shutil.copytree(MINIATURE / "runs" / "pretrained", runs)
    with services(tmp_path / "stack", {"evalsvc-api": api_image}, empty_postgresql, runs) as stack:
        stack.up("api")
        stack.wait_until_healthy("api")
        certificates = stack.volume("certificates")
        with worker_of_another_machine(stack, certificates):
            wait_for(lambda: ready(stack)[0] == 200, f"the service is ready; last: {ready(stack)}")
            assert ready(stack) == [200, {"status": "ok"}], "without a token no more is said"
            stack.run("client", "status")
            stack.run("client", "submit", "uploaded", "1", "/runs/checkpoints/epoch_1.pt", "--upload")
            [kept] = stack.volume("spool").glob("*/upload:*")
            assert kept.read_bytes() == (runs / "checkpoints" / "epoch_1.pt").read_bytes()
        process = dict(line.split(":\t", 1) for line in stack.shell("api", "cat /proc/1/status").splitlines())
        assert process["Uid"].split() == process["Gid"].split() == 4 * [str(USER)]
        assert {int(process[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert process["NoNewPrivs"] == "1"
        assert "Read-only file system" in stack.shell("api", "touch /opt/evalsvc/bin/planted")
        assert "Read-only file system" in stack.shell("api", "touch /certificates/planted")
        assert "No such file" in stack.shell("api", "ls /credentials/token"), "the service has no token to lose"
        key, token = certificates / "key.pem", stack.volume("credentials") / "token"
        assert {stat.S_IMODE(file.stat().st_mode) for file in (key, token)} == {0o600}
        before = key.read_bytes(), token.read_bytes()
        assert (stack.stop("api"), stack.stop("scheduler")) == (0, 0)
        assert [stack.end(name) for name in ("certificates", "token")] == [0, 0]
        stack.up("api")
        stack.wait_until_healthy("api")
        assert (key.read_bytes(), token.read_bytes()) == before, "what is made at the first start stays"


def ready(stack: Stack) -> list[object]:
    answer: list[object] = json.loads(stack.python("api", READY))
    return answer


@contextmanager
def worker_of_another_machine(stack: Stack, certificates: Path) -> Iterator[None]:
    """`evalsvc worker` of the tests' own installation, in the network of the containers."""
    files = {"EVALSVC_TLS": str(certificates)}
    command = [sys.executable, "-m", "evalsvc.cli", "worker", "tls://127.0.0.1:8786", "--devices", "cpu"]
    process = subprocess.Popen([*stack.in_network, *command], env=os.environ | files)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.long
def test_the_worker_of_its_image_evaluates_the_miniature(
    api_image: Image, worker_image: Image, empty_postgresql: str, inception_path: Path, tmp_path: Path
) -> None:
    """Its losses are those that README.md shows of the same checkpoint."""
    images = {"evalsvc-api": api_image, "evalsvc-worker": worker_image}
    runs = tmp_path / "runs"
    shutil.copytree(MINIATURE / "runs", runs)
    with services(tmp_path / "stack", images, empty_postgresql, runs) as stack:
        stack.up("api")
        stack.up("worker")
        stack.wait_until_healthy("api")
        have_assets(stack, inception_path)
        wait_for(lambda: ready(stack)[0] == 200, "the service is ready")
        file = ["pretrained", "0", "/runs/pretrained/checkpoints/epoch_0.pt"]
        layout = f"/{(api_image.packages / 'evalsvc/miniature/runs/layout.yaml').relative_to(api_image.root)}"
        how = ["--suite", "miniature", "--layout", layout, "--spool", "copy", "--wait"]
        print(stack.run("client", "submit", *file, *how, seconds=1200))
        said = stack.python("worker", "from open_lm.model import Transformer; print(Transformer.__module__)")
        assert said.split()[-1] == "open_lm.model", said
        document = json.loads(stack.run("client", "history", "pretrained", "--format", "json"))
        values = {series["metric"]: series["value"][-1] for series in document["series"]}
        assert values["pairs/image"] == pytest.approx(9.399, abs=0.0005)
        assert values["pairs/text"] == pytest.approx(5.173, abs=0.0005)
        assert values["digits/fid64"] == pytest.approx(1.167, abs=0.01), "sums of other machines differ a little"
        assert "Read-only file system" in stack.shell("worker", "touch /opt/evalsvc/bin/planted")
        for folder in ("spool", "shared"):
            assert "Read-only file system" in stack.shell("worker", f"touch /data/{folder}/planted")
        compiles = "from evalsvc.models import can_compile; print(can_compile('cpu'))"
        assert stack.python("worker", compiles).strip() == "True", "what is compiled can be loaded"
        assert (stack.stop("worker"), stack.stop("api")) == (0, 0)


@pytest.mark.long
def test_the_demo_shows_the_history_of_both_runs(
    api_image: Image, worker_image: Image, inception_path: Path, tmp_path: Path
) -> None:
    """compose.cpu.yaml as it is, but that FID's network is there already: nothing is reached from here."""
    images = {"evalsvc-api": api_image, "evalsvc-worker:cpu": worker_image}
    document = resolved(DOCKER / "compose.cpu.yaml", "demo")
    with closing(Stack(tmp_path, document, images)) as stack:
        stack.up("worker")
        have_assets(stack, inception_path)
        stack.up("demo")
        assert stack.end("demo", seconds=2400) == 0, stack.log("demo")
        rows = [line.split() for line in stack.log("demo").splitlines()]
        losses = [float(row[4]) for row in rows if row[:1] == ["pairs/image"] and row[3] == "3000"]
        assert losses == pytest.approx([1.760, 1.775], abs=0.0006), "README.md's, of each run at its last step"


def have_assets(stack: Stack, inception_path: Path) -> None:
    """Put FID's network into the data folder of the worker, as `evalsvc assets pull inception` would."""
    folder = stack.volume("worker-data") / "assets"
    shutil.copytree(inception_path.parent, folder)
    for path in (folder, *folder.iterdir()):
        os.chown(path, USER, USER)


# Dockerfiles and compose files

FILES = {"compose.yaml": ("gpu", "client"), "compose.cpu.yaml": ("demo",)}
"""With the profiles of each."""


@pytest.fixture(params=FILES)
def composed(request: pytest.FixtureRequest, compose: str) -> dict[str, Any]:
    return resolved(DOCKER / request.param, *FILES[request.param], CHECKPOINTS="/mnt/runs")["services"]


def test_no_service_may_more_than_it_needs(composed: dict[str, Any]) -> None:
    for name, service in composed.items():
        assert service["read_only"], name
        assert service["init"], name
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"]), name
        assert not {"cap_add", "privileged"} & set(service), name
        assert "/tmp" in service["tmpfs"], name
        assert service.get("user", "") in ("", "999:999"), f"{name}: otherwise that of the image, which is 10001"

    ports = [(name, port["host_ip"], port["target"]) for name in composed for port in composed[name].get("ports", [])]
    assert ports == [("api", "127.0.0.1", Settings().port)], "to this machine"


def test_variables_are_settings_and_every_service_has_time_to_end_and_a_health_check_or_none(
    composed: dict[str, Any],
) -> None:
    """That of the image is for the service: a scheduler or client would be called ill by it."""
    for name in {"api", "worker"} & set(composed):
        assert seconds_of(composed[name]["stop_grace_period"]) > 2 * Settings().grace, name
    for name, service in composed.items():
        assert unknown_variables(service.get("environment", {})) == [], name
        if service["image"] == "evalsvc-api" and name != "api":
            check = service["healthcheck"]
            assert check.get("disable") or check["test"], name


def test_commands_of_the_page_name_services_and_what_evalsvc_takes(compose: str) -> None:
    """The images' entry point is evalsvc. `exec` has no entry point, so its words begin with the program."""
    services = resolved(DOCKER / "compose.yaml", *FILES["compose.yaml"], CHECKPOINTS="/mnt/runs")["services"]
    texts = [block.text for block in read_blocks(DOCS / "how-to" / "deploy.md") if block.language == "sh"]
    typed = [words for text in texts for words in commands(text) if words[:3] == ["docker", "compose", "-f"]]
    assert {words[3] for words in typed} == {f"docker/{name}" for name in FILES}
    starts = [words for words in typed if {"run", "exec"} & set(words)]
    assert len(starts) >= 9
    for words in starts:
        [at, *_] = [at for at, word in enumerate(words) if word in services]
        program = words[at + 1 :] if "exec" in words else ["evalsvc", *words[at + 1 :]]
        if program[0] == "evalsvc":
            check_command(program[1:])


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


@pytest.mark.parametrize("file", sorted(DOCKER.glob("*.Dockerfile")), ids=lambda file: file.stem)
def test_the_checker_finds_nothing(short_process: None, file: Path) -> None:
    """Where TESTS_REQUIRE names `hadolint`, the test fails without the program."""
    assert output_of(find_program("hadolint", "the extra `test`"), file) == ""


def test_nothing_of_the_checkout_but_the_package_reaches_a_build() -> None:
    """A list of what is left out would send every file that it does not know of, keys and data included."""
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    lines = [line for line in patterns if line and not line.startswith("#")]
    assert lines[0] == "*"
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert sent == {"LICENSE", "README.md", "constraints.txt", "evalsvc", "migrations", "pyproject.toml"}
