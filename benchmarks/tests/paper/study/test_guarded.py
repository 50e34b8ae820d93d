"""Processes that end with the one that asked for them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from study import guarded


@pytest.mark.usefixtures("short_process")
def test_a_guarded_command_ends_with_its_parent(tmp_path: Path) -> None:
    """A service that outlived the command would hold the database of the next one."""
    sign = tmp_path / "pid"
    child = f"import os, time; open({str(sign)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    guard = subprocess.Popen([sys.executable, guarded.__file__, sys.executable, "-c", child], stdin=subprocess.PIPE)
    while not sign.exists() or not sign.read_text():
        time.sleep(0.02)
    assert guard.stdin is not None
    guard.stdin.close()  # as the system closes it when the parent ends
    guard.wait(10)
    with pytest.raises(ProcessLookupError):
        os.kill(int(sign.read_text()), 0)
