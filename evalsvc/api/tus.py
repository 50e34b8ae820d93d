"""Parsing of the request headers of the tus protocol 1.0.0 (https://tus.io/protocols/resumable-upload)."""

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
"""The content type of a part."""

UNSUPPORTED = ("upload-concat", "upload-defer-length")
"""Headers of extensions that the service does not support. A client must not believe that they had an effect."""

MAX_METADATA = 4096
"""The most characters of `Upload-Metadata`."""

MAX_NAME = 255
"""The most characters of a file's name."""

MAX_BYTES = 2**53 - 1
"""The largest length and offset: larger integers in JSON are inexact in some languages."""

EXAMPLE_METADATA = "sha256 " + base64.b64encode(hashlib.sha256(b"weights").hexdigest().encode()).decode()

DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Announced:
    """The content of `Upload-Metadata`: digest and name of the announced file."""

    sha256: str
    name: str | None


def number(text: object) -> int:
    """Return the value of a header with a length or an offset.

    Raises:
        ValueError: the value is not a whole number from 0 to `MAX_BYTES`.
    """
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,16}", text) or int(text) > MAX_BYTES:
        raise ValueError(f"{str(text)[:40]!r} is not a number of bytes; give a whole number from 0 to {MAX_BYTES:,}")
    return int(text)


def require_version(given: str | None, headers: Mapping[str, str]) -> None:
    """Refuse other versions of the protocol and unsupported extensions. A request without a version is accepted.

    Raises:
        HTTPException: 412 for another version.
        InvalidRequest: the request has a header of an unsupported extension.
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
    """Read `Upload-Metadata`: pairs `key base64(value)`, separated by commas.

    The key `sha256` is required, `filename` is optional, and other keys are ignored.

    Raises:
        InvalidRequest: a pair is invalid or repeated, `sha256` is missing or no digest, or the name has characters that
            cannot be shown.
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
    """Read `Upload-Checksum`: an algorithm, and a part's digest in base64.

    Raises:
        InvalidRequest: the algorithm is not supported, or the digest has another length.
    """
    if text is None:
        return None
    algorithm, _, encoded = text.strip().partition(" ")
    if algorithm not in ALGORITHMS:
        raise InvalidRequest(
            f"Upload-Checksum: the algorithm {algorithm[:40]!r} is not supported; use one of {', '.join(ALGORITHMS)}"
        )
    try:
        digest = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    size = {"sha256": 32, "sha1": 20}[algorithm]
    if len(digest) != size:
        raise InvalidRequest(
            f"Upload-Checksum: {encoded[:80]!r} is no {algorithm} digest; send `{algorithm} BASE64`, where BASE64 "
            f"encodes the {size} bytes of the digest"
        )
    return Checksum(algorithm, digest)


def http_date(moment: datetime) -> str:
    """Return a time in the format of HTTP headers (RFC 9110, section 5.6.7)."""
    return format_datetime(moment, usegmt=True)


def _decoded(key: str, encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise InvalidRequest(
            f"Upload-Metadata: the value of {key} is {encoded[:80]!r}; send the UTF-8 of the value in base64"
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
