"""Images from captions on the bundled run: what moves them and what does not."""

import io
import json
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decode_paths import recorded_cuda
from metric_items import value_of_items
from miniature_run import DECODER, pretrained
from PIL import Image
from safetensors.torch import load_file, save_file
from square_features import offer_squares
from task_runs import error, notes, run_stage
from tiny_vision import write_clip

from evalsvc.config import Settings
from evalsvc.decoders import ImageDecoder
from evalsvc.miniature import ROOT
from evalsvc.sampling.sampler import Sampler
from evalsvc.spec import looks as looks_module
from evalsvc.spec.suite import parse_suite
from evalsvc.tasks.image_measures import load_metrics
from evalsvc.tasks.reference_statistics import import_npz
from evalsvc.tasks.text_to_image import pipeline as image_pipeline
from evalsvc.tasks.text_to_image import prompts
from evalsvc.tasks.text_to_image.pipeline import Background
from evalsvc.tasks.text_to_image.spec import TextToImage
from evalsvc.tasks.text_to_image.work import TextToImageWork
from evalsvc.worker.local import run_suite

TASK: Mapping[str, Any] = {
    "kind": "text_to_image",
    "name": "digits",
    "captions": str(ROOT / "captions.jsonl"),
    "samples": 66,
    "decoder": DECODER,
    "classifier": str(ROOT / "classifier.safetensors"),
    "extractor": "squares",
    "metrics": ["fid64"],
    "batch": 22,
    "keep": 10,
}

IMAGES = load_file(ROOT / "images.safetensors")["images"]

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def module_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reference's statistics are kept, for all of these tests; and their reference, 120 images of digits."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "datasets").mkdir()
    save_file({"images": IMAGES[:120].clone()}, folder / "datasets" / "reference.safetensors")
    return folder


@pytest.fixture
def evaluate(module_data: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    offer_squares(monkeypatch)
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(module_data))

    def run(interim: Any = None, layout: Mapping[str, Any] | None = None, **parameters: Any) -> dict[str, Any]:
        reference = {"reference": str(module_data / "datasets" / "reference.safetensors")}
        suite = parse_suite({"tasks": [{**TASK, **reference, **parameters}]}, "test")
        return run_suite(suite, pretrained(5, **(layout or {})), lambda *_: None, interim=interim).model_dump()

    return run


def values(result: Mapping[str, Any]) -> dict[str, float]:
    assert result["errors"] == {}
    return {metric["name"]: metric["value"] for metric in result["metrics"]}


def codes(result: Mapping[str, Any]) -> list[str]:
    return [item["codes"] for item in result["items"]["digits"]]


def test_shards_move_neither_tokens_nor_numbers_and_the_reference_is_computed_once(evaluate: Evaluate) -> None:
    whole = evaluate(shard_size=66)
    assert len(whole["provenance"]["digits"]["shards"]) == 3, "120 reference images make two, which come first"
    assert ([shape["batch"] for shape in sampling(whole)["batches"]], sampling(whole)["path"] != "") == ([22], True)
    assert (sampling(whole)["bucket"], sampling(whole)["noise"] != "") == (16, True)
    parts = evaluate(shard_size=22)
    assert len(parts["provenance"]["digits"]["shards"]) == 3, "the reference's statistics are known by now"
    assert codes(parts) == codes(whole)
    assert values(parts) == pytest.approx(values(whole), rel=1e-9)
    assert values(whole)["digits/agreement"] > 0.7
    fid, agreement = whole["metrics"]
    fid_protocol, agreement_protocol = (whole["protocols"][metric["protocol"]] for metric in (fid, agreement))
    added = {"estimator", "extractor", "resize", "reference", "n"}
    assert set(fid_protocol) - set(agreement_protocol) == added, "agreement does not depend on real images"
    assert (fid_protocol["n"], fid_protocol["reference"]["n"]) == (66, 120)


@pytest.mark.usefixtures("many_cases")
def test_each_guidance_scale_is_a_series_of_its_own(evaluate: Evaluate) -> None:
    result = evaluate(guidance_scale=[1, 3], samples=24, keep=2, metrics=[])
    for metric, scale in zip(result["metrics"], (1, 3), strict=True):
        assert metric["items"] == [f"agrees@{scale}"], "a prompt has two items"
        assert metric["value"] == pytest.approx(value_of_items(metric, result["items"]["digits"]))
        assert result["protocols"][metric["protocol"]]["sampling"]["guidance_scale"] == scale
    names = {artifact["name"] for artifact in result["artifacts"]["digits"]}
    assert names == {f"guidance-{scale}-{name}.png" for scale in (1, 3) for name in ("grid", "00000", "00001")}
    assert codes(evaluate(guidance_scale=3, samples=24, keep=0, metrics=[])) == codes(result)[24:]


def test_the_first_images_are_kept_lossless_with_what_they_were_made_from(evaluate: Evaluate) -> None:
    grid, *samples = evaluate(samples=24, metrics=[])["artifacts"]["digits"]
    prompt = json.loads((ROOT / "captions.jsonl").read_text().splitlines()[0])["text"]
    assert (len(samples), samples[0]["details"]["prompt"], samples[0]["details"]["seed"]) == (10, prompt, 0)
    whole, first = (Image.open(io.BytesIO(artifact["content"])) for artifact in (grid, samples[0]))
    assert whole.size == (8 * 32, 2 * 32)
    assert whole.crop((0, 0, 32, 32)).tobytes() == first.tobytes()


def test_captions_that_are_repeated_or_long(evaluate: Evaluate, tmp_path: Path) -> None:
    lines = [{"text": text} for text in ("the digit 7", "the digit 7", "", "seven " * 100)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = evaluate(captions=str(tmp_path / "captions.jsonl"), samples=None, classifier=None, metrics=[])
    assert codes(result)[0] != codes(result)[1]
    assert notes(result) == {"images": 4, "captions_cut": 1, "left_out": {}, "details": {}}


def test_another_tokenizer_is_another_protocol(evaluate: Evaluate, tmp_path: Path) -> None:
    """The layout's digest leaves out where its tokenizer lies, and the captions' texts stay the same."""
    other = json.loads((ROOT / "tokenizer.json").read_text())
    other["model"]["merges"] = other["model"]["merges"][:10]
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    tokenizers = (None, str(ROOT / "tokenizer.json"), str(tmp_path / "tokenizer.json"))
    own, same, moved = (set(evaluate(samples=8, keep=0, tokenizer=one, metrics=[])["protocols"]) for one in tokenizers)
    assert (own == same, own.isdisjoint(moved)) == (True, True)


def test_a_reference_that_changes_after_planning_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_squares(monkeypatch)
    task = {**TASK, "reference": reference_folder(tmp_path, 2)}
    [shard] = [shard for shard in run_stage("plan", pretrained(5), **task).shards if shard["part"] == "reference"]
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "reference" / "1.png")
    assert run_stage("run", pretrained(5), None, [shard], **task).code == "data_changed"


def test_agreement_alone_needs_labels_but_no_reference_and_no_extractor(evaluate: Evaluate, tmp_path: Path) -> None:
    assert set(values(evaluate(metrics=["agreement"], samples=8, keep=0))) == {"digits/agreement"}
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"text": "the digit 7", "label": 7}\n{"text": "the digit 7"}\n')
    found = error(evaluate(captions=str(captions), samples=None))
    assert "caption 2 has no label, which `by_category` and `classifier` need; add it" in found
    found = error(evaluate(layout={"image": {"offset": 512, "size": 32}}))
    assert "checkpoint has 32 image ids from row 512 on, but the decoder " in found


def test_what_cannot_be_measured_is_left_out_with_the_reason(evaluate: Evaluate, tmp_path: Path) -> None:
    """Without a list of metrics all are measured for which there is what they need; one that is named must be."""
    reference = reference_folder(tmp_path, 12)
    result = evaluate(metrics=None, reference=reference, samples=20, classifier=None)
    found = {"coverage", "density", "kid", "precision", "recall"}
    assert set(values(result)) == {f"digits/{name}" for name in found}
    left_out, reason = notes(result)["left_out"], "it needs 2,049 images, but there are 20"
    assert (left_out["fid"], left_out["clip_score"]) == (reason, "there is no `clip`")
    assert set(left_out) == {metric.name for metric in load_metrics()} - found
    warnings = {warning["metric"]: warning["message"] for warning in result["warnings"]["digits"]}
    assert warnings["digits/fid"] == f"fid is left out: {reason}; use more images, or set `metrics`"
    assert not any("clip" in message for message in warnings.values()), "nobody gave one"
    assert evaluate(metrics=["kid"], reference=reference, samples=20)["warnings"] == {}, "what is named is all"
    assert "it needs 2,049 images" in error(evaluate(metrics=["fid"]))
    assert "there is no `reference`" in error(evaluate(reference=None))


def test_metrics_of_further_networks(evaluate: Evaluate, tmp_path: Path) -> None:
    """Those of CLIP and DINOv2 come from folders; a similarity with the caption depends on no real image."""
    (clip := tmp_path / "clip").mkdir()
    parameters = {"reference": reference_folder(tmp_path, 12), "clip": str(write_clip(clip)), "classifier": None}
    result = evaluate(metrics=["clip_s", "clip_score", "cmmd"], samples=24, keep=0, **parameters)
    assert [metric["name"] for metric in result["metrics"]] == ["digits/clip_s", "digits/clip_score", "digits/cmmd"]
    prefixed, score, cmmd = (result["protocols"][metric["protocol"]] for metric in result["metrics"])
    assert set(cmmd) - set(score) == {"reference", "n"}
    assert (prefixed.pop("estimator"), score.pop("estimator"), prefixed == score) == ("clip_s/1", "clip_score/1", True)
    found = error(evaluate(metrics=["fd_dinov2"], samples=24, **parameters))
    assert "fd_dinov2 cannot be measured: there is no `dinov2`" in found


def reference_folder(tmp_path: Path, count: int) -> str:
    (folder := tmp_path / "reference").mkdir()
    for index, pixels in enumerate(IMAGES[:count]):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    return str(folder)


def test_imported_statistics_bear_no_metric_that_needs_the_images(evaluate: Evaluate, module_data: Path) -> None:
    source = module_data / "theirs.npz"
    np.savez(source, mu=np.zeros(64), sigma=np.eye(64))
    import_npz(source, "theirs", Settings.load(data_dir=str(module_data)).statistics_path)
    result = evaluate(metrics=None, reference="theirs", keep=0, classifier=None)
    [protocol] = result["protocols"].values()
    assert (set(values(result)), set(protocol["reference"])) == ({"digits/fid64"}, {"imported"})
    assert notes(result)["left_out"]["kid"] == "the imported statistics 'theirs' have no features"


def test_the_reference_may_be_the_images_of_the_chosen_captions(evaluate: Evaluate) -> None:
    captions = {"reference": str(ROOT / "images.safetensors"), "reference_of": "captions", "samples": 20, "keep": 0}
    result = evaluate(metrics=["kid"], select="one_per_image", select_seed=3, classifier=None, **captions)
    [protocol] = result["protocols"].values()
    assert (protocol["reference"]["n"], protocol["select"]) == (20, {"rule": "one_per_image", "seed": 3})
    other = evaluate(select="one_per_image", select_seed=4, metrics=[], **captions)
    assert {item["id"] for item in result["items"]["digits"]} != {item["id"] for item in other["items"]["digits"]}


@pytest.fixture(params=[False, True], ids=["in turn", "overlapped"])
def overlap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlapped, a batch is decoded when the next one has been drawn: chance does not choose what is in memory."""
    monkeypatch.setattr(image_pipeline, "overlaps", lambda device: request.param)
    if request.param:
        is_awaited, wait, run = threading.Event(), Background.wait, Background._run

        def run_late(*arguments: Any) -> None:
            assert is_awaited.wait(60)
            run(*arguments)

        def let_run(self: Background) -> None:
            is_awaited.set()
            try:
                wait(self)
            finally:
                is_awaited.clear()

        monkeypatch.setattr(Background, "_run", run_late)
        monkeypatch.setattr(Background, "wait", let_run)


def test_overlapping_moves_neither_order_nor_numbers(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU what follows sampling runs in another thread, a batch behind."""
    parameters: dict[str, Any] = {"samples": 20, "batch": 8, "keep": 12, "metrics": ["kid"]}
    plain, threads, add = evaluate(**parameters), set(), image_pipeline.PostProcessing.add

    def watched(*arguments: Any) -> None:
        threads.add(threading.current_thread().name)
        add(*arguments)

    monkeypatch.setattr(image_pipeline.PostProcessing, "add", watched)
    monkeypatch.setattr(image_pipeline, "overlaps", lambda device: True)
    overlapped = evaluate(**parameters)
    assert threads == {"post-processing_0"}
    for part in ("metrics", "items", "artifacts"):
        assert overlapped[part] == plain[part]


def require_memory(monkeypatch: pytest.MonkeyPatch, fits: Callable[[int], bool]) -> None:
    decode = ImageDecoder.decode

    def decode_if_it_fits(self: ImageDecoder, codes: torch.Tensor, grid: Any = None) -> torch.Tensor:
        if not fits(len(codes)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return decode(self, codes, grid)

    monkeypatch.setattr(ImageDecoder, "decode", decode_if_it_fits)


def sampling(result: Mapping[str, Any]) -> dict[str, Any]:
    return result["provenance"]["digits"]["shards"][-1]["sampling"]


@pytest.mark.usefixtures("many_cases", "overlap")
def test_fewer_images_are_sampled_for_memory(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters: dict[str, Any] = {"samples": 56, "batch": 16, "keep": 0, "metrics": ["kid"]}
    plain, make = evaluate(**parameters), Sampler.__init__
    samplers: weakref.WeakSet[Sampler] = weakref.WeakSet()

    def watched(self: Sampler, *arguments: Any) -> None:
        make(self, *arguments)
        samplers.add(self)

    monkeypatch.setattr(Sampler, "__init__", watched)
    require_memory(monkeypatch, lambda images: all(sampler.spec.batch <= 4 for sampler in samplers))
    found = evaluate(**parameters)
    assert codes(found) == codes(plain)
    assert values(found) == pytest.approx(values(plain), rel=1e-4)
    assert sampling(found)["decoded_at_once"] == 1
    batches = [(shape["batch"], shape["reason"]) for shape in sampling(found)["batches"]]
    assert batches == [(16, "declared"), *((batch, "out of memory in decoding") for batch in (8, 4))]


@pytest.mark.usefixtures("overlap")
def test_images_that_are_done_are_not_done_again(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out in the second half of a batch: its first half would have its features twice."""
    decoded: list[int] = []
    fits = iter([False, True, False])
    require_memory(monkeypatch, lambda images: decoded.append(images) or next(fits, True))
    result = evaluate(captions=None, classifier=None, samples=8, batch=8, keep=0, metrics=[])
    assert len(set(codes(result))) == 8, "images without text are prompts of their own"
    assert decoded == [8, 4, 4, 2, 2]
    assert [shape["reason"] for shape in sampling(result)["batches"]] == ["declared"]


@pytest.mark.usefixtures("overlap")
def test_as_many_images_are_decoded_again_once(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that was short in one batch is there in the next; where it is short again, that number is given up."""
    decoded: list[int] = []
    fits = iter([False, True, True, False, True, True, True])
    require_memory(monkeypatch, lambda images: decoded.append(images) or next(fits, True))
    result = evaluate(captions=None, classifier=None, samples=24, batch=8, keep=0, metrics=[])
    assert decoded == [8, 4, 4, 8, 4, 4, 4, 4]
    assert sampling(result)["decoded_at_once"] == 4
    decoded.clear()
    fits = iter([False, True, True])
    result = evaluate(captions=None, classifier=None, samples=24, batch=8, keep=0, metrics=[])
    assert decoded == [8, 4, 4, 8, 8]
    assert sampling(result)["decoded_at_once"] == 4, "the provenance has the least number"


@pytest.mark.usefixtures("many_cases")
def test_shards_share_a_sampler_of_graphs(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU. The merge of the shards frees it."""
    monkeypatch.setattr("evalsvc.sampling.sampler.chosen_path", lambda *_: "graph")
    parameters: dict[str, Any] = {
        "samples": 40,
        "batch": 8,
        "keep": 0,
        "metrics": ["kid"],
        "guidance_scale": [1.0, 3.0],
    }
    whole, make, made = evaluate(**parameters, shard_size=40), Sampler.__init__, weakref.WeakSet()
    numbers = []

    def watched(self: Sampler, *arguments: Any) -> None:
        make(self, *arguments)
        numbers.append(len(made))
        made.add(self)

    monkeypatch.setattr(Sampler, "__init__", watched)
    shards = evaluate(**parameters, shard_size=16)
    assert len(sampling(whole)["batches"]) == 1
    assert (numbers, len(made)) == ([0, 0], 0), "one for each scale, and never two"
    for part in ("metrics", "items"):
        assert shards[part] == whole[part]


@pytest.mark.usefixtures("overlap")
def test_an_image_too_large_to_decode(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    require_memory(monkeypatch, lambda images: False)
    found = error(evaluate(samples=9, batch=4, metrics=[]))
    assert found.startswith("out_of_memory: memory ran out while one image was decoded")


CHANGES = [{"decoder_dtype": "bfloat16"}, {"dtype": "bfloat16"}, {"weights": "int8", "cache_dtype": "bfloat16"}]
CHANGES += [{"dtype": "bfloat16", "cache_dtype": "float8"}, {"decoder_dtype": "tf32"}]


@pytest.mark.usefixtures("many_cases")
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_rounder_numbers_have_series_of_their_own(evaluate: Evaluate, changes: dict[str, Any]) -> None:
    exact, rounded = (evaluate(samples=12, metrics=[], keep=0, **given) for given in ({}, changes))
    [plain], [protocol] = (result["protocols"].values() for result in (exact, rounded))
    assert protocol == {**plain, **changes} != plain
    assert values(rounded)["digits/agreement"] > 0.5
    if changes == {"decoder_dtype": "tf32"}:  # which a CPU does not have
        assert sampling(rounded)["decoder_error"]["maximum"] <= 1, "grey levels"
    elif "decoder_dtype" in changes:
        assert 0 < sampling(rounded)["decoder_error"]["mean"] < 2, "grey levels"


@pytest.mark.usefixtures("many_cases")
def test_images_of_another_size_are_resampled_by_a_filter_that_the_protocol_names(evaluate: Evaluate) -> None:
    parameters: dict[str, Any] = {"reference_size": 16, "samples": 12, "metrics": ["kid"], "keep": 0}
    found, other = (evaluate(filter=name, classifier=None, **parameters) for name in ("bicubic", "lanczos"))
    [protocol] = found["protocols"].values()
    assert protocol["compared"] == {"size": 16, "crop": "none", "filter": "bicubic"}
    assert protocol["reference"]["fit"]["size"] == 16
    assert values(found)["digits/kid"] != values(other)["digits/kid"]


def test_captions_are_tokenised_once_a_worker(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard of 30,000 prompts used to tokenise all of them again."""
    opened, encoder = [], prompts.TextEncoder
    monkeypatch.setattr(prompts, "TextEncoder", lambda *args: opened.append(args) or encoder(*args))
    result = evaluate(samples=7, shard_size=3, select="random", select_seed=99, metrics=[], keep=0)
    assert (len(result["provenance"]["digits"]["shards"]), len(opened)) == (3, 1)


@pytest.mark.parametrize(
    ("device", "parameters", "size"),
    [
        ("cpu", {"batch": 256}, 256),
        ("cuda:0", {"batch": 256}, 1024),
        ("cuda:0", {"batch": 96}, 384),
        ("cuda:0", {}, 264),
        ("cuda:0", {"batch": 64, "shard_size": 300}, 320),
        ("cuda:0", {"batch": 256, "until": {"metric": "fid64", "stderr": 1.0}}, 256),
    ],
)
def test_a_shard_on_a_gpu_is_several_whole_batches(device: str, parameters: dict[str, Any], size: int) -> None:
    """Where `until` may stop the task, a shard is the same everywhere: the stop depends on its size."""
    task = TextToImage.model_validate({key: value for key, value in {**TASK, **parameters}.items() if key != "kind"})
    assert TextToImageWork(task)._shard_size(device, 30_000) == size
    if size > 320:
        assert TextToImageWork(task)._shard_size(device, 1_000) < 300, "the shards are for several GPUs"


def test_results_stand_before_the_end(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Any] = []
    monkeypatch.setattr(looks_module, "FEWEST_UNITS", 20)
    evaluate(looks.append, samples=40, shard_size=20, keep=0, classifier=None, metrics=["kid"])
    [look] = looks
    assert (look.units, [metric["n"] for metric in look.result.output.metrics]) == (20, [20])


def test_the_background_has_one_stream_on_the_device_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread starts on the first GPU, and a stream made for every shard takes 32 MiB each time."""
    second, found = torch.device("cuda", 1), []
    with recorded_cuda(monkeypatch) as cuda:
        for _ in range(2):
            with Background(second, overlap=True) as background:
                background.submit(lambda: found.append((cuda.current.device, cuda.current.stream)))
    assert found == [(second, stream) for stream in cuda.streams] * 2
    with pytest.raises(ZeroDivisionError), Background(torch.device("cpu"), overlap=True) as background:
        background.submit(lambda: 1 / 0)
