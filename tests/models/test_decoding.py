"""Every way to run a step, against a whole forward pass."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from decode_paths import PATHS, RecordedCuda, leave_uncompiled, recorded_cuda, stepped_logits
from small_models import small_model
from torch import Tensor
from torch.nn import functional

from evalsvc.errors import InternalError
from evalsvc.models import DecodePath, StepShape, Transformer, decoding
from evalsvc.models.attention import FLOAT8, FLOAT8_MOST, grouped_attention, reads_shared_keys, stored
from evalsvc.models.decoding import Graphs
from evalsvc.models.layer import EAGER

ROWS, PADDED, NEW = 3, 5, 40
IMAGE_IDS = range(10, 26)


def wide_model(dtype: torch.dtype = torch.float64, **changes: Any) -> Transformer:
    return small_model(dtype, **{"hidden_dim": 64, "n_heads": 4, "seq_len": 64, "vocab_size": 30} | changes)


def tokens() -> tuple[Tensor, Tensor]:
    """Random ids [ROWS, PADDED + NEW], and the mask of prompts of 5, 3 and 1 tokens."""
    ids = torch.randint(30, (ROWS, PADDED + NEW), generator=torch.Generator().manual_seed(1))
    padding = torch.tensor([[0], [2], [4]])
    return ids, torch.arange(PADDED + NEW) >= padding


def expected_logits(model: Transformer) -> Tensor:  # [ROWS, NEW, codes]
    """After each of the new tokens, from one pass over all of them."""
    ids, mask = tokens()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return model(ids, mask=mask, positions=positions)[:, PADDED:, IMAGE_IDS.start : IMAGE_IDS.stop]


def stepped(model: Transformer, path: str, cache_dtype: torch.dtype | None = None) -> Tensor:
    ids, mask = tokens()
    options: dict[str, Any] = {"codes": IMAGE_IDS, "mask": mask, "cache_dtype": cache_dtype}
    return stepped_logits(model, cast(DecodePath, path), ids, PADDED, **options)


ARCHITECTURES: list[dict[str, Any]] = [
    {},
    {"positional_embedding_type": "head_rotary", "qk_norm": True, "model_norm": "gain_only_lp_layer_norm"},
    {"positional_embedding_type": "llama_rotary", "model_norm": "rms_norm", "ffn_type": "gemma_geglu"},
    {"positional_embedding_type": "none", "ffn_type": "gelu", "post_embed_norm": True, "weight_tying": True},
    {"hidden_dim": 50, "qk_norm": True, "model_norm": "rms_norm"},  # heads of 12, not a multiple of a block
    {"n_kv_heads": 2, "head_size": 24, "model_norm": "rms_norm", "ffn_type": "gated", "ffn_size": 40},
    {"n_kv_heads": 1, "norm_place": "after", "model_norm": "rms_norm", "qk_norm": True, "ffn_type": "gated"},
    {"n_kv_heads": 2, "qk_norm": True, "qk_norm_per_head": True, "model_norm": "rms_norm_plus_one"},
    {"parallel_residual": True, "rotary_dims": 6, "attention_bias": True, "output_bias": True},
    {"ffn_type": "plain", "ffn_activation": "gelu_tanh", "ffn_bias": True, "embedding_scale": 8.0},
]


@pytest.mark.parametrize(("path", "changes"), list(product(PATHS, ARCHITECTURES)), ids=str)
def test_a_step_equals_the_whole_pass(
    path: DecodePath, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled path by the functions that would be compiled."""
    leave_uncompiled(monkeypatch)
    model = wide_model(**changes)
    torch.testing.assert_close(stepped(model, path), expected_logits(model), rtol=0, atol=1e-5)


def test_a_cache_of_another_dtype_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_uncompiled(monkeypatch)
    model = wide_model(torch.float32)
    exact = expected_logits(model)
    for path in ("packed", "compiled"):
        assert 0 < float((stepped(model, path, torch.bfloat16) - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_float8_is_the_nearest_number_and_hides_no_infinity(dtype: torch.dtype) -> None:
    numbers = torch.arange(127, dtype=torch.uint8).view(FLOAT8).float()  # all from 0 on
    assert numbers[-1] == FLOAT8_MOST
    values = (torch.linspace(-21, 21, 4001).sinh() / 1e6).to(dtype)
    values = values[values.isfinite()]
    distances = (values.float().abs()[:, None] - numbers).abs()
    assert torch.equal((stored(values, FLOAT8).float() - values.float()).abs(), distances.amin(1))
    assert stored(torch.tensor([float("inf"), float("-inf"), float("nan")], dtype=dtype), FLOAT8).isnan().all()


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_every_path_reads_the_same_float8(kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_uncompiled(monkeypatch)
    model = wide_model(torch.float32, n_kv_heads=kv_heads)
    plain, *others = (stepped(model, path, FLOAT8) for path in PATHS)
    rounding = (plain - stepped(model, "plain")).norm()
    assert 1e-3 < rounding / plain.norm() < 0.1
    for other in others:  # a last bit of float32 decides which of two numbers of float8 is nearest
        assert (other - plain).norm() < 0.1 * rounding


def test_weights_are_laid_out_once_and_can_be_let_go() -> None:
    model, shape = wide_model(torch.float32), StepShape(ROWS, IMAGE_IDS, 8, "packed")
    first = model.decoding(shape).weights
    assert model.decoding(replace(shape, path="graph", capacity=9)).weights is first
    assert model.decoding(replace(shape, rows=ROWS + 1)).weights is not first
    model.packed = None
    assert not model.is_laid_out


def parts(queries: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of six heads, and nine keys and values of heads that they share."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 6, queries, 8), (2, kv_heads, 9, 8), (2, kv_heads, 9, 8))
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)  # type: ignore[return-value]


def repeated(queries: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
    share = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(share, 1), values.repeat_interleave(share, 1)
    return functional.scaled_dot_product_attention(queries, keys, values, **options)


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("fused", [True, False])
def test_equals_repeated_keys(kv_heads: int, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one query, several, and as many as keys; where no fused kernel shares keys, they are repeated."""
    if not fused:
        monkeypatch.setattr("evalsvc.models.attention.reads_shared_keys", lambda queries, bias: False)
    for queries in (1, 4, 9):
        given = parts(queries, kv_heads)
        bias = torch.zeros(2, 1, queries, 9, dtype=torch.float64)
        bias[1, ..., :3] = -torch.inf
        for mask in (None, bias):
            torch.testing.assert_close(grouped_attention(*given, mask), repeated(*given, attn_mask=mask))
    torch.testing.assert_close(grouped_attention(*given, causal=True), repeated(*given, is_causal=True))


def test_which_kernels_share_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    half, bias = torch.empty(1, 4, 3, 8, dtype=torch.bfloat16), torch.zeros(1, 1, 3, 3)
    assert reads_shared_keys(half, bias)
    assert reads_shared_keys(half.float(), None)
    for queries, mask, shares in ((half, None, True), (half, bias, False), (half.float(), None, False)):
        on_card = SimpleNamespace(device=torch.device("cuda"), dtype=queries.dtype, shape=queries.shape)
        for capability, is_new in (((8, 0), True), ((7, 5), False)):
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
            assert reads_shared_keys(cast(Tensor, on_card), mask) is (shares and is_new)


def test_compiled_code_may_round_otherwise_and_not_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton divides with an error of two units: equality once turned the compiled noise off, and nothing said so."""

    def problem(compute: Callable[[Tensor], Tensor]) -> str:
        monkeypatch.setattr(decoding, "compiled", lambda function: lambda values: compute(function(values)))
        decoding.compiler_problem.cache_clear()
        return decoding.compiler_problem("cpu")

    assert problem(lambda values: values * (1 + 2.0**-22)) == ""
    assert problem(lambda values: values * 1.001) == "compiled code computes other values"
    assert problem(lambda values: values.view(3)).startswith("RuntimeError: shape '[3]' is invalid")
    decoding.compiler_problem.cache_clear()


def test_a_step_by_torch_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that fails, or that computes other values, is none; float64 would be rounded to float32."""
    assert decoding.step_problem(wide_model()) == "no kernels of a layer for torch.float64"
    bad = "the kernels of a layer compute other values than torch"
    wrong = replace(EAGER, add_norm=lambda x, delta, norm: (x, x))
    ungated = replace(EAGER, activation=lambda activation: lambda inner: inner.chunk(2, dim=-1)[1])
    for kernels, why in ((EAGER, ""), (wrong, bad), (ungated, bad)):
        monkeypatch.setattr(decoding, "step_kernels", lambda kernels=kernels: kernels)
        assert decoding.step_problem(wide_model(torch.float32)) == why
    monkeypatch.delattr(decoding, "step_kernels")
    assert decoding.step_problem(wide_model(torch.float32)).startswith("NameError: ")


def test_one_query_reads_the_keys_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of the keys for each head of queries would cost what sharing saves."""
    seen: list[Tensor] = []
    actual = functional.scaled_dot_product_attention

    def watched(queries: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
        seen.extend((keys, values))
        return actual(queries, keys, values, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    queries, keys, values = parts(1, 2)
    grouped_attention(queries, keys, values)
    assert [part.data_ptr() for part in seen] == [keys.data_ptr(), values.data_ptr()]
    assert seen[0].shape == keys.shape


SECOND = torch.device("cuda", 1)
LOGITS = torch.zeros(2, 3)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedCuda]:
    with recorded_cuda(monkeypatch) as cuda:
        cuda.on_replay = lambda: LOGITS.fill_(5)
        yield cuda


def graphs() -> Graphs:
    """Believed to be on the second GPU; the buffers are on the CPU."""
    made = Graphs(2, torch.device("cpu"))
    made.device = SECOND
    return made


def call(graphs: Graphs, span: int) -> Tensor:
    ids = torch.zeros(2, dtype=torch.int64)
    return graphs(lambda ids, positions, slot, span: LOGITS.fill_(span), ids, ids, span - 1, span)


def test_everything_happens_on_the_device_of_the_tensors(cuda: RecordedCuda) -> None:
    """On `cuda:1` stream and capture were once those of the first GPU: an empty graph, and logits that stood still."""
    second = graphs()
    for _ in range(2):
        assert call(second, 64).tolist() == [[5.0] * 3] * 2
    assert [(current, of_stream) for current, of_stream, _ in cuda.captures] == [(SECOND, SECOND)]
    assert cuda.replays == [SECOND, SECOND]
    assert cuda.current.device.index == 0
    for capturing in (second, graphs()):
        call(capturing, 128)
    assert len(cuda.captures) == 3
    assert len(cuda.streams) == 1, "cuBLAS keeps 32 MiB for each stream that it was used on"


def test_a_capture_that_is_empty_or_fails(cuda: RecordedCuda) -> None:
    """Replays of an empty graph do nothing: every code would be drawn from the same logits. torch.cuda.graph does not
    put the current stream back when the capture cannot be ended: later work would go to the wrong one."""
    cuda.on_replay = lambda: None
    with pytest.raises(InternalError, match="for 64 slots on cuda:1 is empty"):
        call(graphs(), 64)
    cuda.capture_error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        call(graphs(), 64)
    assert (cuda.current.device.index, cuda.current.stream) == (0, None)


def test_nothing_is_collected_while_capturing(cuda: RecordedCuda) -> None:
    """Another graph that is freed meanwhile can invalidate the capture."""
    before = gc.isenabled()
    for switch in (gc.disable, gc.enable) if before else (gc.enable, gc.disable):
        switch()
        call(graphs(), 64)
        assert gc.isenabled() is (switch is gc.enable)
    assert [collects for *_, collects in cuda.captures] == [False, False]
