import os
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refusal
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


def picture(pixels: Any = RANDOM) -> Image.Image:
    return Image.fromarray(pixels)


GREY, PALETTE, TURNED = picture().convert("L"), picture().convert("P"), Image.Exif()
TURNED[0x0112] = 6  # clockwise by a quarter: a photograph on its side would be measured as another image
MIDDLES: dict[str, tuple[Image.Image, Any]] = {
    "wide": (picture(), RANDOM[:, 4:16]),
    "upright": (picture(RANDOM.transpose(1, 0, 2)), RANDOM[:, 4:16].transpose(1, 0, 2)),
    "grey": (GREY, np.repeat(np.asarray(GREY)[:, 4:16, None], 3, axis=2)),
    "palette": (PALETTE, np.asarray(PALETTE.convert("RGB"))[:, 4:16]),
    "opaque alpha": (picture().convert("RGBA"), RANDOM[:, 4:16]),
    "turned": (picture(), np.rot90(RANDOM, k=-1)[4:16]),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_the_middle_square_is_cut_and_not_resampled(tmp_path: Path, name: str) -> None:
    """Pixels of an image that fits already reach the metric as they are, in RGB and upright."""
    image, expected = MIDDLES[name]
    path = save(tmp_path, "a.png", image, **({"exif": TURNED} if name == "turned" else {}))
    assert np.array_equal(load_image(path, Fit(12)), expected.transpose(2, 0, 1))


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

    wide = picture(RANDOM[:, : 12 + margin])
    for image in (wide, wide.transpose(Image.Transpose.TRANSPOSE)):
        path = save(tmp_path, "a.png", image)
        found = load_image(path, Fit(12, "center-torchvision"))
        assert np.array_equal(found, np.asarray(functional.center_crop(image, 12)).transpose(2, 0, 1))
        assert np.array_equal(found, load_image(path, Fit(12))) == (margin != 3)


def adm(image: Image.Image, side: int) -> Image.Image:
    """The crop of guided-diffusion's evaluation, step by step."""
    width, height = image.size
    if min(width, height) >= 2 * side:
        return adm(image.resize((width // 2, height // 2), Image.Resampling.BOX), side)
    scale = side / min(width, height)
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


@pytest.mark.parametrize("size", [(20, 12), (12, 23), (16, 16), (8, 8), (33, 47), (5, 9), (151, 64), (40, 131)])
def test_the_crop_of_papers_on_imagenet(tmp_path: Path, size: tuple[int, int]) -> None:
    """Halved, resized and only then cut. Cut first, an image gives other pixels, and rFIDs that no paper has."""
    image = picture(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    path = save(tmp_path, "a.png", image)
    found = load_image(path, Fit(8, "center-adm", "bicubic"))
    assert np.array_equal(found, np.asarray(adm(image, 8)).transpose(2, 0, 1))
    assert np.array_equal(found, load_image(path, Fit(8, "center", "bicubic"))) == (size in ((8, 8),))


def test_a_thin_image_is_not_resized_to_a_huge_one(tmp_path: Path) -> None:
    path = save(tmp_path, "a.png", picture(np.zeros((2, 60_000, 3), np.uint8)))
    message = "an image of 60000×2, resized for the crop center-adm, has 7680000×256 pixels, more than"
    assert message in refusal(InvalidData, load_image, path, Fit(256, "center-adm", "bicubic"))


def overwritten(path: Path, at: int, content: bytes, checksum: slice | None = None) -> None:
    """Overwrite a part of a file; a PNG's checksum is of another part."""
    data = bytearray(path.read_bytes())
    data[at : at + len(content)] = content
    if checksum is not None:
        data[checksum.stop : checksum.stop + 4] = zlib.crc32(data[checksum]).to_bytes(4)
    path.write_bytes(data)


def transparent(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putpixel((0, 0), (1, 2, 3, 200))
    return image


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
"""An image for which Pillow starts Ghostscript."""
OTHER, DEEP = picture(RANDOM[::-1]), picture(RANDOM[..., 0].astype(np.uint16) * 256)
MANY = "pixels, more than the 89,478,485 that are decoded; give a smaller image"
UNREADABLE = "is not an image that can be read, or is truncated; save it again"
UNKNOWN = "is not a JPEG, PNG, WebP or BMP image; save it as one of these"
TRUNCATED = (lambda path: (picture().resize((200, 200)).save(path), os.truncate(path, 2000)), UNREADABLE)
BOMB = ((60000).to_bytes(4) * 2, slice(12, 29))
LARGE = (10000).to_bytes(4, "little") + (9000).to_bytes(4, "little")
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.jpg": TRUNCATED,
    "truncated.png": TRUNCATED,
    "quoted.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\nhunter2"), UNKNOWN),
    "text.png": (lambda path: path.write_bytes(b"no image"), UNKNOWN),
    "empty.jpg": (lambda path: path.write_bytes(b""), UNKNOWN),
    "other.png": (lambda path: picture().save(path, "TIFF"), UNKNOWN),
    "program.jpg": (lambda path: path.write_bytes(EPS), UNKNOWN),
    "bomb.png": (lambda path: (picture().convert("1").save(path), overwritten(path, 16, *BOMB)), f"too many {MANY}"),
    "large.bmp": (lambda path: (picture().save(path), overwritten(path, 18, LARGE)), MANY),
    "frames.webp": (lambda path: picture().save(path, save_all=True, append_images=[OTHER]), "has 2 frames; save a"),
    "deep.png": (lambda path: DEEP.save(path), "has pixels of mode I;16; save it with 8 bits per channel"),
    "alpha.png": (lambda path: transparent(picture()).save(path), "channel that is not opaque (down to 200 of 255)"),
    "key.png": (lambda path: PALETTE.save(path, transparency=PALETTE.getpixel((0, 0))), "opaque (down to 0 of 255)"),
    "one.png": (lambda path: picture().resize((1, 1)).save(path), "is 1×1, which is too small; give at least 2×2"),
    "line.png": (lambda path: picture().resize((5, 1)).save(path), "is 5×1, which is too small"),
    "pipe.png": (os.mkfifo, "pipe.png is not a regular file"),  # opening it does not wait for somebody who writes
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_are_named(tmp_path: Path, kind: str) -> None:
    make, fragment = BAD[kind]
    path = tmp_path / kind
    make(path)
    source = read_images(tmp_path)
    for load in (lambda: load_image(path, Fit(8)), lambda: list(source.batches([0], Fit(8), 2))):
        said = refusal(InvalidData, load)
        assert fragment in said
        assert str(path) in said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("b.png", 12), ("a.JPG", 11), (".hidden.png", 12)):
        save(tmp_path / "images", name, picture(RANDOM[:rows]))
    save(tmp_path / "images" / "sub", "c.png", picture(RANDOM[:10]))
    (tmp_path / "images" / "list.txt").write_text("no image")
    return tmp_path / "images"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "images.safetensors"
    save_file({"images": np.arange(5 * 3 * 8 * 8, dtype=np.uint8).reshape(5, 3, 8, 8)}, path)
    return path


def test_images_come_by_name_and_by_index(folder: Path, packed: Path) -> None:
    source = read_images(folder)
    assert [source.name(index) for index in range(len(source))] == ["a.JPG", "b.png", "sub/c.png"]
    assert source.index("sub/c.png") == source.index(2) == 2
    for image, fragment in (
        ("sub/d.png", "has no image 'sub/d.png'; did you mean 'sub/c.png'?"),
        ("../secret", "has no image '../secret'; it has 3, the first is 'a.JPG'"),
        (3, "has no image 3; give one of 0…2"),
        (-1, "has no image -1"),
    ):
        assert fragment in refusal(InvalidData, source.index, image)

    source = read_images(packed)
    assert (len(source), source.index("3"), source.index(3), source.name(3)) == (5, 3, 3, "3")
    assert np.array_equal(source.load(1, Fit(8)), np.arange(192, 384).astype(np.uint8).reshape(3, 8, 8))
    assert source.load(1, Fit(4)).shape == (3, 4, 4)
    for image, fragment in (("x.png", "has no names, so 'x.png' is none of its images"), (5, "has no image 5")):
        assert fragment in refusal(InvalidData, source.index, image)


def tensor(name: str, *shape: int, dtype: Any = np.uint8) -> Callable[[Path], object]:
    return lambda path: save_file({name: np.zeros(shape, dtype)}, path)


HEADER = b'{"hunter2": {"dtype": "hunter2", "shape": [1], "data_offsets": [0, 4]}}'
HEADER = len(HEADER).to_bytes(8, "little") + HEADER + bytes(4)
DAMAGED = "is not a safetensors file, or is cut off"


@pytest.mark.parametrize(
    ("name", "make", "fragment"),
    [
        ("none.png", lambda path: None, "does not exist"),
        ("a.zip", Path.touch, "is neither a folder of images nor a file .tar, .npz, .parquet, .safetensors"),
        ("folder", Path.mkdir, "holds no images; add files with the suffix .jpg"),
        ("a.safetensors", os.mkfifo, "a.safetensors is not a regular file"),
        ("a.safetensors", Path.touch, DAMAGED),
        ("a.safetensors", lambda path: path.write_bytes(HEADER), DAMAGED),
        ("a.safetensors", tensor("image", 1, 3, 8, 8), "has no tensor `images`, found 'image'"),
        ("a.safetensors", tensor("images", 1, 3, 8, 8, dtype="f4"), "`images` is F32 [1, 3, 8, 8]; it must be U8 [n"),
        ("a.safetensors", tensor("images", 1, 8, 8, 3), "`images` is U8 [1, 8, 8, 3]; it must be"),
        ("a.safetensors", tensor("images", 0, 3, 8, 8), "n above 0"),
        ("a.safetensors", tensor("images", 1, 3, 1, 1), "image 0 is 1×1, which is too small"),
    ],
)
def test_other_things_than_images_are_named(
    tmp_path: Path, name: str, make: Callable[[Path], object], fragment: str
) -> None:
    make(tmp_path / name)
    said = refusal(InvalidData, read_images, tmp_path / name)
    assert fragment in said
    assert str(tmp_path / name) in said


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_keep_the_order(folder: Path, packed: Path, threads: int) -> None:
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
    save(folder, "other.png", picture(RANDOM[::-1]))
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
    assert "b.png is not a JPEG" in refusal(InvalidData, read_images(folder).stored(1).pixels, Fit(6))
    monkeypatch.setattr(images, "MAX_STORED_BYTES", 5)
    assert "b.png has more than 5 bytes" in refusal(InvalidData, read_images(folder).stored, 1)


def below(root: Path) -> Allow:
    return Readable(Settings(roots=str(root), data_dir=str(root / "data")))


OUTSIDE = "is, or links, outside the allowed folders"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A picture that lies outside the root, `tmp_path / "root"`."""
    (tmp_path / "root").mkdir()
    return save(tmp_path / "secret", "a.png", picture(RANDOM[::-1]))


@pytest.mark.parametrize("where", ["a.png", "sub/a.png"])
def test_a_link_in_a_folder_that_leads_out(tmp_path: Path, secret: Path, where: str) -> None:
    """Neither the pixels nor a digest of what lies there is told."""
    folder = tmp_path / "root" / "images"
    save(folder, "b.png", picture())
    (folder / "c.png").symlink_to(save(tmp_path / "root", "all.png", picture()))
    (folder / where).parent.mkdir(exist_ok=True)
    (folder / where).symlink_to(secret)
    source = read_images(folder, below(tmp_path / "root"))
    for read in (lambda: source.load(source.index(where), Fit(8)), lambda: source.digest([source.index(where)])):
        said = refusal(InvalidData, read)
        assert f"{folder / where}' {OUTSIDE}" in said
        assert str(secret) not in said
    assert source.load(source.index("c.png"), Fit(12)).shape == (3, 12, 12), "a subset is often a folder of links"
    assert read_images(folder).load(0, Fit(12)).shape == (3, 12, 12), "without roots a link may lead anywhere"


def test_a_linked_folder_or_file_of_images(tmp_path: Path, secret: Path, packed: Path) -> None:
    for name, target in (("images", secret.parent), ("images.safetensors", packed)):
        (tmp_path / "root" / name).symlink_to(target)
        assert OUTSIDE in refusal(InvalidData, read_images, tmp_path / "root" / name, below(tmp_path / "root"))


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
        for attempt in range(9_000):
            if attempt >= 300 and min(seen.values()) > 0:
                break
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
        for turn in count():
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
