"""Images and prompts that a script has at hand become the folder of two files that is uploaded."""

import io
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from app_in_process import app_in_process

from evalsvc.client import Client
from evalsvc.client.images import packed
from evalsvc.errors import InvalidRequest


def pixels_of(archive: Path) -> dict[str, list[list[list[int]]]]:
    with tarfile.open(archive) as members:
        return {
            member.name: np.asarray(PIL.Image.open(io.BytesIO(members.extractfile(member).read()))).tolist()  # type: ignore[union-attr]
            for member in members
        }


def arrays(count: int, side: int = 5) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side + 1, 3)).astype(np.uint8))


def pictures(count: int) -> list[PIL.Image.Image]:
    return [PIL.Image.fromarray(array) for array in arrays(count)]


def test_images_in_memory_are_packed_without_loss() -> None:
    given = arrays(3)
    with packed(pictures(3), ["a cat", 'a "dog"\n', ""]) as folder:
        assert pixels_of(folder / "images.tar") == {f"{n}.png": array.tolist() for n, array in enumerate(given, 1)}
        lines = (folder / "prompts.jsonl").read_text()
    assert lines == '{"text": "a cat"}\n{"text": "a \\"dog\\"\\n"}\n{"text": ""}\n'
    assert not folder.exists()


def test_a_folder_is_packed_the_same_way_twice(tmp_path: Path) -> None:
    """An upload that was posted before would be sent again if the archive held times or owners."""
    (folder := tmp_path / "samples" / "b").mkdir(parents=True)
    for path in (folder / "2.PNG", folder.parent / "10.png", folder.parent / ".hidden.png"):
        PIL.Image.fromarray(arrays(1)[0]).save(path, "PNG")
    (folder.parent / "prompts.csv").write_text("id,prompt\n2,a cat\n10,a dog\n")
    (folder.parent / "log.txt").write_text("not sent")
    with packed(folder.parent, None) as first:
        content = (first / "images.tar").read_bytes()
        assert sorted(path.name for path in first.iterdir()) == ["images.tar", "prompts.csv"]
        assert list(pixels_of(first / "images.tar")) == ["10.png", "b/2.PNG"]
    for path in (*folder.iterdir(), *folder.parent.glob("*.png")):
        os.utime(path, (time.time() + 9, 9))
    with packed(str(folder.parent), str(folder.parent / "prompts.csv")) as second:
        assert (second / "images.tar").read_bytes() == content


def test_an_archive_is_not_copied(tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", np.stack(arrays(2)))
    with packed(tmp_path / "samples.npz", ["a", "b"]) as folder:
        assert (folder / "images.npz").readlink() == tmp_path / "samples.npz"
    assert (tmp_path / "samples.npz").exists()


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "samples.zip").write_bytes(b"PK\x03\x04")
    [image] = pictures(1)
    for images, prompts, words in (
        ([image], ["a", "b"], "a list of 2 texts for 1 images"),
        ([image], "prompts.csv", "the file prompts.csv for 1 images"),
        (arrays(1), ["a"], r"image 1 is ndarray; give images of PIL, such as Image.fromarray\(array\)"),
        (["1.png"], None, r"image 1 is str"),
        (tmp_path / "empty", None, "holds 0 image files, 0 archives"),
        (tmp_path / "samples.zip", None, "end in '.zip'; give .tar, .npz, .parquet, .safetensors"),
        (tmp_path / "nowhere.tar", None, "there is no file of images"),
    ):
        with pytest.raises(InvalidRequest, match=words), packed(images, prompts):
            pass


def test_logged_images_are_a_step_of_a_run(tmp_path: Path) -> None:
    with (
        app_in_process(tmp_path / "data", upload_bytes=1_000_000) as app,
        Client("http://evalsvc", transport=app.transport) as client,
    ):
        posted = client.log_images("flow", 400, pictures(2), ["a cat", "a dog"], suites=[], tags={"lr": "1e-4"})
        again = client.log_images("flow", 400, pictures(2), ["a cat", "a dog"], suites=[])
        checkpoint = posted.checkpoint
        assert (checkpoint.images, checkpoint.spool_state, checkpoint.tags) == (True, "ready", {"lr": "1e-4"})
        assert again.checkpoint.id == checkpoint.id
        [folder] = (app.settings.data_path / "spool" / "1").iterdir()
        assert {path.name for path in folder.iterdir()} == {"images.tar", "prompts.jsonl"}
