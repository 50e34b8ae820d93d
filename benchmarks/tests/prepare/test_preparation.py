"""From a source to shards: what is in them, and that the same data give the same bytes, whatever happens meanwhile."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prepare import encoding
from prepare.preparation import prepare
from training_pairs import (
    DECODER,
    LAYOUT,
    SETTINGS,
    TOKENIZER,
    bytes_of,
    caption,
    picture,
    prepared,
    read_lines,
    read_shards,
    request,
    sample,
    write_folder,
    write_tar,
)

from evalsvc.config import Settings
from evalsvc.data.captions import read_captions
from evalsvc.data.images import read_images
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.data.tokens import read_tokens
from evalsvc.decoders import load_decoder
from evalsvc.errors import DataChanged, InvalidData, InvalidRequest
from evalsvc.spec.images import Fit
from evalsvc.tasks.image_codes import to_signed

TEXT, IMAGE_ROWS, PAD = range(512), range(512, 576), 582


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("source") / "images", 12)


@pytest.fixture(scope="module")
def codes_of(source: Path) -> dict[str, list[int]]:
    """Return the codes by caption, from the decoder alone."""
    images = read_images(source)
    pixels = torch.from_numpy(np.stack([images.load(index, Fit(32)) for index in range(len(images))]))
    rows = load_decoder(DECODER).encode(to_signed(pixels)).tolist()
    return {caption(number): row for number, row in enumerate(rows)}


def test_sequences_decode_to_the_same_codes_and_captions(
    source: Path, codes_of: dict[str, list[int]], tmp_path: Path
) -> None:
    result = prepared(source, tmp_path / "out", shard_size=5, records=133)
    tokenizer = read_tokenizer(TOKENIZER)
    decoded = {}
    for ids in read_shards(tmp_path / "out").values():
        assert len(ids) == 133
        end = next(place for place, row in enumerate(ids) if row == PAD)
        assert set(ids[end:]) == {PAD}
        text = [row for row in ids if row in TEXT]
        codes = [row - 512 for row in ids if row in IMAGE_ROWS]
        assert ids[:end] == [576, 578, *text, 579, 580, *(512 + code for code in codes), 581, 577]
        decoded[tokenizer.decode(text)] = codes
    assert decoded == codes_of
    manifest = (tmp_path / "out" / "manifest.jsonl").read_text()
    assert manifest.endswith("}\n")
    assert [json.loads(line) for line in manifest.splitlines()] == [
        {"shard": f"0000000{number}", "num_sequences": count} for number, count in ((1, 4), (2, 4), (3, 4))
    ]
    sheet = result.datasheet
    assert (sheet.open_lm.seq_len, sheet.open_lm.vocab_size, sheet.open_lm.target_mask_individual) == (132, 583, PAD)
    tokens = sheet.tokens
    assert (tokens.image, tokens.special) == (12 * 64, 12 * 6)
    assert tokens.text + tokens.image + tokens.special + tokens.pad == 12 * 133
    assert tokens.text == sum(row in TEXT for ids in read_shards(tmp_path / "out").values() for row in ids)


def coco(folder: Path, images: Path) -> Path:
    names = sorted(path.name for path in images.glob("*.png"))
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"id": n, "image_id": n, "caption": caption(n)} for n in range(len(names))],
    }
    path = folder / "captions.json"
    path.write_text(json.dumps(content))
    return path


def jsonl(folder: Path, images: Path) -> Path:
    lines = [{"text": caption(number), "image": number} for number in reversed(range(12))]
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def img2dataset(folder: Path, images: Path) -> Path:
    (folder / "shards").mkdir()
    for shard in range(3):
        members = [member for n in range(4 * shard, 4 * shard + 4) for member in sample(f"{n:09d}", n)]
        write_tar(folder / "shards" / f"{shard:05d}.tar", members)
        (folder / "shards" / f"{shard:05d}_stats.json").write_text("{}")
    return folder / "shards"


@pytest.mark.parametrize("write", [coco, jsonl, img2dataset])
def test_the_same_pairs_give_the_same_shards_from_every_kind_of_source(
    write: Any, source: Path, tmp_path: Path
) -> None:
    prepared(source, tmp_path / "folder", shard_size=5)
    path = write(tmp_path, source)
    prepared(path, tmp_path / "out", shard_size=5, images=None if path.is_dir() else source)
    shards = {name: content for name, content in bytes_of(tmp_path / "folder").items() if name.endswith(".tar")}
    assert {name: content for name, content in bytes_of(tmp_path / "out").items() if name in shards} == shards
    assert len(shards) == 3


def test_names_do_not_matter_and_the_seed_does(source: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for path in source.iterdir():
        shutil.copy(path, renamed / f"{99_999 - int(path.stem)}{path.suffix}")
    for name, folder, seed in (("a", source, 0), ("b", renamed, 0), ("c", source, 1)):
        prepared(folder, tmp_path / name, seed=seed)
    first, second, third = (read_shards(tmp_path / name) for name in "abc")
    assert list(first.items()) == list(second.items())
    assert first == third
    assert list(first) != list(third)


class TestHeldOut:
    def test_all_captions_of_an_image_are_on_one_side(self, source: Path, tmp_path: Path) -> None:
        """A copy under another name, and the same pixels in another format, are the same image."""
        copies = tmp_path / "images"
        shutil.copytree(source, copies)
        for number in range(12):
            shutil.copy(copies / f"{number:05d}.png", copies / f"copy-{number}.png")
            (copies / f"copy-{number}.txt").write_text(f"another caption {number}")
            from PIL import Image

            with Image.open(copies / f"{number:05d}.png") as image:
                image.save(copies / f"bitmap-{number}.bmp")
            (copies / f"bitmap-{number}.txt").write_text(f"a bitmap {number}")
        sheet = prepared(copies, tmp_path / "out", held_out=4).datasheet
        assert (sheet.images.training, sheet.images.held_out, sheet.images.repeated) == (8, 4, 24)
        assert (sheet.pairs.training, sheet.pairs.held_out) == (24, 12)
        held_out = read_lines(tmp_path / "out" / "held_out.jsonl")
        codes = {tuple(line["image_codes"]) for line in held_out}
        trained = {
            tuple(row - 512 for row in ids if row in IMAGE_ROWS) for ids in read_shards(tmp_path / "out").values()
        }
        assert (len(codes), len(trained), codes & trained) == (4, 8, set())
        assert len({line["document"] for line in held_out}) == 4

    def test_tasks_read_what_is_held_out(self, source: Path, codes_of: dict[str, list[int]], tmp_path: Path) -> None:
        prepared(source, tmp_path / "out", held_out=4)
        pairs = read_tokens(tmp_path / "out" / "held_out.jsonl").records
        captions = read_captions(tmp_path / "out" / "held_out_captions.jsonl").captions
        tokenizer = read_tokenizer(TOKENIZER)
        for pair, text in zip(pairs, captions, strict=True):
            assert tokenizer.decode(pair.text_ids or ()) == text.text
            assert list(pair.image_codes or ()) == codes_of[text.text]
            assert (source / str(text.image)).is_file()
            assert caption(int(Path(str(text.image)).stem)) == text.text

    def test_something_is_left_for_training(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidRequest, match="--held-out is 12, but the source has 12 different images"):
            prepared(source, tmp_path / "out", held_out=12)


def test_a_long_caption_is_cut_and_counted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 2)
    (folder / "00000.txt").write_text("zero one two three four five six seven eight nine " * 30)
    sheet = prepared(folder, tmp_path / "out").datasheet
    assert (sheet.captions.room, sheet.captions.cut) == (132 - 64 - 6, 1)
    assert sheet.captions.longest - sheet.captions.cut_ids == sheet.captions.room
    assert {len(ids) for ids in read_shards(tmp_path / "out").values()} == {132}


def test_another_layout_encodes_nothing_again(source: Path, tmp_path: Path) -> None:
    first = prepared(source, tmp_path / "first", codes=tmp_path / "codes")
    layout = LAYOUT.model_copy(
        update={"template": ("doc", "image", "IMAGE", "/image", "text", "TEXT", "/text", "/doc")}
    )
    second = prepared(source, tmp_path / "second", codes=tmp_path / "codes", layout=layout)
    assert (first.encoded.encoded, second.encoded.encoded) == (12, 0)
    [ids] = [ids[:3] for ids in read_shards(tmp_path / "second").values()][:1]
    assert ids[:2] == [576, 580]
    assert ids[2] in IMAGE_ROWS


class TestInterrupted:
    def test_codes_survive_and_the_bytes_are_the_same(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Interrupted after seven images and in the middle of the shards."""
        prepared(source, tmp_path / "whole", shard_size=5, held_out=2)
        monkeypatch.setattr("evalsvc.decoders.blocks.PIXELS_PER_BATCH_CPU", 2 * 32 * 32)

        def stop_at(stage: str, number: int) -> Any:
            def show(name: str, done: int, *_: object) -> None:
                if (name, done) == (stage, number):
                    raise KeyboardInterrupt

            return show

        for stage, number in (("encode", 7), ("write", 5)):
            with pytest.raises(KeyboardInterrupt):
                prepare(request(source, tmp_path / "parts", shard_size=5, held_out=2), SETTINGS, stop_at(stage, number))
            assert not (tmp_path / "parts" / "prepare.json").exists()
        first = tmp_path / "parts" / "00000001.tar"
        before = first.stat().st_mtime_ns
        result = prepared(source, tmp_path / "parts", shard_size=5, held_out=2)
        assert result.encoded.encoded == 0
        assert first.stat().st_mtime_ns == before, "a whole shard is not written twice"
        assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")

    def test_a_complete_output_is_checked_and_repaired(self, source: Path, tmp_path: Path) -> None:
        prepared(source, tmp_path / "out", shard_size=5)
        whole = bytes_of(tmp_path / "out")
        (tmp_path / "out" / "00000002.tar").write_bytes(b"damaged")
        (tmp_path / "out" / "00000001.tar.0123.partial").write_bytes(b"left by a killed run")
        [codes] = (tmp_path / "out" / "codes").glob("*/*.codes")
        codes.write_bytes(codes.read_bytes()[:-1] + b"\xff")
        result = prepared(source, tmp_path / "out", shard_size=5)
        assert (list(result.damaged), result.encoded.encoded) == ([codes.name], 12)
        assert bytes_of(tmp_path / "out") == whole
        assert not list((tmp_path / "out").glob("*.partial"))

    def test_a_source_that_grew_gives_no_mixture(self, source: Path, tmp_path: Path) -> None:
        folder = tmp_path / "images"
        shutil.copytree(source, folder)
        prepared(folder, tmp_path / "out")
        (folder / "new.png").write_bytes(picture(99))
        (folder / "new.txt").write_text("a new one")
        with pytest.raises(InvalidRequest, match="is complete, and the source has other pairs now"):
            prepared(folder, tmp_path / "out")
        (tmp_path / "out" / "prepare.json").unlink()  # as if the run before had been interrupted
        prepared(folder, tmp_path / "out")
        prepared(folder, tmp_path / "fresh")
        assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "fresh")


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"records": 131}, "--records is 131, but the layout's length is 132; give this number, or 133"),
            ({"images": DECODER.parent}, "--images is given"),
            ({"output": Path("loop/out")}, "--output loop/out: the folder "),
            ({"source": Path("loop")}, "the source loop does not exist or cannot be read"),
            ({"output": Path("/nowhere/out")}, "the folder /nowhere does not exist; create it first"),
        ],
    )
    def test_options(
        self, changes: dict[str, Any], words: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("loop").symlink_to("loop")
        given = {"source": source, "output": tmp_path / "out", **changes}
        with pytest.raises((InvalidRequest, InvalidData)) as caught:
            prepared(**given)
        assert words in caught.value.message
        assert not (tmp_path / "out" / "prepare.json").exists()

    def test_other_settings(self, source: Path, tmp_path: Path) -> None:
        prepared(source, tmp_path / "out")
        with pytest.raises(InvalidRequest, match="was begun with other settings: held_out, seed; repeat the settings"):
            prepared(source, tmp_path / "out", seed=1, held_out=2)

    def test_a_folder_of_something_else(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        with pytest.raises(InvalidRequest, match=r"is not empty, and was not begun by prepare_data\.py"):
            prepared(source, tmp_path / "out")
        assert sorted(os.listdir(tmp_path / "out")) == [".lock", "thesis.tex"]

    @pytest.mark.parametrize("output", [".", "out", "..", "link/out"])
    def test_source_and_output_in_each_other(self, output: str, source: Path, tmp_path: Path) -> None:
        folder = tmp_path / "images"
        shutil.copytree(source, folder)
        (folder / "link").symlink_to(folder)
        with pytest.raises(InvalidRequest, match="lie in each other; name another folder"):
            prepared(folder, folder / output)
        assert sorted(os.listdir(folder)) == sorted([*os.listdir(source), "link"])

    def test_two_at_once(self, source: Path, tmp_path: Path) -> None:
        refusals = []

        def show(*_: object) -> None:
            if not refusals:
                with pytest.raises(InvalidRequest) as caught:
                    prepared(source, tmp_path / "out")
                refusals.append(caught.value.message)

        prepare(request(source, tmp_path / "out"), SETTINGS, show)
        assert "another prepare_data.py writes to --output" in refusals[0]
        prepared(source, tmp_path / "out")

    @pytest.mark.parametrize("outside", ["source", "tokenizer", "decoder"])
    def test_what_lies_outside_the_roots(self, outside: str, source: Path, tmp_path: Path) -> None:
        root = tmp_path / "root"
        root.mkdir()
        inside = {
            "source": Path(shutil.copytree(source, root / "images")),
            "tokenizer": Path(shutil.copy(TOKENIZER, root)),
            "decoder": str(shutil.copytree(DECODER.parent, root / "movqgan") / DECODER.name),
        }
        elsewhere = {"source": source, "tokenizer": tmp_path / "t.json", "decoder": str(tmp_path / "d" / DECODER.name)}
        shutil.copy(TOKENIZER, tmp_path / "t.json")
        shutil.copytree(DECODER.parent, tmp_path / "d")
        settings = Settings(devices="cpu", threads=1, roots=str(root))
        prepared(output=tmp_path / "out", settings=settings, **inside)  # type: ignore[arg-type]
        with pytest.raises(InvalidData, match="outside the allowed folders"):
            prepared(output=tmp_path / "other", settings=settings, **inside | {outside: elsewhere[outside]})  # type: ignore[arg-type]

    def test_a_full_disk(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("prepare.code_store.write_whole", full)
        with pytest.raises(
            InvalidRequest, match=r"--output .*/out cannot be written: no space left on device; make room"
        ):
            prepared(source, tmp_path / "out")

    def test_codes_that_are_removed_meanwhile(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def show(stage: str, *_: object) -> None:
            if stage == "write":
                shutil.rmtree(tmp_path / "out" / "codes")

        with pytest.raises(DataChanged, match="was changed or removed while it was read; run the command again"):
            prepare(request(source, tmp_path / "out", shard_size=2), SETTINGS, show)


def test_images_have_one_code_whatever_is_encoded_with_them(source: Path, tmp_path: Path) -> None:
    """A resumed run encodes other images together than a run that was not interrupted."""
    few = tmp_path / "few"
    few.mkdir()
    for name in ("00003", "00007", "00011"):
        for ending in ("png", "txt"):
            shutil.copy(source / f"{name}.{ending}", few)
    prepared(source, tmp_path / "all")
    prepared(few, tmp_path / "out")
    assert read_shards(tmp_path / "out").items() <= read_shards(tmp_path / "all").items()


def test_the_rate_counts_what_was_encoded(source: Path, tmp_path: Path) -> None:
    units: list[str] = []
    prepare(request(source, tmp_path / "out"), SETTINGS, lambda *shown: units.append(str(shown[3])))
    assert encoding.EncodedImages().rate == 0
    assert any(unit.startswith("images, ") and unit.endswith(" encoded a second") for unit in units)
    assert units[-1] == "sequences"
