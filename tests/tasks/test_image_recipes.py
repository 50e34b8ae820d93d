"""Published recipes: what they fix is what their own scripts do."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from metric_items import value_of_items
from miniature_run import DECODER, LAYOUT, pretrained
from nvidia_program import nvidia_program, small_tensors
from PIL import Image
from safetensors.torch import load_file, save_file
from smoke_images import torch_fidelity_weights
from task_runs import metrics, run_task
from torch import nn

from evalsvc.assets import ASSETS
from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.data.captions import read_captions
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.errors import InvalidSuite, UnknownName
from evalsvc.features import clean_fid
from evalsvc.miniature import ROOT
from evalsvc.spec import catalog
from evalsvc.spec.images import PROGRAMS
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.suite import build_task, parse_suite
from evalsvc.tasks.image_features import ExtractorSpec, FeaturePass
from evalsvc.tasks.image_measures import load_metrics
from evalsvc.tasks.image_recipes import PROTOCOLS, VAL2014, find_protocol
from evalsvc.tasks.text_to_image.prompts import PromptSpec, read_prompts
from evalsvc.tasks.text_to_image.spec import TextToImage
from evalsvc.worker.context import ShardContext

GIVEN: dict[str, Any] = {"kind": "text_to_image", "name": "coco", "captions": "/c.csv", "decoder": "movqgan-67M"}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_recipe_fills_in_what_it_fixes_and_a_smaller_trial_is_allowed(name: str) -> None:
    fields = {key: value for key, value in find_protocol(name).fields.items() if key in TextToImage.model_fields}
    assert find_protocol(name).fields.keys() - fields.keys() <= {"crop"}, "which is of external images"
    if "metrics" in fields:
        fields["metrics"] = [*fields["metrics"]]
    [spec] = parse_suite({"tasks": [{**GIVEN, "protocol": name, "reference": "/val2014"}]}, "own").tasks
    assert spec.parameters.items() >= fields.items()
    [again] = parse_suite({"tasks": [{"kind": spec.kind, "name": spec.name, **spec.parameters}]}, "own").tasks
    assert again == spec
    trial = parse_suite({"tasks": [{**GIVEN, "protocol": name, "reference": "/val2014", "samples": 100}]}, "own")
    assert trial.tasks[0].parameters["samples"] == 100
    more = parse_suite({"tasks": [{**GIVEN, "protocol": name, "reference": "/val2014", "metrics": ["kid"]}]}, "own")
    assert more.tasks[0].parameters["metrics"] == ["kid"], "which metrics is no part of how"


def test_only_the_whole_recipe_is_called_by_its_name(shared: Path) -> None:
    recipe = find_protocol("llamagen-coco")
    assert read_captions(shared / "golden" / "coco_smoke" / "prompts_30k.csv").digest == recipe.captions
    network = ASSETS["inception"].tensors
    assert list(recipe.deviations(recipe.captions, prompts=30_000, reference=VAL2014, extractor=network)) == []
    assert list(recipe.deviations("other", prompts=4_000, reference=None, extractor="random")) == [
        "4,000 images instead of 30,000",
        "prompts of another list",
        "an unknown number of real images, not 40,504",
        "another network than the asset inception",
    ]
    adm = find_protocol("adm-imagenet-50k")
    assert adm.called == "FID-50K"
    assert list(adm.deviations("", prompts=50_000, reference=None, extractor=network)) == []
    own = list(adm.deviations("", prompts=50_000, reference=10_000, extractor=network))
    assert own == ["moments of 10,000 real images, not a file's"]
    with pytest.raises(UnknownName, match="did you mean 'janus-coco'"):
        find_protocol("janus_coco")


def test_llamagens_script_step_by_step(
    shared: Path, inception_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of the bundled run against some of COCO, on the first 64 features: by the recipe, and by what
    `evaluations/t2i/evaluation.py` does with files in two folders, each step by the library that it calls. Of the
    photographs every one is there whose odd margin another crop would round to the other side."""
    monkeypatch.setenv("EVALSVC_ASSETS", str(inception_path.parent))
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for path in sorted((shared / "golden" / "coco_smoke" / "images").glob("*.jpg")):
        with Image.open(path) as image:
            if (image.width - image.height) % 4 in (1, 3):
                (photographs / path.name).symlink_to(path)
    recipe = {"protocol": "llamagen-coco", "samples": 70, "reference": str(photographs), "keep": 70}
    result = run_task(pretrained(5), **{**GIVEN, **CAPTIONS, **recipe})
    fakes = [artifact["content"] for artifact in result["artifacts"]["coco"] if artifact["kind"] == "sample"]
    assert len(fakes) == 70
    network = stem(torch_fidelity_weights(inception_path, tmp_path / "weights.pth"))
    theirs = cleanfid_distance(
        np.concatenate([script_features(network, io.BytesIO(content)) for content in fakes]),
        np.concatenate([script_features(network, path) for path in sorted(photographs.glob("*.jpg"))]),
    )
    assert metrics(result)["coco/fid64"]["value"] == pytest.approx(theirs, rel=1e-5)


def stem(weights: Path) -> nn.Sequential:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("theirs", ["64"], feature_extractor_weights_path=str(weights))
    layers = [module for name, module in network.named_children() if name != "fc"]
    return nn.Sequential(*layers[:4])


@torch.no_grad()
def script_features(network: nn.Module, file: Any) -> "np.ndarray[Any, Any]":  # [1, 64]
    from cleanfid.resize import build_resizer
    from torchvision.transforms import functional

    image = Image.fromarray(np.array(Image.open(file).convert("RGB")))
    image = functional.center_crop(image, min(image.size)).resize((256, 256), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(build_resizer("clean")(np.array(image))).permute(2, 0, 1)[None]
    return network((pixels - 128) / 128).mean((2, 3)).numpy()


def cleanfid_distance(fakes: "np.ndarray[Any, Any]", real: "np.ndarray[Any, Any]") -> float:
    from cleanfid.fid import frechet_distance

    moments = [(rows.mean(0), np.cov(rows, rowvar=False)) for rows in (fakes, real)]
    with pytest.warns(DeprecationWarning, match="disp"):
        distance = frechet_distance(*moments[0], *moments[1])
    return float(distance)


TOKENIZER = str(ROOT / "tokenizer.json")


def spec(bos: Any) -> PromptSpec:
    layout = parse_layout({**LAYOUT, "text": {**LAYOUT["text"], "bos": bos}}).resolve(583)
    return PromptSpec(str(ROOT / "captions.jsonl"), 2, "first", 0, TOKENIZER, bos, 64, layout, layout.digest)


def test_the_layouts_beginning_stands_before_captions_and_in_their_digest() -> None:
    """The layout's own digest is the same, so the cache of prompts must know of it too."""
    plain, begun = read_prompts(spec(None)), read_prompts(spec(3))
    for record, other in zip(plain.records, begun.records, strict=True):
        start = record.ids.index(read_tokenizer(TOKENIZER).encode(record.text)[0])
        assert other.ids == (*record.ids[:start], 3, *record.ids[start:])
    assert plain.digest != begun.digest
    assert read_prompts(spec("none")).digest == plain.digest


# published programs in the place of evalsvc's Inception

CAPTIONS = {"captions": str(ROOT / "captions.jsonl"), "decoder": DECODER, "metrics": ["fid64"]}
TASK: Mapping[str, Any] = {**GIVEN, **CAPTIONS, "name": "digits", "samples": 66, "keep": 0}
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
        task = {**TASK, "reference": str(reference)}
        return {name: run_task(pretrained(5), **{**task, **given}) for name, given in extractors.items()}


def metric(result: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    [found] = metrics(result).values()
    return found, result["protocols"][found["protocol"]]


@pytest.mark.parametrize(("program", "own"), [("torch-fidelity", "ours"), ("clean-fid", "ours, clean")])
def test_a_program_finds_what_evalsvc_finds(results: dict[str, dict[str, Any]], program: str, own: str) -> None:
    """From pixels to number: network, resizing and estimator are another code."""
    (found, _), (ours, _) = metric(results[program]), metric(results[own])
    assert found["value"] == pytest.approx(ours["value"], rel=2e-5)
    assert found["value"] != ours["value"]
    assert found["stderr"] == pytest.approx(ours["stderr"], rel=1e-4)
    assert value_of_items(found, results[program]["items"]["digits"]) == pytest.approx(found["value"], rel=1e-5)


def test_protocols_name_the_program_and_are_all_different(results: dict[str, dict[str, Any]]) -> None:
    # Kept features of another code would be a number that is neither's: each has a shard of the real images.
    assert [len(result["provenance"]["digits"]["shards"]) for result in results.values()] == [2] * 4
    keys = ("estimator", "program", "network", "resize")
    found = {name: [metric(results[name])[1].get(key) for key in keys] for name in PROGRAMS}
    layers = "torch-fidelity 0.4.0, its layers"
    assert found == {
        "clean-fid": ["fid64/1 by clean-fid 0.1.35", "clean-fid 0.1.35", layers, "pil-bicubic"],
        "torch-fidelity": ["fid64/1 by torch-fidelity 0.4.0", "torch-fidelity 0.4.0", None, "tf1-bilinear"],
    }
    assert metric(results["ours"])[1].keys().isdisjoint({"program", "network"})


@pytest.mark.parametrize("task", [TASK, {"kind": "reconstruction", "images": DECODER, "decoder": DECODER}])
def test_a_program_resizes_in_its_own_way(task: Mapping[str, Any]) -> None:
    for name, program in PROGRAMS.items():
        [spec] = parse_suite({"tasks": [{**task, "extractor": name}]}, "test").tasks
        assert spec.parameters["resize"] == build_task(spec).resize == program.resize
    with pytest.raises(InvalidSuite, match=r"resize is pil-bicubic, but the program torch-fidelity resizes by tf1-bil"):
        parse_suite({"tasks": [{**task, "extractor": "torch-fidelity", "resize": "pil-bicubic"}]}, "test")


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_a_program_does_not_measure_is_measured_by_evalsvc(program: str) -> None:
    by_name = {found.name: found for found in load_metrics(catalog.names("metrics"), program)}
    assert set(by_name) == set(catalog.names("metrics"))
    own = {name: found for name, found in by_name.items() if found.program}
    assert own.keys() == catalog.load("programs", program).metrics.keys()
    for name, found in own.items():
        ours = catalog.load("metrics", name)
        assert (found.features, found.unit, found.direction) == (ours.features, ours.unit, ours.direction)
        assert (found.min_images, found.biased) == (ours.min_images, ours.biased)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_nvidias_program_is_preferred_where_it_was_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = nvidia_program(small_tensors(), tmp_path / "program.pt").read_bytes()
    monkeypatch.setattr(clean_fid, "INCEPTION_TORCHSCRIPT", hashlib.sha256(content).hexdigest())
    for name, of_asset in (("inception-torchscript", content), ("inception", b"no weights")):
        (path := tmp_path / ASSETS[name].file).write_bytes(of_asset)
        record = {"name": name, "size": len(of_asset)} | dict.fromkeys(("source", "source_sha256", "sha256"), "")
        path.with_name(f"{path.name}.json").write_text(json.dumps(record))
    settings = Settings(devices="cpu", threads=1, data_dir=str(tmp_path / "data"), assets=str(tmp_path))
    context = ShardContext(CheckpointRef(str(tmp_path / "of no use.pt")), settings, lambda done: None)
    features = FeaturePass(context, [ExtractorSpec("inception", "clean-fid", "pil-bicubic")], ["inception/2048"])
    assert features.identity("inception/2048")["network"].startswith("TorchScript ")
    assert features.lacks("inception/64") == "clean-fid gives no features 64, but 2048"
