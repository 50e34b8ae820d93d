import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from evalsvc.config import Settings
from evalsvc.data import images
from evalsvc.data.images import load_image, read_images
from evalsvc.errors import InvalidData
from evalsvc.files.opened import Allow
from evalsvc.spec.images import Fit
from evalsvc.spec.paths import Readable

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


CONTENTS = {
    "text.png": b"no image",
    "empty.jpg": b"",
    # for which Pillow starts Ghostscript
    "program.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
}


def write_bad(folder: Path, kind: str) -> Path:
    path = folder / kind
    if kind in CONTENTS:
        path.write_bytes(CONTENTS[kind])
    elif kind.startswith("truncated"):
        save(folder, kind, picture().resize((200, 200)))
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "other.png":
        picture().save(path, "TIFF")
    elif kind == "bomb.png":
        save(folder, kind, picture().convert("1"))
        content = bytearray(path.read_bytes())
        content[16:24] = (60000).to_bytes(4) * 2
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
        path.write_bytes(content)
    elif kind == "large.bmp":
        save(folder, kind, picture())
        content = bytearray(path.read_bytes())
        content[18:26] = (10000).to_bytes(4, "little") + (9000).to_bytes(4, "little")
        path.write_bytes(content)
    elif kind == "frames.webp":
        save(folder, kind, picture(), save_all=True, append_images=[picture(pixels=RANDOM[::-1])])
    elif kind == "deep.png":
        save(folder, kind, picture(pixels=RANDOM[..., 0].astype(np.uint16) * 256))
    elif kind == "alpha.png":
        image = picture().convert("RGBA")
        image.putpixel((0, 0), (1, 2, 3, 200))
        save(folder, kind, image)
    elif kind == "key.png":
        save(folder, kind, picture().convert("P"), transparency=picture().convert("P").getpixel((0, 0)))
    else:
        save(folder, kind, picture().resize((1, 1) if kind == "one.png" else (5, 1)))
    return path


@pytest.mark.parametrize(
    ("kind", "fragment"),
    [
        ("truncated.jpg", "is not an image that can be read, or is truncated; save it again"),
        ("truncated.png", "is not an image that can be read, or is truncated; save it again"),
        ("text.png", "is not a JPEG, PNG, WebP or BMP image; save it as one of these"),
        ("empty.jpg", "is not a JPEG, PNG, WebP or BMP image"),
        ("other.png", "is not a JPEG, PNG, WebP or BMP image"),
        ("program.jpg", "is not a JPEG, PNG, WebP or BMP image"),
        ("bomb.png", "has too many pixels, more than the 89,478,485 that are decoded; give a smaller image"),
        ("large.bmp", "pixels, more than the 89,478,485 that are decoded"),
        ("frames.webp", "has 2 frames; save a single frame"),
        ("deep.png", "has pixels of mode I;16; save it with 8 bits per channel"),
        ("alpha.png", "has an alpha channel that is not opaque (down to 200 of 255)"),
        ("key.png", "has an alpha channel that is not opaque (down to 0 of 255)"),
        ("one.png", "is 1×1, which is too small; give at least 2×2 pixels"),
        ("line.png", "is 5×1, which is too small"),
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
        (3, "has no image 3; give one of 0…2"),
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
        ({"image": np.zeros((1, 3, 8, 8), np.uint8)}, "has no tensor `images`, found 'image'"),
        ({"images": np.zeros((1, 3, 8, 8), np.float32)}, "`images` is F32 [1, 3, 8, 8]; it must be U8 [n, 3, height"),
        ({"images": np.zeros((1, 8, 8, 3), np.uint8)}, "`images` is U8 [1, 8, 8, 3]; it must be"),
        ({"images": np.zeros((0, 3, 8, 8), np.uint8)}, "n above 0"),
        ({"images": np.zeros((1, 3, 1, 1), np.uint8)}, "image 0 is 1×1, which is too small"),
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
        ("folder", "holds no images; add files with the suffix .jpg"),
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


def test_one_reading_has_digest_and_pixels(folder: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is replaced between two readings would have the pixels of one image and the digest of another."""
    for path, index in ((folder, 1), (packed, 3)):
        source = read_images(path)
        stored = source.stored(index)
        assert stored.digest == source.content_digest(index)
        assert np.array_equal(stored.pixels(Fit(6)), source.load(index, Fit(6)))
    stored = read_images(folder).stored(1)
    before = stored.pixels(Fit(6))
    (folder / "b.png").write_bytes(b"replaced")
    assert np.array_equal(stored.pixels(Fit(6)), before)
    with pytest.raises(InvalidData, match=r"b\.png is not a JPEG, PNG, WebP or BMP image"):
        read_images(folder).stored(1).pixels(Fit(6))
    monkeypatch.setattr(images, "MAX_STORED_BYTES", 5)
    with pytest.raises(InvalidData, match=r"b\.png has more than 5 bytes"):
        read_images(folder).stored(1)


def test_real_photographs(shared: Path) -> None:
    source = read_images(shared / "golden" / "coco_smoke" / "images")
    assert len(source) == 85
    batches = list(source.batches(range(0, 85, 5), Fit(64), 4))
    assert [tuple(batch.shape) for batch in batches] == [(4, 3, 64, 64)] * 4 + [(1, 3, 64, 64)]
    assert len(source.digest(range(85))) == 64


# files that lead elsewhere


def below(root: Path) -> Allow:
    """What suites may read where `root` is the only root."""
    return Readable(Settings(roots=str(root), data_dir=str(root / "data")))


OUTSIDE = "is, or links, outside the allowed folders"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A picture that lies outside the root, `tmp_path / "root"`."""
    (tmp_path / "root").mkdir()
    return save(tmp_path / "secret", "a.png", picture(pixels=RANDOM[::-1]))


@pytest.mark.parametrize("where", ["a.png", "sub/a.png"])
def test_a_link_in_a_folder_that_leads_out(tmp_path: Path, secret: Path, where: str) -> None:
    """Neither the pixels nor a digest of what lies there is told."""
    folder = tmp_path / "root" / "images"
    save(folder, "b.png", picture())
    (folder / where).parent.mkdir(exist_ok=True)
    (folder / where).symlink_to(secret)
    source = read_images(folder, below(tmp_path / "root"))
    for read in (lambda: source.load(source.index(where), Fit(8)), lambda: source.digest([source.index(where)])):
        with pytest.raises(InvalidData, match=OUTSIDE) as caught:
            read()
        assert str(folder / where) in caught.value.message
        assert str(secret) not in caught.value.message
    assert read_images(folder).load(0, Fit(12)).shape == (3, 12, 12), "without roots a link may lead anywhere"


def test_a_link_in_a_folder_that_stays(tmp_path: Path, secret: Path) -> None:
    """A subset of a data set is often a folder of links."""
    folder = tmp_path / "root" / "images"
    target = save(tmp_path / "root", "all.png", picture())
    folder.mkdir()
    (folder / "a.png").symlink_to(target)
    assert read_images(folder, below(tmp_path / "root")).load(0, Fit(12)).shape == (3, 12, 12)


def test_a_linked_folder_or_file_of_images(tmp_path: Path, secret: Path, packed: Path) -> None:
    for name, target in (("images", secret.parent), ("images.safetensors", packed)):
        (tmp_path / "root" / name).symlink_to(target)
        with pytest.raises(InvalidData, match=OUTSIDE):
            read_images(tmp_path / "root" / name, below(tmp_path / "root"))


@pytest.mark.parametrize("name", ["images/a.png", "images.safetensors"])
def test_swapping_as_fast_as_one_can(tmp_path: Path, secret: Path, name: str) -> None:
    """Whatever the moment, what is read is the allowed image, or nothing."""
    root, own = tmp_path / "root", picture()
    save(root / "own", "a.png", own)
    save_file({"images": np.asarray(own).transpose(2, 0, 1)[None].copy()}, root / "own.safetensors")
    save_file({"images": RANDOM[::-1].transpose(2, 0, 1)[None].copy()}, tmp_path / "secret.safetensors")
    target = root / name.partition("/")[0]
    kept, other = root / f"own{target.suffix}", tmp_path / f"secret{target.suffix}"
    expected = np.asarray(own)[:, 4:16].transpose(2, 0, 1)
    seen = {"read": 0, "refused": 0}
    with swapping(target, kept, other):
        for _ in range(300):
            try:
                source = read_images(target, below(root))
                digest = source.digest([0])
                assert np.array_equal(source.load(0, Fit(12)), expected)
                assert digest == read_images(kept).digest([0])
                seen["read"] += 1
            except InvalidData:
                seen["refused"] += 1
    assert min(seen.values()) > 0, seen


@contextmanager
def swapping(target: Path, *places: Path) -> Iterator[None]:
    """Let a link lead to one place and the other by turns, as fast as the machine can."""
    stop = threading.Event()

    def swap() -> None:
        for turn in range(10**9):
            if stop.is_set():
                return
            fresh = target.with_name("fresh")
            fresh.symlink_to(places[turn % 2])
            fresh.rename(target)

    target.symlink_to(places[0])
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    """Opening it does not wait for somebody who writes."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InvalidData, match=r"a\.png is not a regular file"):
        read_images(tmp_path).load(0, Fit(8))
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(InvalidData, match=r"a\.safetensors is not a regular file"):
        read_images(tmp_path / "a.safetensors")


def test_messages_quote_nothing_of_a_file(tmp_path: Path) -> None:
    """Who names a file need not be who may read it."""
    header = b'{"hunter2": {"dtype": "hunter2", "shape": [1], "data_offsets": [0, 4]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nhunter2")
    for read in (lambda: read_images(tmp_path / "a.safetensors"), lambda: load_image(tmp_path / "b.png", Fit(8))):
        with pytest.raises(InvalidData) as caught:
            read()
        assert "hunter2" not in caught.value.message
