"""What a started service says of itself."""

import os
from pathlib import Path
from typing import Any

import pytest

from evalsvc.api.server import Started
from evalsvc.cli.service_banner import WIDTH, describe_service
from evalsvc.config import Settings

URL = "http://127.0.0.1:8321"


def facts(has_tokens: bool = False, **settings: Any) -> dict[str, str]:
    """The facts by their labels, each on as many lines as it takes."""
    first, *lines = describe_service(Settings(devices="cpu,cpu", **settings), Started(URL, has_tokens))
    assert first == f"evalsvc listens on {URL}"
    found: dict[str, str] = {}
    for line in lines:
        label, text = line[2:15].strip(), line[15:]
        name = label or list(found)[-1]
        found[name] = f"{found[name]} {text}" if name in found else text
    return found


def test_it_says_where_it_is_what_it_uses_and_how_to_stop_it(tmp_path: Path) -> None:
    assert facts(data_dir=str(tmp_path), roots="/runs:/data", suites="/suites") == {
        "data folder": str(tmp_path),
        "database": f"sqlite:///{tmp_path}/evalsvc.db",
        "devices": "cpu, cpu",
        "suites": "those of evalsvc, and /suites",
        "roots": "/runs:/data",
        "tokens": "none: anyone on this machine can use the service",
        "stop": f"Ctrl-C, or kill {os.getpid()}; running shards get 10 s to finish",
    }


def test_a_log_in_json_has_the_address_next_to_it_alone() -> None:
    assert facts(log_format="json") == {}


def test_it_says_who_can_use_it_and_what_it_may_read() -> None:
    assert facts()["roots"] == "/ (every file that this process can read)"
    assert facts(host="0.0.0.0")["tokens"] == "none: anyone who reaches 0.0.0.0 can use the service"
    assert facts(has_tokens=True)["tokens"] == "needed"
    open_reads = facts(has_tokens=True, open_reads=1)["tokens"]
    assert open_reads == "needed, except for reading: anyone on this machine can read"


def test_it_shows_no_password() -> None:
    said = facts(database_url="postgresql://me:hunter2@db:5432/evalsvc")["database"]
    assert (said.endswith("@db:5432/evalsvc"), "hunter2" in said) == (True, False)


def test_workers_of_others_and_none() -> None:
    assert facts(scheduler="tls://10.0.0.1:8786")["scheduler"] == "tls://10.0.0.1:8786"
    assert facts(read_only=1)["devices"] == "none: the service only answers reads"


@pytest.mark.parametrize("roots", [":".join(f"/runs/{name}" for name in range(40)), "/" + "x" * 200])
def test_lines_fit_a_terminal_and_no_path_is_cut(roots: str) -> None:
    lines = describe_service(Settings(devices="cpu", roots=roots, data_dir="/data"), Started(URL, True))
    assert all(len(line) <= WIDTH or len(line.split()) <= 2 for line in lines)
    assert roots in "\n".join(lines)
