"""Published recipes: what they fix is what their own scripts do."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniature_run import DECODER, LAYOUT, pretrained
from PIL import Image
from smoke_images import torch_fidelity_weights
from task_runs import metrics, run_task
from torch import nn

from evalsvc.assets import ASSETS
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.errors import UnknownName
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.suite import parse_suite
from evalsvc.tasks.text_to_image.prompts import PromptSpec, read_prompts
from evalsvc.tasks.text_to_image.recipes import PROTOCOLS, VAL2014, find_protocol
from evalsvc.tasks.text_to_image.spec import TextToImage

GIVEN: dict[str, Any] = {"kind": "text_to_image", "name": "coco", "captions": "/c.csv", "decoder": "movqgan-67M"}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_recipe_fills_in_what_it_fixes_and_a_smaller_trial_is_allowed(name: str) -> None:
    fields = find_protocol(name).fields
    assert set(fields) <= set(TextToImage.model_fields)
    [spec] = parse_suite({"tasks": [{**GIVEN, "protocol": name, "reference": "/val2014"}]}, "own").tasks
    assert spec.parameters.items() >= fields.items()
    [again] = parse_suite({"tasks": [{"kind": spec.kind, "name": spec.name, **spec.parameters}]}, "own").tasks
    assert again == spec
    trial = parse_suite({"tasks": [{**GIVEN, "protocol": name, "samples": 100}]}, "own")
    assert trial.tasks[0].parameters["samples"] == 100


def test_only_the_whole_recipe_is_called_by_its_name() -> None:
    recipe = find_protocol("llamagen-coco")
    network = ASSETS["inception"].tensors
    assert list(recipe.deviations(recipe.captions, prompts=30_000, reference=VAL2014, extractor=network)) == []
    assert list(recipe.deviations("other", prompts=4_000, reference=None, extractor="random")) == [
        "4,000 prompts instead of 30,000",
        "prompts of another list",
        "an unknown number of real images, not 40,504",
        "another network than the asset inception",
    ]
    with pytest.raises(UnknownName, match="did you mean 'janus-coco'"):
        find_protocol("janus_coco")


def test_its_list_of_prompts_is_known(shared: Path) -> None:
    from evalsvc.data.captions import read_captions

    prompts = read_captions(shared / "golden" / "coco_smoke" / "prompts_30k.csv")
    assert prompts.digest == find_protocol("llamagen-coco").captions


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
    task = {
        **GIVEN,
        "protocol": "llamagen-coco",
        "captions": str(ROOT / "captions.jsonl"),
        "samples": 70,
        "decoder": DECODER,
        "reference": str(photographs),
        "metrics": ["fid64"],
        "keep": 70,
    }
    result = run_task(pretrained(5), **task)
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
