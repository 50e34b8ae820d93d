"""VQGAN in the format of taming-transformers: Esser, Rombach, Ommer (arXiv 2012.09841).

The variant with a Gumbel quantiser has another codebook and is not supported.
"""

from __future__ import annotations

from typing import ClassVar

from evalsvc.decoders.blocks import VQAutoencoder


class VQGAN(VQAutoencoder):
    targets: ClassVar[tuple[str, ...]] = ("taming.models.vqgan.VQModel",)
    telltale = "decoder.norm_out.weight"
