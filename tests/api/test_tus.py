"""Headers of the tus protocol: what is no number, no digest or no name is told what to send."""

import base64
from datetime import UTC, datetime

import pytest
from starlette.exceptions import HTTPException

from evalsvc.api import tus
from evalsvc.errors import InvalidRequest
from evalsvc.files.uploads.part import Checksum


def b64(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


SHA256 = f"sha256 {b64('0' * 64)}"


@pytest.mark.parametrize("text", ["0", "1", str(tus.MAX_BYTES)])
def test_numbers(text: str) -> None:
    assert tus.number(text) == int(text)


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1e3", "1.0", " 1", "0x10", "1_000", "٣", str(tus.MAX_BYTES + 1), "9" * 400, None, 5]
)
def test_what_is_no_number(text: object) -> None:
    with pytest.raises(ValueError, match="give a whole number"):
        tus.number(text)


def test_metadata() -> None:
    text = f"sha256 {b64('A' * 64)}, filename {b64('épôque 1.pt')},is_confidential,relativePath {b64('../x')}"
    assert tus.read_metadata(text) == tus.Announced("a" * 64, "épôque 1.pt")
    assert tus.read_metadata(f"filename ,{SHA256}") == tus.Announced("0" * 64, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "sha256 is ''"),
        ("", "sha256 is ''"),
        (f"filename {b64('a.pt')}", "sha256 is ''"),
        (f"sha256 {'0' * 64}", "sha256"),
        (f"sha256 {b64(b'0' * 32)}", "64 hexadecimal digits"),
        ("sha256 !!!", "in base64"),
        (f"{SHA256},{SHA256}", "twice"),
        (f"{SHA256},filename {b64(bytes([255]))}", "filename"),
        (f"{SHA256},filename {b64('a' + chr(27) + '[2J')}", "control character"),
        (f"{SHA256},filename {b64('a' * 256)}", "at most 255"),
        (f"{SHA256},{'x' * 5000}", "at most 4,096"),
    ],
)
def test_metadata_that_is_refused(text: str | None, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        tus.read_metadata(text)


def test_checksums() -> None:
    assert tus.read_checksum(None) is None
    assert tus.read_checksum(f"sha1 {b64(b'1' * 20)}") == Checksum("sha1", b"1" * 20)
    assert tus.read_checksum(f"sha256  {b64(b'1' * 32)} ") == Checksum("sha256", b"1" * 32)


@pytest.mark.parametrize("text", ["", "sha256", "sha256 AAAA", f"sha256 {b64(b'1' * 20)}", "md5 AAAA", "sha256 ???"])
def test_checksums_that_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="Upload-Checksum"):
        tus.read_checksum(text)


def test_versions_and_extensions() -> None:
    tus.require_version(None, {})
    tus.require_version("1.0.0", {})
    with pytest.raises(HTTPException) as error:
        tus.require_version("0.2.2", {})
    assert error.value.status_code == 412
    assert (error.value.headers or {})["Tus-Version"] == "1.0.0"
    for name in ("upload-concat", "upload-defer-length"):
        with pytest.raises(InvalidRequest, match=name.title()):
            tus.require_version("1.0.0", {name: "1"})


def test_moments_are_those_of_http() -> None:
    assert tus.http_date(datetime(2026, 2, 3, 10, 11, 12, 999, UTC)) == "Tue, 03 Feb 2026 10:11:12 GMT"
