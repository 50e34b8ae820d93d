"""`evalsvc serve`: what a started service says of itself."""

import os
from pathlib import Path
from typing import Any

import pytest
from console import Shell

from evalsvc.api.server import Started, listen
from evalsvc.cli.service_banner import WIDTH, describe_service
from evalsvc.config import Settings

URL, HERE = "http://127.0.0.1:8321", "anyone on this machine"


def test_port_in_use(evalsvc: Shell) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        result = evalsvc(f"serve --port {port}")
    assert result.code == 2
    assert result.err.startswith(f"error: port {port} of 127.0.0.1 is in use")
    assert "--port (EVALSVC_PORT)" in result.err


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
        "tokens": f"none: {HERE} can use the service",
        "stop": f"Ctrl-C, or kill {os.getpid()}; running shards get 10 s to finish",
    }
    assert facts(log_format="json") == {}, "next to a log in JSON is the address alone"


@pytest.mark.parametrize(
    ("settings", "name", "fact"),
    [
        ({}, "roots", "/ (every file that this process can read)"),
        ({"host": "0.0.0.0"}, "tokens", "none: anyone who reaches 0.0.0.0 can use the service"),
        ({"has_tokens": True}, "tokens", "needed"),
        (
            {"has_tokens": True, "open_reads": 1},
            "tokens",
            "needed, except for reading: anyone on this machine can read",
        ),
        ({"scheduler": "tls://10.0.0.1:8786"}, "scheduler", "tls://10.0.0.1:8786"),
        ({"read_only": 1}, "devices", "none: the service only answers reads"),
        (
            {"database_url": "postgresql://me:hunter2@db:5432/evalsvc"},
            "database",
            "postgresql+psycopg://me:***@db:5432/evalsvc",
        ),
    ],
)
def test_it_says_who_can_use_it_and_what_it_may_read(settings: dict[str, Any], name: str, fact: str) -> None:
    assert facts(**settings)[name] == fact


@pytest.mark.parametrize("roots", [":".join(f"/runs/{name}" for name in range(40)), "/" + "x" * 200])
def test_lines_fit_a_terminal_and_no_path_is_cut(roots: str) -> None:
    lines = describe_service(Settings(devices="cpu", roots=roots, data_dir="/data"), Started(URL, True))
    assert all(len(line) <= WIDTH or len(line.split()) <= 2 for line in lines)
    assert roots in "\n".join(lines)
