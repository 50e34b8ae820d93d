import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from evalsvc import images
from evalsvc.errors import InvalidData
from evalsvc.images import Fit, load_image, read_images

RANDOM = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
"""Height 12, width 20."""


def save(folder: Path, name: str, image: Image.Image, **options: Any) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    image.save(path, **options)
    return path


def picture(**options: Any) -> Image.Image:
    return Image.fromarray(options.get("pixels", RANDOM))


def test_the_middle_square_is_cut_and_not_resampled(tmp_path: Path) -> None:
    """Pixels of an image that fits already reach the metric as they are."""
    path = save(tmp_path, "a.png", picture())
    assert np.array_equal(load_image(path, Fit(12)), RANDOM[:, 4:16].transpose(2, 0, 1))
    upright = save(tmp_path, "b.png", picture(pixels=RANDOM.transpose(1, 0, 2)))
    assert np.array_equal(load_image(upright, Fit(12)), RANDOM[:, 4:16].transpose(2, 1, 0))


@pytest.mark.parametrize(("crop", "filter_"), [("center", "bicubic"), ("none", "lanczos")])
def test_resampling_is_pillows(tmp_path: Path, crop: Any, filter_: Any) -> None:
    path = save(tmp_path, "a.png", picture())
    source = picture().crop((4, 0, 16, 12)) if crop == "center" else picture()
    expected = np.asarray(source.resize((8, 8), Image.Resampling[filter_.upper()])).transpose(2, 0, 1)
    assert np.array_equal(load_image(path, Fit(8, crop, filter_)), expected)


@pytest.mark.parametrize("margin", range(5))
def test_an_odd_margin_is_halved_as_torchvision_does_it_where_asked(tmp_path: Path, margin: int) -> None:
    """One image of COCO in eight would be cut one pixel away from where the published scripts cut it."""
    from torchvision.transforms import functional

    wide = Image.fromarray(RANDOM[:, : 12 + margin])
    for image, name in ((wide, "wide.png"), (wide.transpose(Image.Transpose.TRANSPOSE), "high.png")):
        expected = np.asarray(functional.center_crop(image, 12)).transpose(2, 0, 1)
        found = load_image(save(tmp_path, name, image), Fit(12, "center-torchvision"))
        assert np.array_equal(found, expected)
        assert np.array_equal(found, load_image(tmp_path / name, Fit(12))) == (margin != 3)


def test_grey_palette_and_opaque_alpha_become_rgb(tmp_path: Path) -> None:
    grey = picture().convert("L")
    three = np.repeat(np.asarray(grey)[None, :, 4:16], 3, axis=0)
    assert np.array_equal(load_image(save(tmp_path, "l.png", grey), Fit(12)), three)
    palette = picture().convert("P")
    found = load_image(save(tmp_path, "p.png", palette), Fit(12))
    assert np.array_equal(found, np.asarray(palette.convert("RGB"))[:, 4:16].transpose(2, 0, 1))
    opaque = picture().convert("RGBA")
    assert np.array_equal(load_image(save(tmp_path, "a.png", opaque), Fit(12)), RANDOM[:, 4:16].transpose(2, 0, 1))


def test_the_cameras_orientation_is_applied(tmp_path: Path) -> None:
    """A photograph on its side would be measured, and encoded, as another image."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter
    path = save(tmp_path, "a.png", picture(), exif=exif)
    turned = np.rot90(RANDOM, k=-1)
    assert np.array_equal(load_image(path, Fit(12)), turned[4:16].transpose(2, 0, 1))


def write_bad(folder: Path, kind: str) -> Path:
    if kind == "truncated.jpg":
        path = save(folder, kind, picture().resize((200, 200)))
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "truncated.png":
        path = save(folder, kind, picture())
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "text.png":
        path = folder / kind
        path.write_text("no image")
    elif kind == "empty.jpg":
        path = folder / kind
        path.write_bytes(b"")
    elif kind == "frames.webp":
        path = save(folder, kind, picture(), save_all=True, append_images=[picture(pixels=RANDOM[::-1])])
    elif kind == "deep.png":
        path = save(folder, kind, picture(pixels=RANDOM[..., 0].astype(np.uint16) * 256))
    elif kind == "alpha.png":
        image = picture().convert("RGBA")
        image.putpixel((0, 0), (1, 2, 3, 200))
        path = save(folder, kind, image)
    elif kind == "key.png":
        path = save(folder, kind, picture().convert("P"), transparency=picture().convert("P").getpixel((0, 0)))
    else:
        path = save(folder, kind, picture().resize((1, 1) if kind == "one.png" else (5, 1)))
    return path


@pytest.mark.parametrize(
    ("kind", "fragment"),
    [
        ("truncated.jpg", "is not an image that can be read, or is truncated: "),
        ("truncated.png", "is not an image that can be read, or is truncated: "),
        ("text.png", "is not an image that can be read, or is truncated: cannot identify image file"),
        ("empty.jpg", "is not an image that can be read"),
        ("frames.webp", "has 2 frames; save the one that is meant"),
        ("deep.png", "has pixels of mode I;16; save it with 8 bits a channel"),
        ("alpha.png", "has an alpha channel that is not opaque (down to 200 of 255)"),
        ("key.png", "has an alpha channel that is not opaque (down to 0 of 255)"),
        ("one.png", "is 1×1; too small: an image has at least 2×2 pixels"),
        ("line.png", "is 5×1; too small"),
    ],
)
def test_bad_images_are_named(tmp_path: Path, kind: str, fragment: str) -> None:
    path = write_bad(tmp_path, kind)
    source = read_images(tmp_path)
    for load in (lambda: load_image(path, Fit(8)), lambda: list(source.batches([0], Fit(8), 2))):
        with pytest.raises(InvalidData) as caught:
            load()
        assert fragment in caught.value.message
        assert str(path) in caught.value.message


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"the image .*none\.png does not exist"):
        load_image(tmp_path / "none.png", Fit(8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("b.png", 12), ("a.JPG", 11), (".hidden.png", 12)):
        save(tmp_path / "images", name, picture(pixels=RANDOM[:rows]))
    save(tmp_path / "images" / "sub", "c.png", picture(pixels=RANDOM[:10]))
    (tmp_path / "images" / "list.txt").write_text("no image")
    return tmp_path / "images"


def test_a_folders_images_come_by_name_and_by_index(folder: Path) -> None:
    source = read_images(folder)
    assert [source.name(index) for index in range(len(source))] == ["a.JPG", "b.png", "sub/c.png"]
    assert source.index("sub/c.png") == source.index(2) == 2
    for image, fragment in (
        ("sub/d.png", "has no image 'sub/d.png'; did you mean 'sub/c.png'?"),
        ("../secret", "has no image '../secret'; it has 3, the first is 'a.JPG'"),
        (3, "has no image 3; it has the images 0…2"),
        (-1, "has no image -1"),
    ):
        with pytest.raises(InvalidData) as caught:
            source.index(image)
        assert fragment in caught.value.message


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "images.safetensors"
    save_file({"images": np.arange(5 * 3 * 8 * 8, dtype=np.uint8).reshape(5, 3, 8, 8)}, path)
    return path


def test_packed_images(packed: Path) -> None:
    source = read_images(packed)
    assert len(source) == 5
    assert source.index("3") == source.index(3) == 3
    assert source.name(3) == "3"
    assert np.array_equal(source.load(1, Fit(8)), np.arange(192, 384).astype(np.uint8).reshape(3, 8, 8))
    assert source.load(1, Fit(4)).shape == (3, 4, 4)
    for image, fragment in (("x.png", "has no names, so 'x.png' is none of its images"), (5, "has no image 5")):
        with pytest.raises(InvalidData, match=fragment):
            source.index(image)


@pytest.mark.parametrize(
    ("tensors", "fragment"),
    [
        ({"image": np.zeros((1, 3, 8, 8), np.uint8)}, "has no tensor `images`, found image"),
        ({"images": np.zeros((1, 3, 8, 8), np.float32)}, "`images` is F32 [1, 3, 8, 8]; it must be U8 [n, 3, height"),
        ({"images": np.zeros((1, 8, 8, 3), np.uint8)}, "`images` is U8 [1, 8, 8, 3]; it must be"),
        ({"images": np.zeros((0, 3, 8, 8), np.uint8)}, "n above 0"),
        ({"images": np.zeros((1, 3, 1, 1), np.uint8)}, "image 0 is 1×1; too small"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, tensors: dict[str, Any], fragment: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    with pytest.raises(InvalidData) as caught:
        read_images(path)
    assert fragment in caught.value.message
    assert str(path) in caught.value.message


def test_other_things_than_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("x")
    (tmp_path / "a.safetensors").write_text("x")
    (tmp_path / "folder").mkdir()
    for name, fragment in (
        ("none", "does not exist"),
        ("a.zip", "is neither a folder of images nor a .safetensors file"),
        ("a.safetensors", "is not a safetensors file"),
        ("folder", "holds no images; they are files named .jpg"),
    ):
        with pytest.raises(InvalidData, match=fragment):
            read_images(tmp_path / name)


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_keep_the_order(folder: Path, packed: Path, threads: int) -> None:
    """Read ahead by threads, and equal to one image after the other."""
    for path, order in ((folder, [2, 0, 1, 1]), (packed, [4, 0, 2])):
        source = read_images(path)
        slow = torch.from_numpy(np.stack([source.load(index, Fit(8)) for index in order]))
        for size in (1, 2, 7):
            found = list(source.batches(order, Fit(8), size, threads))
            assert [len(batch) for batch in found[:-1]] == [size] * (len(found) - 1)
            assert torch.equal(torch.cat(found), slow)


def test_reading_ahead_is_bounded_and_stops(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30,000 images are not held in memory, and a cancelled shard leaves no threads behind."""
    loaded = []
    load = images._Packed.load
    monkeypatch.setattr(images._Packed, "load", lambda *arguments: loaded.append(1) or load(*arguments))
    batches = read_images(packed).batches([0] * 100, Fit(8), 2, threads=2)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert len(loaded) <= 2 + 2 + 2 + 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def test_digests_are_of_content_and_order(folder: Path, packed: Path) -> None:
    """A renamed file keeps its size and time, so a listing that was kept would name a file that is not there."""
    source = read_images(folder)
    before = source.digest([0, 1])
    assert source.digest([1, 0]) != before
    assert source.digest([0]) != before
    (folder / "b.png").rename(folder / "other.png")
    assert read_images(folder).digest([0, 1]) == before
    save(folder, "other.png", picture(pixels=RANDOM[::-1]))
    assert read_images(folder).digest([0, 1]) != before
    assert read_images(packed).digest([0, 1]) != read_images(packed).digest([0, 2])


def test_real_photographs(shared: Path) -> None:
    source = read_images(shared / "golden" / "coco_smoke" / "images")
    assert len(source) == 85
    batches = list(source.batches(range(0, 85, 5), Fit(64), 4))
    assert [tuple(batch.shape) for batch in batches] == [(4, 3, 64, 64)] * 4 + [(1, 3, 64, 64)]
    assert len(source.digest(range(85))) == 64
