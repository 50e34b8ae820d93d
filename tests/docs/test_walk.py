"""Every page's `sh run` blocks work as they stand: literally, in their order, in a checkout, with one service."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_blocks import ROOT, pages, read_blocks
from service_process import ServiceProcess

SCRIPTS = {
    page: "\n".join(block.text for block in read_blocks(page) if (block.language, block.mark) == ("sh", "run"))
    for page in pages()
}
WALKED = [page for page, script in SCRIPTS.items() if script]

PULL = "evalsvc assets pull smollm2-135m --assets models\n"
"""Line of a page that pulls the real model, which tests have pulled once for all."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, child_process: None) -> Iterator[ServiceProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVALSVC_UPLOAD_BYTES", "100000000")
        running = ServiceProcess(tmp_path_factory.mktemp("service"), "--devices", "cpu", "--threads", "1").start()
    yield running
    running.stop()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like a checkout, and in which what a page writes harms nobody."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name[0] != ".":
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def command_line(tmp_path: Path) -> Path:
    """A folder with `evalsvc` and `python` of this test, whether or not the package is installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, arguments in (("evalsvc", "-P -m evalsvc.cli"), ("python", "")):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        program.chmod(0o755)
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", WALKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(
    page: Path,
    service: ServiceProcess,
    checkout: Path,
    command_line: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if shutil.which("curl") is None and "curl " in SCRIPTS[page]:
        pytest.skip("needs curl")
    if PULL in SCRIPTS[page]:
        (checkout / "models").symlink_to(request.getfixturevalue("smollm2").parent)
    environment = os.environ | {
        "PATH": f"{command_line}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "EVALSVC_URL": service.url,
        "EVALSVC_DATA_DIR": str(tmp_path / "data"),
        "OMP_NUM_THREADS": "1",
    }
    found = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", SCRIPTS[page]],
        cwd=checkout,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    print(found.stdout)
    assert found.returncode == 0, found.stderr
