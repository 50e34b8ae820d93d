"""VQGAN as taming-transformers writes it: Esser, Rombach, Ommer (arXiv 2012.09841).

Its variant with a Gumbel quantiser has another codebook and is not this one.
"""

from __future__ import annotations

from evalsvc.decoders.blocks import VQAutoencoder


class VQGAN(VQAutoencoder):
    targets = ("taming.models.vqgan.VQModel",)
    telltale = "decoder.norm_out.weight"
