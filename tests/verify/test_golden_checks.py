"""Rows of golden values: right as they are, and wrong where a weight, a value or the code is."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from evalsvc.verify.agreement import Agreement, installed
from evalsvc.verify.golden_checks import GOLDEN, Golden

Patch = pytest.MonkeyPatch

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = Golden("cpu").cases
SMALLEST = "13_config_beats_cli_compile_prefix"
BOTH_OF_SMALLEST = ["logits: rotary, rms_norm, gelu, qk_norm", "cached steps: rotary, rms_norm, gelu, qk_norm"]

CODES = ["drawn codes, guided, top-k, top-p, plain steps", "drawn codes, one at a time"]
NAMES = ("torch-fidelity/fid", "clean-fid/fid", "torch-fidelity/kid", "prdc/density")
NEEDS = {"inception": "inception_path", "digits": "inception_path"}
NEEDS |= dict.fromkeys(("codes", "losses", "benchmark"), "many_cases")


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch: Patch) -> None:
    """Whole tasks on its CPU, without torch-fidelity and clean-fid."""
    monkeypatch.setenv("EVALSVC_DEVICES", "cpu")
    monkeypatch.setenv("EVALSVC_THREADS", "1")
    monkeypatch.setattr(golden_checks, "installed", lambda package: None)


@pytest.fixture
def needed(request: pytest.FixtureRequest, monkeypatch: Patch) -> None:
    """Ask for the fixture that a test names."""
    if request.param and isinstance(value := request.getfixturevalue(request.param), Path):
        monkeypatch.setenv("EVALSVC_ASSETS", str(value.parent))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the golden values for the test to change."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden"))


def wrong(name: str, folder: Path = GOLDEN, case: str = SMALLEST) -> list[str]:
    """The quantities of the rows of a check that differ, of findings that were all tried."""
    check = getattr(golden_checks, f"verify_{name}")
    findings = list(check(Golden("cpu", folder), *([case] if name == "case" else [])))
    assert findings
    assert all(isinstance(finding, Agreement) for finding in findings), findings
    return [finding.quantity for finding in findings if finding.verdict == "WRONG"]


def nudged(file: str, tensor: str, by: float = 1e-3) -> Callable[[Path], None]:
    """Add a number to the first element of a tensor."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / f"{file}.safetensors")
        tensors[tensor].view(-1)[0] += by
        save_file(tensors, folder / f"{file}.safetensors")

    return change


def scaled(*place: str | int, by: float = 1.001) -> Callable[[Path], None]:
    """Multiply a number of `values.json`."""

    def change(folder: Path) -> None:
        path = folder / "values.json"
        content = part = json.loads(path.read_text())
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] *= by
        path.write_text(json.dumps(content))

    return change


VALUES: dict[str, tuple[list[Callable[[Path], None]], list[str]]] = {
    "noise": ([nudged("sampling", "uniform", 2**-53)], ["noise of 128 codes"]),
    "case": ([nudged(f"open_lm/{SMALLEST}/expected", "logits_step")], BOTH_OF_SMALLEST[1:]),
    "miniature": (
        [nudged("language_model", "logits"), nudged("language_model", "losses")],
        ["miniature: logits", "miniature: loss of each token"],
    ),
    "decoder": (
        [nudged("decoding", "decoded"), nudged("decoding", "encoded", 1)],
        ["decoded pixels", "codes of images"],
    ),
    "codes": ([nudged("sampling", "greedy", 1)], ["greedy codes, plain steps", "greedy codes, packed steps"]),
    "inception": ([nudged("inception", "pil-bicubic/64")], ["64 features, pil-bicubic"]),
    "metrics": (
        [scaled("features", name) for name in NAMES],
        [f"{name} of 64 features, {program}" for program, name in (name.split("/") for name in NAMES)],
    ),
    "statistics": ([scaled("student", "interval", 0)], ["interval of a mean of 12"]),
    "losses": ([scaled("losses", "pairs", "image")], ["task loss: pairs/image"]),
    "benchmark": (
        [scaled("cloze", "accuracy"), scaled("cloze", "scores", 59, 3), scaled("cloze", "ids", 0, 0)],
        ["token ids", "task language: cloze/acc", "task language: log-likelihoods"],
    ),
}


@pytest.mark.parametrize(("name", "needed"), [(name, NEEDS.get(name, "")) for name in VALUES], indirect=["needed"])
def test_a_golden_value_that_is_off_is_found(name: str, needed: None, copied: Path) -> None:
    """As they are written, the values agree; the last bit of the noise counts."""
    changes, rows = VALUES[name]
    assert wrong(name, copied) == []
    for change in changes:
        change(copied)
    assert wrong(name, copied) == rows


@contextmanager
def half(device: torch.device) -> Iterator[None]:
    """A library that computes float32 products in bfloat16 must not pass."""
    with torch.autocast(device.type, torch.bfloat16):
        yield


def other_eps(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps / 10) * weight


def other_group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, right: Any = torch.nn.functional.group_norm
) -> Tensor:
    return right(x, groups, weight, bias, 100 * eps)


def sharper(x: Tensor) -> Tensor:
    """Bicubic with a = -3/4, as PyTorch has it, in the place of PIL's -1/2."""
    x = x.abs()
    near, far = (1.25 * x - 2.25) * x * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def next_position(position: int, *others: Any, right: Any = logits.counters) -> Tensor:
    """Codes drawn with the noise of the next position look as good as the right ones."""
    return right(position + 1, *others)


def divided_by_n(moments: Moments, right: Any = Moments.covariance.fget) -> Any:
    """Instead of n - 1: off by half a percent with 256 images, and easily overlooked."""
    return right(moments) * (moments.n - 1) / moments.n


def other_tail(t: float, dof: float, right: Any = intervals.upper_tail) -> float:
    return right(t, dof + 0.01)


FEATURES = ["64 features, pil-bicubic", "2,048 features, pil-bicubic"]
CODE: list[tuple[str, Any, str, Any, list[str]]] = [
    ("products", golden_checks, "full_precision", half, ["float32 matrix product", "float32 convolution"]),
    ("case", layer, "RMS_NORMS", {**layer.RMS_NORMS, "rms_norm": other_eps}, BOTH_OF_SMALLEST),
    ("case", rotation, "rotate_halves", lambda x, cos, sin: x, BOTH_OF_SMALLEST),
    ("codes", logits, "counters", next_position, CODES),
    ("decoder", blocks.functional, "group_norm", other_group_norm, ["decoded pixels"]),
    ("inception", inception, "_bicubic", sharper, FEATURES),
    ("metrics", Moments, "covariance", property(divided_by_n), ["fid of 64 features, torch-fidelity"]),
    ("statistics", intervals, "upper_tail", other_tail, ["Student's t, 20 values"]),
    # Pixels that are cut instead of rounded.
    ("digits", pipeline, "to_uint8", lambda x: ((x + 1) * 127.5).clamp(0, 255).byte(), ["task text_to_image: fid64"]),
]


@pytest.mark.parametrize(
    ("needed", "check", "of", "name", "code", "rows"),
    [(NEEDS.get(change[0], ""), *change) for change in CODE],
    indirect=["needed"],
    ids=[change[2] for change in CODE],
)
def test_wrong_code_is_found(
    needed: None, check: str, of: Any, name: str, code: Any, rows: list[str], monkeypatch: Patch
) -> None:
    caches = inception.bicubic_filter, intervals.critical_value
    with monkeypatch.context() as patch:
        patch.setattr(of, name, code)
        for cache in caches:
            cache.cache_clear()
        found = wrong(check)
    for cache in caches:
        cache.cache_clear()
    assert set(rows) <= set(found)


def test_the_tolerance_lies_far_below_tf32() -> None:
    """TF32 keeps 10 bits of a factor: a card that rounds so differs by more than ten times the tolerance."""
    random = torch.Generator().manual_seed(0)
    first, second = (torch.randn(256, golden_checks.INNER, generator=random) for _ in range(2))
    rounded = [(factor.view(torch.int32) & ~0x1FFF).view(torch.float32) for factor in (first, second)]
    difference = (rounded[0] @ rounded[1].T - first @ second.T).abs().max()
    assert float(difference) > 10 * golden_checks.FULL


@pytest.mark.parametrize("case", CASES)
def test_a_weight_that_is_off_by_a_thousandth_is_found(case: str, copied: Path) -> None:
    """As it is written the case agrees; the row that differs afterwards has the name of the architecture."""
    assert wrong("case", copied, case) == []
    checkpoint = copied / "open_lm" / case / "checkpoints" / "epoch_1.pt"
    content = torch.load(checkpoint, weights_only=True)
    part = "w3" if "swiglu" in case else "feed"
    name = next(name for name in content["state_dict"] if part in name)
    content["state_dict"][name].view(-1)[0] += 1e-3
    torch.save(content, checkpoint)
    rows = golden_checks.verify_case(Golden("cpu"), case)
    assert wrong("case", copied, case) == [row.quantity for row in rows]


def test_the_miniature_is_compared_in_bfloat16_too() -> None:
    rows = list(golden_checks.verify_miniature(Golden("cpu")))
    assert rows[2].quantity == "miniature: logits in bfloat16"
    assert rows[2].difference > 0.01, "bfloat16 differs, else it was not tried"


def test_a_damaged_checkpoint_is_no_agreement(copied: Path) -> None:
    (copied / "open_lm" / SMALLEST / "checkpoints" / "epoch_1.pt").write_bytes(b"cut off")
    with pytest.raises(Exception, match="epoch_1"):
        wrong("case", copied)


def test_a_cpu_and_a_card_have_two_ways_each() -> None:
    assert (golden_checks.paths("cpu"), golden_checks.paths("cuda:1")) == (("plain", "packed"), ("plain", "graph"))


def test_without_the_network_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("EVALSVC_ASSETS", str(tmp_path))
    for check in (golden_checks.verify_inception, golden_checks.verify_digits):
        with pytest.raises(AssetMissing, match="evalsvc assets pull inception"):
            list(check(Golden("cpu")))


@pytest.mark.usefixtures("many_cases")
def test_installed_programs_compute_now(monkeypatch: Patch) -> None:
    """A golden value is not looked at then: the features may be changed, and both sides with them."""
    monkeypatch.setattr(golden_checks, "installed", installed)
    rows = list(golden_checks.verify_metrics(Golden("cpu")))
    assert all(row.agrees for row in rows)
    assert [row.note for row in rows].count("computed now") == 5
    assert {row.program for row in rows} >= {"torch-fidelity 0.4.0", "clean-fid 0.1.35"}
