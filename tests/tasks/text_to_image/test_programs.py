"""Published programs in the place of evalsvc's Inception: the bundled run's images measured by each."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from miniature_run import DECODER, pretrained
from nvidia_program import nvidia_program, small_tensors
from safetensors.torch import load_file, save_file
from task_runs import run_task

from evalsvc.assets import ASSETS
from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.errors import InvalidSuite
from evalsvc.features import clean_fid
from evalsvc.metrics.definitions import DEFINITIONS
from evalsvc.miniature import ROOT
from evalsvc.spec import catalog
from evalsvc.spec.images import PROGRAMS
from evalsvc.spec.suite import build_task, parse_suite
from evalsvc.tasks.image_features import ExtractorSpec, FeaturePass
from evalsvc.tasks.image_measures import load_metrics
from evalsvc.worker.context import ShardContext

TASK: Mapping[str, Any] = {
    "kind": "text_to_image",
    "name": "digits",
    "captions": str(ROOT / "captions.jsonl"),
    "samples": 66,
    "decoder": DECODER,
    "metrics": ["fid64"],
    "keep": 0,
}
OURS = {"extractor": "inception", "resize": "tf1-bilinear"}


@pytest.fixture(scope="module")
def results(inception_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("programs")
    (folder / "data").mkdir()
    reference = folder / "reference.safetensors"
    save_file({"images": load_file(ROOT / "images.safetensors")["images"][:66].clone()}, reference)
    extractors = {"ours": OURS, "ours, clean": {}, **{name: {"extractor": name} for name in PROGRAMS}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVALSVC_THREADS", "1")
        patch.setenv("EVALSVC_DATA_DIR", str(folder / "data"))
        patch.setenv("EVALSVC_ASSETS", str(inception_path.parent))
        return {
            name: run_task(pretrained(5), **{**TASK, "reference": str(reference), **given})
            for name, given in extractors.items()
        }


def metric(result: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    assert result["errors"] == {}
    [found] = result["metrics"]
    return found, result["protocols"][found["protocol"]]


@pytest.mark.parametrize(("program", "own"), [("torch-fidelity", "ours"), ("clean-fid", "ours, clean")])
def test_a_program_finds_what_evalsvc_finds(results: dict[str, dict[str, Any]], program: str, own: str) -> None:
    """From pixels to number: network, resizing and estimator are another code."""
    (found, _), (ours, _) = metric(results[program]), metric(results[own])
    assert found["value"] == pytest.approx(ours["value"], rel=2e-5)
    assert found["value"] != ours["value"]
    assert found["stderr"] == pytest.approx(ours["stderr"], rel=1e-4)
    shares = [item["fid64"] for item in results[program]["items"]["digits"]]
    assert sum(shares) / 66 == pytest.approx(found["value"], rel=1e-5)


def test_protocols_name_the_program_and_are_all_different(results: dict[str, dict[str, Any]]) -> None:
    assert len({metric(result)[0]["protocol"] for result in results.values()}) == 4
    keys = ("estimator", "program", "network", "resize")
    found = {name: [metric(results[name])[1].get(key) for key in keys] for name in PROGRAMS}
    layers = "torch-fidelity 0.4.0, its layers"
    assert found == {
        "clean-fid": ["fid64/1 by clean-fid 0.1.35", "clean-fid 0.1.35", layers, "pil-bicubic"],
        "torch-fidelity": ["fid64/1 by torch-fidelity 0.4.0", "torch-fidelity 0.4.0", None, "tf1-bilinear"],
    }
    assert metric(results["ours"])[1].keys().isdisjoint({"program", "network"})


def test_a_program_has_its_own_features_of_the_real_images(results: dict[str, dict[str, Any]]) -> None:
    """Kept features of another code would be a number that is neither's."""
    for result in results.values():
        assert len(result["provenance"]["digits"]["shards"]) == 2, "the first is that of the real images"


@pytest.mark.parametrize("task", [TASK, {"kind": "reconstruction", "images": DECODER, "decoder": DECODER}])
def test_a_program_resizes_in_its_own_way(task: Mapping[str, Any]) -> None:
    for name, program in PROGRAMS.items():
        [spec] = parse_suite({"tasks": [{**task, "extractor": name}]}, "test").tasks
        assert spec.parameters["resize"] == program.resize
        assert build_task(spec).resize == program.resize
    with pytest.raises(InvalidSuite, match=r"resize is pil-bicubic, but the program torch-fidelity resizes by tf1-bil"):
        parse_suite({"tasks": [{**task, "extractor": "torch-fidelity", "resize": "pil-bicubic"}]}, "test")


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_a_program_does_not_measure_is_measured_by_evalsvc(program: str) -> None:
    own = set(catalog.load("programs", program).metrics)
    metrics = {found.name: found for found in load_metrics(program=program)}
    assert set(metrics) == set(catalog.names("metrics"))
    assert {name for name, found in metrics.items() if found.program} == own
    for name in own:
        ours = catalog.load("metrics", name)
        described = next(found for found in DEFINITIONS if found.kind == "text_to_image" and name in found.names)
        assert (metrics[name].features, metrics[name].unit) == (ours.features, described.unit)
        assert (metrics[name].min_images, metrics[name].biased) == (ours.min_images, ours.biased)


def put_asset(folder: Path, name: str, content: bytes) -> None:
    path = folder / ASSETS[name].file
    path.write_bytes(content)
    record = {"name": name, "source": "", "source_sha256": "", "sha256": "", "size": len(content)}
    path.with_name(f"{path.name}.json").write_text(json.dumps(record))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_nvidias_program_is_preferred_where_it_was_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = nvidia_program(small_tensors(), tmp_path / "program.pt").read_bytes()
    monkeypatch.setattr(clean_fid, "INCEPTION_TORCHSCRIPT", hashlib.sha256(content).hexdigest())
    put_asset(tmp_path, "inception-torchscript", content)
    put_asset(tmp_path, "inception", b"no weights")
    settings = Settings(devices="cpu", threads=1, data_dir=str(tmp_path / "data"), assets=str(tmp_path))
    context = ShardContext(CheckpointRef(str(tmp_path / "of no use.pt")), settings, lambda done: None)
    features = FeaturePass(context, [ExtractorSpec("inception", "clean-fid", "pil-bicubic")], ["inception/2048"])
    assert features.identity("inception/2048")["network"].startswith("TorchScript ")
    assert features.lacks("inception/64") == "clean-fid gives no features 64, but 2048"
