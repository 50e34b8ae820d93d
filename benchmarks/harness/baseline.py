"""The baseline: the code of a commit, against which times are measured, and stored values of quality."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from evalsvc.compare.source import read_file
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec.documents.results import ResultDocument
from harness.document import EMPTY, trimmed, write
from harness.machine import git

FOLDER = Path(__file__).parents[1] / "baselines"

COMMIT = FOLDER / "commit.txt"
"""File with the full id of the commit whose code is the baseline of times."""

NONE = "none"
"""What `--against` has if nothing is to be compared."""

PACKAGE = "evalsvc"
"""Folder of a tree that is measured."""


@dataclass(frozen=True)
class Tree:
    """A folder that holds the package, and what it is of."""

    folder: Path
    label: str
    """Full id of the commit, or the folder."""


def find_code(against: str | None, root: Path, work: Path) -> Tree | None:
    """Return the code of the baseline: of a commit, of a folder that holds `evalsvc`, or None for `none`.

    Without `against` it is the commit of `COMMIT`. The code of a commit is unpacked below `work`.

    Raises:
        InvalidRequest: `root` has no such commit, or the folder holds no evalsvc.
    """
    if against == NONE:
        return None
    if against and (folder := Path(against)).is_dir():
        if not (folder / PACKAGE / "__init__.py").is_file():
            raise InvalidRequest(f"--against {against}: the folder holds no {PACKAGE}; give the root of a checkout")
        return Tree(folder.resolve(), str(folder))
    named = COMMIT.read_text().strip() if against is None else against
    commit = git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{named}^{{commit}}").strip()
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise InvalidRequest(
            f"the baseline's code {named!r} is no commit of {root}; fetch the whole history (`git fetch --unshallow`), "
            "or give --against a commit, the root of another checkout, or `none`"
        )
    return Tree(_unpack(commit, root, work / "code" / commit), commit)


def read_quality(path: Path) -> ResultDocument:
    """Return the stored values of quality; a result without values if nothing was stored.

    Raises:
        InvalidData: the file is not a result.
    """
    try:
        return read_file(path)
    except UnknownName:
        return EMPTY


def store_quality(path: Path, quality: ResultDocument) -> None:
    """Write values of quality as the baseline of later runs.

    Raises:
        InvalidRequest: a task failed, so the baseline would lack its values.
    """
    if quality.errors:
        reasons = "; ".join(f"{task}: {error.message}" for task, error in quality.errors.items())
        raise InvalidRequest(f"no baseline is stored, since a task failed: {reasons}; correct the cause and run again")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, trimmed(quality))


def _unpack(commit: str, root: Path, folder: Path) -> Path:
    """Unpack the package of a commit, unless that was done before."""
    if (folder / PACKAGE / "__init__.py").is_file():
        return folder
    done = subprocess.run(
        ["git", "-C", str(root), "archive", "--format=tar", commit, "--", PACKAGE], capture_output=True, check=False
    )
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip()
        raise InvalidRequest(f"the code of {commit} cannot be unpacked: {reason}; give --against another commit")
    partial = folder.with_name(f"{folder.name}.partial")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(partial, filter="data")
    partial.rename(folder)
    return folder
