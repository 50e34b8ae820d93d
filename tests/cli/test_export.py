"""`evalsvc export site`: what it prints; tests/web/test_site.py has what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from console import Command
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.web import vega


@pytest.fixture
def measured(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vega, "is_installed", lambda: False)
    enter(service.store, submission(0), suite("loss"))
    evaluate_whole(service.store, metric(2.5))


def test_the_size_is_printed_and_progress_is_on_stderr(command: Command, measured: None) -> None:
    done = command("export", "site", "run-a", "run-a", "--output", "copy")
    assert done.code == 0, done.err
    files = [path for path in Path("copy").rglob("*") if path.is_file()]
    assert done.out.startswith(f"copy/index.html: {len(files)} files, ")
    assert "pages" in done.err
    assert "the pages have tables and no charts; for charts: pip install" in done.err


def test_a_second_copy_does_not_go_over_the_first(command: Command, measured: None) -> None:
    assert command("export", "site", "run-a", "--output", "copy").code == 0
    before = {path: path.read_bytes() for path in Path("copy").rglob("*") if path.is_file()}
    done = command("export", "site", "run-a", "--output", "copy")
    assert (done.code, done.out) == (2, "")
    assert "the folder copy has files; give a folder that is empty or does not exist" in done.err
    assert {path: path.read_bytes() for path in Path("copy").rglob("*") if path.is_file()} == before
