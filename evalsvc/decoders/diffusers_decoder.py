"""Image decoders by diffusers: its VQModel with the weights of a VQGAN or a descendant, the engine `diffusers`."""

from __future__ import annotations

import logging
import re
from typing import Any, NoReturn, cast

from torch import Tensor, nn

from evalsvc.decoders.blocks import VQAutoencoder
from evalsvc.decoders.config import GROUPS, AutoencoderConfig
from evalsvc.decoders.decoder import ImageDecoder
from evalsvc.decoders.emu3 import Emu3
from evalsvc.decoders.loading import CODEBOOK
from evalsvc.decoders.movqgan import MoVQGAN
from evalsvc.errors import UnsupportedModel

# diffusers imports xformers where it is installed, which warns about its GPU kernels; they are not used.
logging.getLogger("xformers").setLevel(logging.ERROR)
from diffusers import VQModel  # noqa: E402


class DiffusersDecoder(ImageDecoder):
    """Decoder that computes by diffusers what another decoder computes by evalsvc."""

    telltale = ""

    def __init__(self, own: ImageDecoder) -> None:
        """Wrap `own`, which gives the weights, the digest and the sizes. Raises the errors of `write_diffusers`."""
        super().__init__()
        self.own = own
        like = next(own.parameters())
        self.model = write_diffusers(own)
        nn.Module.to(self.model, like.device, like.dtype)  # diffusers' own `to` warns where nothing is wrong
        self.codebook_size, self.downsampling, self.resolution = own.codebook_size, own.downsampling, own.resolution
        self.ignored = own.ignored

    @classmethod
    def from_config(cls, content: object) -> NoReturn:
        """Raise UnsupportedModel: evalsvc reads the files of decoders."""
        raise UnsupportedModel("the engine diffusers wraps a decoder that evalsvc has read")

    @property
    def digest(self) -> str:
        return self.own.digest

    def latents(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.model.encode(images).latents)

    def nearest(self, latents: Tensor) -> Tensor:
        codes: Tensor = self.model.quantize(latents)[2][2]
        return codes.view(len(latents), -1)

    def lookup(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        shape = (len(codes), *grid, self.model.config.vq_embed_dim)
        return cast(Tensor, self.model.quantize.get_codebook_entry(codes.flatten(), shape))

    def render(self, latents: Tensor) -> Tensor:
        return cast(Tensor, self.model.decode(latents, force_not_quantize=True).sample)

    def decode_bytes(self, grid: tuple[int, int]) -> int:
        return 2 * self.own.decode_bytes(grid)  # without the ways by which evalsvc saves memory

    def images_at_once(self, grid: tuple[int, int]) -> int:
        return self.own.images_at_once(grid)


def write_diffusers(decoder: ImageDecoder) -> Any:
    """Return `decoder` as a diffusers.VQModel in float32 on the CPU, in eval mode."""
    if not isinstance(decoder, VQAutoencoder) or isinstance(decoder, Emu3):
        raise UnsupportedModel(f"diffusers' VQModel does not support {type(decoder).__name__}")
    kind: Any = VQModel

    config, spatial = decoder.config, isinstance(decoder, MoVQGAN)
    network = config.ddconfig
    _require_supported(config, spatial)
    model = kind(
        down_block_types=[f"{'Attn' * attends}DownEncoderBlock2D" for attends in network.attends],
        up_block_types=[f"{'Attn' * attends}UpDecoderBlock2D" for attends in reversed(network.attends)],
        block_out_channels=network.widths,
        layers_per_block=network.num_res_blocks,
        latent_channels=network.z_channels,
        vq_embed_dim=config.embed_dim,
        num_vq_embeddings=config.n_embed,
        norm_num_groups=GROUPS,
        norm_type="spatial" if spatial else "group",
        sample_size=network.resolution,
    )
    levels, shapes = len(network.widths), model.state_dict()
    # diffusers scales neither entries nor latents, which makes no difference to nearest entries of one length.
    states = decoder.state_dict() | {CODEBOOK: decoder.quantize.scaled(decoder.quantize.embedding.weight.float())}
    tensors = {_name(name, levels, spatial): tensor.float().cpu() for name, tensor in states.items()}
    # The authors' attention projections are 1x1 convolutions, and linear layers in diffusers.
    model.load_state_dict({name: tensor.reshape(shapes[name].shape) for name, tensor in tensors.items()})
    return model.requires_grad_(False).eval()


def _require_supported(config: AutoencoderConfig, spatial: bool) -> None:
    network = config.ddconfig
    unsupported = {
        "spatial norms where embed_dim is not z_channels": spatial and config.embed_dim != network.z_channels,
        "ch_mult that does not begin with 1": network.ch_mult[0] != 1,
        "resamp_with_conv false": not network.resamp_with_conv,
        "add_conv": spatial and network.add_conv,
    }
    if present := [name for name, applies in unsupported.items() if applies]:
        raise UnsupportedModel(f"diffusers' VQModel does not support {' or '.join(present)}")


def _name(name: str, levels: int, spatial: bool) -> str:
    name = re.sub(r"\bup\.(\d+)", lambda found: f"up_blocks.{levels - 1 - int(found[1])}", name)
    modulated = spatial and name.startswith("decoder")
    for pattern, replacement in (
        (r"\bdown\.(\d+)", r"down_blocks.\1"),
        (r"\bmid\.block_1", "mid_block.resnets.0"),
        (r"\bmid\.block_2", "mid_block.resnets.1"),
        (r"\bmid\.attn_1", "mid_block.attentions.0"),
        (r"\.block\.", ".resnets."),
        (r"\.attn\.", ".attentions."),
        (r"(down|up)sample\.conv", r"\1samplers.0.conv"),
        (r"(attentions\.\d+)\.norm\b", r"\1.spatial_norm" if modulated else r"\1.group_norm"),
        (r"(attentions\.\d+)\.([qkv])\b", r"\1.to_\2"),
        (r"proj_out", "to_out.0"),
        (r"nin_shortcut", "conv_shortcut"),
        (r"^(encoder|decoder)\.norm_out", r"\1.conv_norm_out"),
    ):
        name = re.sub(pattern, replacement, name)
    return name
