import json
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refusal
from safetensors.numpy import save_file

from evalsvc.data.captions import read_captions
from evalsvc.data.images import read_images
from evalsvc.data.tokens import read_pairs, read_tokens
from evalsvc.errors import InvalidData


def write(folder: Path, *records: Any, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in records))
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer of whole words: `a` is 1, `b` is 2. Its post-processor adds 0, and it cuts after three ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    built = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2}, unk_token="<s>"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    built.enable_truncation(3)
    path = tmp_path / "tokenizer.json"
    built.save(str(path))
    return path


def test_jsonl(tmp_path: Path) -> None:
    lines = {"text_ids": [3, 4], "image_codes": [9]}, "", {"image_codes": [7, 8], "id": 5}, {"text_ids": [1]}
    tokens = read_tokens(write(tmp_path, *lines))
    assert [record.text_ids for record in tokens.records] == [array("i", [3, 4]), None, array("i", [1])]
    assert [record.image_codes for record in tokens.records] == [array("i", [9]), array("i", [7, 8]), None]
    assert [record.where for record in tokens.records] == ["line 1", "line 3", "line 4"]
    assert tokens.tokenizer_digest is None


def test_the_same_tokens_have_the_same_digest_in_every_format(tmp_path: Path) -> None:
    jsonl = write(tmp_path, {"text_ids": [3, 4], "image_codes": [9, 8]}, {"text_ids": [5], "image_codes": [7, 6]})
    ragged = tmp_path / "ragged.safetensors"
    tensors = {"text_ids": np.array([[3, 4], [5, 99]]), "text_lengths": np.array([2, 1], dtype="u1")}
    save_file(tensors | {"image_codes": np.array([[9, 8], [7, 6]], dtype="u2")}, ragged)
    tokens = read_tokens(ragged)
    assert tokens.digest == read_tokens(jsonl).digest
    assert [list(record.text_ids or ()) for record in tokens.records] == [[3, 4], [5]]
    assert tokens.records[1].where == "record 2"
    fixed = tmp_path / "fixed.safetensors"
    save_file({"text_ids": np.array([[3, 4], [5, 6]])}, fixed)
    same = write(tmp_path, {"text_ids": [3, 4]}, {"text_ids": [5, 6]}, name="fixed.jsonl")
    assert read_tokens(fixed).digest == read_tokens(same).digest, "a fixed width needs no lengths"
    first = read_tokens(write(tmp_path, {"text_ids": [1, 2]}, {"text_ids": [3]})).digest
    for number, others in enumerate(
        (
            [{"text_ids": [1, 2, 3]}],
            [{"text_ids": [1, 2]}, {"text_ids": [4]}],
            [{"text_ids": [1, 2], "image_codes": [3]}],
            [{"image_codes": [1, 2]}, {"text_ids": [3]}],
            [{"text_ids": [1, 2], "image_codes": []}, {"text_ids": [3]}],
        )
    ):
        assert read_tokens(write(tmp_path, *others, name=f"{number}.jsonl")).digest != first


def test_text_is_tokenised_as_it_stands(tmp_path: Path, tokenizer: Path) -> None:
    """Truncation set in the tokenizer's file would drop tokens unseen, and its own BOS would come twice."""
    path = write(tmp_path, {"text": "a b a b a", "image_codes": [4]})
    plain = read_tokens(path, tokenizer, bos="none")
    assert (plain.records[0].text_ids, plain.records[0].image_codes) == (array("i", [1, 2, 1, 2, 1]), array("i", [4]))
    assert len(plain.tokenizer_digest or "") == 64
    with_bos = read_tokens(path, tokenizer, bos=0)
    assert with_bos.records[0].text_ids == array("i", [0, 1, 2, 1, 2, 1])
    assert (plain.bos, with_bos.bos) == (None, 0)
    ids = read_tokens(write(tmp_path, {"text_ids": [1]}, name="ids.jsonl"), tmp_path / "not there.json", bos=7)
    assert (ids.tokenizer_digest, ids.bos) == (None, None), "ids need no tokenizer"
    with pytest.raises(InvalidData, match=r"puts 0 before every text by itself, .* set the layout's `text\.bos` to 0"):
        read_tokens(path, tokenizer)
    with pytest.raises(InvalidData, match=r"bos is 3; the tokenizer .* has the ids 0…2"):
        read_tokens(path, tokenizer, bos=3)


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        ('{"text_ids": [1', "line 2 is not valid JSON"),
        ("[1, 2]", "line 2 is list; it must be an object"),
        ('{"codes": [1]}', "line 2 has neither `text_ids`, `text` nor `image_codes`, found 'codes'"),
        ("{}", "found no keys"),
        ('{"text_ids": [1, 2.5]}', "line 2: `text_ids` holds float; it must hold whole numbers"),
        ('{"text_ids": ["hunter2"]}', "`text_ids` holds str"),
        ('{"image_codes": [99999999999]}', "`image_codes` holds 99999999999, which is no token id"),
        ('{"image_codes": "hunter2"}', "`image_codes` is str; it must be a list"),
        ('{"text_ids": [], "image_codes": []}', "line 2 is empty"),
        ('{"text_ids": [1], "text": "a"}', "both `text` and `text_ids`"),
        ('{"text": ["hunter2"]}', "`text` is list; it must be a string"),
        ('{"text": "a \\ud800"}', "line 2: `text` holds half of a surrogate pair"),
        ('{"text": "a"}', "holds `text`, but no tokenizer is given; give the task's parameter `tokenizer`"),
        ('{"text": "\xff"}', "line 2 is not valid JSON"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: str, fragment: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text_ids": [1]}\n' + line.encode("latin-1") + b"\n")
    said = refusal(InvalidData, read_tokens, path)
    assert fragment in said
    assert str(path) in said


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    header = b'{"text_ids": {"dtype": "hunter2", "shape": [1], "data_offsets": [0, 4]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    for path, fragment in (
        (tmp_path / "none.jsonl", "none.jsonl does not exist"),
        (tmp_path, "is a folder; give a file"),
        (write(tmp_path, ""), "holds no records"),
        (write(tmp_path, {"text_ids": [1]}, name="data.safetensors"), "is not a safetensors file of integers"),
        (tmp_path / "a.safetensors", "is not a safetensors file of integers, or is cut off; write"),
    ):
        assert fragment in refusal(InvalidData, read_tokens, path)


@pytest.mark.parametrize(
    ("tensors", "fragment"),
    [
        ({"text_id": np.array([[1]])}, "neither `text_ids` nor `image_codes`, found 'text_id'"),
        ({"text_ids": np.array([[1]]), "text_lenghts": np.array([1])}, "the tensor 'text_lenghts'; known are text_ids"),
        ({"text_ids": np.array([[1.0]])}, "`text_ids` is float64; it must hold whole numbers"),
        ({"text_ids": np.array([1])}, "`text_ids` has the shape [1]; it must have 2 dimensions"),
        ({"text_ids": np.array([[1]]), "image_codes": np.array([[1], [2]])}, "different numbers of records"),
        ({"text_ids": np.array([[1]]), "text_lengths": np.array([2])}, "`text_lengths` holds 2; give lengths of 0…1"),
        ({"text_ids": np.array([[1]]), "text_lengths": np.array([-1])}, "`text_lengths` holds -1"),
        ({"image_codes": np.array([[1]]), "text_lengths": np.array([1])}, "`text_lengths` without `text_ids`"),
        ({"text_ids": np.array([[1], [2]]), "text_lengths": np.array([1, 0])}, "record 2 is empty"),
        ({"text_ids": np.array([[2**40]])}, "holds 1099511627776, which is no token id"),
        ({"text_ids": np.zeros((0, 3), dtype="i4")}, "holds no records"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, tensors: dict[str, Any], fragment: str) -> None:
    path = tmp_path / "data.safetensors"
    save_file(tensors, path)
    said = refusal(InvalidData, read_tokens, path)
    assert fragment in said
    assert str(path) in said


@pytest.mark.parametrize(
    ("read", "parts", "key"), [(read_captions, "captions", "text"), (read_tokens, "records", "image_codes")]
)
def test_a_file_is_parsed_once_until_it_changes(tmp_path: Path, read: Any, parts: str, key: str) -> None:
    """Every shard of a task reads the data; parsing 30,000 pairs for each of them would take longer than the model."""
    record = {key: "a" if key == "text" else [1]}
    path = write(tmp_path, record)
    assert read(path) is read(path)
    write(tmp_path, record, record)
    assert len(getattr(read(path), parts)) == 2


@pytest.fixture
def images(tmp_path: Path) -> Path:
    save_file({"images": np.zeros((3, 3, 8, 8), np.uint8)}, tmp_path / "images.safetensors")
    return tmp_path / "images.safetensors"


def test_pairs(tmp_path: Path, tokenizer: Path, images: Path) -> None:
    """An empty caption is a record with no ids, or with the BOS alone; two captions may share an image."""
    lines = {"text": "a b", "image": 2}, {"text": "", "image": 0}, {"text": "b", "image": "2"}
    captions = write(tmp_path, *lines, name="a.jsonl")
    pairs = read_pairs(captions, read_images(images), tokenizer, "none")
    assert pairs.captions == ("a b", "", "b")
    assert [list(record.text_ids or ()) for record in pairs.texts.records] == [[1, 2], [], [2]]
    assert [record.image_codes for record in pairs.texts.records] == [None] * 3
    assert [record.where for record in pairs.texts.records] == ["line 1", "line 2", "line 3"]
    assert pairs.images == (2, 0, 2)
    texts = write(tmp_path, {"text_ids": [1, 2]}, {"text_ids": [0], "image_codes": [1]}, {"text_ids": [2]})
    assert pairs.texts.digest != read_tokens(texts).digest
    assert read_pairs(captions, read_images(images), tokenizer, "none").texts is pairs.texts
    with_bos = read_pairs(captions, read_images(images), tokenizer, bos=0).texts
    assert [list(record.text_ids or ()) for record in with_bos.records] == [[0, 1, 2], [0], [0, 2]]


def test_captions_that_fit_no_image_are_named(tmp_path: Path, tokenizer: Path, images: Path) -> None:
    for record, reader, fragment in (
        ({"text": "b"}, tokenizer, "line 2 names no image; add an image or remove the caption"),
        ({"text": "b", "image": 3}, tokenizer, "images.safetensors has no image 3; give one of 0…2"),
        ({"text": "b", "image": "x.png"}, tokenizer, "images.safetensors has no names"),
        ({"text": "b", "image": 1}, None, "no tokenizer is given"),
        ({"text": "b", "image": 1}, tmp_path / "none.json", "none.json does not exist"),
    ):
        path = write(tmp_path, {"text": "a", "image": 0}, record, name="captions.jsonl")
        assert fragment in refusal(InvalidData, read_pairs, path, read_images(images), reader, "none")


def test_a_record_may_name_its_document(tmp_path: Path) -> None:
    """It moves no token and so no digest."""
    named = [{"text_ids": [1], "document": name} for name in ("a", 7)]
    data = read_tokens(write(tmp_path, *named, {"text_ids": [1]}))
    assert [record.document for record in data.records] == ["a", 7, None]
    packed = tmp_path / "data.safetensors"
    save_file({"text_ids": np.array([[1], [1], [1]]), "document": np.array([4, 4, -1])}, packed)
    again = read_tokens(packed)
    assert [record.document for record in again.records] == [4, 4, -1]
    assert again.digest == data.digest
    for wrong, kind in ((True, "bool"), ([1], "list"), (1.5, "float")):
        said = refusal(InvalidData, read_tokens, write(tmp_path, {"text_ids": [1], "document": wrong}))
        assert f"line 1: `document` is {kind}; it must be a string or a whole number" in said
