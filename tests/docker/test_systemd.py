"""The commands of the page for systemd, typed literally: from nothing to https, a backup and what it restores."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from booted import Booted
from doc_blocks import DOCS, ROOT, read_blocks, read_page, section
from doc_commands import commands
from http_pages import Pair, make_pair
from programs import lacking, require_index

from evalsvc.access_tokens import TOKEN

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

PAGE = DOCS / "how-to" / "deploy.md"

RUN = "/runs/miniature/runs"

PREPARE = f"""
mkdir /runs
cp -r evalsvc/miniature /runs
chmod 600 {RUN}/pretrained/checkpoints/epoch_2.pt
echo 'tasks: [{{kind: loss, name: text, data: /runs/miniature/heldout_text.jsonl}}]' > text.yaml
echo EVALSVC_UPLOAD_BYTES=1000000000 >> /etc/evalsvc/evalsvc.env
systemctl restart evalsvc-serve evalsvc-worker
"""

EVALUATE = f"""
evalsvc suites put text.yaml
post() {{ evalsvc submit mine "$@" --suite text --layout {RUN}/layout.yaml --wait; }}
post 1 {RUN}/pretrained/checkpoints/epoch_1.pt --spool copy
post 2 {RUN}/pretrained/checkpoints/epoch_2.pt --upload
"""

IS_UP = "until evalsvc status; do sleep 1; done"


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path / "https")


@pytest.fixture
def machine(child_process: None, pair: Pair, tmp_path: Path) -> Iterator[Booted]:
    """Its `python3` is Debian's of the tests' version where there is one: pip may find torch for CPUs for that."""
    require_index(tmp_path)
    if subprocess.run(["/usr/bin/python3", "-c", "import ensurepip"], capture_output=True).returncode:
        lacking("systemd", "needs Debian's package python3-venv")
    python = f"/usr/bin/python3.{sys.version_info.minor}"
    with closing(Booted(tmp_path / "machine", ROOT)) as machine:
        machine.type(f"if {python} -c 'import ensurepip'; then ln -s {python} /usr/local/bin/python3; fi")
        yield machine


def test_from_nothing_to_https_and_a_restored_backup(machine: Booted, pair: Pair) -> None:
    """A machine without a card has other devices than the page's example, and PostgreSQL is not installed there."""
    begin = time.monotonic()
    first, last = (
        read_page(PAGE).splitlines().index(line) for line in ("## Run under systemd", "## Run on Kubernetes")
    )
    blocks = [block.text for block in read_blocks(PAGE) if block.language == "sh" and first < block.line < last]
    install, restore, offline, settings, _postgresql, https = blocks
    [token] = set(TOKEN.findall(machine.type(install)))
    installed = time.monotonic() - begin

    def client(text: str, scheme: str = "http") -> str:
        variables = f"EVALSVC_TOKEN={token} EVALSVC_URL={scheme}://127.0.0.1:8321 SSL_CERT_FILE={pair.cert}"
        return machine.type(f"export {variables} PATH=/opt/evalsvc/bin:$PATH\n{text}", online=False)

    def history(scheme: str = "http") -> list[str]:
        said = client(f"{IS_UP}\nevalsvc history mine --format csv", scheme)
        return [line for line in said.splitlines() if line.startswith("text/")]

    machine.type(settings.replace("cuda:0,cuda:1", "cpu"))
    machine.type(PREPARE)
    client(f"{IS_UP}\n{EVALUATE}")
    evaluated = history()
    assert {row.split(",")[4] for row in evaluated} == {"1", "2"}
    [backup] = re.findall("`(systemctl start evalsvc-backup)`", section(PAGE, "### Install the units"))
    machine.type(backup)
    machine.type(restore)
    assert history() == evaluated
    machine.type(f"cp {pair.cert} fullchain.pem; cp {pair.key} privkey.pem")
    machine.type(https)
    assert history("https") == evaluated
    wheels, without_network = offline.splitlines()
    machine.type(f"export PATH=/opt/evalsvc/bin:$PATH\n{wheels}")
    machine.type("mv /opt/evalsvc /opt/before; python3 -m venv /opt/evalsvc")
    machine.type(without_network, online=False)
    machine.type("systemctl restart evalsvc-scheduler evalsvc-serve evalsvc-worker")
    assert history("https") == evaluated
    assert "evalsvc-backup.timer" in machine.type("systemctl list-timers")
    machine.type("systemctl stop 'evalsvc-*'")
    assert "evalsvc" not in machine.type("systemctl list-units --failed --plain").partition("--plain")[2]
    texts = [block.replace("$(date +%F)", "") for block in (install, settings, backup, restore, https, offline)]
    typed = [len(list(commands(text))) for text in texts]
    seconds = time.monotonic() - begin
    print(f"{typed[0]} commands to units and a token in {installed:.0f} s; all {sum(typed)} in {seconds:.0f} s")
