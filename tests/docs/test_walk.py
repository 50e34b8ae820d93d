"""Every page's `sh run` blocks work as they stand: literally, in their order, in a checkout, with one service."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from doc_blocks import README, ROOT, find_block, pages, read_blocks
from doc_commands import commands
from machines import Command, free_port, wait_for
from service_process import ServiceProcess

SCRIPTS = {
    page: "\n".join(block.text for block in read_blocks(page) if (block.language, block.mark) == ("sh", "run"))
    for page in pages()
}
WALKED = [page for page, script in SCRIPTS.items() if script]

PULL = "evalsvc assets pull smollm2-135m --assets models\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, child_process: None) -> Iterator[ServiceProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVALSVC_UPLOAD_BYTES", "100000000")
        with ServiceProcess(tmp_path_factory.mktemp("service"), "--devices", "cpu", "--threads", "1") as running:
            wait_for(lambda: running.ask("GET", "/readyz").is_success, "the service has a worker")
            yield running


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
def test_blocks_run(page: Path, service: ServiceProcess, checkout: Path, command_line: Path, request: Any) -> None:
    if shutil.which("curl") is None and "curl " in SCRIPTS[page]:
        pytest.skip("needs curl")
    if PULL in SCRIPTS[page]:
        (checkout / "models").symlink_to(request.getfixturevalue("smollm2").parent)
    own = {"PATH": f"{command_line}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    own |= {"EVALSVC_URL": service.url, "EVALSVC_DATA_DIR": str(checkout.parent / "data")}
    typed(["bash", "-euxo", "pipefail", "-c", SCRIPTS[page]], cwd=checkout, env=os.environ | own)


def test_readme_leads_to_a_curve(command_line: Path, tmp_path: Path, monkeypatch: Any, child_process: None) -> None:
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
        asked = partial(httpx2.get, f"http://127.0.0.1:{port}/v1/evaluations?state=succeeded")
        wait_for(lambda: len(asked().json()["evaluations"]) == len(STEPS), "every step is evaluated")
        _, _, block = typed(history).partition("loss/image ")
        assert re.findall(r"^ *(\d+) ", block.partition("loss/text")[0], re.MULTILINE) == STEPS
    finally:
        for process in filter(None, (watcher, service)):
            process.stop()


STEPS = ["0", "10", "20", "80", "300", "3000"]


def typed(words: list[str], **where: Any) -> str:
    ended = subprocess.run(words, capture_output=True, text=True, check=False, **where)
    assert ended.returncode == 0, (words, ended.stdout, ended.stderr)
    return ended.stdout
