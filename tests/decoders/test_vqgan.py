import torch

from evalsvc.decoders.vqgan import VQGAN

IMAGENET_F16 = {
    "target": "taming.models.vqgan.VQModel",
    "embed_dim": 256,
    "n_embed": 16384,
    "ddconfig": {
        "double_z": False,
        "z_channels": 256,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [16],
        "dropout": 0.0,
    },
}
"""The configuration of taming-transformers' vqgan_imagenet_f16_16384."""


def test_names_of_tamings_parameters() -> None:
    """As taming-transformers' modules name them: plain norms in the decoder too, attention at the lowest level."""
    with torch.device("meta"):
        decoder = VQGAN.from_config(IMAGENET_F16)
    shapes = {name: list(tensor.shape) for name, tensor in decoder.state_dict().items()}
    assert (decoder.codebook_size, decoder.grid(256, 256)) == (16384, (16, 16))
    assert shapes["quantize.embedding.weight"] == [16384, 256]
    assert shapes["decoder.up.4.attn.2.norm.weight"] == [512]
    assert shapes["decoder.up.1.block.0.nin_shortcut.weight"] == [128, 256, 1, 1]
    assert shapes["encoder.down.3.downsample.conv.weight"] == [256, 256, 3, 3]
    assert shapes["decoder.norm_out.weight"] == [128]
    for absent in ("decoder.up.3.attn.0.q.weight", "encoder.down.4.downsample.conv.weight", "decoder.norm_out.conv_y"):
        assert absent not in shapes
