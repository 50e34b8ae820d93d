"""The parameters of `drawn_images.py`, for the service's process: a plug-in of `looks.py`."""

from __future__ import annotations

from typing import ClassVar

from evalsvc.tasks.text_to_image.spec import TextToImage


class DrawnImages(TextToImage):
    """`text_to_image` on images that are drawn at random."""

    kind: ClassVar[str] = "drawn_images"
    work: ClassVar[str] = "drawn_images:DrawnWork"
