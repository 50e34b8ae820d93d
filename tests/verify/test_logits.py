"""Logits and losses against the real open_lm where it is installed, and what is found where a weight differs."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature_run import pretrained
from safetensors.torch import load_file
from torch import Tensor

from evalsvc.checkpoints.weights import read_weights
from evalsvc.config import Settings
from evalsvc.errors import CheckpointMismatch, MissingPackage
from evalsvc.families.reading import resolve_config
from evalsvc.miniature import ROOT
from evalsvc.models import load_model
from evalsvc.tasks.loss.spec import Loss
from evalsvc.verify import logits
from evalsvc.verify.agreement import Agreement, Finding, Untried, all_agree
from evalsvc.verify.logits import verify_logits, verify_losses
from evalsvc.verify.open_lm_reference import build_open_lm
from evalsvc.verify.recorded_values import RecordedValues
from evalsvc.worker.context import ShardContext

GOLDEN = Path(__file__).parents[1] / "golden" / "open_lm"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())

pytestmark = pytest.mark.usefixtures("one_thread")


NOTHING = RecordedValues({})


def checkpoint(case: str) -> Path:
    return GOLDEN / case / "checkpoints" / "epoch_1.pt"


def golden_ids(case: str) -> list[list[int]]:
    rows: list[list[int]] = load_file(GOLDEN / case / "expected.safetensors")["input_ids"].tolist()
    return rows


def verify(case: str, path: Path | None = None) -> list[Finding]:
    file = checkpoint(case)
    return verify_logits(path or file, resolve_config(None, file), golden_ids(case))


@pytest.mark.usefixtures("real_open_lm")
class TestRealOpenLm:
    @pytest.mark.parametrize("case", CASES)
    def test_logits_are_open_lms(self, case: str) -> None:
        [finding] = verify(case)
        assert isinstance(finding, Agreement)
        assert finding.agrees
        assert finding.tolerance < 1e-4
        assert finding.program == "open_lm 0.0.34"

    @pytest.mark.parametrize("case", CASES)
    def test_what_is_built_is_what_made_the_golden_data(self, case: str) -> None:
        """Of the package, not of ours: names, ties, twins of `gelu` and all switches are handed over right."""
        file = checkpoint(case)
        reference = build_open_lm(resolve_config(None, file), read_weights(file).tensors, "float32")
        expected = load_file(GOLDEN / case / "expected.safetensors")
        found = reference(expected["input_ids"])[0]
        assert float((found - expected["logits_full"]).abs().max()) < 1e-5

    @pytest.mark.parametrize("case", CASES)
    def test_a_weight_that_differs_by_a_thousandth_is_wrong(
        self, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """open_lm reads the file; ours is perturbed after reading it."""
        load = load_model

        def perturbed(*arguments: Any, **options: Any) -> Any:
            model = load(*arguments, **options)
            model.layers[0].attention.out_proj.weight[3, 5] += 1e-3
            return model

        monkeypatch.setattr(logits, "load_model", perturbed)
        [finding] = verify(case)
        assert finding.verdict == "WRONG"

    def test_rounded_frequencies_are_those_of_open_lm_in_bfloat16(self) -> None:
        """A model that was trained in bfloat16 turns otherwise, and both sides do."""
        file = checkpoint(CASES[0])
        config, ids = resolve_config(None, file), golden_ids(CASES[0])
        [finding] = verify_logits(file, config, ids, rotary_inv_freq_dtype="bfloat16")
        assert finding.verdict == "ok"
        tensors = read_weights(file).tensors
        exact, rounded = (build_open_lm(config, tensors, dtype) for dtype in ("float32", "bfloat16"))
        row = torch.tensor(ids[:1])
        assert float((exact(row)[0] - rounded(row)[0]).abs().max()) > 1e-3

    def test_tensors_of_another_model_are_told(self) -> None:
        file = checkpoint(CASES[0])
        tensors: dict[str, Tensor] = dict(read_weights(file).tensors)
        tensors["surplus.weight"] = tensors.pop("norm.weight")
        with pytest.raises(CheckpointMismatch, match=r"missing: norm\.weight; .*unexpected: surplus\.weight"):
            build_open_lm(resolve_config(None, file), tensors, "float32")

    def test_losses_of_the_miniature_are_open_lms(self) -> None:
        assert all_agree(verify_losses(context(), task(), NOTHING, 8))


def test_without_open_lm_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open_lm", "open_lm.attention"):
        monkeypatch.setitem(sys.modules, name, None)
    for finding in (*verify(CASES[0]), *verify_losses(context(), task(), NOTHING, 2)):
        assert isinstance(finding, Untried)
        assert "open_lm cannot be imported: open_lm is not installed; run: pip install --no-deps" in finding.reason


def context() -> ShardContext:
    return ShardContext(pretrained(3), Settings.load(threads=1), lambda done: None)


def task(**fields: Any) -> Loss:
    folder = ROOT
    data = {"data": str(folder / "heldout_pairs.jsonl"), "general_text": str(folder / "heldout_text.jsonl")}
    return Loss.model_validate({"name": "pairs", **data, **fields})


def test_a_broken_package_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Such as xformers for another PyTorch."""
    (tmp_path / "open_lm").mkdir()
    (tmp_path / "open_lm" / "__init__.py").write_text("")
    (tmp_path / "open_lm" / "attention.py").write_text("raise ImportError('undefined symbol')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "open_lm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingPackage, match="open_lm cannot be imported: it fails: undefined symbol; run: pip"):
        build_open_lm(resolve_config(None, checkpoint(CASES[0])), {}, "float32")
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.partition(".")[0] == "open_lm"]:
        del sys.modules[name]
