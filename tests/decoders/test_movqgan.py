"""Held to the authors' own numbers, to a plain version of the same function, and to diffusers' VQModel."""

from pathlib import Path

import plain_autoencoder
import pytest
import torch
from safetensors.torch import load_file
from tiny_decoders import random_decoder, randomise, tiny_config
from torch import Tensor

from evalsvc.decoders import ImageDecoder, load_decoder, to_uint8
from evalsvc.decoders.config import REGISTERED
from evalsvc.decoders.diffusers_decoder import write_diffusers
from evalsvc.decoders.movqgan import MoVQGAN

GOLDEN = [("flat_file", False), ("lightning_file", False), ("lightning_file", True)]


@pytest.mark.parametrize(("case", "ema"), GOLDEN)
class TestGolden:
    @pytest.fixture
    def file(self, case: str, request: pytest.FixtureRequest) -> Path:
        path = request.getfixturevalue(case)
        assert isinstance(path, Path)
        return path

    @pytest.fixture
    def expected(self, file: Path, ema: bool) -> dict[str, Tensor]:
        tensors = load_file(file.with_name("expected.safetensors"))
        averaged = {name.removeprefix("ema."): tensor for name, tensor in tensors.items() if name.startswith("ema.")}
        return tensors | averaged if ema else tensors

    def test_decode(self, file: Path, ema: bool, expected: dict[str, Tensor]) -> None:
        images = load_decoder(file, ema=ema).decode(expected["codes"])
        assert (images - expected["decoded"]).abs().max() < 3e-5
        # Some values lie within 1.5e-5 of a tie between two levels.
        levels = to_uint8(images).int() - expected["decoded_u8"].int()
        assert levels.abs().max() <= 1
        assert (levels != 0).float().mean() < 1e-3

    def test_encode(self, file: Path, ema: bool, expected: dict[str, Tensor]) -> None:
        decoder = load_decoder(file, ema=ema)
        assert torch.equal(decoder.encode(expected["image"]), expected["indices"])
        assert (decoder.latents(expected["image"]) - expected["prequant"]).abs().max() < 3e-5
        assert (decoder.decode(expected["indices"]) - expected["reconstruction"]).abs().max() < 3e-5


def test_gradients_equal_the_plain_version() -> None:
    """Norms and activations overwrite their input, which must not reach what the backward pass needs."""
    decoder = random_decoder(tiny_config("movqgan"), "movqgan").double()
    parameters = {name: tensor.detach().clone().requires_grad_() for name, tensor in decoder.named_parameters()}
    codes = torch.randint(0, 16, (2, 16), generator=torch.Generator().manual_seed(0))
    decoder.render(decoder.lookup(codes, (4, 4))).square().mean().backward()
    plain_autoencoder.decode(parameters, codes, 4, 4).square().mean().backward()
    for name, parameter in decoder.named_parameters():
        wanted = parameters[name].grad
        assert (parameter.grad is None) == (wanted is None) == name.startswith(("encoder.", "quant_conv."))
        assert wanted is None or torch.allclose(parameter.grad, wanted, rtol=1e-9, atol=1e-12), name


def test_many_codes_are_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = random_decoder(tiny_config("movqgan"), "movqgan")
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    wanted = decoder.encode(images)
    monkeypatch.setattr("evalsvc.decoders.blocks.CHUNK_BYTES", 5 * 4 * 16)
    assert torch.equal(decoder.encode(images), wanted)


# the published sizes


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [("movqgan-67M", 67_832_495, 431), ("movqgan-102M", 101_614_255, 671), ("movqgan-270M", 270_669_103, 431)],
)
def test_published_sizes(name: str, parameters: int, tensors: int) -> None:
    with torch.device("meta"):
        decoder = MoVQGAN.from_config(REGISTERED[name])
    assert sum(parameter.numel() for parameter in decoder.parameters()) == parameters
    assert len(decoder.state_dict()) == tensors
    assert (decoder.codebook_size, decoder.grid(256, 256)) == (16384, (32, 32))


def test_keys_and_shapes_of_270m(shared: Path) -> None:
    with torch.device("meta"):
        decoder = MoVQGAN.from_config(REGISTERED["movqgan-270M"])
    lines = {f"{name} {list(tensor.shape)}" for name, tensor in decoder.state_dict().items()}
    assert lines == set((shared / "facts" / "movqgan_270M_keys.txt").read_text().splitlines())


@pytest.fixture(scope="module")
def full_size() -> ImageDecoder:
    return randomise(MoVQGAN.from_config(REGISTERED["movqgan-67M"]), seed=0).eval()


@pytest.fixture(scope="module")
def diffusers_model(full_size: ImageDecoder) -> torch.nn.Module:
    model: torch.nn.Module = write_diffusers(full_size)
    return model


@pytest.mark.parametrize(("dtype", "side", "error"), [(torch.float32, 8, 1e-4), (torch.float64, 4, 1e-10)])
@pytest.mark.usefixtures("reference_models")
@torch.no_grad()
def test_full_size_equals_diffusers(
    full_size: ImageDecoder, diffusers_model: torch.nn.Module, dtype: torch.dtype, side: int, error: float
) -> None:
    """Written by others from the same paper; its codes come from torch.cdist, its attention from linear layers."""
    ours, theirs = full_size.to(dtype), diffusers_model.to(dtype)
    codes = torch.randint(0, 16384, (1, side * side), generator=torch.Generator().manual_seed(0))
    entries = theirs.quantize.get_codebook_entry(codes.flatten(), (1, side, side, 4))
    wanted = theirs.decode(entries, force_not_quantize=True).sample
    assert wanted.abs().max() > 1
    assert (ours.render(ours.lookup(codes, (side, side))) - wanted).abs().max() < error
    images = torch.rand(1, 3, 8 * side, 8 * side, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1
    latents = theirs.encode(images).latents
    assert (ours.latents(images) - latents).abs().max() < error
    assert torch.equal(ours.encode(images).flatten(), theirs.quantize(latents)[2][2])
