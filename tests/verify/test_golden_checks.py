"""Rows of golden values: right as they are, and wrong where a weight, a value or the code is."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evalsvc.decoders import blocks
from evalsvc.errors import AssetMissing
from evalsvc.features import inception
from evalsvc.metrics import intervals
from evalsvc.metrics.frechet import Moments
from evalsvc.models import layer, rotation
from evalsvc.sampling import logits
from evalsvc.tasks.text_to_image import pipeline
from evalsvc.verify import golden_checks
from evalsvc.verify.agreement import Finding
from evalsvc.verify.golden_checks import (
    drawn_image,
    paths,
    verify_benchmark,
    verify_case,
    verify_codes,
    verify_decoder,
    verify_digits,
    verify_inception,
    verify_losses,
    verify_metrics,
    verify_miniature,
    verify_noise,
    verify_products,
    verify_statistics,
)
from evalsvc.verify.golden_files import Golden

Wrong = Callable[[list[Finding]], list[str]]
Nudge = Callable[[str, str, float], None]
Patch = pytest.MonkeyPatch

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = Golden("cpu").cases
SMALLEST = "13_config_beats_cli_compile_prefix"
BOTH_OF_SMALLEST = ["logits: rotary, rms_norm, gelu, qk_norm", "cached steps: rotary, rms_norm, gelu, qk_norm"]


@pytest.mark.parametrize(
    ("check", "nudges", "rows"),
    [
        (verify_noise, [("sampling", "uniform", 2**-53)], ["noise of 128 codes"]),
        (
            partial(verify_case, case=SMALLEST),
            [(f"open_lm/{SMALLEST}/expected", "logits_step", 1e-3)],
            BOTH_OF_SMALLEST[1:],
        ),
        (
            verify_miniature,
            [("language_model", "logits", 1e-3), ("language_model", "losses", 1e-3)],
            ["miniature: logits", "miniature: loss of each token"],
        ),
        (
            verify_decoder,
            [("decoding", "decoded", 1e-3), ("decoding", "encoded", 1)],
            ["decoded pixels", "codes of images"],
        ),
    ],
    ids=["noise", "case", "miniature", "decoder"],
)
def test_a_golden_value_that_is_off_is_found(
    check: Callable[[Golden], Any],
    nudges: list[tuple[str, str, float]],
    rows: list[str],
    copied: Golden,
    nudge: Nudge,
    wrong: Wrong,
) -> None:
    """As they are written, the values agree; the last bit of the noise counts."""
    assert wrong(list(check(copied))) == []
    for change in nudges:
        nudge(*change)
    assert wrong(list(check(copied))) == rows


def test_products_in_fewer_bits_differ(monkeypatch: Patch, wrong: Wrong) -> None:
    """A library that computes float32 products in bfloat16 must not pass."""
    assert wrong(list(verify_products(Golden("cpu")))) == []

    @contextmanager
    def half(device: torch.device) -> Iterator[None]:
        with torch.autocast(device.type, torch.bfloat16):
            yield

    monkeypatch.setattr(golden_checks, "full_precision", half)
    assert wrong(list(verify_products(Golden("cpu")))) == ["float32 matrix product", "float32 convolution"]


def test_the_tolerance_lies_far_below_tf32() -> None:
    """TF32 keeps 10 bits of a factor: a card that rounds so differs by more than ten times the tolerance."""
    random = torch.Generator().manual_seed(0)
    first, second = (torch.randn(256, golden_checks.INNER, generator=random) for _ in range(2))
    rounded = [(factor.view(torch.int32) & ~0x1FFF).view(torch.float32) for factor in (first, second)]
    difference = (rounded[0] @ rounded[1].T - first @ second.T).abs().max()
    assert float(difference) > 10 * golden_checks.FULL


def test_the_golden_cases_tell_the_architectures_apart() -> None:
    assert len(CASES) == 6


@pytest.mark.parametrize("case", CASES)
def test_a_weight_that_is_off_by_a_thousandth_is_found(case: str, copied: Golden, wrong: Wrong) -> None:
    """As it is written the case agrees; the row that differs afterwards has the name of the architecture."""
    rows = list(verify_case(copied, case))
    assert wrong(rows) == []
    checkpoint = copied.folder / "open_lm" / case / "checkpoints" / "epoch_1.pt"
    content = torch.load(checkpoint, weights_only=True)
    part = "w3" if "swiglu" in case else "feed"
    name = next(name for name in content["state_dict"] if part in name)
    content["state_dict"][name].view(-1)[0] += 1e-3
    torch.save(content, checkpoint)
    assert wrong(list(verify_case(copied, case))) == [row.quantity for row in rows]


def other_eps(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps / 10) * weight


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setitem(layer.RMS_NORMS, "rms_norm", other_eps),
        lambda patch: patch.setattr(rotation, "rotate_halves", lambda x, cos, sin: x),
    ],
    ids=["eps", "rotation"],
)
def test_wrong_arithmetic_is_found(change: Callable[[Patch], None], monkeypatch: Patch, wrong: Wrong) -> None:
    change(monkeypatch)
    assert wrong(list(verify_case(Golden("cpu"), SMALLEST))) == BOTH_OF_SMALLEST


def test_the_miniature_is_compared_in_bfloat16_too() -> None:
    rows = list(verify_miniature(Golden("cpu")))
    whats = ("logits", "loss of each token", "logits in bfloat16", "logits of a batch")
    assert [row.quantity for row in rows] == [f"miniature: {what}" for what in whats]
    assert rows[2].difference > 0.01, "bfloat16 differs, else it was not tried"


def test_a_damaged_checkpoint_is_no_agreement(copied: Golden) -> None:
    (copied.folder / "open_lm" / SMALLEST / "checkpoints" / "epoch_1.pt").write_bytes(b"cut off")
    with pytest.raises(Exception, match="epoch_1"):
        list(verify_case(copied, SMALLEST))


def test_a_cpu_and_a_card_have_two_ways_each() -> None:
    assert (paths("cpu"), paths("cuda:1")) == (("plain", "packed"), ("plain", "graph"))


@pytest.mark.usefixtures("many_cases")
def test_every_way_draws_the_golden_codes_and_one_other_code_is_found(copied: Golden, wrong: Wrong) -> None:
    rows = list(verify_codes(copied))
    assert (len(rows), wrong(rows)) == (5, [])
    path = copied.folder / "sampling.safetensors"
    tensors = load_file(path)
    tensors["greedy"][7, 63] ^= 1
    save_file(tensors, path)
    found = list(verify_codes(copied))
    assert wrong(found) == ["greedy codes, plain steps", "greedy codes, packed steps"]
    assert found[0].difference == 1


@pytest.mark.usefixtures("many_cases")
def test_noise_that_is_used_at_the_wrong_place_is_found(monkeypatch: Patch, wrong: Wrong) -> None:
    """Codes drawn with the noise of the next position look as good as the right ones."""
    right = logits.counters
    monkeypatch.setattr(logits, "counters", lambda position, *others: right(position + 1, *others))
    found = wrong(list(verify_codes(Golden("cpu"))))
    assert [quantity[:11] for quantity in found] == ["drawn codes"] * 3


def test_a_wrong_norm_of_the_decoder_is_found(monkeypatch: Patch, wrong: Wrong) -> None:
    right = torch.nn.functional.group_norm

    def other(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return right(x, groups, weight, bias, 100 * eps)

    monkeypatch.setattr(blocks.functional, "group_norm", other)
    assert "decoded pixels" in wrong(list(verify_decoder(Golden("cpu"))))


def test_without_the_network_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("EVALSVC_ASSETS", str(tmp_path))
    for check in (verify_inception, verify_digits):
        with pytest.raises(AssetMissing, match="evalsvc assets pull inception"):
            list(check(Golden("cpu")))


def test_the_drawn_image_has_fine_detail() -> None:
    """An image without any would not tell one way of resizing from another."""
    image = drawn_image(340, 420).float()
    assert image.shape == (3, 340, 420)
    assert float((image[:, 1:] - image[:, :-1]).abs().mean()) > 20


class TestInception:
    @pytest.fixture(autouse=True)
    def _assets(self, inception_path: Path, monkeypatch: Patch) -> None:
        monkeypatch.setenv("EVALSVC_ASSETS", str(inception_path.parent))

    def test_features_are_the_programs(self, copied: Golden, nudge: Nudge, wrong: Wrong) -> None:
        rows = list(verify_inception(copied))
        assert (len(rows), wrong(rows)) == (4, [])
        nudge("inception", "pil-bicubic/64", 1e-3)
        assert wrong(list(verify_inception(copied))) == ["64 features, pil-bicubic"]

    def test_another_resize_is_found(self, monkeypatch: Patch, wrong: Wrong) -> None:
        """Bicubic with a = -3/4, as PyTorch has it, in the place of PIL's -1/2."""

        def sharper(x: Tensor) -> Tensor:
            x = x.abs()
            near, far = (1.25 * x - 2.25) * x * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3
            return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))

        monkeypatch.setattr(inception, "_bicubic", sharper)
        inception.bicubic_filter.cache_clear()
        found = wrong(list(verify_inception(Golden("cpu"))))
        inception.bicubic_filter.cache_clear()
        assert found == ["64 features, pil-bicubic", "2,048 features, pil-bicubic"]


def changed(golden: Golden, change: Callable[[dict[str, Any]], None]) -> Golden:
    """Write other golden numbers."""
    path = golden.folder / "values.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return Golden("cpu", golden.folder)


@pytest.fixture
def without_programs(monkeypatch: Patch) -> None:
    """An installation without torch-fidelity and clean-fid."""
    monkeypatch.setattr(golden_checks, "installed", lambda package: None)


@pytest.mark.usefixtures("without_programs")
def test_metrics_agree_with_golden_values_and_one_off_by_a_thousandth_is_found(copied: Golden, wrong: Wrong) -> None:
    rows = list(verify_metrics(copied))
    assert (len(rows), wrong(rows), {row.note for row in rows}) == (9, [], {"golden value"})
    names = ("torch-fidelity/fid", "clean-fid/fid", "torch-fidelity/kid", "prdc/density")

    def change(content: dict[str, Any]) -> None:
        content["features"] |= {name: 1.001 * content["features"][name] for name in names}

    expected = [f"{name} of 64 features, {program}" for program, name in (quantity.split("/") for quantity in names)]
    assert wrong(list(verify_metrics(changed(copied, change)))) == expected


@pytest.mark.usefixtures("without_programs")
def test_a_wrong_covariance_is_found(monkeypatch: Patch, wrong: Wrong) -> None:
    """Divided by n instead of n - 1: off by half a percent with 256 images, and easily overlooked."""
    right = Moments.covariance.fget
    monkeypatch.setattr(Moments, "covariance", property(lambda moments: right(moments) * (moments.n - 1) / moments.n))
    assert "fid of 64 features, torch-fidelity" in wrong(list(verify_metrics(Golden("cpu"))))


@pytest.mark.usefixtures("many_cases")
def test_installed_programs_compute_now(wrong: Wrong) -> None:
    """A golden value is not looked at then: the features may be changed, and both sides with them."""
    rows = list(verify_metrics(Golden("cpu")))
    assert wrong(rows) == []
    assert [row.note for row in rows].count("computed now") == 5
    assert {row.program for row in rows} >= {"torch-fidelity 0.4.0", "clean-fid 0.1.35"}


def test_a_wrong_interval_and_a_wrong_tail_are_found(copied: Golden, monkeypatch: Patch, wrong: Wrong) -> None:
    assert wrong(list(verify_statistics(Golden("cpu")))) == []

    def change(content: dict[str, Any]) -> None:
        content["student"]["interval"][0] *= 1.001

    assert wrong(list(verify_statistics(changed(copied, change)))) == ["interval of a mean of 12"]
    right = intervals.upper_tail
    monkeypatch.setattr(intervals, "upper_tail", lambda t, dof: right(t, dof + 0.01))
    intervals.critical_value.cache_clear()
    assert "Student's t, 20 values" in wrong(list(verify_statistics(Golden("cpu"))))
    intervals.critical_value.cache_clear()


@pytest.mark.usefixtures("many_cases")
class TestTasks:
    """Rows of whole tasks on the miniature."""

    @pytest.fixture(autouse=True)
    def _settings(self, monkeypatch: Patch) -> None:
        monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
        monkeypatch.setenv("EVALSVC_THREADS", "1")

    def test_losses_are_those_over_open_lms_logits(self, copied: Golden, wrong: Wrong) -> None:
        assert wrong(list(verify_losses(copied))) == []

        def change(content: dict[str, Any]) -> None:
            content["losses"]["pairs"]["image"] += 1e-3

        assert wrong(list(verify_losses(changed(copied, change)))) == ["task loss: pairs/image"]

    def test_a_benchmark_is_answered_as_under_lm_eval(self, copied: Golden, wrong: Wrong) -> None:
        assert wrong(list(verify_benchmark(copied))) == []

        def change(content: dict[str, Any]) -> None:
            content["cloze"]["accuracy"] += 1 / 60
            content["cloze"]["scores"][59][3] += 1e-3
            content["cloze"]["ids"][0][0] += 1

        rows = ["token ids", "task language: cloze/acc", "task language: log-likelihoods"]
        assert wrong(list(verify_benchmark(changed(copied, change)))) == rows

    def test_pixels_that_are_cut_instead_of_rounded_move_fid(
        self, inception_path: Path, monkeypatch: Patch, wrong: Wrong
    ) -> None:
        monkeypatch.setenv("EVALSVC_ASSETS", str(inception_path.parent))
        monkeypatch.setattr(pipeline, "to_uint8", lambda images: ((images + 1) * 127.5).clamp(0, 255).byte())
        assert wrong(list(verify_digits(Golden("cpu")))) == ["task text_to_image: fid64"]
