"""Documents of uploads."""

from __future__ import annotations

from typing import Annotated

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import Digest, Time

Bytes = Annotated[int, Example(2_621_440_000, minimum=0)]


class Upload(Document):
    """A file that a client sends in parts."""

    id: Annotated[str, Example("5d41402abc4b2a76b9719d911017c592")]
    """The last part of the upload's address, `/v1/uploads/{id}`."""
    name: Annotated[str | None, Example("epoch_25.pt")]
    """Name of the file on the client's side, for display; never used as a path."""
    length: Bytes
    """Size of the whole file in bytes."""
    offset: Annotated[Bytes, Example(8_388_608)]
    """Number of bytes that the service has on its disk. The next part starts at this offset."""
    sha256: Digest
    """SHA-256 of the whole file, as announced."""
    complete: Annotated[bool, Example(False)]
    """Whether all bytes have arrived with the announced digest, so that the upload can be posted as a checkpoint."""
    expires_at: Time
    """Time at which the service deletes the upload, unless more bytes arrive or the upload is posted."""


class Uploads(Document):
    """The uploads of the client's token that are not posted yet, the upload with the most bytes first."""

    uploads: list[Upload]
