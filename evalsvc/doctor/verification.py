"""The last result of `evalsvc verify machine`, stored in the data folder for `evalsvc doctor`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ValidationError

from evalsvc import __version__
from evalsvc.files.atomic import write_whole

FILE = "verify-machine.json"


class Verdict(BaseModel):
    quantity: str
    verdict: str
    """`ok`, `WRONG` or `not tried`."""


class Verification(BaseModel):
    """The part of the result that the doctor reads; the file holds more."""

    agrees: bool
    versions: dict[str, str]
    device: str
    at: str
    """Time of the end, ISO 8601 in UTC."""
    findings: tuple[Verdict, ...]


def present_versions() -> dict[str, str]:
    """Return the versions of evalsvc and torch without importing torch, which may not be installed."""
    try:
        return {"evalsvc": __version__, "torch": metadata.version("torch")}
    except metadata.PackageNotFoundError:
        return {"evalsvc": __version__}


def keep_verification(data_folder: Path, document: Mapping[str, object]) -> None:
    """Write the result of `evalsvc verify machine` over the last one. Raises OSError."""
    write_whole(data_folder / FILE, json.dumps(document, indent=1).encode())


def last_verification(data_folder: Path) -> Verification | None:
    """Read the last result; return None if there is none."""
    path = data_folder / FILE
    if not path.is_file():
        return None
    try:
        return Verification.model_validate_json(path.read_bytes())
    except ValidationError:
        raise ValueError(f"{path} is not a result of `evalsvc verify machine`") from None
