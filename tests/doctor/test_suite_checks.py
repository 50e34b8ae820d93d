"""What `evalsvc suites check` finds, all of it at the first try."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import PIL.Image
import pytest
from benchmark_files import questions, write_benchmark
from miniature_run import DECODER
from pydantic import BaseModel

from evalsvc.assets import ASSETS
from evalsvc.config import Settings
from evalsvc.doctor.suite_checks import SuiteReport, check_suite_file
from evalsvc.errors import InvalidSuite
from evalsvc.installation import pip_install
from evalsvc.miniature import ROOT
from evalsvc.spec import catalog
from evalsvc.spec.images import PROGRAMS

PAIRS, TEXT = str(ROOT / "heldout_pairs.jsonl"), str(ROOT / "heldout_text.jsonl")
IMAGES, CLASSIFIER = str(ROOT / "images.safetensors"), str(ROOT / "classifier.safetensors")


def report(tmp_path: Path, *tasks: dict[str, Any], **settings: Any) -> SuiteReport:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"tasks": tasks}))
    folders = {"data_dir": str(tmp_path / "data"), "assets": str(tmp_path / "assets")}
    return check_suite_file(path, Settings(**{**folders, **settings}))


def problems(tmp_path: Path, *tasks: dict[str, Any], **settings: Any) -> str:
    return "\n".join(report(tmp_path, *tasks, **settings).problems)


def test_nothing_is_wrong_with_a_suite_that_can_run_and_is_there(tmp_path: Path) -> None:
    found = report(tmp_path, {"kind": "loss", "data": PAIRS}, {"kind": "completions"})
    assert (found.entries, found.problems) == (2, [])
    with pytest.raises(InvalidSuite, match="cannot be read"):
        check_suite_file(tmp_path / "nowhere.yaml", Settings())


def test_every_task_is_looked_at_whatever_is_wrong_with_another(tmp_path: Path) -> None:
    found = report(
        tmp_path,
        {"kind": "loss", "dat": PAIRS, "limt": 3, "limit": 0},
        {"kind": "los"},
        {"kind": "alignment", "data": "/path/to/pairs.jsonl", "tokenizer": "/nowhere.json"},
        {"kind": "loss", "data": "datasets:pairs.jsonl"},
        {"kind": "loss", "data": PAIRS},
    )
    expected = (
        "suite 'mine', task 1 (loss): no key is named 'dat'; did you mean 'data'",
        "suite 'mine', task 1 (loss): no key is named 'limt'; did you mean 'limit'",
        "suite 'mine', task 1 (loss): data: field required; limit: input should be greater",
        "suite 'mine', task 2: no task is named 'los'; did you mean 'loss'",
        "suite 'mine' has two tasks named 'loss'",
        "task 'alignment': data: /path/to/pairs.jsonl is a placeholder; replace it with your own path",
        "task 'alignment': tokenizer: /nowhere.json does not exist; correct the path",
        f"task 'loss': data: {tmp_path}/data/datasets/pairs.jsonl does not exist; add the file",
    )
    assert len(found.problems) == len(expected)
    for problem, words in zip(found.problems, expected, strict=True):
        assert words in problem


def test_assets_and_statistics_that_are_not_there_and_an_extractor_that_is_not_needed(tmp_path: Path) -> None:
    task = {"kind": "text_to_image", "samples": 4, "decoder": "movqgan-67", "reference": "coco"}
    found = problems(tmp_path, task)
    assert "decoder: no asset is named 'movqgan-67'; did you mean 'movqgan-67M'" in found
    assert "run: evalsvc assets pull inception" in found
    assert "reference: there are no statistics named 'coco'" in found
    assert "for a folder of images write its path with a slash: ./coco" in found
    assert "for a file or folder, write its path with a slash: ./movqgan-67" in found
    (tmp_path / "data" / "shared" / "statistics").mkdir(parents=True)
    (tmp_path / "data" / "shared" / "statistics" / "coco.npz").touch()
    assert "reference" not in problems(tmp_path, task).replace("reference import", "")
    captions = str(ROOT / "validation_captions.jsonl")
    alone = {"kind": "text_to_image", "captions": captions, "decoder": DECODER, "classifier": CLASSIFIER}
    assert problems(tmp_path, alone | {"metrics": ["agreement"]}) == ""
    assert "extractor: " in problems(tmp_path, alone)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_published_program_as_extractor(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's name is that of no asset; any of the assets that can hold the network's weights will do."""
    task = {"kind": "text_to_image", "samples": 4, "decoder": DECODER, "extractor": name}
    assert problems(tmp_path, task).startswith("task 'text_to_image': extractor: the asset inception (feature")
    for asset in PROGRAMS[name].assets:
        folder = tmp_path / asset
        folder.mkdir()
        (folder / ASSETS[asset].file).write_bytes(b"weights")
        record = {"name": asset, "source": "", "source_sha256": "", "sha256": "", "size": 7}
        (folder / f"{ASSETS[asset].file}.json").write_text(json.dumps(record))
        assert problems(tmp_path, task, assets=str(folder)) == ""
    lacking = PROGRAMS[name].modules[0]
    monkeypatch.setattr("evalsvc.doctor.suite_checks.find_spec", lambda module: None if module == lacking else module)
    found = problems(tmp_path, task, assets=str(folder))
    assert found == f"the extractor {name!r} needs the package {lacking!r}; run: {pip_install('reference')}"


def test_packages_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalsvc.doctor.suite_checks.find_spec", lambda name: None)
    task = {"kind": "text_to_image", "samples": 4, "decoder": DECODER, "clip": "clip-vit-b-32"}
    found = problems(tmp_path, task)
    assert f"a task needs the package 'torch'; run: {pip_install('worker')}" in found
    assert f"the parameter 'clip' needs the package 'transformers'; run: {pip_install('features')}" in found
    assert "pip install" not in problems(tmp_path, task, scheduler="tls://10.0.0.1:8786")


def test_benchmarks_that_cannot_be_asked(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"wrong": 1}\n')
    names = ["arc_esy", "cloze", {"name": "piqa", "data": str(tmp_path / "rows.jsonl")}]
    found = report(tmp_path, {"kind": "language", "benchmarks": names, "include_path": [str(ROOT)]}).problems
    assert len(found) == 2
    assert "no benchmark is named 'arc_esy'; did you mean 'arc_easy'" in found[0]
    assert "task 'language': benchmarks: benchmark 'piqa'" in found[1]
    write_benchmark(tmp_path, "sums", questions(3), doc_to_text="quetsion")
    misspelt = problems(tmp_path, {"kind": "language", "benchmarks": ["sums"], "include_path": [str(tmp_path)]})
    assert f"{tmp_path}/sums.jsonl, row 1 has no column 'quetsion', which `doc_to_text` names" in misspelt
    assert "did you mean 'question'" in misspelt


def lines(path: Path, *records: object) -> str:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return str(path)


def test_sequences_are_read_to_the_end(tmp_path: Path) -> None:
    """A suite that passed here failed in the queue."""
    for content, words in (
        ('{"text_ids": [1]}\n{"text_ids": [1, 2', "data.jsonl, line 2 is not valid JSON"),
        ('{"text": "a dog"}\n{"txt": "a", "codes": [1]}\n', "line 2 has neither `text_ids`, `text` nor `image_codes`"),
        ('{"text_ids": [1, -2]}\n', "line 1: `text_ids` holds -2, which is no token id"),
        ('{"image_codes": ["a"]}\n', "line 1: `image_codes` holds str; it must hold whole numbers only"),
        ("", "holds no records"),
    ):
        data = tmp_path / "data.jsonl"
        data.write_text(content)
        for kind in ("loss", "alignment"):
            assert words in problems(tmp_path, {"kind": kind, "data": str(data)})


def test_texts_hold_no_codes_except_behind_a_limit(tmp_path: Path) -> None:
    for task in ({"kind": "forgetting", "text": PAIRS}, {"kind": "loss", "data": PAIRS, "general_text": PAIRS}):
        assert "line 1 has image codes; give `" in problems(tmp_path, task)
    data = lines(tmp_path / "data.jsonl", {"text_ids": [1]}, {"text_ids": [1], "image_codes": [2]})
    task = {"kind": "forgetting", "text": data}
    assert problems(tmp_path, task | {"text_limit": 1}) == ""
    assert "line 2 has image codes" in problems(tmp_path, task | {"text_limit": 2})
    lines(tmp_path / "data.jsonl", {"text_ids": [1]}, {"text_ids": [-1]})
    assert "line 2: `text_ids` holds -1" in problems(tmp_path, task | {"text_limit": 1}), "an evaluation reads it too"


def test_more_samples_than_captions_and_images(tmp_path: Path) -> None:
    captions = lines(tmp_path / "c.jsonl", *({"text": "a", "image": f"{n}.png"} for n in range(85)))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    PIL.Image.new("RGB", (8, 8)).save(pictures / "0.png")
    sampled = {"kind": "text_to_image", "captions": captions, "decoder": DECODER, "extractor": "/x"}
    task = {"kind": "reconstruction", "images": str(pictures), "decoder": DECODER, "samples": 2, "extractor": None}
    for wrong, words in (
        (sampled | {"samples": 1000}, "c.jsonl has 85 captions, but 1,000 images are requested"),
        (sampled | {"samples": 9, "reference": str(pictures), "reference_of": "captions"}, "has no image '1.png'"),
        (sampled | {"classifier": CLASSIFIER}, "caption 1 has no label, which `by_category` and `classifier` need"),
        ({"kind": "loss", "data": captions, "images": str(pictures), "decoder": DECODER}, "has no image '1.png'"),
        (task, "`samples` is 2"),
    ):
        assert words in problems(tmp_path, wrong)
    (pictures / "1.png").write_bytes(b"<html>")
    assert "1.png is not a JPEG, PNG, WebP or BMP image" in problems(tmp_path, task)
    assert problems(tmp_path, task | {"samples": 1}) == "", "the second is not used"


def path_fields(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        models = [kind for kind in inner if issubclass(kind, BaseModel)]
        if "path" in (text := str(model.model_json_schema()["properties"][name])) or "'asset'" in text:
            yield f"{above}{name}"
        for kind in models:
            yield from path_fields(kind, f"{above}{name}.")


FIELDS = [
    (kind, field)
    for kind in catalog.COMPONENTS["tasks"]
    for field in path_fields(catalog.load("tasks", kind))
    if field not in ("include_path", "benchmarks", "benchmarks.data")  # lm-eval's, see above
]
NEEDED: dict[str, dict[str, Any]] = {
    "loss": {"data": PAIRS},
    "alignment": {"data": PAIRS},
    "language": {"benchmarks": ["cloze"], "include_path": [str(ROOT)]},
    "forgetting": {"text": TEXT},
    "text_to_image": {"samples": 4, "decoder": DECODER},
    "reconstruction": {"images": IMAGES, "decoder": DECODER, "extractor": None},
}

BESIDE: dict[tuple[str, str], dict[str, Any]] = {
    ("loss", "images"): {"decoder": DECODER},
    ("loss", "decoder"): {"images": IMAGES},
    ("loss", "decoder_config"): {"images": IMAGES, "decoder": DECODER},
}


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_every_file_of_every_task_is_opened(tmp_path: Path, kind: str, field: str) -> None:
    """By the reader of the evaluation: what is no file of its kind is found before the queue."""
    garbage = tmp_path / f"garbage{'.safetensors' if field in ('images', 'reference') else '.json'}"
    garbage.write_bytes(b'{"x": [')
    name, _, inner = field.partition(".")
    given = NEEDED.get(kind, {}) | BESIDE.get((kind, field), {})
    task = {"kind": kind, **given, name: {inner: str(garbage)} if inner else str(garbage)}
    found = report(tmp_path, task).problems
    assert any(f"task '{kind}': {field}: " in problem and "garbage" in problem for problem in found), found


def test_a_file_that_takes_long_is_read_in_part_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalsvc.doctor.suite_checks.SECONDS", -1.0)
    found = report(tmp_path, {"kind": "loss", "data": PAIRS})
    assert found.problems == []
    [note] = found.notes
    assert note == f"task 'loss': data: the first 1 records of {PAIRS} were read in -1 s, and not the rest"
