"""Environments of child processes in which a package is not installed."""

import os
from pathlib import Path


def environment_without(package: str, folder: Path, *more: Path) -> dict[str, str]:
    """The environment of this process, for a Python that cannot import `package`; `more` is for its path."""
    folder.mkdir(exist_ok=True)
    # An entry of None stops every import and makes `find_spec` return None, in the child's own children too.
    (folder / "sitecustomize.py").write_text(f"import sys\n\nsys.modules[{package!r}] = None\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (folder, *more)))}
