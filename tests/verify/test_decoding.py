"""Image decoders against diffusers' VQModel, and what is found where one weight differs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from miniature_run import pretrained
from tiny_decoders import random_decoder, tiny_config

from evalsvc.config import Settings
from evalsvc.decoders import ImageDecoder, load_decoder
from evalsvc.installation import missing_package
from evalsvc.miniature import ROOT
from evalsvc.spec.suite import find_suite
from evalsvc.verify.agreement import Agreement, Finding, Untried, all_agree
from evalsvc.verify.decoding import random_codes, verify_decoder, verify_decoder_of
from evalsvc.verify.recorded import RecordedTask, VerifyRequest

GOLDEN = Path(__file__).parents[1] / "golden" / "movqgan"


@pytest.fixture(autouse=True)
def _second_tier(reference_models: None, one_thread: None) -> None:
    """diffusers is imported, which takes seconds."""


def verify(decoder: ImageDecoder, n: int = 2) -> list[Finding]:
    side = decoder.resolution
    return verify_decoder(decoder, random_codes(decoder, side, n), side)


def loaded(path: Path) -> ImageDecoder:
    return load_decoder(path)


@pytest.mark.parametrize(
    "path",
    [
        ROOT / "movqgan" / "movqgan_miniature.ckpt",
        next((GOLDEN / "tiny_67M_like").glob("*.ckpt")),
        next((GOLDEN / "micro_lightning_ema").glob("*.ckpt")),
    ],
    ids=lambda path: path.parent.name,
)
def test_movqgan_is_that_of_diffusers(path: Path) -> None:
    """Of the authors' layout, with three levels and with four, attention at one and at several."""
    pixels, levels, latents = verify(loaded(path))
    assert all_agree([pixels, levels, latents])
    assert isinstance(pixels, Agreement)
    assert pixels.difference < 3e-5
    assert pixels.quantity == "decoder: 2 decoded images"


@pytest.mark.parametrize("kind", ["vqgan", "chameleon", "llamagen"])
def test_vqgan_is_that_of_diffusers(kind: str) -> None:
    """Its norms are plain, which changes the names of those of attention; entries of LlamaGen's codebook are scaled."""
    assert all_agree(verify(random_decoder(tiny_config(kind), kind)))


@pytest.mark.parametrize(
    ("parameter", "wrong"),
    [
        ("decoder.up.0.block.1.norm2.conv_b.bias", ["WRONG", "WRONG", "ok"]),
        ("encoder.conv_in.bias", ["ok", "ok", "WRONG"]),
    ],
)
def test_arithmetic_that_differs_is_wrong(parameter: str, wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours computes with another weight than diffusers: what the part is in is wrong, and nothing else."""
    decoder = loaded(ROOT / "movqgan" / "movqgan_miniature.ckpt")
    from evalsvc.verify import decoding

    written = decoding.write_diffusers(decoder)
    monkeypatch.setattr(decoding, "write_diffusers", lambda ours: written)
    with torch.no_grad():
        decoder.get_parameter(parameter).flatten()[0] += 1
    assert [finding.verdict for finding in verify(decoder)] == wrong


def test_the_decoder_of_a_recorded_task_is_verified() -> None:
    """Where no single metric was asked for: the decoder has none."""
    [digits] = [task for task in find_suite("miniature", None).tasks if task.name == "digits"]
    task, settings = RecordedTask(pretrained(5), digits), Settings.load(threads=1)
    found = verify_decoder_of(task, VerifyRequest(settings, n=3))
    assert found[0].quantity == "digits: 3 decoded images"
    assert all_agree(found)
    assert verify_decoder_of(task, VerifyRequest(settings, ("digits/fid64",))) == []


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("movqgan", {}, "spatial norms where embed_dim is not z_channels"),
        ("movqgan", {"z_channels": 3, "add_conv": True}, "add_conv"),
        ("vqgan", {"ch_mult": [2, 1, 1]}, "ch_mult that does not begin with 1"),
        ("vqgan", {"resamp_with_conv": False}, "resamp_with_conv false"),
    ],
)
def test_what_diffusers_does_not_compute_is_told(kind: str, changes: dict[str, Any], reason: str) -> None:
    [finding] = verify(random_decoder(tiny_config(kind, **changes), kind))
    assert isinstance(finding, Untried)
    assert finding.reason == f"diffusers' VQModel does not support {reason}"


def test_without_diffusers_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalsvc.verify.decoding.find_spec", lambda name: None)
    [finding] = verify(random_decoder(tiny_config("vqgan"), "vqgan"))
    assert isinstance(finding, Untried)
    assert finding.reason == missing_package("diffusers", "verifying a decoder", "reference").message
