"""Sources by somebody who wants to harm: what is no caption or image is counted with its reason, or the command ends
with an instruction. Good pairs next to it become training data."""

import gzip
import io
import json
import os
import resource
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from prepare.pairs import read_source
from prepare.refusals import Refusal
from prepare.tars import read_samples
from training_pairs import TOKENIZER, picture, prepared, read_lines, read_shards, sample, write_folder, write_tar

from evalsvc.config import Settings
from evalsvc.data import images
from evalsvc.errors import DataChanged, EvalsvcError, InvalidData
from evalsvc.spec.paths import Readable


def png(change: Callable[[bytearray], None]) -> bytes:
    content = bytearray(picture(0))
    change(content)
    return bytes(content)


def claim_size(content: bytearray) -> None:
    """Claim 60,000 × 60,000 pixels, with a right checksum."""
    content[16:24] = (60_000).to_bytes(4) * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)


def saved(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image = Image.open(io.BytesIO(picture(0)))
    if kind == "RGBA":
        image.convert("RGBA").resize((8, 8)).point(lambda value: value // 2).save(stream, "PNG")
    else:
        image.resize((1, 1) if kind == "one" else image.size).save(stream, "PNG" if kind == "one" else kind, **options)
    return stream.getvalue()


IMAGES = {
    "empty.png": (b"", "it is not a JPEG, PNG, WebP or BMP image"),
    "text.jpg": (b"no image at all", "it is not a JPEG, PNG, WebP or BMP image"),
    "program.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n", "it is not a JPEG, PNG, WebP or BMP image"),
    "tiff.png": (saved("TIFF"), "it is not a JPEG, PNG, WebP or BMP image"),
    "half.png": (picture(0)[:900], "it is not an image that can be read, or is truncated"),
    "broken.png": (png(lambda content: content.__setitem__(slice(60, 900), bytes(840))), "or is truncated"),
    "bomb.png": (png(claim_size), "pixels, more than the … that are decoded"),
    "one.png": (saved("one"), "it is …, which is too small"),
    "clear.png": (saved("RGBA"), "it has an alpha channel that is not opaque"),
    "moving.webp": (saved("WEBP", save_all=True, append_images=[Image.new("RGB", (36, 40))]), "it has … frames"),
}


def test_broken_images_are_counted_with_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "images", 3)
    for name, (content, _) in IMAGES.items():
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".txt").write_text("a caption")
    (folder / "huge.jpg").touch()
    os.truncate(folder / "huge.jpg", 20_000_000)
    (folder / "huge.txt").write_text("a caption")
    monkeypatch.setattr(images, "MAX_STORED_BYTES", 10_000_000)
    sheet = prepared(folder, tmp_path / "out").datasheet
    assert len(read_shards(tmp_path / "out")) == 3
    assert sheet.images.refused == sheet.pairs.refused_image == len(IMAGES) + 1
    refused = {line["item"]: line["reason"] for line in read_lines(tmp_path / "out" / "refused.jsonl")}
    assert refused.keys() == {*IMAGES, "huge.jpg"}
    assert refused["huge.jpg"] == "it has more than 10,000,000 bytes"
    for name, (_, words) in IMAGES.items():
        assert any(words in reason and count for reason, count in sheet.refused.items()), name
    assert sum(sheet.refused.values()) == len(refused)
    assert str(tmp_path) not in (tmp_path / "out" / "refused.jsonl").read_text()


def special_tokenizer(folder: Path) -> Path:
    """Return the miniature's tokenizer with a special token, as most have one."""
    content = json.loads(TOKENIZER.read_text())
    token = {"id": 511, "content": "<|endoftext|>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["model"]["vocab"] = {"<|endoftext|>" if i == 511 else t: i for t, i in content["model"]["vocab"].items()}
    content["model"]["merges"] = [
        pair for pair in content["model"]["merges"] if "".join(pair) in content["model"]["vocab"]
    ]
    content["added_tokens"] = [token | flags]
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


CAPTIONS = {
    "blank": (b" \n\t ", "the caption is empty"),
    "megabyte": (b"a" * 1_000_000, "it has more than 80,000 bytes"),
    "long": (b"a" * 79_000, "the caption has more than 20,000 characters"),
    "escape": (b"a cat \x1b[2J", "the caption has control characters"),
    "nul": (b"a \0 cat", "the caption has control characters"),
    "latin": (b"caf\xe9", "the caption is not UTF-8"),
    "special": (b"a cat<|endoftext|>", "the caption has the text of a special token of the tokenizer"),
}


def test_captions_that_are_no_captions(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 2)
    for number, (name, (content, _)) in enumerate(CAPTIONS.items()):
        (folder / f"{name}.png").write_bytes(picture(50 + number))
        (folder / f"{name}.txt").write_bytes(content)
    (folder / "alone.png").write_bytes(picture(70))
    (folder / "pipe.png").write_bytes(picture(71))
    os.mkfifo(folder / "pipe.txt")
    (folder / "00000.txt").write_text("</doc> <pad> ‹/image› \u202eright to left\u202c 猫")
    sheet = prepared(folder, tmp_path / "out", tokenizer=special_tokenizer(tmp_path)).datasheet
    refused = {
        line["item"].partition(".")[0]: line["reason"] for line in read_lines(tmp_path / "out" / "refused.jsonl")
    }
    assert refused == {name: reason for name, (_, reason) in CAPTIONS.items()} | {
        "alone": "the image has no text file with its caption",
        "pipe": "it is not a regular file",
    }
    assert sheet.pairs.refused_otherwise == 9
    assert len(read_shards(tmp_path / "out")) == 2
    assert all(sum(row > 575 and row != 582 for row in ids) == 6 for ids in read_shards(tmp_path / "out").values()), (
        "a caption is text, and never a special token of the layout"
    )


def test_files_that_lead_out_of_the_roots(tmp_path: Path) -> None:
    """Neither the pixels nor a digest of what lies there gets into the data."""
    secret = tmp_path / "secret"
    write_folder(secret, 1)
    (tmp_path / "root").mkdir()
    folder = write_folder(tmp_path / "root" / "images", 2)
    (folder / "link.png").symlink_to(secret / "00000.png")
    (folder / "link.txt").write_text("a link")
    (folder / "text.png").write_bytes(picture(9))
    (folder / "text.txt").symlink_to(secret / "00000.txt")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "loop.txt").write_text("a loop")
    settings = Settings(devices="cpu", threads=1, roots=str(tmp_path / "root"))
    data = read_source(folder, None, Readable(settings))
    assert [refusal.item for refusal in data.refused] == ["text.txt"]
    reasons = {}
    for index in sorted({pair.image for pair in data.pairs}):
        try:
            data.images.stored(index)
        except InvalidData as error:
            reasons[data.images.name(index)] = error.message
    assert reasons.keys() == {"link.png", "loop.png"}
    assert "outside the allowed folders" in reasons["link.png"]
    assert str(secret) not in "".join([*reasons.values(), *map(str, data.refused)])


def header(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


LINKS = {
    "hard.jpg": header("hard.jpg", tarfile.LNKTYPE, linkname="/etc/passwd"),
    "soft.jpg": header("soft.jpg", tarfile.SYMTYPE, linkname="../../etc/passwd"),
    "null.jpg": header("null.jpg", tarfile.CHRTYPE, devmajor=1, devminor=3),
    "disk.jpg": header("disk.jpg", tarfile.BLKTYPE, devmajor=8),
    "pipe.jpg": header("pipe.jpg", tarfile.FIFOTYPE),
}
OUTSIDE = ("../up.jpg", "a/../../up.jpg", "/root.jpg", "bell\a.jpg", f"{'long' * 30}.jpg")


def samples_of(path: Path) -> tuple[list[str], list[Refusal]]:
    """Return keys of the samples of a tar, and what was left out."""
    refused: list[Refusal] = []
    anywhere = Readable(Settings())
    keys = [sample.image.name for sample in read_samples(path, anywhere, refused.append)]
    return keys, refused


def test_links_devices_and_names_that_lead_out_of_a_tar(tmp_path: Path) -> None:
    members = [*sample("0001", 1)]
    for name, info in LINKS.items():
        members += [(info, b""), (f"{name[:4]}.txt", b"a caption")]
    for name in OUTSIDE[:4]:
        members += [(name, picture(2)), (f"{name[:-4]}.txt", b"a caption")]
    members += sample("0002", 2)
    path = write_tar(tmp_path / "a.tar", members)
    sheet = prepared(path, tmp_path / "out").datasheet
    assert len(read_shards(tmp_path / "out")) == 2
    assert sheet.refused == {
        "the name leads out of the tar": 6,
        "the sample has no image": 5,
        "the member is a device or a pipe": 3,
        "the member is a link": 2,
        "the name is long or has control characters": 2,
    }


def pax(content: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """Return an extended header of this content, as it lies in a tar."""
    info = header("pax", kind, size=len(content))
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def line(keyword: str, value: str) -> bytes:
    body = f" {keyword}={value}\n"
    return f"{len(body) + 2}{body}".encode()


def sized(size: bytes) -> bytes:
    """Return a header whose field of the size has these bytes, with a right checksum."""
    block = bytearray(header("b.jpg").tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


ENDINGS = {
    "sparse": (header("s.jpg", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT), "is sparse"),
    "long name": (header("n" * 300, size=0).tobuf(tarfile.GNU_FORMAT), "has a long name"),
    "a name in an extended header": (pax(line("path", "x.jpg")), "changes a name or a size"),
    "a size in an extended header": (pax(line("size", "9999")), "changes a name or a size"),
    "a sparse file of GNU tar": (pax(line("GNU.sparse.major", "1")), "changes a name or a size"),
    "an extended header without end": (pax(b"99 mtime=1\n"), "changes a name or a size, or is broken"),
    "an extended header of nothing": (pax(b"0 mtime=1\n"), "or is broken"),
    "a large extended header": (pax(bytes(100_000)), "impossible size"),
    "a global extended header": (pax(line("path", "x.jpg"), tarfile.XGLTYPE), "changes a name or a size"),
    "a negative size": (sized(b"\xff" * 12), "impossible size"),
    "a size beyond the file": (sized(b"\x80" + (1 << 60).to_bytes(11)), "impossible size"),
    "a size that is no number": (sized(b"nonsense\0\0\0\0"), "a header is broken"),
    "a wrong checksum": (b"x" * 512, "a header is broken, or the file is no plain tar"),
    "a file that is cut off": (header("c.jpg", size=600).tobuf(tarfile.USTAR_FORMAT) + bytes(500), "it is cut off"),
    "half a header": (bytes(100), "it is cut off"),
}


@pytest.mark.parametrize("kind", ENDINGS)
def test_the_rest_of_a_broken_tar_is_left_out(kind: str, tmp_path: Path) -> None:
    """What is before the broken header counts: img2dataset leaves tars that are cut off when it is stopped."""
    whole = write_tar(tmp_path / "whole.tar", sample("0001", 1)).read_bytes()
    content, words = ENDINGS[kind]
    good = whole.rstrip(b"\0")
    path = tmp_path / "a.tar"
    path.write_bytes(good + bytes(-len(good) % 512) + content)
    keys, [refusal] = samples_of(path)
    assert keys == ["0001.jpg"]
    assert refusal.item == "a.tar"
    assert refusal.reason.startswith("the rest of the tar is left out: ")
    assert words in refusal.reason


SAMPLES = {
    "two members of one name": ([("a.jpg", picture(1)), ("a.jpg", picture(2)), ("a.txt", b"x")], "two members of one"),
    "two images": ([("a.jpg", picture(1)), ("a.png", picture(2)), ("a.txt", b"x")], "has several images"),
    "no caption": ([("a.jpg", picture(1))], "the sample has no caption"),
    "no image": ([("a.txt", b"x")], "the sample has no image"),
    "a long caption": ([("a.jpg", picture(1)), ("a.txt", b"x" * 1_000_000)], "the caption has more than 80,000 bytes"),
    "a large JSON": ([("a.jpg", picture(1)), ("a.json", b" " * 2_000_000)], "JSON has more than 1,000,000 bytes"),
    "a deep JSON": ([("a.jpg", picture(1)), ("a.json", b"[" * 400_000)], "the sample's JSON cannot be read"),
    "a JSON of a long number": (
        [("a.jpg", picture(1)), ("a.json", b"9" * 400_000)],
        "the sample's JSON cannot be read",
    ),
    "a caption that is a list": ([("a.jpg", picture(1)), ("a.json", b'{"caption": []}')], "`caption` is list"),
    "half a character": ([("a.jpg", picture(1)), ("a.json", b'{"caption": "\\ud800"}')], "half of a surrogate pair"),
    "many members": ([(f"a.{number}", b"") for number in range(101)], "the sample has more than 100 members"),
    "a key again": ([*sample("b", 2), ("c.txt", b"x"), *sample("b", 3)], "the key occurs twice in the tar"),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_sample_that_is_none(kind: str, tmp_path: Path) -> None:
    members, words = SAMPLES[kind]
    keys, refused = samples_of(write_tar(tmp_path / "a.tar", [*members, *sample("0009", 9)]))
    assert keys[-1] == "0009.jpg"
    assert words in refused[-1].reason


def test_archives_are_not_unpacked(tmp_path: Path) -> None:
    """A compressed tar of zeros is a thousand times as large as its file."""
    (tmp_path / "a.tar").write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(InvalidData, match=r"has no images with captions; the first of 1 problems: a\.tar: "):
        prepared(tmp_path / "a.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["pairs", "members that are left out"])
def test_a_source_of_too_many(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted while they are read, since a tar of nothing but headers has two million in a gigabyte."""
    monkeypatch.setattr("prepare.pairs.MAX_PAIRS", 3)
    samples = [member for number in range(4) for member in sample(f"{number}", number)]
    links = [(header(f"{number}", tarfile.SYMTYPE, linkname="x"), b"") for number in range(4)]
    path = write_tar(tmp_path / "a.tar", samples if what == "pairs" else links)
    with pytest.raises(InvalidData, match=f"has more than 3 {what}; cut it into several sources"):
        read_source(path, None, Readable(Settings()))
    folder = write_folder(tmp_path / "images", 4)
    with pytest.raises(InvalidData, match="has more than 3 pairs; cut it into several sources"):
        read_source(folder, None, Readable(Settings()))


def test_a_tar_that_is_replaced_while_its_images_are_read(tmp_path: Path) -> None:
    """The caption of one image would be given to another."""
    path = write_tar(tmp_path / "a.tar", sample("0001", 1))
    data = read_source(path, None, Readable(Settings()))
    write_tar(tmp_path / "b.tar", sample("0001", 2)).rename(path)
    with pytest.raises(DataChanged, match="was replaced while its images were read; prepare the source again"):
        data.images.stored(0)


def test_a_tar_that_is_a_pipe_or_leads_out(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    os.mkfifo(tmp_path / "root" / "a.tar")
    write_tar(tmp_path / "b.tar", sample("0001", 1))
    (tmp_path / "root" / "b.tar").symlink_to(tmp_path / "b.tar")
    allow = Readable(Settings(roots=str(tmp_path / "root")))
    for name, words in (("a.tar", "is not a regular file"), ("b.tar", "outside the allowed folders")):
        with pytest.raises(InvalidData, match=words):
            read_source(tmp_path / "root" / name, None, allow)


FILES = {
    "a.jsonl": ([b"[" * 1_000_000], "line 1 is not valid JSON"),
    "b.jsonl": ([b'{"text": "a", "image": 0}', b"{" * 100], "line 2 is not valid JSON"),
    "c.jsonl": ([b'{"text": "a", "id": 1}', b'{"text": "b", "id": 1}'], "the id is also that of line 1"),
    "d.jsonl": ([b'{"text": "a", "image": true}'], "`image` is bool"),
    "a.json": ([b"[" * 1_000_000], "is not valid JSON"),
    "b.json": ([b'{"images": [], "annotations": [{"id": 1}]}'], "`image_id` is missing"),
    "a.bin": ([b"x"], "ends in '.bin'; give captions in"),
    "none.json": (None, "does not exist or cannot be read"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_holds_no_captions_ends_with_an_instruction(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 1)
    content, words = FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(b"\n".join(content))
    with pytest.raises(EvalsvcError) as caught:
        prepared(tmp_path / name, tmp_path / "out", images=folder)
    assert words in caught.value.message
    assert len(caught.value.message) < 1_000


def test_images_that_the_folder_does_not_have(tmp_path: Path) -> None:
    """A name is looked up among the folder's images, and never opened; looking for similar names would take hours."""
    folder = write_folder(tmp_path / "images", 2)
    (tmp_path / "secret.png").write_bytes(picture(7))
    names = ["../secret.png", str(tmp_path / "secret.png"), "images/../00000.png", "00009.png", 2, -1, None]
    lines = [json.dumps({"text": "a cat", "image": name}) for name in [*names, "00000.png", 1]]
    lines += [json.dumps({"text": "a cat", "image": "x" * 200}) for _ in range(2_000)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    begun = time.perf_counter()
    data = read_source(tmp_path / "captions.jsonl", folder, Readable(Settings()))
    assert time.perf_counter() - begun < 5
    assert [pair.image for pair in data.pairs] == [0, 1]
    assert len(data.refused) == len(names) + 2_000
    assert {refusal.reason for refusal in data.refused} == {
        "the caption names no image",
        "the image is not in --images",
    }


def test_a_large_file_of_captions_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "captions.json").touch()
    os.truncate(tmp_path / "captions.json", 1 << 40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidData, match="has 1,099,511,627,776 bytes, more than 1,073,741,824; cut it into several"):
        read_source(tmp_path / "captions.json", tmp_path, Readable(Settings()))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19


def test_nothing_that_can_be_used(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"nothing")
    (folder / "a.txt").write_text("a cat")
    with pytest.raises(
        InvalidData, match=r"no pair of .*images can be used; the first of 1 reasons: a\.png: it is not"
    ):
        prepared(folder, tmp_path / "out")
