"""External images: the numbers of sampled images without a model, and what is refused."""

import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from miniature_run import DECODER, pretrained
from PIL import Image
from safetensors.torch import load_file
from square_features import offer_squares
from task_runs import error, items, metrics, notes, run_stage, run_task

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.errors import InvalidSuite
from evalsvc.miniature import ROOT
from evalsvc.spec.suite import parse_suite

CAPTIONS = ROOT / "captions.jsonl"
COUNT = 40
TASK: Mapping[str, Any] = {
    "name": "digits",
    "samples": COUNT,
    "reference": str(ROOT / "images.safetensors"),
    "reference_of": "captions",
    "captions": str(CAPTIONS),
    "classifier": str(ROOT / "classifier.safetensors"),
    "extractor": "squares",
    "keep": COUNT,
}
IMAGES = load_file(ROOT / "images.safetensors")["images"]
PROMPTS = [json.loads(line) for line in CAPTIONS.read_text().splitlines()[:COUNT]]

Score = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _squares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offer_squares(monkeypatch)
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Real digits, named after prompts."""
    (folder := tmp_path / "given").mkdir()
    for prompt, pixels in zip(PROMPTS, IMAGES, strict=False):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{prompt['id']}.png")
    return folder


def score(path: Path, **parameters: Any) -> dict[str, Any]:
    return run_task(CheckpointRef(str(path), label="run 'flow' step 1"), **{**TASK, "kind": "images", **parameters})


def protocol(result: Mapping[str, Any], name: str = "digits/kid") -> dict[str, Any]:
    return dict(result["protocols"][metrics(result)[name]["protocol"]])


def test_sampled_images_have_the_same_numbers_as_external_images(tmp_path: Path) -> None:
    """Whatever measures images is the same code: values, errors, items and kept files are equal to the bit."""
    sampled = run_task(pretrained(5), **{**TASK, "kind": "text_to_image", "decoder": DECODER})
    (folder := tmp_path / "sampled").mkdir()
    for artifact in sampled["artifacts"]["digits"][1:]:
        (folder / f"{artifact['details']['id']}.png").write_bytes(artifact["content"])
    external = score(folder)
    theirs, ours = metrics(sampled), metrics(external)
    assert {"digits/kid", "digits/recall", "digits/agreement"} <= set(theirs)
    assert {name: {**metric, "protocol": ""} for name, metric in theirs.items()} == {
        name: {**metric, "protocol": ""} for name, metric in ours.items()
    }
    of_sampling = {"codes", "guidance_scale"}
    assert [{key: item[key] for key in item.keys() - of_sampling} for item in items(sampled)] == items(external)
    contents = [[file["content"] for file in result["artifacts"]["digits"]] for result in (sampled, external)]
    assert contents[0] == contents[1]
    how = protocol(external)
    assert (how["task"], how["sampling"], how["size"]) == ("images", "external", 32)
    about_sampling = {"task", "sampling", "prompts", "dtype", "rotary_inv_freq_dtype", "layout", "decoder"}
    theirs_of_measuring, ours_of_measuring = (
        {key: value for key, value in content.items() if key not in about_sampling}
        for content in (protocol(sampled), how)
    )
    assert theirs_of_measuring == ours_of_measuring
    assert external["checkpoint"]["sha256"]


def test_shards_and_forms_move_no_number(given: Path, tmp_path: Path) -> None:
    """A service gets images as an archive next to their prompts; two steps are one series, whatever the digests are."""
    (packed := tmp_path / "packed").mkdir()
    with tarfile.open(packed / "images.tar", "w") as archive:
        archive.add(given, ".")
    shutil.copy(CAPTIONS, packed / "prompts.jsonl")
    plain = score(given)
    for other in (score(given, shard_size=7), score(packed, captions=None)):
        assert [metric["value"] for metric in metrics(other).values()] == pytest.approx(
            [metric["value"] for metric in metrics(plain).values()], rel=1e-9
        )
        assert (other["protocols"], items(other)[0]["id"]) == (plain["protocols"], PROMPTS[0]["id"])


def test_images_without_prompts_are_one_series_under_any_names(given: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    for number, file in enumerate(sorted(given.iterdir())):
        shutil.copy(file, other / f"{number:05}.png")
    parameters = {"captions": None, "classifier": None, "reference_of": "all", "clip": "squares", "samples": None}
    first, second = (score(folder, **parameters) for folder in (given, other))
    assert "digits/clip_score" not in metrics(first)
    assert notes(first)["left_out"]["clip_score"] == "there are no captions"
    assert first["protocols"] == second["protocols"]
    assert metrics(first)["digits/kid"]["value"] == metrics(second)["digits/kid"]["value"]


def test_prompts_may_have_several_images_and_images_no_prompt(given: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS[:30]))
    first = PROMPTS[0]["id"]
    (given / f"{first}.png").rename(given / f"{first}_0.png")
    shutil.copy(given / f"{PROMPTS[1]['id']}.png", given / f"{first}_1.png")
    result = score(given, captions=str(tmp_path / "prompts.jsonl"), samples=None, metrics=["kid"])
    assert [item["id"] for item in items(result)[:3]] == [f"{first}_0", f"{first}_1", PROMPTS[1]["id"]]
    [warning] = result["warnings"]["digits"]
    assert (warning["code"], warning["message"].partition(";")[0]) == (
        "images_unused",
        "10 images belong to no prompt and are not measured",
    )


def test_images_have_one_size_unless_the_task_gives_it(given: Path) -> None:
    file = given / f"{PROMPTS[8]['id']}.png"
    Image.open(file).resize((64, 64)).save(file)
    told = error(score(given))
    assert told.startswith("invalid_data: run 'flow' step 1: ")
    assert told.endswith(f"{file.name} is 64×64, but the first is 32×32; set `reference_size` for one size")
    result = score(given, reference_size=32)
    assert protocol(result)["compared"] == {"size": 32, "crop": "none", "filter": "lanczos"}
    Image.open(file).crop((0, 0, 64, 48)).save(file)
    assert "is 64×48, not square; set `reference_size`, and `crop` to center or none" in error(score(given))
    squeezed, cropped = (score(given, reference_size=32, crop=crop) for crop in ("none", "center"))
    assert metrics(squeezed)["digits/kid"]["value"] != metrics(cropped)["digits/kid"]["value"]
    with pytest.raises(InvalidSuite, match="`crop` is given without `reference_size`; set `reference_size`, or remove"):
        parse_suite({"tasks": [{"kind": "images", "name": "x", "crop": "center"}]}, "test")


def test_images_that_change_after_planning_are_noticed(given: Path) -> None:
    task = {**TASK, "kind": "images", "metrics": []}
    *_, shard = run_stage("plan", CheckpointRef(str(given)), **task).shards
    Image.new("RGB", (32, 32), "blue").save(given / f"{PROMPTS[8]['id']}.png")
    assert run_stage("run", CheckpointRef(str(given)), None, [shard], **task).code == "data_changed"


def test_each_task_says_what_it_reads(given: Path) -> None:
    told = error(run_task(CheckpointRef(str(given), label="a"), kind="loss", name="x", data=str(ROOT / "pairs.jsonl")))
    assert told.startswith("not_a_checkpoint: a is images, and this task reads weights; evaluate it with tasks of kind")
    assert "; a task of kind images reads images and no weights" in error(score(Path(pretrained(5).path)))


def test_a_recipe_sets_what_is_measured_and_not_what_is_sampled() -> None:
    task = {"kind": "images", "name": "coco", "protocol": "llamagen-coco", "captions": "/prompts.csv"}
    [spec] = parse_suite({"tasks": [task]}, "test").tasks
    assert (spec.parameters["reference_size"], spec.parameters["samples"]) == (256, 30_000)
    assert "top_k" not in spec.parameters
