"""Image decoders, which turn pixels into codes and codes into pixels."""

from evalsvc.decoders.decoder import ImageDecoder, PixelError, pixel_error, to_uint8
from evalsvc.decoders.loading import load_decoder

__all__ = ["ImageDecoder", "PixelError", "load_decoder", "pixel_error", "to_uint8"]
