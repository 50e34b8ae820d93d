"""Why a Dask scheduler was not reached, and what to do about it."""

from __future__ import annotations

from urllib.parse import urlsplit

from evalsvc.connection_errors import find_cause

CERTIFICATES = "give the folder of certificates by --tls that the scheduler has (`evalsvc certificates`)"

CURES = {
    "refused": "start a scheduler there with `evalsvc scheduler`, or correct the address",
    "plain": "what listens there is no `evalsvc scheduler`; correct the address",
    "issuer": CERTIFICATES,
    "certificate": CERTIFICATES,
    "handshake": CERTIFICATES,
}
"""What to do, by the kind of the cause."""


def explain_scheduler(error: BaseException, address: str) -> str:
    """Return the cause and its cure, as the end of a sentence about the scheduler at `address`."""
    cause = find_cause(error, urlsplit(address).hostname or address)
    if cause is None:
        innermost = error.__cause__ or error
        if isinstance(innermost, TimeoutError):
            text = "no answer in time"
        else:
            text = f"{type(innermost).__name__}: {innermost}".removesuffix(": ")
        return f"{text}; check that `evalsvc scheduler` runs at this address, and the files in --tls"
    return f"{cause.text}; {CURES.get(cause.kind, cause.cure)}"
