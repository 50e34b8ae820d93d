"""The machine card: what the numbers of a document were measured on, and of which code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from harness.document import Code, Machine

PACKAGES = ("torch", "numpy", "lm-eval", "transformers")
"""Packages whose versions move times or values."""

SECONDS = 30.0
"""Longest time of a command of git."""


def read_machine(threads: int) -> Machine:
    """Return the card of this machine; `threads` is the number of CPU threads of each process that evaluates."""
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=threads,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=platform.platform(),
        python=platform.python_version(),
        packages={name: version for name in PACKAGES if (version := _version(name))},
        load=round(os.getloadavg()[0], 2),
    )


def read_code(root: Path) -> Code:
    """Return the commit that is checked out in `root`, and whether files differ from it; empty outside of git."""
    commit = git(root, "rev-parse", "HEAD")
    changed = git(root, "status", "--porcelain", "--untracked-files=no", "--", "evalsvc", "benchmarks")
    return Code(commit=commit.strip(), changed=bool(changed.strip()))


def git(root: Path, *arguments: str) -> str:
    """Return what a command of git prints; an empty text if the command fails or git is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
