"""The transformer against what the real open_lm computed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_models import small_config, small_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evalsvc.errors import InternalError, InvalidData, UnknownName
from evalsvc.models import Transformer, load_model
from evalsvc.models.language_model import find_nonfinite
from evalsvc.models.rotation import (
    Positions,
    inv_freq_table,
    last_position,
    rotary_frequencies,
    scaled_frequencies,
    turn,
)
from evalsvc.spec.model_config import ModelConfig, RotaryScaling

GOLDEN = Path(__file__).parent.parent / "golden" / "open_lm"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
TOLERANCE = 1e-5


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / request.param


def load(case: Path, **options: Any) -> tuple[Transformer, dict[str, Tensor]]:
    return load_model(case / "checkpoints" / "epoch_1.pt", **options), load_file(case / "expected.safetensors")


def difference(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max())


def test_full_forward(case: Path) -> None:
    """Also with a mask that hides nothing, and with a head of some rows."""
    assert len(CASES) == 10
    model, expected = load(case)
    ids, hidden = expected["input_ids"], model.hidden(expected["input_ids"])
    assert difference(hidden, expected["hidden_full"]) < TOLERANCE
    for mask in (None, torch.ones(2, 32, dtype=torch.bool)):
        assert difference(model(ids, mask=mask), expected["logits_full"]) < TOLERANCE
    for rows in (torch.tensor([7, 0, 31]), slice(8, 24)):
        logits = model.head(hidden.flatten(0, 1), rows)
        assert logits.dtype == torch.float32
        assert difference(logits, expected["logits_full"].flatten(0, 1)[:, rows]) < TOLERANCE
    averaged = case / "checkpoints" / "ema_0.9_1_1.pt"
    if averaged.exists():
        assert difference(load_model(averaged)(ids), expected["logits_full_ema"]) < TOLERANCE
        assert difference(expected["logits_full_ema"], expected["logits_full"]) > 1e-2
    assert averaged.exists() == (case.name[:2] == "14")
    if "input_ids_long" in expected:  # longer than the sequences of training
        assert difference(model(expected["input_ids_long"])[:, -16:], expected["logits_long"]) < TOLERANCE
    assert ("input_ids_long" in expected) == (case.name[:2] in ("01", "03", "05", "07"))


def test_prefill_and_steps_with_cache(case: Path) -> None:
    model, expected = load(case)
    ids = expected["input_ids"]
    cache = model.new_cache(2, 40)
    chunks = [model(ids[:, :7], cache=cache)] + [model(ids[:, t : t + 1], cache=cache) for t in range(7, 32)]
    assert cache.length == 32
    assert difference(torch.cat(chunks, 1), expected["logits_step"]) < TOLERANCE
    assert difference(cache.keys[0, :, :, :32].transpose(1, 2), expected["cache_k_layer0"]) < TOLERANCE
    assert difference(cache.values[0, :, :, :32].transpose(1, 2), expected["cache_v_layer0"]) < TOLERANCE


def test_padded_batches(case: Path) -> None:
    """Rows at padding are compared too: open_lm lets them attend to everything, and so do we."""
    model, expected = load(case)
    for side in ("leftpad", "rightpad"):
        logits = model(expected[f"input_ids_{side}"], mask=expected[f"attention_mask_{side}"].bool())
        assert torch.isfinite(logits).all()
        assert difference(logits, expected[f"logits_{side}"]) < TOLERANCE
    mask = expected["attention_mask_leftpad"].bool()
    cache = model.new_cache(2, 20)
    model(expected["input_ids_leftpad"], mask=mask, cache=cache)
    steps = []
    for token in expected["next_ids_leftpad"].split(1, dim=1):
        mask = torch.cat((mask, torch.ones(2, 1, dtype=torch.bool)), 1)
        steps.append(model(token, mask=mask, cache=cache))
    assert difference(torch.cat(steps, 1), expected["logits_leftpad_step"]) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in CASES if name[:2] in ("01", "02")])
def test_bfloat16(name: str) -> None:
    """open_lm in bf16 rounds inv_freq to it; the model loaded as one trained in bf16 computes the same."""
    model, expected = load(GOLDEN / name, dtype="bfloat16", rotary_inv_freq_dtype="bfloat16")
    assert difference(model(expected["input_ids"]), expected["logits_model_bf16"]) < 5e-2
    model, _ = load(GOLDEN / name, rotary_inv_freq_dtype="bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(expected["input_ids"])
    assert difference(logits, expected["logits_autocast_bf16"]) < 5e-2


def test_every_kind_of_weight_matters(case: Path) -> None:
    """A weight that is loaded but not used, or used in the wrong place, would pass all comparisons if it were small."""
    model, expected = load(case)
    kinds = {".".join(part for part in name.split(".") if not part.isdigit()): name for name in model.state_dict()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for kind, name in kinds.items():
        original = parameters[name].detach().clone()
        noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(0))
        parameters[name].data.add_(0.05 * noise * (original.std() + 0.1))
        assert difference(model(expected["input_ids"]), expected["logits_full"]) > 20 * TOLERANCE, kind
        parameters[name].data.copy_(original)
    assert difference(model(expected["input_ids"]), expected["logits_full"]) < TOLERANCE


@pytest.mark.parametrize("padded", [False, True])
def test_chunked_prefill_equals_full(case: Path, padded: bool) -> None:
    """open_lm itself cannot: its mask for a chunk has the wrong shape in a batch."""
    model, expected = load(case)
    ids, mask = expected["input_ids"], torch.ones(2, 32, dtype=torch.bool)
    mask[1, :5] = not padded
    full = model(ids, mask=mask)
    cache = model.new_cache(2, 32)
    bounds = [(0, 3), (3, 11), (11, 12), (12, 32)]
    chunks = [model(ids[:, a:b], mask=mask[:, :b] if padded else None, cache=cache) for a, b in bounds]
    real = mask[:, :, None]
    assert difference(torch.cat(chunks, 1) * real, full * real) < TOLERANCE


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("float32", {}),
        ("float32", {"precision": "fp32"}),
        ("float32", {"precision": "bf16"}),  # open_lm has no autocast for this name
        ("bfloat16", {"precision": "amp_bf16"}),
        ("bfloat16", {"precision": "amp_bfloat16", "positional_embedding_type": "head_rotary"}),
        ("float16", {"precision": "amp"}),
        ("float32", {"precision": "amp_bf16", "qk_norm": True}),
        ("float32", {"precision": "amp_bf16", "qk_norm": True, "model_norm": "rms_norm"}),
        ("bfloat16", {"precision": "amp_bf16", "qk_norm": True, "model_norm": "gain_only_lp_layer_norm"}),
        ("bfloat16", {"precision": "fsdp_bf16", "qk_norm": True}),
        ("float32", {"precision": "amp_bf16", "positional_embedding_type": "llama_rotary"}),
        ("float32", {"precision": "amp_bf16", "positional_embedding_type": "none"}),
    ],
)
def test_training_precision_decides_the_frequencies(expected: str, changes: dict[str, Any]) -> None:
    assert Transformer(small_config(**changes)).rotary_inv_freq_dtype == expected


def test_inv_freq_dtype_can_be_chosen() -> None:
    """A buffer would be rounded by .bfloat16(), which is the very trap."""
    assert Transformer(small_config(precision="amp_bf16"), "float32").rotary_inv_freq_dtype == "float32"
    with pytest.raises(UnknownName, match="did you mean 'bfloat16'"):
        Transformer(small_config(), "bfloat")
    model = Transformer(small_config()).bfloat16()
    assert model.positions.inv_freq.dtype == torch.float32
    assert torch.equal(model.positions.inv_freq, Transformer(small_config()).positions.inv_freq)
    assert "positions.inv_freq" not in model.state_dict()


def test_positions_end_with_the_llama_table_and_with_the_window() -> None:
    positions = Positions(config(attention_window=12), torch.float32)
    positions.require_rows(11)
    with pytest.raises(InvalidData, match="position 12 is beyond the model's window of 12 tokens"):
        positions.require_rows(torch.tensor([3, 12]))
    on_gpu = torch.empty(1, 9, dtype=torch.int64, device="meta")  # its values would have to be waited for
    assert last_position(on_gpu, 12, 12) == 11
    with pytest.raises(RuntimeError, match="meta"):
        last_position(on_gpu, 13, 12)
    model = small_model(positional_embedding_type="llama_rotary", seq_len=8)
    ids = torch.zeros(1, 16, dtype=torch.int64)
    assert torch.isfinite(model(ids)).all()
    cache = model.new_cache(1, 17)
    model(ids, cache=cache)
    with pytest.raises(InvalidData, match="position 16 is beyond llama_rotary's 16 positions"):
        model(ids[:, :1], cache=cache)
    with pytest.raises(InvalidData, match="position 99"):
        model(ids[:, :1], positions=torch.tensor([[99]]))


class Wide(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert not (isinstance(result, Tensor) and result.dtype == torch.float32), func
        return result


def test_float64_is_float64_throughout() -> None:
    """Equality across batch shapes is tested in float64, so nothing on the way may fall back to float32."""
    ids = torch.randint(0, 40, (1, 20), generator=torch.Generator().manual_seed(1))
    for kind in ("rotary", "llama_rotary", "head_rotary", "none"):
        model = small_model(torch.float64, model_norm="rms_norm", qk_norm=True, positional_embedding_type=kind)
        cache = model.new_cache(1, 20)
        with Wide():
            stepped = torch.cat([model.hidden(ids[:, t : t + 1], cache=cache) for t in range(20)], 1)
            assert difference(stepped, model.hidden(ids)) < 1e-13


@pytest.mark.parametrize(
    ("shape", "mask", "message"),
    [
        ((1, 2), None, "has 4 slots, 3 are filled and 2 more do not fit"),
        ((2, 1), None, "made for 1 rows and got 2"),
        ((1, 1), torch.ones(1, 1).bool(), r"mask is \[1, 1\] torch\.bool, expected \[1, 4\] torch"),
        ((1, 1), torch.ones(1, 2, 4).bool(), r"mask is \[1, 2, 4\] torch\.bool, expected"),
        ((1, 1), torch.ones(1, 4).long(), r"mask is \[1, 4\] torch\.int64, expected"),
    ],
)
def test_what_does_not_fit_a_cache_is_refused(shape: tuple[int, int], mask: Tensor | None, message: str) -> None:
    model = small_model()
    cache = model.new_cache(1, 4)
    model(torch.zeros(1, 3, dtype=torch.int64), cache=cache)
    with pytest.raises(InternalError, match=message):
        model(torch.zeros(shape, dtype=torch.int64), mask=mask, cache=cache)
    assert cache.length == 3


def config(**changes: Any) -> ModelConfig:
    return small_config(**{"hidden_dim": 64, "n_heads": 2, "seq_len": 16} | changes)


def llama3(frequency: float, factor: float, low: float, high: float, length: int) -> float:
    """The rule of Llama 3.1 for one frequency, by wavelengths."""
    wavelength = 2 * math.pi / frequency
    if wavelength < length / high:
        return frequency
    if wavelength > length / low:
        return frequency / factor
    smooth = (length / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def test_scaled_frequencies() -> None:
    table = inv_freq_table(128, 500_000.0)
    scaling = RotaryScaling(kind="llama3", factor=8.0)
    expected = torch.tensor([llama3(float(value), 8.0, 1.0, 4.0, 8192) for value in table])
    found = scaled_frequencies(table, scaling)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    kept, divided = int((found == table).sum()), int(torch.isclose(found, table / 8, rtol=1e-6, atol=0).sum())
    assert kept > 10 < divided < 64 - kept
    changed = config(rotary_base=500.0, rotary_scaling={"kind": "linear", "factor": 4.0})
    torch.testing.assert_close(rotary_frequencies(changed), inv_freq_table(32, 500.0) / 4)


def test_a_part_of_the_heads_is_turned() -> None:
    heads = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
    rotation = Positions(config(rotary_dims=8), torch.float32)(torch.arange(3), heads)
    assert rotation is not None
    turned = turn(heads, *rotation, False)
    assert torch.equal(turned[..., 8:], heads[..., 8:])
    whole = Positions(config(n_heads=8), torch.float32)(torch.arange(3), heads)
    assert whole is not None
    assert torch.equal(turned[..., :8], turn(heads[..., :8], *whole, False))
    assert not torch.equal(turned[1:, :, :8], heads[1:, :, :8])


@pytest.mark.parametrize(
    ("parameter", "stage"),
    [
        ("tok_embeddings.weight", "tok_embeddings"),
        ("layers.1.attention_norm.weight", "layers.1.attention_norm"),
        ("layers.1.attention.in_proj.weight", "layers.1.attention"),
        ("layers.0.feed_forward.w3.weight", "layers.0.feed_forward"),
        ("norm.weight", "norm"),
        ("output.weight", "output"),
    ],
)
def test_find_nonfinite(parameter: str, stage: str) -> None:
    model, _ = load(GOLDEN / "01_rotary_default_ln_swiglu")
    ids = torch.arange(10)[None]
    assert find_nonfinite(model, ids) == ""
    model.get_parameter(parameter).data[:] = float("nan")
    assert find_nonfinite(model, ids) == stage
    assert not any(module._forward_hooks for module in model.modules())


def test_find_nonfinite_where_a_sum_overflows() -> None:
    """Both parts of a layer are finite and their sum is not: half precision does that."""
    for model_norm in ("default_layer_norm", "rms_norm"):
        model = small_model(model_norm=model_norm, ffn_type="gemma_geglu").half()
        model.tok_embeddings.weight[:] = 6e4
        model.layers[0].feed_forward.down_proj.bias[:] = 6e4
        model.layers[0].feed_forward.down_proj.weight[:] = 0
        assert find_nonfinite(model, torch.zeros(1, 2, dtype=torch.int64)) == "layers.1.attention_norm"
