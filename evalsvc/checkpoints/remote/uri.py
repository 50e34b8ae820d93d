"""Which addresses are taken, before anything is asked of the network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from evalsvc.config import Settings
from evalsvc.errors import CheckpointNotAllowed

SCHEMES = ("s3", "gs", "hf", "https", "http", "memory")
"""All that an operator can allow. Others of fsspec read this machine, chain file systems, or open archives."""

HTTP = ("http", "https")


@dataclass(frozen=True)
class RemoteUri:
    """The address of a file or folder elsewhere, checked."""

    scheme: str
    place: str
    """The bucket, the hub's owner, or host and port."""
    path: str
    """Below it, without slashes around it."""
    revision: str | None = None
    """Of `hf://` alone: a branch, tag or commit."""

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{self.scheme}://{self.place}/{self.path}{revision}"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def is_remote(uri: str) -> bool:
    """Whether it names something elsewhere, as far as its form goes."""
    scheme, found, _rest = uri.partition("://")
    return bool(found) and scheme.lower() != "file" and "/" not in scheme


def parse_remote(uri: str, settings: Settings) -> RemoteUri:
    """`uri` in its parts.

    Raises:
        CheckpointNotAllowed: its scheme is not among EVALSVC_SCHEMES, it lies outside EVALSVC_ROOTS, or its form could
            mean another place than it shows.
    """
    shown = without_secrets(uri)
    if "::" in uri:
        raise CheckpointNotAllowed(f"{shown}: chained addresses (::) are not allowed; give that of the file itself")
    scheme = uri.partition("://")[0].lower()
    _require_scheme(shown, scheme, settings)
    parsed = _parts(uri, shown, scheme)
    _require_root(parsed, settings)
    return parsed


def without_secrets(uri: str) -> str:
    """An address as a message may show it: without user, password, and what a query could hold."""
    bare = re.split(r"[?#;]", uri, maxsplit=1)[0]
    hidden = re.sub(r"://[^/]*@", "://…@", bare)
    return "".join(character if character.isprintable() else "�" for character in hidden)[:500]


def _require_scheme(shown: str, scheme: str, settings: Settings) -> None:
    if scheme in settings.allowed_schemes and scheme in SCHEMES:
        return
    allowed = ", ".join(sorted(settings.allowed_schemes)) or "none"
    advice = "its operator allows it by EVALSVC_SCHEMES" if scheme in SCHEMES else "there is no support for it"
    raise CheckpointNotAllowed(
        f"{shown}: the scheme {scheme!r} is not allowed, {advice}; allowed here: {allowed} (file: a path or a file:// "
        "uri that the service and its workers can read)"
    )


def _parts(uri: str, shown: str, scheme: str) -> RemoteUri:
    rest = uri.partition("://")[2]
    place, _, path = rest.partition("/")
    if "@" in place:
        raise CheckpointNotAllowed(
            f"{shown}: holds a user or password; give the address without, see docs/how-to/post-and-watch.md"
        )
    if found := next((character for character in "#?;\\" if character in uri), None):
        raise CheckpointNotAllowed(f"{shown}: holds {found!r}, which could mean another place; give a plain address")
    if not all(character.isprintable() for character in uri):
        raise CheckpointNotAllowed(f"{shown}: holds a character that cannot be printed; give a plain address")
    revision = None
    if scheme == "hf":
        path, revision = _hub_revision(path)
    path = path.rstrip("/")
    segments = path.split("/")
    if any(part in ("", ".", "..") for segment in segments for part in (segment, unquote(segment))):
        raise CheckpointNotAllowed(
            f"{shown}: has an empty part, '.' or '..'; give the address of a file or folder as {scheme}://PLACE/PATH"
        )
    if not place or (scheme == "hf" and len(segments) < 2):
        form = "hf://OWNER/REPOSITORY/PATH@REVISION" if scheme == "hf" else f"{scheme}://PLACE/PATH"
        raise CheckpointNotAllowed(f"{shown}: is not of the form {form}")
    if scheme in HTTP:
        try:
            if not urlsplit(uri).hostname or urlsplit(uri).port == 0:
                raise ValueError
        except ValueError:
            raise CheckpointNotAllowed(f"{shown}: names no host and port that can be asked") from None
    return RemoteUri(scheme, place, path, revision)


def _hub_revision(path: str) -> tuple[str, str | None]:
    """`repository/path@revision`, or the hub's own `repository@revision/path`."""
    repository, _, inside = path.partition("/")
    name, at, revision = repository.partition("@")
    if at:
        return f"{name}/{inside}", revision
    inside, at, revision = inside.rpartition("@")
    return (f"{repository}/{inside}", revision) if at else (path, None)


def _require_root(uri: RemoteUri, settings: Settings) -> None:
    """Roots of a scheme bind once there is one of it; without, the scheme is allowed as a whole."""
    roots = [root for root in settings.remote_roots if root.partition("://")[0].lower() == uri.scheme]
    without_revision = f"{uri.scheme}://{uri.place}/{uri.path}"
    if roots and not any(without_revision == root or without_revision.startswith(f"{root}/") for root in roots):
        raise CheckpointNotAllowed(f"{uri}: lies outside the allowed places ({', '.join(roots)}); see EVALSVC_ROOTS")
