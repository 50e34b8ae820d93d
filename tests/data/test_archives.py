import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from refusals import refusal
from safetensors.numpy import save_file

from evalsvc.data import archives, parquet_images
from evalsvc.data.images import read_images
from evalsvc.errors import InvalidData
from evalsvc.spec.images import Fit

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 12, 16, 3), dtype=np.uint8)


def png(pixels: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


PNG = png(PIXELS[0])
ROWS = [
    {"id": f"{number:03}", "image": {"bytes": png(pixels), "path": f"{number:03}.png"}}
    for number, pixels in enumerate(PIXELS)
]


def table(path: Path, rows: Any = ROWS, **options: Any) -> None:
    content = pyarrow.Table.from_pylist(rows) if isinstance(rows, list) else pyarrow.table(rows)
    pyarrow.parquet.write_table(content, path, **options)


def folder(path: Path) -> None:
    (path / "sub").mkdir(parents=True)
    for number, pixels in enumerate(PIXELS):
        (path / ("sub" if number == 5 else "") / f"{number:03}.png").write_bytes(png(pixels))


def packed(path: Path, format_: int) -> None:
    folder(path.with_suffix(""))
    (path.with_suffix("") / "._000.png").write_bytes(b"what macOS adds")
    with tarfile.open(path, "w", format=format_) as tar:
        tar.add(path.with_suffix(""), arcname=".")


FILES: dict[str, Callable[[Path], Any]] = {
    "folder": folder,
    "pax.tar": lambda path: packed(path, tarfile.PAX_FORMAT),
    "gnu.tar": lambda path: packed(path, tarfile.GNU_FORMAT),
    "a.parquet": lambda path: table(path, row_group_size=2),
}
ARRAYS: dict[str, Callable[[Path], Any]] = {
    "adm.npz": lambda path: np.savez(path, PIXELS, np.arange(6)),
    "first.npz": lambda path: np.savez(path, arr_0=PIXELS.transpose(0, 3, 1, 2).copy()),
    "a.safetensors": lambda path: save_file({"images": PIXELS.transpose(0, 3, 1, 2).copy()}, path),
}


@pytest.mark.parametrize("forms", [FILES, ARRAYS])
def test_equal_images_are_equal_in_every_form(tmp_path: Path, forms: dict[str, Callable[[Path], Any]]) -> None:
    digests = set()
    for name, make in forms.items():
        make(tmp_path / name)
        source = read_images(tmp_path / name)
        for index in (3, 1, 0, 5, 2, 4):  # a Parquet file is read by row groups
            assert np.array_equal(source.load(index, None), PIXELS[index].transpose(2, 0, 1))
        batches = list(source.batches(range(6), Fit(8), 4))
        assert [len(batch) for batch in batches] == [4, 2]
        digests.add(source.digest(range(6)))
    assert len(digests) == 1


def test_a_folder_stands_for_the_one_archive_that_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", PIXELS)
    assert len(read_images(tmp_path)) == 6
    table(tmp_path / "images.parquet")
    assert "holds images.npz and images.parquet; keep one" in refusal(InvalidData, read_images, tmp_path)


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, content: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size or len(content), "/etc/passwd"
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def extended(keyword: str, value: str) -> bytes:
    return member("x", kind=tarfile.XHDTYPE, content=f"{len(keyword + value) + 5} {keyword}={value}\n".encode())


OUT = "a member is a link or a device, or its name leads out of the tar"
GOOD = member("a.png", content=PNG)
TARS = {
    "symlink": (member("b.png", kind=tarfile.SYMTYPE), OUT),
    "hard link": (member("b.png", kind=tarfile.LNKTYPE), OUT),
    "device": (member("b.png", kind=tarfile.CHRTYPE), OUT),
    "pipe": (member("b.png", kind=tarfile.FIFOTYPE), OUT),
    "up": (member("../b.png", content=PNG), OUT),
    "absolute": (member("/b.png", content=PNG), OUT),
    "extended up": (extended("path", "../../b.png") + GOOD, OUT),
    "sparse": (member("b.png", kind=tarfile.GNUTYPE_SPARSE), "a member is sparse, or of an unknown kind"),
    "extended sparse": (extended("GNU.sparse.major", "1") + GOOD, "a member is sparse"),
    "extended size": (extended("size", "1") + GOOD, "or has a size of more than 8 GB"),
    "impossible size": (member("b.png", 1 << 60), "a header has an impossible size"),
    "twice": (member("./a.png", content=PNG), "has two images of one name"),
    "long header": (member("x", kind=tarfile.XHDTYPE, content=bytes(200_000)), "a header is too long"),
    "flood": (member("d", kind=tarfile.DIRTYPE) * 1000, "it has more than 1,000 headers"),
    "many": (
        b"".join(member(f"{number}.png") for number in range(60)),
        "has more than 1,000 images, or 100 characters",
    ),
    "junk": (b"hunter2" * 200, "a header is broken, or the file is compressed or cut off"),
}


@pytest.mark.parametrize("kind", TARS)
def test_tars_that_attack(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_IMAGES", 1_000)
    monkeypatch.setattr(archives, "MAX_NAMES", 100)
    content, fragment = TARS[kind]
    (tmp_path / "a.tar").write_bytes(GOOD + content + bytes(1024))
    assert fragment in refusal(InvalidData, read_images, tmp_path / "a.tar")


def array(header: str, version: tuple[int, int] = (1, 0), length: int | None = None) -> Callable[[Path], None]:
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header) + 1 if length is None else length)

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("arr_0.npy", b"\x93NUMPY" + bytes(version) + size + header.encode() + b"\n")

    return write


def shaped(shape: str) -> Callable[[Path], None]:
    return array(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}")


def directory(path: Path) -> None:
    """Write the end of a zip file that asks for four gigabytes of names."""
    with path.open("wb") as file:
        file.truncate(4_100_000_000)
        file.seek(0, 2)
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 60_000, 60_000, 4_000_000_000, 10, 0))


NONE, SHAPE = "has no array `arr_0`, or is compressed or cut off", "it must be uint8 [n, height, width, 3] in C order"
NPZ: dict[str, tuple[Callable[[Path], Any], str]] = {
    "deflated": (lambda path: np.savez_compressed(path, PIXELS), NONE),
    "named": (lambda path: np.savez(path, images=PIXELS), NONE),
    "program": (lambda path: np.savez(path, np.array([object], dtype=object)), SHAPE),
    "floats": (lambda path: np.savez(path, PIXELS / 255), SHAPE),
    "negative": (shaped("(-1, 8, 8, 3)"), SHAPE),
    "too many": (shaped(f"({10**20}, 8, 8, 3)"), SHAPE),
    "cut off": (shaped("(1000, 8, 8, 3)"), "is cut off"),
    "nested": (array("(" * 9000), NONE),
    "long header": (array("hunter2", (2, 0), 4_000_000_000), NONE),
    "directory": (directory, NONE),
}


@pytest.mark.parametrize("kind", NPZ)
def test_arrays_that_attack(tmp_path: Path, kind: str) -> None:
    make, fragment = NPZ[kind]
    make(tmp_path / "a.npz")
    assert fragment in refusal(InvalidData, read_images, tmp_path / "a.npz")


def footer(path: Path) -> None:
    path.write_bytes(b"PAR1" + bytes(100) + struct.pack("<I", 2_000_000_000) + b"PAR1")


def one_value(count: int, size: int) -> pyarrow.Array:
    """Return a column that is a few bytes in a file, and much in memory."""
    return pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(np.zeros(count, np.int32)), pyarrow.array([PNG + bytes(size)])
    )


PARQUET: dict[str, tuple[Callable[[Path], Any], str]] = {
    "junk": (lambda path: path.write_bytes(b"PAR1" + b"hunter2" * 9), "is not a Parquet file, or is broken"),
    "footer": (footer, "is not a Parquet file, or is broken"),
    "empty": (lambda path: table(path, {"image": pyarrow.nulls(0, pyarrow.binary())}), "has 0 rows"),
    "many": (lambda path: table(path, {"image": pyarrow.nulls(20_000, pyarrow.binary())}), "has 20,000 rows"),
    "group": (lambda path: table(path, {"image": [bytes(2_000_000)]}), "and at most 1,000,000 bytes in a row group"),
    "columns": (lambda path: table(path, {"a": [b"a"], "b": [b"b"]}), "needs a column `image` of image files' bytes"),
    "twice": (lambda path: table(path, {"image": [PNG, PNG], "id": ["a", "a"]}), "has two images of one name"),
    "null": (lambda path: table(path, {"image": pyarrow.nulls(1, pyarrow.binary())}), "row 0 has no image"),
    "bomb": (lambda path: table(path, {"image": one_value(9_000, 900_000)}, store_schema=False), "bytes of memory"),
}


@pytest.mark.parametrize("kind", PARQUET)
def test_tables_that_attack(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MAX_IMAGES", 10_000), ("MAX_GROUP", 1_000_000), ("GROUP_MEMORY", 100_000_000)):
        monkeypatch.setattr(parquet_images, name, value)
    make, fragment = PARQUET[kind]
    make(tmp_path / "a.parquet")
    assert fragment in refusal(InvalidData, lambda: read_images(tmp_path / "a.parquet").load(0, None))
