"""Rows of language models: right as they are, and wrong where a weight, a value or the code is."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evalsvc.models import norms, rotation
from evalsvc.verify.agreement import Finding
from evalsvc.verify.golden_files import GOLDEN, Golden
from evalsvc.verify.golden_models import verify_case, verify_miniature

Wrong = Callable[[list[Finding]], list[str]]
CASES = Golden("cpu").cases
SMALLEST = "13_config_beats_cli_compile_prefix"
BOTH_OF_SMALLEST = ["logits: rotary, rms_norm, gelu, qk_norm", "cached steps: rotary, rms_norm, gelu, qk_norm"]

pytestmark = pytest.mark.usefixtures("one_thread")


def add_to_weight(checkpoint: Path, part: str, by: float) -> None:
    """Change one number of the first tensor whose name contains `part`."""
    content = torch.load(checkpoint, weights_only=True)
    name = next(name for name in content["state_dict"] if part in name)
    content["state_dict"][name].view(-1)[0] += by
    torch.save(content, checkpoint)


def test_the_golden_cases_tell_the_architectures_apart() -> None:
    assert len(CASES) == 6


@pytest.mark.parametrize("case", CASES)
def test_a_weight_that_is_off_by_a_thousandth_is_found(case: str, copied: Golden, wrong: Wrong) -> None:
    """As it is written the case agrees; the row that differs afterwards has the name of the architecture."""
    rows = list(verify_case(copied, case))
    assert wrong(rows) == []
    add_to_weight(
        copied.folder / "open_lm" / case / "checkpoints" / "epoch_1.pt", "w3" if "swiglu" in case else "feed", 1e-3
    )
    assert wrong(list(verify_case(copied, case))) == [row.quantity for row in rows]


def test_a_golden_logit_that_is_off_by_a_thousandth_is_found(
    copied: Golden, nudge: Callable[[str, str, float], None], wrong: Wrong
) -> None:
    nudge(f"open_lm/{SMALLEST}/expected", "logits_step", 1e-3)
    assert wrong(list(verify_case(copied, SMALLEST))) == BOTH_OF_SMALLEST[1:]


def other_eps(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps / 10) * weight


def unturned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x


def with_other_eps(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(norms.RMS_NORMS, "rms_norm", other_eps)


def without_rotation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rotation, "rotate_halves", unturned)


@pytest.mark.parametrize("change", [with_other_eps, without_rotation])
def test_wrong_arithmetic_is_found(
    change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, wrong: Wrong
) -> None:
    change(monkeypatch)
    assert wrong(list(verify_case(Golden("cpu"), SMALLEST))) == BOTH_OF_SMALLEST


def test_the_miniature_agrees_with_open_lm(wrong: Wrong) -> None:
    rows = list(verify_miniature(Golden("cpu")))
    assert [row.quantity for row in rows] == [
        "miniature: logits",
        "miniature: loss of each token",
        "miniature: logits in bfloat16",
        "miniature: logits of a batch",
    ]
    assert wrong(rows) == []
    assert rows[2].difference > 0.01, "bfloat16 differs, else it was not tried"


@pytest.mark.parametrize(("tensor", "what"), [("logits", "logits"), ("losses", "loss of each token")])
def test_a_golden_value_of_the_miniature_that_is_off_is_found(
    tensor: str, what: str, copied: Golden, nudge: Callable[[str, str, float], None], wrong: Wrong
) -> None:
    nudge("language_model", tensor, 1e-3)
    assert wrong(list(verify_miniature(copied))) == [f"miniature: {what}"]


def test_a_damaged_checkpoint_is_no_agreement(copied: Golden) -> None:
    (copied.folder / "open_lm" / SMALLEST / "checkpoints" / "epoch_1.pt").write_bytes(b"cut off")
    with pytest.raises(Exception, match="epoch_1"):
        list(verify_case(copied, SMALLEST))
    assert copied.folder != GOLDEN
