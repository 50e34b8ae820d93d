"""The prediction for a card counts what the real path does."""

from collections import Counter
from dataclasses import replace

import card_model
import pytest
import torch
from card_model import Case, Rates, cases, record, slots_read, step_cost

from evalsvc.models.decoding import LIVE, TORCH
from evalsvc.models.packing import layer_weights
from evalsvc.sampling import cache_bytes

LAYERS, BATCH, SLOTS = 2, 8, 100


@pytest.fixture(scope="module")
def case() -> Case:
    """Two layers of the 1B model, as the shipped suite draws from it."""
    return replace(cases(36, 2, layers=LAYERS)[0], batch=BATCH)


@pytest.mark.parametrize("attention", [TORCH, LIVE])
def test_bytes_of_a_step_are_its_weights_and_the_keys_of_all_rows(case: Case, attention: str) -> None:
    _, step = record(case.config, case.spec(64), case.prompt, attention)
    products = [launch for launch in step if launch.kind == "product"]
    assert len(products) == 4 * LAYERS + 1
    weights = layer_weights(case.config) + 16_384 * case.config.hidden_dim
    largest = sum(max(launch.reads.values()) for launch in products)
    assert largest == pytest.approx(2 * weights, rel=1e-3), "norms are apart"
    assert sum(launch.values for launch in products) == pytest.approx(2 * 2 * BATCH * weights, rel=1e-3)
    keys = sum(launch.slot_bytes for launch in step)
    assert keys == cache_bytes(case.config, 2 * BATCH, 1, torch.bfloat16)


def test_kernels_take_the_place_of_operators(case: Case) -> None:
    by_torch, live = (record(case.config, case.spec(64), case.prompt, kind)[1] for kind in (TORCH, LIVE))
    names = [launch.name for launch in by_torch]
    assert (names.count("index_copy_"), names.count("index_fill_"), names.count("topk")) == (2 * LAYERS, 1, 1)
    counts = Counter(launch.name for launch in live)
    assert counts["index_copy_"] == counts["index_fill_"] == counts["topk"] == 0
    assert (counts["attend_one"], counts["cat"], counts["draw"]) == (LAYERS, 1, 1), (
        "the rotation's table alone is joined"
    )
    assert (counts["add_norm"], counts["gate_and_multiply"], counts["silu"]) == (2 * LAYERS + 1, LAYERS, 0)
    assert sum(launch.bytes for launch in live) < sum(launch.bytes for launch in by_torch)


def test_keys_in_float8_have_half_of_the_bytes(case: Case) -> None:
    kept = [record(case.config, case.spec(64, kind), case.prompt, LIVE)[1] for kind in (None, "float8")]
    wide, narrow = (sum(launch.slot_bytes for launch in step) for step in kept)
    assert (wide, [launch.name for launch in kept[0]]) == (2 * narrow, [launch.name for launch in kept[1]])


def test_torch_reads_whole_spans_and_the_kernel_each_rows_own(case: Case) -> None:
    assert slots_read(TORCH, [1, 64], 64, case.counts) == (128 + 128) / 2
    assert slots_read(LIVE, [1, 63], 64, case.counts) == (36 + 2) / 2 + 32


def test_a_step_takes_no_less_than_its_bytes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card that is perfect but for its bandwidth."""
    perfect = {name: replace(assumption, value=1.0) for name, assumption in card_model.ASSUMPTIONS.items()}
    perfect |= {name: replace(perfect[name], value=value) for name, value in (("launch", 0.0), ("select", 1e30))}
    monkeypatch.setattr(card_model, "ASSUMPTIONS", perfect)
    card = replace(card_model.HERE["h100"], half=1e30, single=1e30)
    _, step = record(case.config, case.spec(64), case.prompt, TORCH)
    cost = step_cost(step, Rates(card), SLOTS)
    selected = sum(launch.bytes for launch in step if launch.kind == "select")
    assert cost.milliseconds == pytest.approx(1e3 * (cost.bytes - selected) / card.bandwidth, rel=1e-6)


def test_prompts_of_two_padded_lengths_are_two_batches() -> None:
    assert card_model.batches_of([30, 40] * 4, 16, 8, 8) == 2
    assert card_model.batches_of([30, 40] * 4, 64, 8, 8) == 1
