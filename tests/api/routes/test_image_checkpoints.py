"""Checkpoints that are images: what a post takes for images, what it refuses, and what strangers try."""

import base64
import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from app_in_process import App, app_in_process, refused
from migrated import empty
from safetensors.numpy import save_file

from evalsvc.files.manifest import write_manifest

IMAGES = {"family": "images"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with app_in_process(tmp_path_factory.mktemp("service") / "data", upload_bytes=10_000_000) as app:
        yield app


@pytest.fixture
def app(running: App) -> App:
    empty(running.store)
    return running


def upload(app: App, content: bytes) -> str:
    """Send a whole file; return the uri of its checkpoint."""
    sha256 = hashlib.sha256(content).hexdigest()
    metadata = f"sha256 {base64.b64encode(sha256.encode()).decode()}"
    created = app.http.post("/v1/uploads", headers={"Upload-Length": str(len(content)), "Upload-Metadata": metadata})
    headers = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
    sent = app.http.patch(created.headers["location"], content=content, headers=headers)
    assert sent.status_code in (204, 409), "409 if another test has sent the same"
    return f"upload:{sha256}"


def manifest_of(files: dict[str, bytes]) -> bytes:
    return write_manifest({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})


def picture(side: int = 4, colour: int = 90) -> bytes:
    stream = io.BytesIO()
    PIL.Image.new("RGB", (side, side), (colour, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def tar_of(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def as_folder(place: Path) -> Path:
    (place / "class0").mkdir(parents=True)
    (place / "class0" / "1.png").write_bytes(picture())
    return place


def as_tar(place: Path) -> Path:
    path = place.with_suffix(".tar")
    path.write_bytes(tar_of(("1.png", picture())))
    return path


def as_npz(place: Path) -> Path:
    np.savez(place.with_suffix(".npz"), np.zeros((2, 4, 4, 3), np.uint8))
    return place.with_suffix(".npz")


def as_safetensors(place: Path) -> Path:
    save_file({"images": np.zeros((2, 3, 4, 4), np.uint8)}, place.with_suffix(".safetensors"))
    return place.with_suffix(".safetensors")


def as_packed(place: Path) -> Path:
    place.mkdir()
    as_tar(place / "images")
    (place / "prompts.jsonl").write_text('{"text": "a cat"}\n')
    return place


@pytest.mark.parametrize("form", [as_folder, as_tar, as_npz, as_safetensors, as_packed])
def test_images_are_posted_by_path_without_a_model(app: App, tmp_path: Path, form: Callable[[Path], Path]) -> None:
    path = form(tmp_path / "samples")
    posted = app.post(str(path), model=None, suites=[])
    assert posted.status_code == 201, posted.text
    checkpoint = posted.json()["checkpoint"]
    assert (checkpoint["images"], checkpoint["model"]) == (True, IMAGES)
    assert app.post(str(path), model=None, suites=[]).status_code == 200, "the same again"
    [listed] = app.http.get("/v1/runs/run-a").json()["checkpoints"]
    assert listed["images"]
    refused(app.post(str(path), model="open_lm_160m", step=50), 422, "invalid_request", "leave model out")
    refused(app.post(str(path), layout={"text": {}}, model=None, step=50), 422, "invalid_request", "leave layout out")


def test_weights_with_pictures_near_them_stay_weights(app: App, tmp_path: Path) -> None:
    """The folder of a model of Hugging Face holds pictures for its page."""
    (folder := tmp_path / "model").mkdir()
    (folder / "page.png").write_bytes(picture())
    save_file({"weight": np.zeros(4, np.float32)}, folder / "model.safetensors")
    assert app.post(str(folder), suites=[]).json()["checkpoint"]["images"] is False
    (run := tmp_path / "run").mkdir()
    (run / "sample.png").write_bytes(picture())
    (run / "epoch_1.pt").write_bytes(b"PK\x03\x04")
    refused(app.post(str(run)), 422, "not_a_checkpoint", "it holds epoch_1.pt: post one")


def test_images_are_uploaded_and_dropped_with_their_checkpoint(app: App) -> None:
    files = {"images.tar": tar_of(("1.png", picture())), "prompts.jsonl": b'{"text": "a cat"}\n'}
    uri = upload(app, manifest_of(files))
    refused(app.post(uri, model="open_lm_160m"), 422, "invalid_request", "leave model out")
    refused(app.post(uri, model=None, suites=[]), 404, "upload_not_found", "images.tar, prompts.jsonl")
    for content in files.values():
        upload(app, content)
    posted = app.post(uri, model=None, suites=["images"])
    assert posted.status_code == 201, posted.text
    assert posted.json()["checkpoint"]["images"]
    spool = app.settings.data_path / "spool" / "1"
    assert {path.name for path in spool.rglob("*.*")} == {*files}
    assert app.post(uri, model=None, suites=["images"]).status_code == 200
    deleted = app.http.delete("/v1/checkpoints/1", params={"confirm": "run-a@25", "cancel": True})
    assert deleted.status_code == 200, deleted.text
    assert not spool.exists()


def test_a_suite_reads_what_the_checkpoint_is(app: App, tmp_path: Path, weights: Path) -> None:
    """A run of weights and images has one plan, and half of its evaluations would fail."""
    images = str(as_tar(tmp_path / "samples"))
    refused(app.post(images, model=None, suites=["images", "loss"]), 422, "invalid_request", "suite loss has no task")
    refused(app.post(str(weights), suites=["images"]), 422, "invalid_request", "reads weights, and the checkpoint is")
    plan = {"suites": [{"suite": name, "every": 1} for name in ("loss", "images")]}
    assert app.http.put("/v1/runs/run-a/plan", json=plan).status_code == 200
    for uri, fields, due in ((images, {"model": None, "variant": "flow"}, "images"), (str(weights), {}, "loss")):
        posted = app.post(uri, suites=None, **fields)
        assert [evaluation["suite"] for evaluation in posted.json()["evaluations"]] == [due], posted.text


def test_weights_do_not_become_images_by_their_model(app: App, weights: Path) -> None:
    answer = app.post(str(weights), model={"family": "images"}, suites=[])
    refused(answer, 422, "invalid_model_config", "hidden_dim is missing")


def test_images_have_no_weights_to_combine(app: App, tmp_path: Path) -> None:
    for step in (25, 50):
        assert app.post(str(as_tar(tmp_path / str(step))), model=None, step=step, suites=[]).status_code == 201
    answer = app.http.post("/v1/checkpoints", json={"uri": "lerp(run-a@25, run-a@50, 0.5)"})
    refused(answer, 422, "invalid_request", "run-a@25 is images, which have no weights")


def header_of(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


ATTACKS: dict[str, tuple[dict[str, bytes], str]] = {
    "text": ({"images.tar": b"no archive" * 100}, "ends in .tar and is no such file"),
    "compressed": ({"images.tar": b"\x1f\x8b" + bytes(600)}, "a .tar without compression"),
    "another kind": ({"images.npz": tar_of(("1.png", b"x"))}, "ends in .npz and is no such file"),
    "page": ({"images.parquet": b"<html>" * 10}, "ends in .parquet and is no such file"),
    "two archives": ({"images.tar": tar_of(), "images.npz": b"PK\x03\x04"}, "holds images.npz and other images"),
    "both forms": ({"images.tar": tar_of(), "1.png": picture()}, "holds images.tar and other images"),
    "weights": ({"images.tar": tar_of(), "other.pt": b"PK\x03\x04"}, "other.pt: post one"),
    "no images": ({"prompts.jsonl": b"{}"}, "it holds no weights"),
    "way out": ({"../images.tar": tar_of()}, "is no name of a file in the folder"),
    "control": ({"images\x1b[2J.png": picture()}, "is no name of a file in the folder"),
    "number for a header": ({"images.safetensors": header_of(b"5")}, "images.safetensors: post one of these files"),
    "list for a header": ({"images.safetensors": header_of(b"[[1]]")}, "images.safetensors: post one of these files"),
    "flood": ({f"{number}.png": b"x" for number in range(1001)}, "more than 1,000 files"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_uploads_that_are_no_images(app: App, attack: str) -> None:
    files, words = ATTACKS[attack]
    manifest = json.dumps({"files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}})
    uri = upload(app, manifest.encode())
    for content in {*files.values()}:
        upload(app, content)
    answer = app.post(uri, model=None, suites=[])
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["detail"]
    assert "/tmp" not in answer.text
    assert not list((app.settings.data_path / "spool").glob("[0-9]*"))


def linked(place: Path) -> Path:
    place.mkdir()
    (place / "1.png").symlink_to("/etc/passwd")
    return place


def looped(place: Path) -> Path:
    place.mkdir()
    (place / "images.tar").symlink_to("images.tar")
    return place


def piped(place: Path) -> Path:
    place.mkdir()
    os.mkfifo(place / "images.tar")
    return place


def flooded(place: Path) -> Path:
    place.mkdir()
    for number in range(5001):
        (place / f"{number}.png").touch()
    return place


def single(place: Path) -> Path:
    place.with_suffix(".png").write_bytes(picture())
    return place.with_suffix(".png")


def sparse(place: Path) -> Path:
    path = place.with_suffix(".tar")
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    return path


@pytest.mark.parametrize(
    ("attack", "code", "words"),
    [
        (linked, "checkpoint_not_allowed", "outside the allowed folders"),
        (looped, "invalid_data", "does not exist or cannot be read"),
        (piped, "invalid_data", "not a regular file"),
        (flooded, "not_a_checkpoint", "more than 5,000 files"),
        (single, "not_a_checkpoint", "is one image"),
        (sparse, "not_a_checkpoint", "ends in .tar and is no such file"),
    ],
)
def test_paths_that_are_no_images(
    start_app: Callable[..., App], tmp_path: Path, attack: Callable[[Path], Path], code: str, words: str
) -> None:
    app = start_app(roots=str(tmp_path))
    path = attack(tmp_path / "samples")
    began = time.process_time()
    answer = app.post(str(path), model=None, suites=[])
    assert time.process_time() - began < 2
    detail: dict[str, Any] = answer.json()
    assert (detail["code"], answer.status_code < 500) == (code, True), detail
    assert words in detail["detail"]
