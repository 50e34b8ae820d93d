"""What `evalsvc --version --verbose` says, and what stays out of it."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from evalsvc import __version__
from evalsvc.config import SECRETS
from evalsvc.doctor import bug_report
from evalsvc.doctor.bug_report import report_lines
from evalsvc.installation import PACKAGE, Origin, find_origin

SECRET = "s3cret"


@pytest.fixture
def no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder that is all of PATH, so that git is not found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))


def report(name: str = "") -> list[str]:
    """The values of the lines that begin with `name: `, or all lines."""
    lines = list(report_lines())
    return [line.removeprefix(f"{name}: ") for line in lines if line.startswith(f"{name}: ")] if name else lines


@pytest.mark.usefixtures("short_process")
def test_it_names_the_commit_of_the_checkout() -> None:
    lines = report()
    assert lines[0] == f"evalsvc {__version__}"
    assert lines[1] == f"installed from: checkout {PACKAGE.parent}"
    [commit] = report("commit")
    git = ["git", "-C", str(PACKAGE.parent), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    assert commit.removesuffix("-dirty") == (head or "not known")


@pytest.mark.usefixtures("no_programs")
def test_it_names_the_commit_of_a_repositorys_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_origin().folder is not None
    assert report("commit") == ["not known"], "without git"
    origin = Origin(url="git+https://git.example/evalsvc@0123abc", commit="0123abc")
    monkeypatch.setattr(bug_report, "find_origin", lambda: origin)
    assert report("commit") == ["0123abc"]
    assert report("installed from") == ["git+https://git.example/evalsvc@0123abc"]


@pytest.mark.usefixtures("short_process")
def test_the_commit_of_a_copy_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder may have moved on since it was copied."""
    monkeypatch.setattr(bug_report, "find_origin", lambda: Origin(PACKAGE.parent))
    assert report("commit") == ["not known"]


@pytest.mark.usefixtures("no_programs")
def test_settings_are_shown_and_secrets_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(f"EVALSVC_{name.upper()}", SECRET)
    monkeypatch.setenv("EVALSVC_DATABASE_URL", f"postgresql://evalsvc:{SECRET}@127.0.0.1:9/evalsvc?password={SECRET}")
    monkeypatch.setenv("EVALSVC_SCHEDULER", f"tls://me:{SECRET}@host:8786")
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path))
    lines = report()
    settings = {line.partition("=")[0] for line in lines if line.startswith("setting: ")}
    given = {*SECRETS, "scheduler", "data_dir"}
    assert settings == {f"setting: EVALSVC_{name.upper()}" for name in given}
    shown = {"SCHEDULER=tls://host:8786", "TOKEN=set", "DATABASE_URL=set"}
    assert {f"setting: EVALSVC_{line}" for line in shown} <= set(lines)
    assert SECRET not in "\n".join(lines)


@pytest.mark.usefixtures("no_programs")
def test_packages_are_those_that_evalsvc_computes_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_GRACE", "soon")
    assert report("settings") == ["cannot be read: EVALSVC_GRACE is 'soon'; it must be a number"]
    packages = dict(line.split(" ", 1) for line in report("package"))
    assert packages["sqlalchemy"] == metadata.version("sqlalchemy")
    assert packages["torch"] == metadata.version("torch")
    assert not {"evalsvc", "pytest", "ruff", "zensical"} & set(packages)


@pytest.mark.usefixtures("short_process")
def test_it_imports_neither_torch_nor_the_service() -> None:
    code = (
        "import sys\nfrom evalsvc.doctor.bug_report import report_lines\nprint(*report_lines(), sep='\\n')\n"
        "print('heavy:', sorted({'torch', 'numpy', 'fastapi', 'sqlalchemy', 'distributed'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert "heavy: []" in done.stdout
