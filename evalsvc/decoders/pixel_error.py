"""Error of a decoder with reduced precision against the exact decoder."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor

from evalsvc.decoders.decoder import ImageDecoder, to_uint8


@dataclass(frozen=True)
class PixelError:
    """Error in grey levels 0…255, of the values that an image file would hold."""

    images: int
    mean: float
    """Mean of the absolute differences of all channels of all pixels."""
    maximum: int
    changed: float
    """Share of values that differ."""

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def pixel_error(
    exact: ImageDecoder,
    other: ImageDecoder,
    codes: Tensor,  # [B, N] integers
    grid: tuple[int, int] | None = None,
) -> PixelError:
    """Decode `codes` with both decoders and compare. Raises InvalidData where the codes do not fit."""
    levels = [to_uint8(decoder.decode(codes, grid)).cpu().short() for decoder in (exact, other)]
    difference = (levels[0] - levels[1]).abs()
    changed = (difference > 0).float().mean()
    return PixelError(len(codes), float(difference.float().mean()), int(difference.max()), float(changed))
