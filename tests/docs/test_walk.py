"""Every page's `sh run` blocks work as they stand: literally, in their order, in a checkout, with one service."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from doc_blocks import README, ROOT, find_block, pages, read_blocks
from doc_commands import commands
from machines import Command, wait_for
from ports import free_port
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
        wait_for(lambda: running.ask("GET", "/readyz").is_success, "the service has a worker")
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
    command = ["bash", "-euxo", "pipefail", "-c", SCRIPTS[page]]
    found = subprocess.run(command, cwd=checkout, env=environment, text=True, capture_output=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_readme_leads_from_nothing_to_a_curve(
    command_line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child_process: None
) -> None:
    """README's commands, typed one after the other beside a run's folder and a file of pairs; none is refused."""
    work, run, port = tmp_path / "work", tmp_path / "mine", free_port()
    work.mkdir()
    shutil.copytree(ROOT / "evalsvc" / "miniature" / "runs" / "pretrained", run)
    shutil.copy(ROOT / "evalsvc" / "miniature" / "heldout_pairs.jsonl", work / "pairs.jsonl")
    monkeypatch.chdir(work)
    monkeypatch.setenv("PATH", f"{command_line}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("EVALSVC_PORT", str(port))
    monkeypatch.setenv("EVALSVC_URL", f"http://127.0.0.1:{port}")
    blocks = [find_block(README, "sh", text).replace("/runs/mine", str(run)) for text in ("suites new", "watch")]
    (_, *metric), (serve, watch, history) = map(list, map(commands, blocks))
    shown = [typed(words) for words in metric]
    assert re.search(r"loss/image +2\.19365 ", shown[-1])
    service, watcher = Command(tmp_path / "serve.log", serve[1:]), None
    try:
        service.wait_for_text("listens on (.*)")
        watcher = Command(tmp_path / "watch.log", watch[1:])
        watcher.wait_for_text("step 3000 raw is checkpoint")
        address = f"http://127.0.0.1:{port}/v1/evaluations"
        wait_for(lambda: states(address) == ["succeeded"] * len(STEPS), "every step is evaluated")
        assert re.findall(r"loss/image +raw +\w+ +(\d+) ", typed(history)) == STEPS
    finally:
        for process in filter(None, (watcher, service)):
            process.stop()


STEPS = ["0", "10", "20", "80", "300", "3000"]


def states(address: str) -> list[str]:
    return [evaluation["state"] for evaluation in httpx2.get(address).json()["evaluations"]]


def typed(words: list[str]) -> str:
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, (words, ended.stdout, ended.stderr)
    return ended.stdout
