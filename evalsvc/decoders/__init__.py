"""Image decoders: from pixels to codes and back."""

from evalsvc.decoders.decoder import ImageDecoder, to_uint8
from evalsvc.decoders.loading import load_decoder

__all__ = ["ImageDecoder", "load_decoder", "to_uint8"]
