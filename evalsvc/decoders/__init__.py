"""Image decoders: from pixels to codes and back."""

from evalsvc.decoders.decoder import ImageDecoder, to_uint8
from evalsvc.decoders.loading import load_decoder
from evalsvc.decoders.pixel_error import pixel_error

__all__ = ["ImageDecoder", "load_decoder", "pixel_error", "to_uint8"]
