from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from refusals import refusal

from evalsvc.data.captions import read_captions
from evalsvc.data.images import read_images
from evalsvc.data.prompted_images import PromptedImages, pair_images, prompts_with
from evalsvc.errors import InvalidData


def folder(path: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path / name)
    return path


def paired(images: Path, prompts: str | None, samples: int | None = None) -> PromptedImages:
    if prompts is not None:
        (images.parent / "prompts.csv").write_text(prompts)
    captions = None if prompts is None else read_captions(images.parent / "prompts.csv")
    return pair_images(read_images(images), captions, "first", samples, 0)


def ids(data: PromptedImages) -> list[tuple[str, str, int]]:
    return [(item.id, item.text, item.image) for item in data.images]


def test_images_are_named_after_their_prompts(tmp_path: Path) -> None:
    """A prompt `a_1` next to a prompt `a` keeps its image, and a single image has the id of a sampled one."""
    images = folder(tmp_path / "i", "a_10.png", "a_2.png", "sub/a_1.JPG", "b_0.png", "c.png", "other.png")
    data = paired(images, "id,text\na,A\na_1,B\nb,C\nc,D\n")
    assert ids(data) == [("a_2", "A", 1), ("a_10", "A", 0), ("a_1", "B", 5), ("b", "C", 2), ("c", "D", 3)]
    assert data.unused == 1
    assert data.captions == read_captions(tmp_path / "prompts.csv").digest
    assert paired(images, "id,text\na,A\na_1,B\nb,C\nc,D\n", samples=2).prompts != data.prompts


def test_a_manifest_names_images_if_no_prompt_does(tmp_path: Path) -> None:
    images = folder(tmp_path / "i", "x.png", "y.png")
    assert ids(paired(images, "id,text,image\np,A,y.png\nq,B,x.png\n")) == [("p", "A", 1), ("q", "B", 0)]
    for prompts, fragment in (
        ("id,text\np,A\n", "is named after the id of a prompt, such as 'p', and"),
        ("id,text,image\np,A,z.png\n", "has no image 'z.png'"),
        ("id,text\nx,A\np,B\nq,C\n", "line 3: the prompt 'p' has no image in"),
    ):
        assert fragment in refusal(InvalidData, paired, images, prompts)


def test_two_files_of_one_prompt_are_refused(tmp_path: Path) -> None:
    images = folder(tmp_path / "i", "x.png", "x.jpg")
    assert "of one prompt; rename one of them" in refusal(InvalidData, paired, images, "id,text\nx,A\n")


def test_images_without_names_belong_to_prompts_in_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((2, 8, 8, 3), np.uint8))
    assert ids(paired(tmp_path / "a.npz", "id,text\np,A\nq,B\n")) == [("p", "A", 0), ("q", "B", 1)]
    assert "has 2 images without names" in refusal(InvalidData, paired, tmp_path / "a.npz", "id,text\np,A\n")


@pytest.mark.parametrize("numbers", [[7, 5], None])
def test_a_table_with_texts_is_its_own_list(tmp_path: Path, numbers: list[int] | None) -> None:
    columns = {"image": [b"a", b"b"], "caption": [" A", "B"]} | ({} if numbers is None else {"id": numbers})
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    data = paired(tmp_path / "a.parquet", None)
    assert ids(data) == [(str((numbers or [1, 2])[0]), "A", 0), (str((numbers or [1, 2])[1]), "B", 1)]
    assert data.captions


def test_images_without_prompts_are_named_after_their_files(tmp_path: Path) -> None:
    data = paired(folder(tmp_path / "i", "n01/x.png", "y.png"), None)
    assert (ids(data), data.captions, data.unused) == ([("n01/x", "", 0), ("y", "", 1)], "", 0)


def test_the_file_of_prompts_in_a_folder(tmp_path: Path) -> None:
    assert prompts_with(tmp_path) is None
    (tmp_path / "prompts.csv").touch()
    assert prompts_with(tmp_path) == tmp_path / "prompts.csv"
    (tmp_path / "prompts.jsonl").touch()
    assert "holds prompts.jsonl and prompts.csv; keep one" in refusal(InvalidData, prompts_with, tmp_path)
