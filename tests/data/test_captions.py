import json
from pathlib import Path
from typing import Any

import pytest
from refusals import refusal

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
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def test_coco_annotations(tmp_path: Path) -> None:
    """Ids name image and caption, so that other captions of the image are other prompts; texts are only stripped."""
    data = read_captions(write(tmp_path, COCO, "captions.json"))
    assert data.captions == (
        Caption("8:31", "An eight.", "eight.jpg", None, "annotation 1"),
        Caption("7:30", "A seven.", "seven.jpg", None, "annotation 2"),
        Caption("8:32", "An eight.", "eight.jpg", None, "annotation 3"),
    )


def test_mjhq(tmp_path: Path) -> None:
    """Labels are places of the categories, which are the folders of the real images."""
    content = {"77": {"category": "people", "prompt": " A man\n"}, "5": {"category": "art", "prompt": "A bust"}}
    assert read_captions(write(tmp_path, content, "meta_data.json")).captions == (
        Caption("77", "A man", "people/77.jpg", 1, "entry 1"),
        Caption("5", "A bust", "art/5.jpg", 0, "entry 2"),
    )


def test_csv_rows_are_numbered(tmp_path: Path) -> None:
    """Repeated texts are prompts of their own, so the id is the row's number and never made of the text."""
    content = '\ufeffPrompt\r\nA dog\r\n\r\n"A dog"\r\n"two\nlines, "" and "\r\n""\r\n'
    read = read_captions(write(tmp_path, content, "a.csv")).captions
    assert [(item.id, item.text) for item in read] == [
        *zip("1234", ("A dog", "A dog", 'two\nlines, " and', ""), strict=True)
    ]
    assert [item.where for item in read] == ["line 2", "line 4", "line 5", "line 7"]
    for header in ("id,caption,file_name,label", "image_id, Caption ,image,label"):
        data = read_captions(write(tmp_path, f"{header}\n17,a,x.png,3\n18,b,,\n", "a.csv"))
        assert data.captions == (Caption("17", "a", "x.png", 3, "line 2"), Caption("18", "b", None, None, "line 3"))


def test_a_text_alone_in_its_row_needs_no_quotes(tmp_path: Path) -> None:
    """As in the lists of prompts that are passed around; what is quoted properly is read as CSV all the same."""
    rows = ['"Head shot" of a zebra, grey', "A dog,", '"He said ""hi"", twice"', '"a" and "b', 'a "b"']
    texts = ['"Head shot" of a zebra, grey', "A dog,", 'He said "hi", twice', '"a" and "b', 'a "b"']
    data = read_captions(write(tmp_path, "\n".join(["Prompt", *rows]), "a.csv"))
    assert [item.text for item in data.captions] == texts


def test_jsonl(tmp_path: Path) -> None:
    lines = '{"text": " the digit 7\\n", "id": "x", "image": 4, "label": 7}\n\n{"text": "", "image": "a.png"}\n'
    data = read_captions(write(tmp_path, lines + '{"text": "b", "id": 5}\n', "a.jsonl"))
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
        ("a.json", {}, "has no list `images`, as COCO's annotations have; found nothing"),
        ("a.json", {"hunter2": {"category": "art"}}, "entry 1: `prompt` is empty; it must be a string"),
        ("a.json", {"hunter2": {"category": [], "prompt": ""}}, "entry 1: `category` is list; it must be"),
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
        ("a.csv", "captoin,id\na,1\n", "no column 'prompt', 'caption', 'text'; found 'captoin', 'id'; rename 'c"),
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
    path = write(tmp_path, content, name)
    said = refusal(InvalidData, read_captions, path)
    assert fragment in said
    assert str(path) in said


def test_real_files(shared: Path) -> None:
    """COCO's own annotations, with stray blanks in 53 of them, and a list of 30,000 prompts with repeated texts."""
    folder = shared / "golden" / "coco_smoke"
    smoke = read_captions(folder / "captions_val2017_smoke.json").captions
    assert (len(smoke), smoke[0].id, smoke[0].image) == (425, "12667:2960", "000000012667.jpg")
    assert all(item.text == item.text.strip() != "" for item in smoke)
    prompts = read_captions(folder / "prompts_30k.csv").captions
    assert (len(prompts), prompts[-1].id, len({item.text for item in prompts})) == (30_000, "30000", 29_420)


def selection(tmp_path: Path, count: int = 60) -> captions.CaptionData:
    numbers = [(image, 10 * image + number) for image in range(count) for number in range(3)]
    annotations = [{"id": number, "image_id": image, "caption": f"{number}"} for image, number in numbers]
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
    data, plain = selection(tmp_path), read_captions(write(tmp_path, "text\na\n", "a.csv"))
    assert select_captions(data, "first", 2, 0) == data.captions[:2]
    for given, fragment in (
        ((data, "one_per_image", 61), "has 60 images, but 61 images are requested; lower `samples`"),
        ((data, "random", 181), "has 180 captions, but 181 images are requested"),
        ((plain, "one_per_image", None), "line 2 names no image; `select: one_per_image` needs an image"),
    ):
        assert fragment in refusal(InvalidData, select_captions, *given, 0)
