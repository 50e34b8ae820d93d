"""Whether the language model and the image decoder compute on a device what their authors' own code did on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from evalsvc.decoders import load_decoder, to_uint8
from evalsvc.models import Transformer, load_model
from evalsvc.precision import full_precision
from on_card.kit import Kit, Row, at_most, holds
from on_card.tiny_models import few_threads

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
OPEN_LM_CASES = 10
OPEN_LM_ERROR = 1e-5
"""Largest difference of logits, keys and values in float32, as in tests/models/test_transformer.py."""
BFLOAT16_ERROR = 5e-2
DECODER_ERROR = 3e-5
"""Largest difference of pixels in -1…1 and of latents, as in tests/decoders/test_networks.py."""
ON_CARD = 3
"""Factor of both on a card, whose convolutions by Winograd's transform round in float32 about twice as coarsely."""
OTHER_LEVELS = 1e-3
"""Share of pixels that may be the neighbouring level: those that lie next to a tie."""


def run(kit: Kit) -> Iterator[Row]:
    """Compare every golden case in float32, and in bfloat16 where the authors computed it."""
    with few_threads(kit):
        yield from _cases(kit)


def _cases(kit: Kit) -> Iterator[Row]:
    cases = sorted(path for path in (GOLDEN / "open_lm").iterdir() if path.is_dir())
    yield holds("all cases of open_lm are there", len(cases) == OPEN_LM_CASES, f"{len(cases)}")
    for case in cases:
        expected = {name: tensor.to(kit.device) for name, tensor in load_file(case / "expected.safetensors").items()}
        with torch.inference_mode():
            yield from _open_lm(kit, case, expected)
    for file, ema in (
        ("tiny_67M_like/movqgan_tiny_67M_like.ckpt", False),
        ("micro_lightning_ema/step=5000-model.ckpt", False),
        ("micro_lightning_ema/step=5000-model.ckpt", True),
    ):
        with torch.inference_mode():
            yield from _movqgan(kit, GOLDEN / "movqgan" / file, ema)


def _open_lm(kit: Kit, case: Path, expected: dict[str, Tensor]) -> Iterator[Row]:
    file, name = case / "checkpoints" / "epoch_1.pt", f"open_lm {case.name[:2]}"
    model = load_model(file, device=str(kit.device))
    model.output.weight = torch.nn.Parameter(kit.touched(model.output.weight.data), requires_grad=False)
    with full_precision(kit.device):
        found = dict(_passes(model, expected))
    differences = {part: _difference(tensor, expected[part]) for part, tensor in found.items()}
    worst = max(differences, key=lambda part: differences[part])
    yield at_most(
        f"{name}: {len(found)} tensors, most in {worst}", differences[worst], _bound(kit, OPEN_LM_ERROR), **differences
    )
    if "logits_model_bf16" in expected:
        model = load_model(file, dtype="bfloat16", rotary_inv_freq_dtype="bfloat16", device=str(kit.device))
        difference = _difference(kit.touched(model(expected["input_ids"])), expected["logits_model_bf16"])
        yield at_most(f"{name}: logits in bfloat16", difference, BFLOAT16_ERROR)


def _passes(model: Transformer, expected: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Compute what a golden case holds, under its names."""
    ids = expected["input_ids"]
    yield "logits_full", model(ids)
    yield "hidden_full", model.hidden(ids)
    cache = model.new_cache(2, 40)
    chunks = [model(ids[:, :7], cache=cache)] + [model(ids[:, at : at + 1], cache=cache) for at in range(7, 32)]
    yield "logits_step", torch.cat(chunks, 1)
    yield "cache_k_layer0", cache.keys[0, :, :, :32].transpose(1, 2)
    yield "cache_v_layer0", cache.values[0, :, :, :32].transpose(1, 2)
    for side in ("leftpad", "rightpad"):
        mask = expected[f"attention_mask_{side}"].bool()
        yield f"logits_{side}", model(expected[f"input_ids_{side}"], mask=mask)
    mask = expected["attention_mask_leftpad"].bool()
    cache = model.new_cache(2, 20)
    model(expected["input_ids_leftpad"], mask=mask, cache=cache)
    steps = []
    for token in expected["next_ids_leftpad"].split(1, dim=1):
        mask = torch.cat((mask, torch.ones_like(mask[:, :1])), 1)
        steps.append(model(token, mask=mask, cache=cache))
    yield "logits_leftpad_step", torch.cat(steps, 1)
    if "input_ids_long" in expected:
        yield "logits_long", model(expected["input_ids_long"])[:, -16:]


def _movqgan(kit: Kit, file: Path, ema: bool) -> Iterator[Row]:
    tensors = load_file(file.with_name("expected.safetensors"))
    if ema:
        tensors |= {name.removeprefix("ema."): value for name, value in tensors.items() if name.startswith("ema.")}
    expected = {name: tensor.to(kit.device) for name, tensor in tensors.items()}
    name = f"MoVQGAN {file.parent.name.partition('_')[0]}{', averaged' if ema else ''}"
    decoder, bound = load_decoder(file, ema=ema, device=str(kit.device)), _bound(kit, DECODER_ERROR)
    images = decoder.decode(kit.touched(expected["codes"]))
    yield at_most(f"{name}: decoded pixels", _difference(images, expected["decoded"]), bound)
    levels = (to_uint8(images).int() - expected["decoded_u8"].int()).abs()
    yield at_most(f"{name}: largest difference in levels", int(levels.max()), 1)
    yield at_most(f"{name}: share of other levels", float((levels != 0).double().mean()), OTHER_LEVELS)
    indices = decoder.encode(kit.touched(expected["image"]))
    yield holds(f"{name}: codes of images", torch.equal(indices, expected["indices"]), _share(indices, expected))
    with full_precision(kit.device):
        latents = decoder.latents(kit.touched(expected["image"]))
    yield at_most(f"{name}: latents", _difference(latents, expected["prequant"]), bound)
    again = decoder.decode(kit.touched(expected["indices"]))
    yield at_most(f"{name}: reconstruction", _difference(again, expected["reconstruction"]), bound)


def _bound(kit: Kit, error: float) -> float:
    return error * ON_CARD if kit.on_card else error


def _share(indices: Tensor, expected: dict[str, Tensor]) -> str:
    return f"{float((indices == expected['indices']).double().mean()):.2%} equal"


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("nan")
    return float((found - expected).abs().max())
