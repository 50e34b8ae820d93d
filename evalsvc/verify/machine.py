"""`evalsvc verify machine`: checks that this installation computes correctly on this machine and card.

Every step from a checkpoint to a metric is computed on bundled data and compared with golden values, which the programs
that the field cites computed from the same weights, images and features.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

from evalsvc import __version__
from evalsvc.errors import AssetMissing, InvalidRequest, MissingPackage
from evalsvc.verify import golden_checks
from evalsvc.verify.agreement import Agreement, Finding, Untried, installed
from evalsvc.verify.golden_checks import Golden as Golden

Check = Callable[[Golden], Iterable[Finding]]

PACKAGES = ("torch", "numpy", "lm-eval", "tokenizers", "safetensors", "pillow", "torch-fidelity", "clean-fid")
"""Packages that affect numbers, or compute them a second time."""


def checks(golden: Golden) -> Iterator[tuple[str, Check]]:
    """Yield every check, with the name of its row if it fails before comparing anything."""
    yield "float32 products", golden_checks.verify_products
    yield "noise", golden_checks.verify_noise
    yield from ((f"open_lm run {case}", partial(golden_checks.verify_case, case=case)) for case in golden.cases)
    yield "miniature", golden_checks.verify_miniature
    yield "sampled codes", golden_checks.verify_codes
    yield "image tokenizer", golden_checks.verify_decoder
    yield "features of Inception", golden_checks.verify_inception
    yield "image metrics", golden_checks.verify_metrics
    yield "statistics", golden_checks.verify_statistics
    yield "task loss", golden_checks.verify_losses
    yield "task text_to_image", golden_checks.verify_digits
    yield "task language", golden_checks.verify_benchmark


def verify_machine(golden: Golden, report: Callable[[str, int, int], None] = lambda *_: None) -> list[Finding]:
    """Run all checks. `report` gets the name of the next check, the number of finished checks, and the total."""
    listed = list(checks(golden))
    findings: list[Finding] = []
    for done, (name, check) in enumerate(listed):
        report(name, done, len(listed))
        findings += attempt(name, check, golden)
    report("", len(listed), len(listed))
    return findings


def attempt(name: str, check: Check, golden: Golden) -> list[Finding]:
    """Return the findings of a check: a row that differs if the check raises, and untried if it lacks something."""
    findings: list[Finding] = []
    try:
        findings.extend(check(golden))
    except (AssetMissing, MissingPackage) as error:
        findings.append(Untried(name, "golden values", error.message))
    except Exception as error:  # a card that cannot run a kernel raises any error: report it and continue
        reason = f"failed: {type(error).__name__}: {str(error).strip() or 'no message'}"
        findings.append(Agreement(name, "golden values", float("nan"), 0.0, note=" ".join(reason.split())[:400]))
    return findings


def prepared_device(name: str, threads: int) -> str:
    """Return the device with this name, or the best one if empty, and use `threads` CPU threads from now on."""
    torch.set_num_threads(threads)
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=name).sum().item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InvalidRequest(f"--device {name} cannot be used: {reason}; `evalsvc doctor` lists the devices") from None
    return name


def describe_machine(device: str) -> dict[str, object]:
    kind = torch.device(device)
    name = torch.cuda.get_device_name(kind) if kind.type == "cuda" else platform.machine()
    return {
        "evalsvc": __version__,
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := installed(name))},
        "cuda": torch.version.cuda,
        "device": f"{device} ({name})",
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }
