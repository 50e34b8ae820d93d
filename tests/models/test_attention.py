"""Heads of queries that share keys, against keys that are repeated."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.models.attention import grouped_attention, reads_shared_keys


def parts(queries: int, kv_heads: int, keys: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 6, queries, 8), (2, kv_heads, keys, 8), (2, kv_heads, keys, 8))
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)  # type: ignore[return-value]


def repeated(queries: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
    share = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(share, 1), values.repeat_interleave(share, 1)
    return functional.scaled_dot_product_attention(queries, keys, values, **options)


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("queries", [1, 4])
def test_equals_repeated_keys(queries: int, kv_heads: int) -> None:
    given = parts(queries, kv_heads)
    bias = torch.zeros(2, 1, queries, 9, dtype=torch.float64)
    bias[1, ..., :3] = -torch.inf
    for mask in (None, bias):
        torch.testing.assert_close(grouped_attention(*given, mask), repeated(*given, attn_mask=mask))


@pytest.mark.parametrize("kv_heads", [1, 3, 6])
def test_equals_repeated_keys_where_causal(kv_heads: int) -> None:
    given = parts(9, kv_heads)
    torch.testing.assert_close(grouped_attention(*given, causal=True), repeated(*given, is_causal=True))


def test_keys_are_repeated_where_no_fused_kernel_shares_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unfused kernel that torch would choose instead holds the scores of all pairs in memory."""
    monkeypatch.setattr("evalsvc.models.attention.reads_shared_keys", lambda queries, bias: False)
    given = parts(9, 2)
    torch.testing.assert_close(grouped_attention(*given, causal=True), repeated(*given, is_causal=True))
    bias = torch.zeros(2, 1, 9, 9, dtype=torch.float64).triu_(1)
    torch.testing.assert_close(grouped_attention(*given, bias), repeated(*given, attn_mask=bias))


def test_which_kernels_share_keys() -> None:
    half, bias = torch.empty(1, 4, 3, 8, dtype=torch.bfloat16), torch.zeros(1, 1, 3, 3)
    assert reads_shared_keys(half, bias)
    assert reads_shared_keys(half.float(), None)
    for queries, mask, shares in ((half, None, True), (half, bias, False), (half.float(), None, False)):
        on_card = SimpleNamespace(device=torch.device("cuda"), dtype=queries.dtype, shape=queries.shape)
        assert reads_shared_keys(cast(Tensor, on_card), mask) is shares


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
