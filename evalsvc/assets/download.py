"""Downloads by HTTP, which resume where they stopped."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx

from evalsvc.assets.catalog import Source
from evalsvc.checkpoints.reference import hash_files
from evalsvc.errors import AssetCorrupt, AssetMissing

Progress = Callable[[int, int | None], None]
"""Callback with the number of bytes so far, and the total if it is known."""

BLOCK = 1 << 20
TIMEOUT_S = 15.0


def download(source: Source, partial: Path, recorded: str | None, progress: Progress) -> str:
    """Download to `partial`, resuming at its end; return its digest. `recorded` is the digest of an earlier pull."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with (
            httpx.Client(follow_redirects=True, timeout=TIMEOUT_S) as client,
            client.stream("GET", source.url, headers=headers) as response,
        ):
            expected = source.sha256 or _announced(response) or recorded
            start = _start(response, have, expected)
            if start is not None and response.status_code != 416:
                response.raise_for_status()
                _receive(response, partial, start, progress)
    except httpx.HTTPError as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise AssetMissing(f"{source.url} could not be downloaded ({reason})") from error
    if start is None:
        partial.unlink()
        return download(source, partial, recorded, progress)
    digest = hash_files(partial)
    if expected is not None and digest != expected:
        partial.unlink()
        raise AssetCorrupt(f"{source.url} gave a file with sha256 {digest}, expected {expected}; pull it again")
    return digest


def _announced(response: httpx.Response) -> str | None:
    """Return the digest that Hugging Face's servers announce before they redirect to the file."""
    for answer in (*response.history, response):
        tag = str(answer.headers.get("x-linked-etag", "")).strip('"')
        if re.fullmatch("[0-9a-f]{64}", tag):
            return tag
    return None


def _start(response: httpx.Response, have: int, expected: str | None) -> int | None:
    """Return the offset at which the response continues the file; None if it does not fit and the partial file must be
    deleted.

    Without an expected digest, halves of two different files would not be noticed, so the download is not resumed.
    """
    if response.status_code == 206:
        fits = expected is not None and str(response.headers.get("content-range", "")).startswith(f"bytes {have}-")
        return have if fits else None
    if response.status_code == 416 and have:
        # The partial file has the full length: it is complete or wrong.
        return have if expected is not None else None
    return 0


def _receive(response: httpx.Response, partial: Path, start: int, progress: Progress) -> None:
    length = response.headers.get("content-length")
    total = None if length is None else start + int(length)
    done = start
    with partial.open("r+b" if start else "wb") as file:
        file.seek(start)
        for block in response.iter_bytes(BLOCK):
            file.write(block)
            done += len(block)
            progress(done, total)
