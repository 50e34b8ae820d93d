"""Image decoders, which turn pixels into codes and codes into pixels."""

from evalsvc.decoders.decoder import ImageDecoder, to_uint8
from evalsvc.decoders.loading import load_decoder
from evalsvc.decoders.pixel_error import pixel_error

__all__ = ["ImageDecoder", "load_decoder", "pixel_error", "to_uint8"]
