"""Images from captions on the bundled run: what moves them and what does not."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from metric_items import value_of_items
from PIL import Image

from evalsvc.checkpoints import CheckpointRef
from evalsvc.errors import InvalidSuite
from evalsvc.layout import parse_layout
from evalsvc.miniature import ROOT
from evalsvc.runner import run_shard, run_suite
from evalsvc.shard import ShardRequest
from evalsvc.suite import parse_suite

LAST = ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_5.pt"
TASK: Mapping[str, Any] = {
    "kind": "text_to_image",
    "name": "digits",
    "captions": str(ROOT / "captions.jsonl"),
    "samples": 96,
    "decoder": str(ROOT / "movqgan" / "movqgan_miniature.ckpt"),
    "reference": str(ROOT / "images.safetensors"),
    "classifier": str(ROOT / "classifier.safetensors"),
    "batch": 24,
    "keep": 10,
}

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reference's statistics are kept, for all of these tests."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def evaluate(inception_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Runs the task on the last checkpoint, with some parameters changed; the result of `evalsvc run`."""
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(data_dir))
    monkeypatch.setenv("EVALSVC_ASSETS", str(inception_path.parent))
    monkeypatch.setenv("EVALSVC_THREADS", "1")

    def run(layout: Mapping[str, Any] | None = None, **parameters: Any) -> dict[str, Any]:
        suite = parse_suite({"tasks": [{**TASK, **parameters}]}, "test")
        inline = layout or parse_layout(str(ROOT / "runs" / "layout.yaml"), ROOT).to_json()
        reference = CheckpointRef(path=str(LAST), layout=inline, label="run 'pretrained' step 2000")
        return run_suite(suite, reference, lambda task, done, total, unit: None)

    return run


def values(result: Mapping[str, Any]) -> dict[str, float]:
    assert result["errors"] == {}
    return {metric["name"]: metric["value"] for metric in result["metrics"]}


def codes(result: Mapping[str, Any]) -> list[str]:
    return [item["codes"] for item in result["items"]["digits"]]


def test_shards_move_neither_tokens_nor_numbers_and_the_reference_is_computed_once(evaluate: Evaluate) -> None:
    whole = evaluate()
    assert len(whole["provenance"]["digits"]["shards"]) == 1 + 2, "400 reference images make two shards"
    parts = evaluate(shard_size=32)
    assert len(parts["provenance"]["digits"]["shards"]) == 3, "the reference's statistics are known by now"
    assert codes(parts) == codes(whole)
    assert values(parts) == pytest.approx(values(whole), rel=1e-9)
    assert values(whole)["digits/agreement"] > 0.7
    fid, agreement = whole["metrics"]
    assert (fid["name"], fid["items"]) == ("digits/fid64", [])
    assert agreement["value"] == pytest.approx(value_of_items(agreement, whole["items"]["digits"]))
    assert fid["n"] == 96
    assert 0 < fid["stderr"] < fid["value"] < 1
    assert "digits/fid" not in values(whole), "96 images cannot bear 2,048 features"


def test_each_guidance_scale_is_a_series_of_its_own(evaluate: Evaluate) -> None:
    result = evaluate(guidance_scale=[1, 3], samples=24, keep=2)
    agreement = [metric for metric in result["metrics"] if metric["name"] == "digits/agreement"]
    assert len({metric["protocol"] for metric in agreement}) == 2
    assert [metric["items"] for metric in agreement] == [[], []], "a prompt has two items"
    scales = [result["protocols"][metric["protocol"]]["sampling"]["guidance_scale"] for metric in agreement]
    assert scales == [1.0, 3.0]
    names = {artifact["name"] for artifact in result["artifacts"]["digits"]}
    assert names == {f"guidance-{scale}-{name}.png" for scale in (1, 3) for name in ("grid", "00000", "00001")}
    alone = evaluate(guidance_scale=3, samples=24, keep=0)
    assert codes(alone) == codes(result)[24:]


def test_the_first_images_are_kept_lossless_with_what_they_were_made_from(evaluate: Evaluate, tmp_path: Path) -> None:
    result = evaluate(samples=24)
    grid, *samples = result["artifacts"]["digits"]
    assert len(samples) == 10
    assert samples[0]["details"]["prompt"] == json.loads((ROOT / "captions.jsonl").read_text().splitlines()[0])["text"]
    assert samples[0]["details"]["seed"] == 0
    (tmp_path / "grid.png").write_bytes(grid["content"])
    (tmp_path / "first.png").write_bytes(samples[0]["content"])
    with Image.open(tmp_path / "grid.png") as whole, Image.open(tmp_path / "first.png") as first:
        assert whole.size == (8 * 32, 2 * 32)
        assert whole.crop((0, 0, 32, 32)).tobytes() == first.tobytes()


def test_images_without_text_are_prompts_of_their_own(evaluate: Evaluate) -> None:
    result = evaluate(captions=None, classifier=None, samples=24)
    assert len(set(codes(result))) > 20
    assert set(values(result)) == set(), "24 images bear no distance"


def test_repeated_captions_are_different_images_and_long_ones_are_cut_and_counted(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    captions = tmp_path / "captions.jsonl"
    lines = [{"text": "the digit 7"}, {"text": "the digit 7"}, {"text": ""}, {"text": "seven " * 100}]
    captions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = evaluate(captions=str(captions), samples=None, classifier=None)
    first, second, *_ = codes(result)
    assert first != second
    assert result["provenance"]["digits"]["notes"] == {"images": 4, "captions_cut": 1, "distances": []}


def test_fewer_captions_than_images_that_are_asked_for_is_an_error(evaluate: Evaluate) -> None:
    error = evaluate(samples=1000)["errors"]["digits"]
    assert error["code"] == "invalid_data"
    assert "has 300 captions, 1,000 images are asked for; lower `samples`" in error["message"]


def test_a_size_that_does_not_divide_into_codes_is_refused(evaluate: Evaluate) -> None:
    error = evaluate(size=33, samples=4)["errors"]["digits"]
    assert error["code"] == "invalid_data"
    assert "images of 33x33 pixels do not divide into codes of 4x4" in error["message"]


def test_a_decoder_of_another_codebook_is_refused(evaluate: Evaluate) -> None:
    layout = parse_layout(str(ROOT / "runs" / "layout.yaml"), ROOT).to_json()
    layout["image"] = {"offset": 512, "size": 32}
    error = evaluate(layout=layout)["errors"]["digits"]
    assert error["code"] == "invalid_data"
    assert "checkpoint has 32 image ids from row 512 on, the decoder " in error["message"]
    assert "has 64 codes; choose the decoder" in error["message"]


def test_a_missing_asset_is_named_with_the_command(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EVALSVC_ASSETS", str(tmp_path / "none"))
    error = evaluate()["errors"]["digits"]
    assert error["code"] == "asset_missing"
    assert "evalsvc assets pull inception" in error["message"]


def test_another_tokenizer_is_another_protocol(evaluate: Evaluate, tmp_path: Path) -> None:
    """The layout's digest leaves out where its tokenizer lies, and the captions' texts stay the same."""
    other = json.loads((ROOT / "tokenizer.json").read_text())
    other["model"]["merges"] = other["model"]["merges"][:10]
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    protocols = [
        set(evaluate(samples=8, keep=0, tokenizer=tokenizer)["protocols"])
        for tokenizer in (None, str(ROOT / "tokenizer.json"), str(tmp_path / "tokenizer.json"))
    ]
    assert protocols[0] == protocols[1]
    assert protocols[0].isdisjoint(protocols[2])


def test_a_reference_that_changes_after_planning_is_noticed(
    inception_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EVALSVC_ASSETS", str(inception_path.parent))
    folder = tmp_path / "reference"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 32), "red").save(folder / name)
    suite = parse_suite({"tasks": [{**TASK, "reference": str(folder), "samples": 8}]}, "test")
    layout = parse_layout(str(ROOT / "runs" / "layout.yaml"), ROOT).to_json()
    checkpoint = CheckpointRef(path=str(LAST), layout=layout)
    plan = run_shard(ShardRequest(suite.tasks[0], "plan", checkpoint), lambda done: None)
    [shard] = [shard for shard in plan.output["shards"] if shard["part"] == "reference"]
    Image.new("RGB", (32, 32), "blue").save(folder / "b.png")
    result = run_shard(ShardRequest(suite.tasks[0], "run", checkpoint, [shard]), lambda done: None)
    assert result.error is not None
    assert result.error.code == "data_changed"


def test_labels_are_needed_by_the_classifier_only(evaluate: Evaluate, tmp_path: Path) -> None:
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"text": "the digit 7", "label": 7}\n{"text": "the digit 7"}\n')
    error = evaluate(captions=str(captions), samples=None)["errors"]["digits"]
    assert error["message"].endswith("caption 2 has no label, which `classifier` needs; leave it out")


def test_a_damaged_image_of_the_reference_is_named(evaluate: Evaluate, tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    folder.mkdir()
    Image.new("RGB", (40, 32)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    error = evaluate(reference=str(folder), samples=24)["errors"]["digits"]
    assert "b.png is not an image that can be read" in error["message"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"captions": None, "samples": None}, "give `captions`, or `samples`"),
        ({"guidance_scale": [1, -2]}, "guidance_scale is -2"),
    ],
)
def test_parameters_are_checked_when_the_suite_is_given(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSuite, match=message):
        parse_suite({"tasks": [{**TASK, **parameters}]}, "test")
