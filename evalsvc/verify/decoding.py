"""Comparing image decoders with diffusers: VQModel with the same weights, in float32 on the CPU."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from evalsvc.decoders import ImageDecoder, to_uint8
from evalsvc.decoders.blocks import VQAutoencoder
from evalsvc.decoders.config import GROUPS, AutoencoderConfig
from evalsvc.decoders.loading import CODEBOOK
from evalsvc.decoders.movqgan import MoVQGAN
from evalsvc.errors import MissingPackage, UnsupportedModel
from evalsvc.installation import missing_package
from evalsvc.spec.suite import build_task
from evalsvc.tasks.reconstruction.spec import Reconstruction
from evalsvc.tasks.text_to_image.spec import TextToImage
from evalsvc.verify.agreement import Agreement, Finding, Untried, release
from evalsvc.verify.recorded import RecordedTask, VerifyRequest, opened_context

DECODED = 16
"""Maximum number of images that are decoded a second time; a full-size decoder takes a second per image on a CPU."""

SEED = 0

PIXEL_TOLERANCE = 1e-4
NOTE = f"of pixels from -1 to 1; {PIXEL_TOLERANCE} is an eightieth of the step between two levels of an 8-bit image"


TIES = 0.025
TIES_NOTE = "rounding to 8 bits parts values that lie on two sides of a tie between two levels"


def verify_decoder_of(task: RecordedTask, request: VerifyRequest) -> list[Finding]:
    """Compare the image decoder of a task, unless specific metrics were requested. Raises the errors of loading it."""
    if request.metrics:
        return []
    spec: TextToImage | Reconstruction = build_task(task.spec)
    with opened_context(task, request) as context:
        decoder = context.decoder(spec.decoder, spec.decoder_config, spec.decoder_ema)
    side = spec.size or decoder.resolution
    return verify_decoder(decoder, random_codes(decoder, side, request.n), side, spec.name)


def random_codes(decoder: ImageDecoder, side: int, n: int) -> Tensor:  # [B, N] int64
    """Draw the codes of at most `n` images of `side` pixels uniformly. All codes occur if there are enough images."""
    height, width = decoder.grid(side, side)
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(decoder.codebook_size, (min(n, DECODED), height * width), generator=generator)


def verify_decoder(
    decoder: ImageDecoder,
    codes: Tensor,  # [B, N] int64
    side: int,
    name: str = "decoder",
) -> list[Finding]:
    """Compare the images of codes, and the codes of these images."""
    codes, program = codes[:DECODED].cpu(), f"{release('diffusers')} (VQModel)"
    try:
        reference = write_diffusers(decoder)
    except (MissingPackage, UnsupportedModel) as error:
        return [Untried(f"{name}: decoded images", program, error.message)]
    grid = decoder.grid(side, side)
    images = decoder.decode(codes, grid).cpu()
    wanted = _decode(reference, codes, grid)
    differing = float((to_uint8(images) != to_uint8(wanted)).double().mean())
    count = len(codes)
    return [
        Agreement.of_arrays(f"{name}: {count} decoded images", program, images, wanted, PIXEL_TOLERANCE, NOTE),
        Agreement(f"{name}: share of 8-bit values that differ", program, differing, TIES, note=TIES_NOTE),
        _compare_encoding(decoder, reference, images.clamp(-1, 1), f"{name}: latents of {count} images", program),
    ]


@torch.no_grad()
def _decode(theirs: Any, codes: Tensor, grid: tuple[int, int]) -> Tensor:  # [B, 3, H, W]
    decoded = []
    for row in codes:
        entries = theirs.quantize.get_codebook_entry(row, (1, *grid, theirs.config.vq_embed_dim))
        decoded.append(theirs.decode(entries, force_not_quantize=True).sample)
    return torch.cat(decoded)


@torch.no_grad()
def _compare_encoding(decoder: ImageDecoder, theirs: Any, images: Tensor, quantity: str, program: str) -> Agreement:
    like = next(decoder.parameters())
    latents = torch.cat([decoder.latents(image[None].to(like)) for image in images]).cpu()
    wanted = torch.cat([theirs.encode(image[None]).latents for image in images])
    tolerance = PIXEL_TOLERANCE * max(1.0, float(wanted.abs().max()))
    note = f"{PIXEL_TOLERANCE} of the largest latent"
    return Agreement.of_arrays(quantity, program, latents, wanted, tolerance, note)


def write_diffusers(decoder: ImageDecoder) -> Any:
    """Return `decoder` as a diffusers.VQModel in float32 on the CPU, in eval mode.

    Raises:
        MissingPackage: diffusers is not installed.
        UnsupportedModel: VQModel does not compute this network.
    """
    if find_spec("diffusers") is None:
        raise missing_package("diffusers", "verifying a decoder", "reference")
    if not isinstance(decoder, VQAutoencoder):
        raise UnsupportedModel(f"diffusers' VQModel does not support {type(decoder).__name__}")
    from diffusers import VQModel

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
    """Return diffusers' name of one of the authors' parameters."""
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
