"""How much two images differ, for the order of an image wall.

Images come from tasks and their plug-ins, so the formats, bytes and pixels that are decoded have bounds.
"""

from __future__ import annotations

import struct
from io import BytesIO

from evalsvc.client import Client
from evalsvc.errors import EvalsvcError
from evalsvc.spec.documents.results import Artifact

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
"""Media types of artifacts that a page shows as images."""

FORMATS = ("PNG", "JPEG", "WEBP")

MAX_BYTES = 2 << 20
"""Maximum size of a file that is decoded."""

MAX_PIXELS = 2048 * 2048
"""Maximum number of pixels of an image that is decoded."""

SIDE = 32
"""Side of the square, in pixels, that both images are reduced to."""


def change_between(client: Client, one: Artifact | None, other: Artifact | None) -> float | None:
    """Return how much two images differ: the mean of |a − b| / 255 over their pixels and colours, at SIDE × SIDE.

    Returns:
        A number from 0 to 1; None if an image is missing or cannot be decoded.
    """
    if one is None or other is None:
        return None
    if one.sha256 == other.sha256:
        return 0.0
    left, right = reduced(_content(client, one)), reduced(_content(client, other))
    if left is None or right is None:
        return None
    return sum(abs(a - b) for a, b in zip(left, right, strict=True)) / (255 * len(left))


def reduced(content: bytes) -> bytes | None:
    """Return an image as SIDE × SIDE pixels of red, green and blue.

    None if the content is no image within bounds, or Pillow is not installed: only workers need Pillow.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError:
        return None
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()
    except (OSError, ValueError, SyntaxError, EOFError, struct.error):  # Pillow raises any of these for broken files
        return None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None


def _content(client: Client, artifact: Artifact) -> bytes:
    """Return the content of an artifact; nothing if it is too large, pruned or lost."""
    if artifact.size > MAX_BYTES or artifact.pruned_at is not None:
        return b""
    try:
        return client.artifact_content(artifact.id).content
    except EvalsvcError:
        return b""
