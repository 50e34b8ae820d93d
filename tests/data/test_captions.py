import json
from pathlib import Path
from typing import Any

import pytest

from evalsvc.data import captions
from evalsvc.data.captions import Caption, read_captions, select_captions
from evalsvc.errors import InvalidData

COCO: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "seven.jpg"}, {"id": 8, "file_name": "eight.jpg"}],
    "annotations": [
        {"id": 31, "image_id": 8, "caption": "An eight.\n"},
        {"id": 30, "image_id": 7, "caption": "A seven."},
        {"id": 32, "image_id": 8, "caption": "An eight."},
    ],
}


def write(folder: Path, content: Any, name: str) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_coco_annotations(tmp_path: Path) -> None:
    """Ids name image and caption, so that other captions of the image are other prompts; texts are only stripped."""
    data = read_captions(write(tmp_path, COCO, "captions.json"))
    assert data.captions == (
        Caption("8:31", "An eight.", "eight.jpg", None, "annotation 1"),
        Caption("7:30", "A seven.", "seven.jpg", None, "annotation 2"),
        Caption("8:32", "An eight.", "eight.jpg", None, "annotation 3"),
    )


def test_csv_rows_are_numbered(tmp_path: Path) -> None:
    """Repeated texts are prompts of their own, so the id is the row's number and never made of the text."""
    data = read_captions(
        write(tmp_path, '\ufeffPrompt\r\nA dog\r\n\r\n"A dog"\r\n"two\nlines, "" and "\r\n""\r\n', "a.csv")
    )
    assert [(item.id, item.text, item.where) for item in data.captions] == [
        ("1", "A dog", "line 2"),
        ("2", "A dog", "line 4"),
        ("3", 'two\nlines, " and', "line 5"),
        ("4", "", "line 7"),
    ]


def test_a_text_alone_in_its_row_needs_no_quotes(tmp_path: Path) -> None:
    """As in the lists of prompts that are passed around; what is quoted properly is read as CSV all the same."""
    rows = ['"Head shot" of a zebra, grey', "A dog,", '"He said ""hi"", twice"', '"a" and "b', 'a "b"']
    texts = ['"Head shot" of a zebra, grey', "A dog,", 'He said "hi", twice', '"a" and "b', 'a "b"']
    data = read_captions(write(tmp_path, "\n".join(["Prompt", *rows]), "a.csv"))
    assert [item.text for item in data.captions] == texts


@pytest.mark.parametrize("header", ["id,caption,file_name,label", "image_id, Caption ,image,label"])
def test_csv_columns(tmp_path: Path, header: str) -> None:
    data = read_captions(write(tmp_path, f"{header}\n17,a,x.png,3\n18,b,,\n", "a.csv"))
    assert data.captions == (Caption("17", "a", "x.png", 3, "line 2"), Caption("18", "b", None, None, "line 3"))


def test_jsonl(tmp_path: Path) -> None:
    lines = (
        '{"text": " the digit 7\\n", "id": "x", "image": 4, "label": 7}\n\n'
        '{"text": "", "image": "a.png"}\n{"text": "b", "id": 5}\n'
    )
    data = read_captions(write(tmp_path, lines, "a.jsonl"))
    assert data.captions == (
        Caption("x", "the digit 7", 4, 7, "line 1"),
        Caption("3", "", "a.png", None, "line 3"),
        Caption("5", "b", None, None, "line 4"),
    )
    one = read_captions(write(tmp_path, "prompt\na\nbc\n", "a.csv")).digest
    assert read_captions(write(tmp_path, '{"text": "a"}\n{"text": "bc"}\n', "b.jsonl")).digest == one, "in every format"
    for other in ("prompt\nab\nc\n", "prompt\nbc\na\n", "id,prompt\n1,a\n3,bc\n", "prompt\na\n"):
        assert read_captions(write(tmp_path, other, "other.csv")).digest != one


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("a.json", "", "a.json is empty; give COCO's annotations"),
        ("a.json", '{"images": [\nhunter2', "is not valid JSON: Expecting value: line 2"),
        ("a.json", '{"text": "a"}\n{"text": "b"}', "give a file with an object per line the suffix .jsonl"),
        ("a.json", [1], "is list; COCO's annotations are an object with `images`"),
        ("a.json", {"images": []}, "has no list `annotations`, as COCO's annotations have; found 'images'"),
        ("a.json", {"images": {}, "annotations": []}, "`images` is dict; it must be a list of objects"),
        ("a.json", {"images": [3], "annotations": []}, "entry 1 of `images` is int; it must be an object"),
        ("a.json", {"images": [], "annotations": []}, "holds no captions; write at least one"),
        ("a.json", {**COCO, "images": COCO["images"] * 2}, "image 3: another image has the id 7 too"),
        ("a.json", {**COCO, "images": COCO["images"][:1]}, "annotation 1: `images` has no image 8; add the image"),
        ("a.json", {**COCO, "images": [{"id": "hunter2"}]}, "image 1: `id` is str; it must be a whole number"),
        ("a.json", {**COCO, "annotations": [{"image_id": 7, "caption": "a"}]}, "annotation 1: `id` is missing; it"),
        ("a.json", {**COCO, "annotations": [{"id": 1, "image_id": 7}]}, "annotation 1: `caption` is empty; it must"),
        ("a.csv", "", "holds no captions"),
        (
            "a.csv",
            "captoin,id\na,1\n",
            "no column 'prompt', 'caption', 'text'; found 'captoin', 'id'; rename 'c",
        ),
        ("a.csv", "prompt,text\na,b\n", "the columns 'prompt' and 'text'; keep one text column"),
        ("a.csv", "id,text\n1,a\n2,b, c\n", "line 3 has 3 fields, but the header has 2; put texts with commas"),
        ("a.csv", 'text\na\n"hunter2\n', "line 3 is not valid CSV: a quotation mark is not closed"),
        ("a.csv", 'id,text\n1,a\n2,"b\n', "line 3 is not valid CSV: unexpected end of data"),
        ("a.csv", b"text\na\n\xff\n", "line 3 is not UTF-8; save the file as UTF-8"),
        ("a.csv", "id,text\nhunter2,a\nhunter2,b\n", "line 3: the id is also that of line 2; give each"),
        ("a.csv", "id,text\n1,a\n ,b\n", "line 3: the id is empty"),
        ("a.csv", "label,text\nhunter2,a\n", "line 2: the label is no whole number; correct the label"),
        ("a.jsonl", '{"text": "a"}\nhunter2', "line 2 is not valid JSON"),
        ("a.jsonl", '{"txet": "a"}', "line 1 has no `text`; found 'txet'; rename 'txet'?"),
        ("a.jsonl", '{"text": ["hunter2"]}', "line 1: `text` is list; it must be a string"),
        ("a.jsonl", '{"text": "a", "id": ["hunter2"]}', "line 1: `id` is list; it must be a string or a whole number"),
        ("a.jsonl", '{"text": "a", "image": true}', "line 1: `image` is bool; it must be a file name or an index"),
        ("a.jsonl", '{"text": "a", "label": "hunter2"}', "line 1: `label` is str; it must be a whole number"),
        ("a.txt", "a\n", "a.txt ends in '.txt'; give captions in .json (COCO annotations), .csv"),
    ],
)
def test_wrong_files_are_named_with_their_line(tmp_path: Path, name: str, content: Any, fragment: str) -> None:
    """And without their values: who names a file need not be who may read it."""
    path = write(tmp_path, content, name)
    with pytest.raises(InvalidData) as caught:
        read_captions(path)
    assert fragment in caught.value.message
    assert str(path) in caught.value.message
    assert "hunter2" not in caught.value.message


def test_a_file_is_parsed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shard of a task reads them all."""
    parsed = []
    rows = captions._csv_rows
    monkeypatch.setattr(captions, "_csv_rows", lambda *given: parsed.append(1) or rows(*given))
    path = write(tmp_path, "text\na\n", "a.csv")
    assert read_captions(path) is read_captions(path)
    assert len(parsed) == 1
    write(tmp_path, "text\na\nb\n", "a.csv")
    assert len(read_captions(path).captions) == 2


def test_real_files(shared: Path) -> None:
    """COCO's own annotations, with stray blanks in 53 of them, and a list of 30,000 prompts with repeated texts."""
    folder = shared / "golden" / "coco_smoke"
    smoke = read_captions(folder / "captions_val2017_smoke.json")
    assert len(smoke.captions) == 425
    assert smoke.captions[0].id == "12667:2960"
    assert smoke.captions[0].image == "000000012667.jpg"
    assert all(item.text == item.text.strip() != "" for item in smoke.captions)
    prompts = read_captions(folder / "prompts_30k.csv")
    assert len(prompts.captions) == 30_000
    assert prompts.captions[-1].id == "30000"
    assert len({item.text for item in prompts.captions}) == 29_420


def selection(tmp_path: Path, count: int = 60) -> captions.CaptionData:
    """`count` images with three captions each."""
    annotations = [
        {"id": 10 * image + number, "image_id": image, "caption": f"{image} {number}"}
        for image in range(count)
        for number in range(3)
    ]
    images = [{"id": image, "file_name": f"{image}.jpg"} for image in range(count)]
    return read_captions(write(tmp_path, {"images": images, "annotations": annotations}, "captions.json"))


@pytest.mark.parametrize("rule", ["random", "one_per_image"])
def test_a_choice_follows_from_seed_and_ids_alone(tmp_path: Path, rule: Any) -> None:
    """A smaller number of samples is the beginning of a larger one, and another order of the file changes nothing."""
    data = selection(tmp_path)
    chosen = select_captions(data, rule, 20, 5)
    assert select_captions(data, rule, 60, 5)[:20] == chosen
    turned = captions.CaptionData(data.path, data.captions[::-1], "")
    assert select_captions(turned, rule, 20, 5) == chosen
    assert set(select_captions(data, rule, 20, 6)) != set(chosen)
    everything = select_captions(data, rule, None, 0)
    assert len(set(everything)) == (180 if rule == "random" else 60)
    assert {caption.image for caption in everything} == {caption.image for caption in data.captions}
    picks = {int(caption.id.partition(":")[2]) % 10 for caption in everything}
    assert picks == {0, 1, 2}, "not always the first caption"


def test_too_few_captions_and_captions_without_images(tmp_path: Path) -> None:
    data = selection(tmp_path)
    assert select_captions(data, "first", 2, 0) == data.captions[:2]
    with pytest.raises(InvalidData, match="has 60 images, but 61 images are requested; lower `samples`"):
        select_captions(data, "one_per_image", 61, 0)
    with pytest.raises(InvalidData, match="has 180 captions, but 181 images are requested"):
        select_captions(data, "random", 181, 0)
    plain = read_captions(write(tmp_path, "text\na\n", "a.csv"))
    with pytest.raises(InvalidData, match="line 2 names no image; `select: one_per_image` needs an image"):
        select_captions(plain, "one_per_image", None, 0)
