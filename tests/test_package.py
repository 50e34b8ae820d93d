"""The wheel and the source distribution: what is in them, and that evalsvc works when nothing but them is there."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx2
import pytest
from machines import wait_for
from programs import lacking, require_index

from evalsvc import __version__

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[1]
SOURCES = ("evalsvc", "migrations")
TOP_LEVEL = {*SOURCES, ".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
"""What a source distribution holds; the build needs the file of names that git ignores, and makes PKG-INFO."""

STRAY = ("secrets.env", "shared/a.pt", ".venv/pyvenv.cfg", "evalsvc-data/evalsvc.db", "evalsvc/__pycache__/a.pyc")

BUILD = "import sys; from hatchling.build import build_sdist, build_wheel; build_{kind}(sys.argv[1])"

BASE_LIMIT = 150_000_000
"""Bytes of all files of an installation without extras, bytecode included, pip and setuptools not."""


def build(kind: str, source: Path, target: Path) -> Path:
    target.mkdir()
    command = [sys.executable, "-c", BUILD.format(kind=kind), str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [file] = target.iterdir()
    return file


def run(folder: Path, *command: str, **environment: str) -> str:
    inherited = {name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=inherited | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Built:
    checkout: Path
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, child_process: None) -> Built:
    if find_spec("hatchling") is None:
        lacking("hatchling", "needs hatchling, of the extra `test`")
    folder = tmp_path_factory.mktemp("package")
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in TOP_LEVEL - {"PKG-INFO"}:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, checkout / name)
    for name in STRAY:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("stray")
    return Built(checkout, build("sdist", checkout, folder / "sdist"), build("wheel", checkout, folder / "wheel"))


def members(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        f"{prefix}/{path.relative_to(folder / source).as_posix()}": path.read_bytes()
        for source, prefix in zip(SOURCES, ("evalsvc", "evalsvc/migrations"), strict=True)
        for path in (folder / source).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_every_file_of_the_package_and_no_other(built: Built) -> None:
    """Templates, suites, migrations, benchmarks, the bundled run, the mark of types: no list of them to forget."""
    found = members(built.wheel)
    ours = {name: content for name, content in found.items() if ".dist-info/" not in name}
    assert ours == files_below(built.checkout)
    notes = {name.partition(".dist-info/")[2] for name in found} - {""}
    assert notes == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert {"evalsvc/py.typed", "evalsvc/migrations/env.py", "evalsvc/suites/miniature.yaml"} <= set(ours)
    assert {"evalsvc/web/templates/base.html", "evalsvc/web/static/main.js", "evalsvc/web/static/icon.svg"} <= set(ours)


def test_the_source_distribution_builds_the_same_wheel_and_holds_nothing_else(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
        names = [member.name.split("/", 1)[1] for member in archive if member.isfile()]
        assert len(names) == len(archive.getmembers()), "files only, no links"
    assert {name.partition("/")[0] for name in names} == TOP_LEVEL
    assert not {name for name in names if "__pycache__" in name}
    [source] = tmp_path.iterdir()
    assert members(build("wheel", source, tmp_path / "wheel")) == members(built.wheel)


@dataclass(frozen=True)
class Environment:
    folder: Path
    wheel: Path

    @property
    def site_packages(self) -> Path:
        [found] = self.folder.glob("lib/python*/site-packages")
        return found

    def run(self, program: str, *arguments: str, **environment: str) -> str:
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        home = {"HOME": str(work), "XDG_DATA_HOME": str(work / "data")}
        return run(work, str(self.folder / "bin" / program), *arguments, **home, **environment)


def environment_with(folder: Path, wheel: Path, extras: str = "") -> Environment:
    require_index(folder)
    run(folder, sys.executable, "-m", "venv", str(folder / "venv"))
    made = Environment(folder / "venv", wheel)
    made.run("python", "-m", "pip", "install", "--quiet", f"evalsvc{extras} @ {wheel.as_uri()}")
    return made


@pytest.fixture(scope="module")
def base(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return environment_with(tmp_path_factory.mktemp("base"), built.wheel)


def test_the_base_install_is_small_and_without_torch(base: Environment) -> None:
    own = re.compile(r"pip|pip-.*|setuptools|setuptools-.*|pkg_resources|_distutils_hack|distutils-precedence\.pth")
    files = [path for path in base.site_packages.rglob("*") if path.is_file()]
    own_files = [path for path in files if own.fullmatch(path.relative_to(base.site_packages).parts[0])]
    assert sum(path.stat().st_size for path in {*files} - {*own_files}) < BASE_LIMIT
    installed = {path.name for path in base.site_packages.iterdir()}
    assert not installed & {"torch", "numpy", "lm_eval", "psycopg"}


def test_the_base_install_fits_together_and_importing_evalsvc_warns_of_nothing(base: Environment) -> None:
    assert base.run("python", "-m", "pip", "check").strip() == "No broken requirements found."
    code = "import sys; before = set(sys.modules); import evalsvc; print(*set(sys.modules) - before)"
    assert base.run("python", "-W", "error", "-c", code).split() == ["evalsvc"]
    base.run("python", "-W", "error", "-c", "import evalsvc.client, evalsvc.cli, evalsvc.api.app, evalsvc.store.tables")


def test_messages_name_the_wheel(base: Environment) -> None:
    shown = base.run("evalsvc", "--version", "--verbose").splitlines()
    assert shown[:2] == [f"evalsvc {__version__}", f"installed from: {base.wheel.as_uri()}"]
    assert "package: torch is not installed" in shown
    checkpoint = base.site_packages / "evalsvc/miniature/runs/pretrained/checkpoints/epoch_0.pt"
    with pytest.raises(AssertionError, match=re.escape(f"pip install 'evalsvc[worker] @ {base.wheel.as_uri()}'")):
        base.run("evalsvc", "run", "miniature", "--checkpoint", str(checkpoint))
    with pytest.raises(AssertionError, match=re.escape(f"pip install 'evalsvc[postgresql] @ {base.wheel.as_uri()}'")):
        base.run("evalsvc", "tokens", "list", EVALSVC_DATABASE_URL="postgresql://evalsvc@127.0.0.1:9/evalsvc")


@contextmanager
def served(environment: Environment, folder: Path) -> Iterator[str]:
    command = [str(environment.folder / "bin" / "evalsvc"), "serve", "--port", "0", "--devices", "cpu", "--data-dir"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, str(folder / "data")], cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        said = wait_for(lambda: re.search(r"listens on (http://\S+)", (folder / "log").read_text()), "it listens")
        yield said[1]
    finally:
        process.terminate()
        process.wait(60)


def test_the_service_runs_from_the_wheel_without_torch(base: Environment, tmp_path: Path) -> None:
    """Its migrations make the database, its suites are listed, and its pages are shown."""
    with served(base, tmp_path) as url:
        ready = wait_for(lambda: (answer := httpx2.get(f"{url}/readyz")).is_success and answer, "the service is ready")
        assert ready.json() | {"workers": 1} == {"status": "ok", "database": "ok", "schema": "ok", "workers": 1}
        suites = {suite["name"] for suite in httpx2.get(f"{url}/v1/suites").raise_for_status().json()["suites"]}
        assert suites == {path.stem for path in (ROOT / "evalsvc" / "suites").glob("*.yaml")}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_demo_runs_from_the_wheel(built: Built, tmp_path: Path) -> None:
    """With what the extras bring, and nothing of the environment of the tests."""
    made = environment_with(tmp_path, built.wheel, "[demo]")
    assert made.run("python", "-m", "pip", "check").strip() == "No broken requirements found."
    made.run("evalsvc", "assets", "pull", "inception")
    shown = made.run("evalsvc", "demo", "--exit")
    assert set(re.findall(r"^(pretrained|random-init)$", shown, re.MULTILINE)) == {"pretrained", "random-init"}
    assert len(re.findall(r"^ *\d+ +[\d.]+ ?±", shown, re.MULTILINE)) == 12
