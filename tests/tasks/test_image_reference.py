"""References that state moments, or have a folder per category, as a task measures against them."""

import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from miniature_run import DECODER, pretrained
from PIL import Image
from safetensors.torch import load_file, save_file
from square_features import SquareFeatures, offer_squares

from evalsvc.config import Settings
from evalsvc.data.images import ImageSource, read_images
from evalsvc.errors import InvalidData
from evalsvc.files.opened import anywhere
from evalsvc.metrics.frechet import Moments
from evalsvc.miniature import ROOT
from evalsvc.spec.suite import parse_suite
from evalsvc.tasks.image_reference import categories_of, stated_in
from evalsvc.tasks.image_work import encode_image
from evalsvc.tasks.reference_statistics import import_npz
from evalsvc.worker.local import run_suite

IMAGES = load_file(ROOT / "images.safetensors")["images"]
Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    offer_squares(monkeypatch)
    monkeypatch.setenv("EVALSVC_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    task = {"kind": "text_to_image", "name": "digits", "captions": str(ROOT / "captions.jsonl"), "samples": 66}
    task |= {"decoder": DECODER, "extractor": "squares", "metrics": ["fid64", "kid"], "keep": 0}

    def run(**parameters: Any) -> dict[str, Any]:
        suite = parse_suite({"tasks": [{**task, **parameters}]}, "test")
        return run_suite(suite, pretrained(5), lambda *_: None).model_dump()

    return run


def values(result: Mapping[str, Any]) -> dict[str, float]:
    assert result["errors"] == {}
    return {metric["name"].partition("/")[2]: metric["value"] for metric in result["metrics"]}


def test_a_file_states_moments_and_its_images_give_the_features(evaluate: Evaluate, tmp_path: Path) -> None:
    """As ADM's: the moments are of other, more images. FID is that to the numbers, KID that to the images."""
    rows = SquareFeatures((64,)).features(IMAGES[60:400], "", [64])[64].numpy()
    moments = Moments.of(rows)
    numbers = {"mu": moments.mean, "sigma": moments.covariance}
    np.savez(tmp_path / "both.npz", arr_0=IMAGES[:60].permute(0, 2, 3, 1).numpy(), **numbers)
    np.savez(tmp_path / "numbers.npz", **numbers)
    save_file({"images": IMAGES[:60].clone()}, tmp_path / "images.safetensors")
    import_npz(tmp_path / "numbers.npz", "imported", Settings.load().statistics_path)
    both = evaluate(reference=str(tmp_path / "both.npz"))
    images = evaluate(reference=str(tmp_path / "images.safetensors"))
    only = [evaluate(reference=name, metrics=["fid64"]) for name in (str(tmp_path / "numbers.npz"), "imported")]
    assert [values(each)["fid64"] for each in only] == [values(both)["fid64"]] * 2
    assert values(both)["kid"] == pytest.approx(values(images)["kid"], rel=1e-6)
    assert values(both)["fid64"] != pytest.approx(values(images)["fid64"], rel=1e-3)
    [protocol, _] = [both["protocols"][metric["protocol"]]["reference"] for metric in both["metrics"]]
    imported = only[1]["protocols"][only[1]["metrics"][0]["protocol"]]["reference"]
    assert (protocol["n"], protocol["moments"]) == (60, imported["imported"])
    assert values(evaluate(reference=str(tmp_path / "both.npz"))) == values(both), "from kept features"
    for name in (str(tmp_path / "numbers.npz"), "imported"):
        assert "have no features" in str(evaluate(reference=name)["errors"])


def claim(path: Path, shape: tuple[int, ...]) -> None:
    """Write a file whose `mu` has a header of this shape, and no numbers."""
    header = str({"descr": "<f8", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as content:
        content.writestr("mu.npy", np.lib.format.magic(1, 0) + struct.pack("<H", len(header)) + header)
        content.writestr("sigma.npy", b"")


def test_a_hostile_file_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    """Shapes in headers, numbers of members, and what is no such file."""
    claim(tmp_path / "shape.npz", (1 << 40,))
    with zipfile.ZipFile(tmp_path / "flood.npz", "w") as content:
        for number in range(30_000):
            content.writestr(f"{number}.npy", b"")
    (tmp_path / "text.npz").write_text("mu")
    (tmp_path / "link.npz").symlink_to("/dev/zero")
    (tmp_path / "folder.npz").mkdir()
    for name in ("shape", "flood", "text", "link", "folder", "gone"):
        with pytest.raises(InvalidData, match=f"{name}.npz"):
            stated_in(tmp_path / f"{name}.npz", anywhere)


def test_fid_by_category_is_that_of_the_category_alone(evaluate: Evaluate, tmp_path: Path) -> None:
    """Labels are places of folders by name. A category of too few images has none."""
    captions = [json.loads(line) for line in (ROOT / "captions.jsonl").read_text().splitlines()[:160]]
    labels = {"b": 1, "a": 0, "few": 2}
    for index, caption in enumerate(captions):
        caption["label"] = 2 if index >= 150 else index % 2
    folders = {"a": IMAGES[:80], "b": IMAGES[80:150], "few": IMAGES[150:220]}
    for name, images in folders.items():
        (tmp_path / "real" / name).mkdir(parents=True)
        for index, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "real" / name / f"{index:03}.png")

    def measured(chosen: list[dict[str, Any]], folder: str, **parameters: Any) -> dict[str, Any]:
        path = tmp_path / f"captions of {folder.replace('/', ' ')}.jsonl"
        path.write_text("\n".join(map(json.dumps, chosen)))
        given = {"captions": str(path), "samples": None, "reference": str(tmp_path / folder), "metrics": ["fid64"]}
        return evaluate(**given, **parameters)

    whole = measured(captions, "real", by_category=True)
    alone = {
        name: values(measured([one for one in captions if one["label"] == labels[name]], f"real/{name}"))["fid64"]
        for name in ("a", "b")
    }
    found = values(whole)
    assert found.pop("fid64") not in found.values()
    assert found == pytest.approx({f"fid64_{name}": value for name, value in alone.items()}, rel=1e-5)
    [_, of_a, of_b] = whole["metrics"]
    assert (of_a["n"], of_b["n"]) == (75, 75)
    assert whole["protocols"][of_a["protocol"]]["category"] == "a"
    items = whole["items"]["digits"]
    assert np.mean([item["fid64_a"] for item in items if "fid64_a" in item]) == pytest.approx(found["fid64_a"])
    assert "needs a folder per category, 2 to 100" in str(measured(captions, "real/a", by_category=True)["errors"])
    captions[1]["label"] = None
    assert "caption 2 has no label, which `by_category`" in str(measured(captions, "real", by_category=True)["errors"])


def test_images_of_a_category_lie_together(tmp_path: Path) -> None:
    """The categories of a plan are ranges, since the images may be gone when the shards are merged."""
    content = encode_image(IMAGES[0].numpy())

    def source(*names: str) -> ImageSource:
        path = tmp_path / f"{'-'.join(names).replace('/', '.')}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"image": [content] * len(names), "id": names}), path)
        return read_images(path)

    assert categories_of(source("b/1", "b/2", "a/1")) == {"b": (0, 2), "a": (2, 3)}
    with pytest.raises(InvalidData, match="images of 'a' lie apart; sort the rows by folder"):
        categories_of(source("a/1", "b/1", "a/2"))
