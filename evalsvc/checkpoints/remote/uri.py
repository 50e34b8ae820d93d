"""Addresses of remote checkpoints, checked before any network access."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from evalsvc.config import Settings
from evalsvc.errors import CheckpointNotAllowed

SCHEMES = ("s3", "gs", "hf", "https", "http", "memory")
"""Schemes that an operator can allow. Other schemes of fsspec read this machine, chain file systems, or open
archives."""

HTTP = ("http", "https")


@dataclass(frozen=True)
class RemoteUri:
    """The checked address of a remote file or folder."""

    scheme: str
    place: str
    """Bucket, owner on the hub, or host and port."""
    path: str
    revision: str | None = None
    """Branch, tag or commit; only for `hf://`."""

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{self.scheme}://{self.place}/{self.path}{revision}"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def is_remote(uri: str) -> bool:
    scheme, separator, _rest = uri.partition("://")
    return bool(separator) and scheme.lower() != "file" and "/" not in scheme


def parse_remote(uri: str, settings: Settings) -> RemoteUri:
    shown = without_secrets(uri)
    if "::" in uri:
        raise CheckpointNotAllowed(
            f"{shown}: chained addresses (::) are not allowed; use the address of the file itself"
        )
    scheme = uri.partition("://")[0].lower()
    if scheme not in settings.allowed_schemes or scheme not in SCHEMES:
        allowed = ", ".join(sorted(settings.allowed_schemes)) or "none"
        advice = "ask the operator to add it to EVALSVC_SCHEMES" if scheme in SCHEMES else "and not supported"
        raise CheckpointNotAllowed(
            f"{shown}: the scheme {scheme!r} is not allowed, {advice}; allowed here: {allowed} (file: a path or a "
            "file:// uri that the service and its workers can read)"
        )
    parsed = _parts(uri, shown, scheme)
    # A scheme without any root is allowed as a whole.
    roots = [root for root in settings.remote_roots if root.partition("://")[0].lower() == scheme]
    address = f"{scheme}://{parsed.place}/{parsed.path}/"
    if roots and not any(address.startswith(f"{root}/") for root in roots):
        raise CheckpointNotAllowed(
            f"{parsed}: lies outside the allowed locations ({', '.join(roots)}); see EVALSVC_ROOTS"
        )
    return parsed


def without_secrets(uri: str) -> str:
    """Return an address for messages, without user, password and query."""
    bare = re.split(r"[?#;]", uri, maxsplit=1)[0]
    hidden = re.sub(r"://[^/]*@", "://…@", bare)
    return "".join(character if character.isprintable() else "�" for character in hidden)[:500]


def _parts(uri: str, shown: str, scheme: str) -> RemoteUri:
    place, _, path = uri.partition("://")[2].partition("/")
    path, revision = _hub_revision(path) if scheme == "hf" else (path, None)
    path = path.rstrip("/")
    segments = path.split("/")
    ambiguous = next((character for character in "#?;\\" if character in uri), None)
    form = "hf://OWNER/REPOSITORY/PATH@REVISION" if scheme == "hf" else f"{scheme}://PLACE/PATH"
    has_empty = any(part in ("", ".", "..") for segment in segments for part in (segment, unquote(segment)))
    problems = {
        "holds a user or password; remove both, see docs/how-to/post-and-watch.md": "@" in place,
        f"holds {ambiguous!r}, which is ambiguous; remove it": ambiguous is not None,
        "holds a character that cannot be printed; remove it": not uri.isprintable(),
        f"has an empty part, '.' or '..'; write the address as {scheme}://PLACE/PATH": has_empty,
        f"is not of the form {form}; correct the address": not place or (scheme == "hf" and len(segments) < 2),
        "has no valid host and port; correct the address": scheme in HTTP and not _has_host(uri),
    }
    for problem, is_wrong in problems.items():
        if is_wrong:
            raise CheckpointNotAllowed(f"{shown}: {problem}")
    return RemoteUri(scheme, place, path, revision)


def _has_host(uri: str) -> bool:
    try:
        return bool(urlsplit(uri).hostname) and urlsplit(uri).port != 0
    except ValueError:
        return False


def _hub_revision(path: str) -> tuple[str, str | None]:
    """Split `repository/path@revision`, or the hub's own `repository@revision/path`."""
    repository, _, inside = path.partition("/")
    name, at, revision = repository.partition("@")
    if at:
        return f"{name}/{inside}", revision
    inside, at, revision = inside.rpartition("@")
    return (f"{repository}/{inside}", revision) if at else (path, None)
