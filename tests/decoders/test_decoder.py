"""What every registered image decoder must do, and what all of them refuse alike."""

import copy
from itertools import product

import plain_autoencoder
import pytest
import torch
from refusals import refusal
from safetensors.torch import save_file
from tiny_decoders import random_decoder, tiny_config
from torch import Tensor
from torch.nn import functional

from evalsvc.decoders import ImageDecoder, PixelError, folding, load_decoder, pixel_error, to_uint8
from evalsvc.errors import InvalidData
from evalsvc.spec import catalog

ALLOW = (torch.backends.cuda.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul)
"""What a process may have set to less than float32."""


def random_codes(decoder: ImageDecoder, batch: int, number: int) -> Tensor:
    return torch.randint(0, decoder.codebook_size, (batch, number), generator=torch.Generator().manual_seed(1))


def random_images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("kind", catalog.names("decoders"))
class TestEveryDecoder:
    @pytest.fixture
    def decoder(self, kind: str) -> ImageDecoder:
        return random_decoder(tiny_config(kind), kind)

    def test_shapes_and_dtypes(self, decoder: ImageDecoder) -> None:
        """The attention's place is fixed by the nominal resolution, the size of the image is free."""
        assert (decoder.codebook_size, decoder.downsampling, decoder.resolution) == (16, 4, 32)
        assert decoder.grid(32, 48) == (8, 12)
        codes = decoder.encode(random_images(3, 3, 32, 32))
        assert (codes.shape, codes.dtype) == ((3, 64), torch.int64)
        assert len(codes.unique()) > 4, "random images must not all have one code"
        images = decoder.decode(codes)
        assert (images.shape, images.dtype) == ((3, 3, 32, 32), torch.float32)
        assert not images.requires_grad
        assert decoder.encode(random_images(1, 3, 16, 40)).shape == (1, 40)
        assert decoder.decode(random_codes(decoder, 1, 40), (4, 10)).shape == (1, 3, 16, 40)
        assert decoder.decode(random_codes(decoder, 1, 4)).shape == (1, 3, 8, 8)
        assert decoder.decode(torch.zeros(0, 4, dtype=torch.int64)).shape == (0, 3, 8, 8)
        assert decoder.encode(random_images(0, 3, 8, 8)).shape == (0, 4)

    def test_works_in_parts(self, decoder: ImageDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
        """A sampler's batch of 256 large images would need a hundred gigabytes at once."""
        codes, images = random_codes(decoder, 5, 64), random_images(5, 3, 32, 32)
        whole = decoder.decode(codes), decoder.encode(images)
        seen: list[int] = []
        decoder.decoder.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
        for count, expected in ((2, [2, 2, 1]), (1, [1] * 5)):
            seen.clear()
            monkeypatch.setattr(type(decoder), "images_at_once", lambda self, grid, count=count: count)
            assert (decoder.decode(codes) - whole[0]).abs().max() < 2e-5
            assert torch.equal(decoder.encode(images), whole[1])
            assert seen == expected
        monkeypatch.setattr("evalsvc.decoders.blocks.CHUNK_BYTES", 5 * 4 * 16)  # of distances to the codebook
        assert torch.equal(decoder.encode(images), whole[1])

    def test_memory_is_known_before_anything_is_allocated(self, kind: str) -> None:
        with torch.device("meta"):
            decoder = catalog.load("decoders", kind).from_config(tiny_config(kind))
        small, large = (decoder.decode_bytes((side, side)) for side in (64, 128))
        assert 0 < 4 * small * 0.4 < large < 4 * small
        assert decoder.images_at_once((128, 128)) == 1

    def test_reported_numbers_are_in_full_precision(self, decoder: ImageDecoder) -> None:
        """A process around that allows TF32 or casts to bf16 must not move a pixel."""
        codes, images = random_codes(decoder, 1, 64), random_images(1, 3, 32, 32)
        wanted = decoder.decode(codes), decoder.encode(images)
        seen: list[object] = []

        def look(module: torch.nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            switches = (*ALLOW, torch.backends.cudnn.conv)
            seen.append([{switch.fp32_precision for switch in switches}, torch.is_autocast_enabled("cpu"), out.dtype])

        for part in (decoder.decoder, decoder.encoder):
            part.register_forward_hook(look)
        for switch, low in zip(ALLOW, ("tf32", "bf16", "bf16"), strict=True):
            switch.fp32_precision = low
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(decoder.decode(codes), wanted[0])
            assert torch.equal(decoder.encode(images), wanted[1])
        assert seen == [[{"ieee"}, False, torch.float32]] * 2

    @pytest.mark.usefixtures("many_cases")
    def test_file_and_back(self, decoder: ImageDecoder, kind: str, tmp_path: object) -> None:
        """Told by its target or by its keys; the digest is that of the weights, not of the file."""
        config = tiny_config(kind)
        states = {decoder.file_name(name): tensor.contiguous() for name, tensor in decoder.state_dict().items()}
        torch.save(states, f"{tmp_path}/flat.ckpt")
        lightning = {"pytorch-lightning_version": "1.5.10", "state_dict": states | {"loss.x": torch.ones(1)}}
        torch.save(lightning, f"{tmp_path}/lightning.ckpt")
        save_file({f"module.{name}": tensor for name, tensor in states.items()}, f"{tmp_path}/x.safetensors")
        codes = random_codes(decoder, 2, 64)
        wanted = decoder.decode(codes)
        for name in ("flat.ckpt", "lightning.ckpt", "x.safetensors"):
            for target in (config["target"], None) if decoder.telltale else (config["target"],):
                loaded = load_decoder(f"{tmp_path}/{name}", config | {"target": target})
                assert type(loaded) is type(decoder)
                assert loaded.digest == decoder.digest
                assert (loaded.decode(codes) - wanted).abs().max() < 2e-5
                assert not loaded.training
                assert not any(parameter.requires_grad for parameter in loaded.parameters())
                assert loaded.ignored == (("loss.x",) if name == "lightning.ckpt" else ())
        for dtype, error in (("float64", 2e-5), ("bfloat16", 0.5)):
            loaded = load_decoder(f"{tmp_path}/flat.ckpt", config, dtype=dtype)
            assert loaded.decode(codes).dtype == torch.float32
            assert (loaded.decode(codes) - wanted).abs().max() < error
            assert loaded.encode(random_images(1, 3, 32, 32)).shape == (1, 64)

    def test_is_trainable(self, decoder: ImageDecoder) -> None:
        """Every parameter but the codebook gets a gradient through the straight-through estimator."""
        decoder.train()
        latents = decoder.latents(random_images(2, 3, 16, 16))
        entries = decoder.lookup(decoder.nearest(latents), (4, 4))
        decoder.render(latents + (entries - latents).detach()).square().mean().backward()
        without = [name for name, parameter in decoder.named_parameters() if parameter.grad is None]
        assert without == ["quantize.embedding.weight"]
        (entries - latents.detach()).square().mean().backward()
        assert all(bool(parameter.grad.abs().sum() > 0) for parameter in decoder.parameters())

    def test_refuses_codes_and_images(self, decoder: ImageDecoder) -> None:
        six = torch.zeros(1, 6, dtype=torch.int64)
        for codes, grid, message in (
            (six, None, "6 codes do not make a square image; give the grid"),
            (six[:, :0], None, "0 codes do not make a square image"),
            (six, (2, 4), "a grid of 2x4 has 8 codes, 6 were given"),
            (six, (-2, -3), "a grid of -2x-3 has 6 codes, 6 were given"),
            (torch.tensor([[0, 1, 16, 2]]), None, "code 16 is outside the codebook 0…15; give codes of this decoder"),
            (torch.tensor([[0, 1, -1, 2]]), None, "code -1 is outside the codebook 0…15"),
            (six[0], None, "decode takes integer codes [B, N], not torch.int64 [6]"),
            (torch.zeros(1, 4), None, "decode takes integer codes [B, N], not torch.float32 [1, 4]"),
        ):
            assert message in refusal(InvalidData, decoder.decode, codes, grid)
        for images, message in (
            (torch.zeros(1, 1, 8, 8), "not torch.float32 [1, 1, 8, 8]"),
            (torch.zeros(3, 8, 8), "not torch.float32 [3, 8, 8]"),
            (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "not torch.uint8"),
            (torch.zeros(1, 3, 8, 10), "images of 8x10 pixels do not divide into codes of 4x4; resize or crop"),
            (torch.zeros(1, 3, 0, 8), "images of 0x8 pixels do not divide"),
        ):
            assert message in refusal(InvalidData, decoder.encode, images)


@pytest.mark.parametrize("kind", catalog.names("decoders"))
@pytest.mark.parametrize("changes", [{}, {"add_conv": True}, {"resamp_with_conv": False}, {"attn_resolutions": []}])
def test_equals_the_plain_version(kind: str, changes: dict[str, object]) -> None:
    """Convolving the latent before it is upsampled, and in place, is the same function for every kind of network.

    Training runs the network as it is written; without gradients it is restructured.
    """
    decoder = random_decoder(tiny_config(kind, **changes), kind).double()
    parameters, codes, unit = decoder.state_dict(), random_codes(decoder, 2, 24), kind == "llamagen"
    wanted = plain_autoencoder.decode(parameters, codes, 4, 6, unit)
    assert wanted.abs().max() > 1
    images = random_images(2, 3, 16, 24).double()
    latents, nearest = plain_autoencoder.encode(parameters, images, unit)
    for training in (True, False):
        with torch.set_grad_enabled(training):
            assert (decoder.render(decoder.lookup(codes, (4, 6))) - wanted).abs().max() < 1e-10
            assert (decoder.latents(images) - latents).abs().max() < 1e-12
    assert torch.equal(decoder.encode(images), nearest)


def test_to_uint8_rounds() -> None:
    """-1, 0 and 1 are 0, 127.5 (to even: 128) and 255; what is beyond is clamped, and nothing is cut down."""
    values = torch.tensor([-1.5, -1, -1 + 0.6 / 127.5, 0, 1 - 0.4 / 127.5, 1, 1.01]).view(1, 1, 1, -1)
    assert to_uint8(values).flatten().tolist() == [0, 0, 1, 128, 255, 255, 255]
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 5, 7, 6), (1, 2, 4, 33)])
@torch.no_grad()
def test_equals_upsampling_and_convolution(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row, in bands, and at once."""
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (8, shape[1], 3, 3), (8,))
    x, weight, bias = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes)
    large = functional.interpolate(x, scale_factor=2.0, mode="nearest")
    wanted = functional.conv2d(large, weight, bias, padding=1)
    for workspace, layout in product((1, 2_000, 1 << 30), (torch.contiguous_format, torch.channels_last)):
        monkeypatch.setattr(folding, "WORKSPACE", workspace)
        found = folding.upsample_and_convolve(x.contiguous(memory_format=layout), weight, bias)
        assert (found - wanted).abs().max() < 1e-12


def test_pixel_errors_count_grey_levels() -> None:
    """A bias of 2 / 127.5 after the last convolution is two levels wherever nothing is clamped."""
    decoder = random_decoder(tiny_config("movqgan"), "movqgan")
    patches = random_codes(decoder, 4, 4).view(4, 2, 2)  # since an image repeats itself
    codes = patches.repeat_interleave(4, 1).repeat_interleave(4, 2).flatten(1)
    assert pixel_error(decoder, decoder, codes) == PixelError(4, 0.0, 0, 0.0)
    dim = copy.deepcopy(decoder).double()
    with torch.no_grad():
        dim.decoder.conv_out.weight.mul_(0.01)
        bright = copy.deepcopy(dim)
        bright.decoder.conv_out.bias.add_(2 / 127.5)
    found = pixel_error(dim, bright, codes)
    assert abs(found.mean - 2) < 0.05
    assert found.maximum <= 3
    found = pixel_error(decoder, copy.deepcopy(decoder).to(torch.bfloat16), codes)
    assert 0.05 < found.mean < 5
    assert found.mean < found.maximum < 256
    assert 0.05 < found.changed <= 1
    assert found.to_json()["images"] == 4
