"""Results computed again by reference engines, and what is found where one weight of a side differs."""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from miniature_run import DECODER, LAYOUT, pretrained
from task_runs import items, run_task

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.decoders import diffusers_decoder
from evalsvc.features import clean_fid, torch_fidelity
from evalsvc.language import hflm
from evalsvc.miniature import ROOT
from evalsvc.models import loading, open_lm_model, transformers_loading
from evalsvc.spec.engines import release_of
from evalsvc.spec.suite import parse_suite
from evalsvc.verify.agreement import Agreement, Finding, Untried
from evalsvc.verify.checkpoint import VerifyRequest, cut_task, reference_engines, verify_tasks
from evalsvc.verify.recorded import RecordedTask
from evalsvc.worker import context
from evalsvc.worker.models import CompanionCache

pytestmark = pytest.mark.usefixtures("reference_models", "one_thread")

LOSS = {"kind": "loss", "name": "pairs", "data": str(ROOT / "heldout_pairs.jsonl"), "limit": 6}
GENERAL = {"general_text": str(ROOT / "heldout_text.jsonl"), "general_text_limit": 3}
CLOZE = {"kind": "language", "name": "core", "benchmarks": ["cloze"], "include_path": [str(ROOT)], "limit": 6}
DIGITS = {"kind": "text_to_image", "name": "digits", "captions": str(ROOT / "captions.jsonl"), "decoder": DECODER}
IMAGES = {"kind": "reconstruction", "name": "images", "images": str(ROOT / "images.safetensors"), "decoder": DECODER}

OPEN_LM, TRANSFORMERS, HFLM = ("model", "open_lm"), ("model", "transformers"), ("scoring", "hflm")
DIFFUSERS = ("decoder", "diffusers")
NONE = ("model", "float64")
"""No reference engine: the recorded items alone are compared."""


@pytest.fixture(autouse=True)
def _one_thread_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number of threads may round other codes."""
    monkeypatch.setenv("EVALSVC_THREADS", "1")


def recorded(checkpoint: CheckpointRef, task: Mapping[str, Any], base: CheckpointRef | None = None) -> RecordedTask:
    """Evaluate a task, and return it as a service has recorded it."""
    result = run_task(checkpoint, base, **task)
    [provenance], protocols = result["provenance"].values(), list(result["protocols"].values())
    return replace(unrecorded(checkpoint, task), items=items(result), protocols=protocols, provenance=provenance)


def unrecorded(checkpoint: CheckpointRef, task: Mapping[str, Any]) -> RecordedTask:
    [spec] = parse_suite({"tasks": [dict(task)]}, "test").tasks
    return RecordedTask(checkpoint, spec)


def verify(task: RecordedTask, *engines: tuple[str, str]) -> list[Finding]:
    return verify_tasks([task], VerifyRequest(Settings.load(threads=1), engines, 4))


def verdicts(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(re.sub(r" \d\S*$", "", finding.program), finding.verdict) for finding in findings]  # without its version


def untried(task: RecordedTask) -> str:
    [finding] = verify(task, NONE)
    assert isinstance(finding, Untried)
    return finding.reason


@pytest.fixture
def perturb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change one weight of the model that a function of a module returns."""

    def change(
        module: Any, function: str, weight: str | tuple[str, ...] = ("out_proj.weight", "o_proj.weight")
    ) -> None:
        load = getattr(module, function)

        def perturbed(*arguments: Any, **options: Any) -> Any:
            model = load(*arguments, **options)
            parameters = dict(getattr(model, "module", model).named_parameters())
            with torch.no_grad():
                next(value for name, value in parameters.items() if name.endswith(weight)).view(-1)[0] += BY[function]
            return model

        monkeypatch.setattr(module, function, perturbed)

    return change


BY = {"load_open_lm": 1e-3, "load_transformers": 1e-3, "write_diffusers": 0.05, "build_network": 1e-2}


@pytest.fixture(params=["llama", "qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointRef:
    """A small random model in Hugging Face's layout, as wide as the miniature's."""
    tiny_families.write_ours(request.param, tmp_path / "model", vocab_size=583, max_position_embeddings=256)
    return CheckpointRef(str(tmp_path / "model"), layout=LAYOUT, label=request.param)


@pytest.mark.usefixtures("real_open_lm")
class TestMiniature:
    @pytest.mark.parametrize("task", [{**LOSS, **GENERAL}, CLOZE, {**DIGITS, "guidance_scale": [1.0, 2.0]}])
    def test_it_agrees_with_open_lm(self, task: dict[str, Any]) -> None:
        [finding] = verify(unrecorded(pretrained(3), task), OPEN_LM)
        assert isinstance(finding, Agreement)
        assert (finding.verdict, finding.program) == ("ok", "model by open_lm 0.0.34")
        assert finding.tolerance <= 1e-4

    def test_hflm_around_open_lm_agrees(self) -> None:
        """A benchmark without a part of evalsvc's arithmetic, as `engine` in a suite gives it."""
        theirs = recorded(pretrained(0), {**CLOZE, "engine": {"model": "open_lm", "scoring": "hflm"}})
        own = recorded(pretrained(0), CLOZE)
        for first, second in zip(own.items, theirs.items, strict=True):
            assert all(a == pytest.approx(b, abs=1e-4) for a, b in zip(first["scores"], second["scores"], strict=True))
        assert theirs.protocols[0]["engine"] == {"model": "open_lm", "scoring": "hflm"}
        assert theirs.provenance["shards"][0]["model_engine"] == "open_lm 0.0.34"

    @pytest.mark.parametrize("task", [LOSS, CLOZE])
    def test_a_weight_that_differs_is_wrong(self, task: dict[str, Any], perturb: Callable[..., None]) -> None:
        perturb(open_lm_model, "load_open_lm")
        assert verdicts(verify(unrecorded(pretrained(3), task), OPEN_LM)) == [("model by open_lm", "WRONG")]


def test_a_folder_agrees_with_transformers_and_hflm(folder: CheckpointRef, perturb: Callable[..., None]) -> None:
    for task in (LOSS, CLOZE):
        by_engine = dict(verdicts(verify(unrecorded(folder, task))))
        assert (by_engine["model by transformers"], by_engine["model by open_lm"]) == ("ok", "not tried")
        assert task is LOSS or by_engine["scoring by hflm"] == "ok"
    perturb(transformers_loading, "load_transformers")
    assert verdicts(verify(unrecorded(folder, LOSS), TRANSFORMERS)) == [("model by transformers", "WRONG")]


def test_scoring_that_differs_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """HFLM gets a model with another weight."""
    build = hflm.build_hflm

    def perturbed(model: Any, *arguments: Any, **options: Any) -> Any:
        other = loading.load_model(pretrained(0).path)
        other.layers[0].attention.out_proj.weight[3, 5] += 1e-3
        return build(other, *arguments, **options)

    assert verdicts(verify(unrecorded(pretrained(0), CLOZE), HFLM)) == [("scoring by hflm", "ok")]
    monkeypatch.setattr(hflm, "build_hflm", perturbed)
    assert verdicts(verify(unrecorded(pretrained(0), CLOZE), HFLM)) == [("scoring by hflm", "WRONG")]


@pytest.mark.parametrize("task", [DIGITS, IMAGES])
def test_a_decoder_agrees_with_diffusers(task: dict[str, Any], perturb: Callable[..., None]) -> None:
    assert verdicts(verify(unrecorded(pretrained(5), task), DIFFUSERS)) == [("decoder by diffusers", "ok")]
    perturb(diffusers_decoder, "write_diffusers", "decoder.conv_out.bias")
    assert verdicts(verify(unrecorded(pretrained(5), task), DIFFUSERS)) == [("decoder by diffusers", "WRONG")]


@pytest.mark.parametrize("program", ["clean-fid", "torch-fidelity"])
@pytest.mark.parametrize(
    ("checkpoint", "task"),
    [
        (pretrained(5), DIGITS),
        (pretrained(5), IMAGES),
        (CheckpointRef(str(ROOT / "images.safetensors")), {"kind": "images", "name": "given"}),
    ],
)
def test_features_agree_with_the_program(
    program: str,
    checkpoint: CheckpointRef,
    task: dict[str, Any],
    inception_path: Path,
    perturb: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weights are the same. The other program resizes otherwise, and says so."""
    resize = {"clean-fid": "pil-bicubic", "torch-fidelity": "tf1-bilinear"}[program]
    asked = unrecorded(checkpoint, {**task, "extractor": str(inception_path), "resize": resize})
    engine = ("extractor", program)
    [other] = [pair for pair in reference_engines(asked.spec) if pair[0] == "extractor" and pair != engine]
    by_program = {finding.program: finding for finding in verify(asked, engine, other)}
    finding, untried = (by_program[f"extractor by {release_of(name)}"] for name in (program, other[1]))
    assert isinstance(untried, Untried)
    assert untried.reason.startswith(f"resize is '{resize}'; for {other[1]} give ")
    assert (finding.verdict, finding.quantity.endswith("features of 4 images")) == ("ok", True)
    perturb(torch_fidelity, "build_network", "Conv2d_1a_3x3.conv.weight")
    monkeypatch.setattr(context, "_companions", CompanionCache())
    monkeypatch.setattr(clean_fid, "published_program", lambda path, digests: None)
    [finding] = verify(asked, engine)
    assert finding.verdict == "WRONG"


class TestRecorded:
    @pytest.mark.parametrize(
        ("task", "change"),
        [
            ({**LOSS, **GENERAL}, {"nll_image": 1.0}),
            (CLOZE, {"scores": [[-1.0, 1, -1.0, 1]] * 4}),
            ({**DIGITS, "samples": 8, "metrics": []}, {"codes": "00"}),
            ({**IMAGES, "samples": 8, "extractor": None}, {"psnr": 3.0}),
        ],
    )
    def test_items_are_computed_again(self, task: dict[str, Any], change: dict[str, Any]) -> None:
        evaluated = recorded(pretrained(3), task)
        changed = replace(evaluated, items=[{**evaluated.items[0], **change}, *evaluated.items[1:]])
        assert verdicts(verify(evaluated, NONE)) == [("recorded items", "ok")]
        assert verdicts(verify(changed, NONE)) == [("recorded items", "WRONG")]

    def test_the_benchmarks_of_forgetting_are_those_of_the_checkpoint(self) -> None:
        fields = {**CLOZE, "kind": "forgetting", "name": "kept", "limit": 4}
        evaluated = recorded(pretrained(1), fields, pretrained(0))
        assert verdicts(verify(evaluated, HFLM)) == [("recorded items", "ok"), ("scoring by hflm", "ok")]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"dtype": "bfloat16"}, "recorded with another dtype"),
            ({"engine": {"model": "float64"}}, "recorded with another engine"),
        ],
    )
    def test_items_of_other_arithmetic_are_not_compared(self, change: dict[str, Any], reason: str) -> None:
        assert untried(recorded(pretrained(3), {**LOSS, **change})) == reason

    def test_another_machine_explains_other_codes_and_not_other_losses(self) -> None:
        digits = recorded(pretrained(3), {**DIGITS, "samples": 4, "metrics": []})
        shards = [{**digits.provenance["shards"][0], "device_name": "A card", "threads": 2}]
        other = replace(digits, items=[{**item, "codes": "00"} for item in digits.items], provenance={"shards": shards})
        assert "threads was 2, is 1" in untried(other)
        losses = recorded(pretrained(3), LOSS)
        changed = [{**item, "nll_image": 1.0} for item in losses.items]
        findings = verify(replace(losses, items=changed, provenance={"shards": shards}), NONE)
        assert verdicts(findings) == [("recorded items", "WRONG")]

    def test_data_that_changed_are_named(self, tmp_path: Path) -> None:
        data = shutil.copy(ROOT / "heldout_pairs.jsonl", tmp_path / "pairs.jsonl")
        losses = recorded(pretrained(3), {**LOSS, "data": str(data)})
        data.write_text("".join(data.read_text().splitlines(keepends=True)[1:]))
        assert "data was" in untried(losses)

    @pytest.mark.parametrize("strange", [[{"index": 0, "nll_image": "none"}], [{"index": 5}]])
    def test_strange_items_explain_themselves(self, strange: list[dict[str, Any]]) -> None:
        """They come from a service, which may be of another version."""
        task = replace(unrecorded(pretrained(3), LOSS), items=strange, provenance={"shards": 5})
        assert re.search("no item of the same data|another version", untried(task))


def test_a_task_without_items_and_one_that_fails_are_not_tried() -> None:
    fields = {"kind": "alignment", "name": "pairs", "data": str(ROOT / "heldout_pairs.jsonl")}
    [finding] = verify(unrecorded(pretrained(3), fields))
    assert finding == Untried("pairs", "", "items of a task of kind alignment are not compared")
    assert "/no/such/file.jsonl" in untried(unrecorded(pretrained(3), {**LOSS, "data": "/no/such/file.jsonl"}))


def test_a_task_is_cut_to_its_first_items() -> None:
    [loss, images] = parse_suite({"tasks": [{**LOSS, **GENERAL, "dtype": "bfloat16"}, DIGITS]}, "test").tasks
    cut = cut_task(loss, 2).parameters
    assert (cut["limit"], cut["general_text_limit"], cut["dtype"]) == (2, 2, "float32")
    assert cut_task(loss, 100).parameters["limit"] == 6
    cut = cut_task(images, 2).parameters
    assert (cut["shard_size"], cut["keep"], cut["samples"]) == (2, 2, None)
    [sampled] = parse_suite({"tasks": [{**CLOZE, "limit": None, "sample": 9}]}, "test").tasks
    cut = cut_task(sampled, 4).parameters
    assert (cut["sample"], cut["limit"]) == (4, None)
