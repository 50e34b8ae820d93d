"""Headers of the tus protocol, version 1.0.0 (https://tus.io/protocols/resumable-upload): what a request may say."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime

from starlette.exceptions import HTTPException

from evalsvc.errors import InvalidRequest
from evalsvc.files.uploads.part import ALGORITHMS, Checksum
from evalsvc.spec.visible_text import check_visible

VERSION = "1.0.0"

EXTENSIONS = "creation,checksum,expiration,termination"

PART_TYPE = "application/offset+octet-stream"
"""Content type of a part."""

UNSUPPORTED = ("upload-concat", "upload-defer-length")
"""Headers of extensions that this service does not have; ignored, they would be taken for granted."""

MAX_METADATA = 4096
"""Characters of `Upload-Metadata`."""

MAX_NAME = 255
"""Characters of a file's name."""

MAX_BYTES = 2**53 - 1
"""Largest length and offset: what JSON holds as a whole number in every language."""

EXAMPLE_METADATA = "sha256 " + base64.b64encode(hashlib.sha256(b"weights").hexdigest().encode()).decode()

DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Announced:
    """What `Upload-Metadata` says of the file that is to come."""

    sha256: str
    name: str | None


def number(text: object) -> int:
    """Return a length or an offset.

    Raises:
        ValueError: not a whole number from 0 on, or larger than `MAX_BYTES`.
    """
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,16}", text) or int(text) > MAX_BYTES:
        raise ValueError(f"{str(text)[:40]!r} is no number of bytes; give a whole number from 0 to {MAX_BYTES:,}")
    return int(text)


def require_version(given: str | None, headers: Mapping[str, str]) -> None:
    """Refuse another version of the protocol, and extensions that this service does not have.

    Raises:
        HTTPException: 412 for another version. A request without a version is taken for one of this version.
        InvalidRequest: the request asks for an extension.
    """
    if given not in (None, VERSION):
        raise HTTPException(
            412, f"Tus-Resumable: {given[:40]!r} is not supported; send {VERSION}, or leave the header out", HEADERS
        )
    for name in UNSUPPORTED:
        if name in headers:
            raise InvalidRequest(
                f"{name.title()}: this extension of tus is not supported; leave the header out, and send one file with "
                f"its Upload-Length. Supported: {EXTENSIONS}"
            )


def read_metadata(text: str | None) -> Announced:
    """Read `Upload-Metadata`: pairs `key base64(value)`, separated by commas, of which `sha256` must be there.

    Keys other than `sha256` and `filename` are ignored.

    Raises:
        InvalidRequest: a pair is none, or `sha256` is missing or no digest, or the name cannot be shown.
    """
    if len(text or "") > MAX_METADATA:
        raise InvalidRequest(f"Upload-Metadata has {len(text or ''):,} characters; send at most {MAX_METADATA:,}")
    values: dict[str, str] = {}
    for pair in (text or "").split(","):
        key, _, encoded = pair.strip().partition(" ")
        if key in values and key:
            raise InvalidRequest(f"Upload-Metadata has the key {key[:40]!r} twice; send each key once")
        values[key] = _decoded(key, encoded.strip()) if key in ("sha256", "filename") else ""
    sha256 = values.get("sha256", "").lower()
    if not DIGEST.fullmatch(sha256):
        raise InvalidRequest(
            f"Upload-Metadata: sha256 is {sha256[:80]!r}; send the SHA-256 of the whole file in 64 hexadecimal digits, "
            "encoded in base64, as `Upload-Metadata: sha256 BASE64`"
        )
    return Announced(sha256, _name(values.get("filename")))


def read_checksum(text: str | None) -> Checksum | None:
    """Read `Upload-Checksum`: an algorithm and the base64 of a part's digest.

    Raises:
        InvalidRequest: another algorithm, or no digest of its length.
    """
    if text is None:
        return None
    algorithm, _, encoded = text.strip().partition(" ")
    if algorithm not in ALGORITHMS:
        raise InvalidRequest(f"Upload-Checksum: the algorithm {algorithm[:40]!r} is not one of {', '.join(ALGORITHMS)}")
    try:
        digest = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    size = {"sha256": 32, "sha1": 20}[algorithm]
    if len(digest) != size:
        raise InvalidRequest(f"Upload-Checksum: send `{algorithm} BASE64`, where BASE64 encodes the {size} bytes of it")
    return Checksum(algorithm, digest)


def http_date(moment: datetime) -> str:
    """Return a moment as headers have it (RFC 9110, 5.6.7)."""
    return format_datetime(moment, usegmt=True)


def _decoded(key: str, encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise InvalidRequest(
            f"Upload-Metadata: the value of {key} is {encoded[:80]!r}; send the value's UTF-8 in base64"
        ) from None


def _name(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        check_visible(text)
    except ValueError as error:
        raise InvalidRequest(f"Upload-Metadata: filename {error}") from None
    if len(text) > MAX_NAME:
        raise InvalidRequest(f"Upload-Metadata: filename has {len(text):,} characters; send at most {MAX_NAME}")
    return text or None


HEADERS = {"Tus-Resumable": VERSION, "Tus-Version": VERSION, "Cache-Control": "no-store"}
"""Headers of every successful answer."""
