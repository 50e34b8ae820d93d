"""Rows of sampled codes."""

from collections.abc import Callable

import pytest
from safetensors.torch import load_file, save_file

from evalsvc.sampling import logits
from evalsvc.verify.agreement import Finding
from evalsvc.verify.golden_files import Golden
from evalsvc.verify.golden_sampling import paths, verify_codes

Wrong = Callable[[list[Finding]], list[str]]

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_cpu_and_a_card_have_two_ways_each() -> None:
    assert paths("cpu") == ("plain", "packed")
    assert paths("cuda:1") == ("plain", "graph")


@pytest.mark.usefixtures("many_cases")
def test_every_way_draws_the_golden_codes_and_one_other_code_is_found(copied: Golden, wrong: Wrong) -> None:
    rows = list(verify_codes(copied))
    assert len(rows) == 5
    assert wrong(rows) == []
    path = copied.folder / "sampling.safetensors"
    tensors = load_file(path)
    tensors["greedy"][7, 63] ^= 1
    save_file(tensors, path)
    found = list(verify_codes(copied))
    assert wrong(found) == ["greedy codes, plain steps", "greedy codes, packed steps"]
    assert found[0].difference == 1


@pytest.mark.usefixtures("many_cases")
def test_noise_that_is_used_at_the_wrong_place_is_found(monkeypatch: pytest.MonkeyPatch, wrong: Wrong) -> None:
    """Codes drawn with the noise of the next position look as good as the right ones."""
    right = logits.counters
    monkeypatch.setattr(logits, "counters", lambda position, *others: right(position + 1, *others))
    found = wrong(list(verify_codes(Golden("cpu"))))
    assert len(found) == 3
    assert all(quantity.startswith("drawn codes") for quantity in found)
