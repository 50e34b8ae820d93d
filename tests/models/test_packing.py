"""Products by oneDNN, and the private parts of torch that they need."""

from pathlib import Path

import pytest
import torch
from small_models import small_model
from torch.nn import functional

from evalsvc.errors import InvalidRequest
from evalsvc.families.reading import resolve_config
from evalsvc.models import packing, private

CPU = torch.device("cpu")


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [1, 3, 32])
def test_a_packed_product_is_the_product(dtype: torch.dtype, rows: int) -> None:
    x, weight, bias = random(rows, 40, dtype=dtype), random(72, 40, dtype=dtype), random(72, dtype=dtype)
    for given in (None, bias):
        found = packing.packed_linear(weight, given, rows)(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found, functional.linear(x, weight, given))


def test_int8_products_are_near_and_a_row_does_not_depend_on_its_neighbours() -> None:
    """One scale for all rows of a batch would let an outlier in one row round the others away."""
    x, weight, bias = random(6, 64), random(48, 64), random(48)
    linear = packing.int8_linear(weight, bias)
    exact = functional.linear(x, weight, bias)
    assert float((linear(x) - exact).norm() / exact.norm()) < 0.02
    loud = torch.cat((x[:5], 1_000 * x[5:]))
    assert torch.equal(linear(loud)[:5], linear(x)[:5])
    assert linear(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("rows", [1, 16, 17, 40])
@pytest.mark.parametrize("shape", [(7, 4_101), (48, 4_096), (1, 3)])
def test_whole_numbers_are_multiplied_exactly(
    rows: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A float32 sum of so many is off by one and more; a GPU takes neither few rows nor odd widths."""
    taken: list[tuple[int, ...]] = []
    multiply = private.int8_product

    def checked(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        taken.append((len(left), *right.shape))
        assert left.is_contiguous()
        assert right.t().is_contiguous()
        return multiply(left, right)

    assert packing.multiplies_int8(CPU)
    monkeypatch.setattr(private, "int8_product", checked)
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randint(90, 128, size, generator=generator) for size in (shape, (rows, shape[1])))
    weight[0], x[0] = 127, -127
    exact = x @ weight.t()
    found = packing.whole_number_product(weight.to(torch.int8))(x.to(torch.int8))
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), exact)
    if shape[1] > 4_000:
        assert not torch.equal((x.float() @ weight.float().t()).long(), exact), "float32 would do"
    assert [rows > 16 and width % 8 == outputs % 8 == 0 for rows, width, outputs in taken] == [True]


def test_int8_without_onednn_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, and on a processor whose oneDNN adds in 16 bits: never a product in float32."""
    monkeypatch.setattr(packing, "_by_onednn", lambda device, wide: False)
    x, weight = 2 + random(3, 40_001).abs(), 2 + random(5, 40_001).abs()
    weight_scale, row_scale = (part.amax(1, keepdim=True) / 127 for part in (weight, x))
    exact = (x / row_scale).round().long() @ (weight / weight_scale).round().long().t()
    assert int(exact.max()) > 1 << 24
    assert torch.equal(packing.int8_linear(weight, None)(x), exact.float() * weight_scale.t() * row_scale)
    with pytest.raises(InvalidRequest, match=r"weights: int8 needs exact .* on the device 'meta'; give weights: plain"):
        packing.int8_linear(torch.ones(4, 8, device="meta"), None)


def test_packed_bytes_count_every_product() -> None:
    config = resolve_config("open_lm_160m", Path("none"))
    assert packing.layer_weights(config) == 12 * (4 * 768 * 768 + 3 * 768 * 2048)
    count = packing.layer_weights(config) + 16_384 * 768
    assert packing.packed_bytes(config, 16_384, torch.float64) == 0
    assert packing.packed_bytes(config, 16_384, torch.float32, device="cuda") == 0
    for codes in (16_384, 16_381):  # one byte, padded
        assert packing.packed_bytes(config, codes, torch.bfloat16, "int8", device="cuda") == count
    if packing.can_pack(CPU, torch.float32):
        assert packing.packed_bytes(config, 16_384, torch.float32) == 4 * count
        assert packing.packed_bytes(config, 16_384, torch.float32, "int8") == count
        tiny = resolve_config("open_lm_test_tiny", Path("none"))
        assert packing.packed_bytes(tiny, 16, torch.float32) == 0, "it lies in the caches"


def test_the_weights_of_a_layer_are_those_of_its_products() -> None:
    """With heads that share keys, heads of a width of their own, and a feed-forward layer without gate."""
    for kind in ("gated", "plain"):
        model = small_model(hidden_dim=48, n_heads=6, n_kv_heads=2, head_size=16, ffn_size=70, ffn_type=kind)
        matrices = [tensor for name, tensor in model.named_parameters() if "layers" in name]
        assert packing.layer_weights(model.config) == sum(tensor.numel() for tensor in matrices if tensor.dim() == 2)


def test_the_product_of_many_rows_is_the_plain_one() -> None:
    """oneDNN rearranges the weight anew each time: nothing is kept that a changed weight could leave behind. A row does
    not depend on the others."""
    x, weight, shift = random(300, 48), random(96, 48), random(96)
    for bias, given in ((None, x), (shift, x.view(3, 100, 48)), (shift, x[0])):
        with torch.inference_mode():
            found = packing.product(given, weight, bias)
        torch.testing.assert_close(found, functional.linear(given, weight, bias), rtol=1e-5, atol=1e-5)
        weight.mul_(2)
    with torch.inference_mode():
        assert torch.equal(packing.product(x[100:164], weight, None), packing.product(x, weight, None)[100:164])
    trained = weight.clone().requires_grad_()
    packing.product(x, trained, None).sum().backward()
    torch.testing.assert_close(trained.grad, x.sum(0).expand(96, 48), msg="oneDNN's product has no gradients")


# A failure of the tests below says which private part of torch a release has changed, where nothing else would fail.
ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")  # type: ignore[no-untyped-call]


def whole(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small whole numbers: every order of their sums is exact."""
    return torch.randint(-5, 6, shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@ONEDNN
def test_int8_products_of_onednn() -> None:
    x, weight = whole(3, 16, dtype=torch.int8), whole(24, 16, dtype=torch.int8)
    packed = private.pack_int8_weight(weight)
    scale, zeros = torch.full((24,), 0.5), torch.zeros(24, dtype=torch.int32)
    found = private.int8_linear_by_onednn((x.int() + 128).to(torch.uint8), packed, scale, zeros)
    assert torch.equal(found, (x.float() @ weight.float().t()) / 2)


@ONEDNN
@pytest.mark.parametrize("then", ["relu", "none"])
def test_convolutions_of_onednn(then: str) -> None:
    assert private.has_convolution_by_onednn()
    x, convolution = whole(2, 8, 9, 9), torch.nn.Conv2d(8, 16, 3, stride=2, padding=1)
    convolution.weight.data, bias = whole(16, 8, 3, 3), whole(16)
    place = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
    expected = functional.conv2d(x, convolution.weight, bias, stride=2, padding=1)
    with torch.inference_mode():
        packed = private.reorder_convolution_weight(convolution.weight, place, list(x.shape))
        found = private.convolution_by_onednn(x, packed, bias, place, "relu" if then == "relu" else "none")
    assert torch.equal(found, expected.relu() if then == "relu" else expected)


def test_the_bound_of_recompilations_is_raised_and_never_lowered() -> None:
    """By torch's own patch: after pytest's, torch.compile fails for the rest of the process, and its tests skip."""
    config = torch._dynamo.config
    with config.patch(recompile_limit=8):
        for asked, expected in ((64, 64), (16, 64)):
            private.allow_recompilations(asked)
            assert config.recompile_limit == expected
