"""Tasks on a layout with a prompt, rows of codes that end, and image rows inside the text, against plain loops."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from metric_items import value_of_items
from miniature_run import DECODER, pretrained
from task_runs import run_task
from tokenizers import AddedToken, Tokenizer

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.miniature import ROOT
from evalsvc.models.loading import load_model

CAPTIONS = ("somebody wrote a zero", "a ~ zebra", "two, written by hand")
"""The second has the name of a special token."""

LAYOUT: Mapping[str, Any] = {
    "image": {"offset": 512, "size": 64, "row_end": "eol"},
    "special": {"eol": 577, "eoi": 578, "pad": 582},
    "template": ["TEXT", "IMAGE", "eoi"],
    "unconditional_template": None,
    "length": None,
}
PROMPT = {"text": "~{caption}: {rows}*{columns}", "unconditional": "~ {rows}", "negative": "ugly {columns}~"}
PADDED = {"text": PROMPT["text"], "pad": "~"}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(ROOT / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("~", special=True, normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tokenizer


def checkpoint(folder: Path, prompt: Mapping[str, str], **changes: Any) -> CheckpointRef:
    text = {"size": 583, "tokenizer": str(folder / "tokenizer.json"), "bos": 5}
    return pretrained(5, text=text, prompt=prompt, **{**LAYOUT, **changes})


def with_ends(codes: Sequence[int]) -> list[int]:
    rows = [512 + code for code in codes]
    return [row for start in range(0, len(rows), 8) for row in (*rows[start : start + 8], 577)]


def drawn(c: list[int], u: list[int], scale: float) -> list[int]:
    """The likeliest codes by whole sequences, without a cache."""
    model, codes = load_model(pretrained(5).path), list[int]()
    with torch.inference_mode():
        for _ in range(64):
            image = with_ends(codes)[: len(codes) + len(codes) // 8]
            conditional, other = (model(torch.tensor([[*ids, *image]]))[0, -1, 512:576] for ids in (c, u))
            codes.append(int((other + scale * (conditional - other)).argmax()))
    return codes


def sampled(folder: Path, layout: CheckpointRef, **task: Any) -> dict[str, Any]:
    path = folder / "captions.jsonl"
    records = [{"id": str(label), "text": text, "label": label} for label, text in enumerate(CAPTIONS)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    fields = {"kind": "text_to_image", "name": "digits", "captions": str(path), "decoder": DECODER, "keep": 0}
    fields |= {"classifier": str(ROOT / "classifier.safetensors"), "metrics": ["agreement"], "temperature": 0.0}
    return run_task(layout, **{**fields, "batch": 2, "guidance_scale": 3.0, **task})


@pytest.mark.parametrize("prompt", [PROMPT, PADDED])
def test_images_are_those_of_a_plain_loop_with_its_prompts(
    prompt: Mapping[str, str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    result = sampled(tmp_path, checkpoint(tmp_path, prompt))
    assert result["errors"] == {}
    [special] = tokenizer.encode("~").ids
    for item, caption in zip(result["items"]["digits"], CAPTIONS, strict=True):
        ids = [5, *tokenizer.encode(f"~{caption}: 8*8").ids]
        without = [5, *tokenizer.encode("ugly 8~").ids]
        if prompt is PADDED:
            without = [5, *[special] * (len(ids) - 2), ids[-1]]
        codes = torch.tensor(drawn(ids, without, 3.0), dtype=torch.int32)
        assert item["codes"] == hashlib.sha256(codes.numpy().tobytes()).hexdigest()[:16], caption
    [protocol] = result["protocols"].values()
    assert protocol["tokenizer"] == hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    [warning] = [warning for warning in result["warnings"]["digits"] if warning["code"] == "special_names"]
    assert warning["message"].startswith("1 captions hold the names of special tokens")


def test_images_without_captions_have_the_unconditional_prompt(tokenizer: Tokenizer, tmp_path: Path) -> None:
    task = {"captions": None, "samples": 2, "classifier": None, "metrics": [], "guidance_scale": 1.0}
    result = sampled(tmp_path, checkpoint(tmp_path, PROMPT), **task)
    ids = [5, *tokenizer.encode("~ 8").ids]
    codes = torch.tensor(drawn(ids, ids, 1.0), dtype=torch.int32)
    digest = hashlib.sha256(codes.numpy().tobytes()).hexdigest()[:16]
    assert [item["codes"] for item in result["items"]["digits"]] == [digest] * 2


@pytest.mark.parametrize(
    ("prompt", "changes", "message"),
    [
        (
            {"text": "{caption}"},
            {},
            "`guidance_scale` needs an unconditional prompt, but the layout's `prompt` has none",
        ),
        (PROMPT, {"image": {"offset": 512, "size": 64, "grid": [4, 16]}}, "have 4 rows of 16 codes, but the decoder's"),
        (PROMPT, {"image": {"offset": 512, "size": 64, "grid": [4, 15]}}, "have 4 rows of 15 codes, but the decoder's"),
        ({**PADDED, "pad": "<none>"}, {}, "`prompt.pad` is no token of the tokenizer"),
        (PROMPT, {"length": 90}, "a prompt is not cut"),
    ],
)
def test_prompts_that_cannot_be_drawn_from_are_refused_before_anything_is_drawn(
    prompt: Mapping[str, str], changes: dict[str, Any], message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    result = sampled(tmp_path, checkpoint(tmp_path, prompt, **changes))
    assert message in result["errors"]["digits"]["message"]


@pytest.mark.parametrize("grid", [(4, 4), (2, 8)])
def test_losses_are_of_the_prompt_with_its_image_and_count_every_kind(
    grid: tuple[int, int], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Captions as a text alone stay without the prompt; an image without text has the unconditional one."""
    codes = list(range(16))
    records = [{"text": text, "image_codes": codes} for text in CAPTIONS] + [{"image_codes": codes}, {"text": "a dog"}]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows, columns = grid
    block = {**LAYOUT["image"], **({"grid": list(grid)} if rows != columns else {})}
    result = run_task(checkpoint(tmp_path, PROMPT, image=block), kind="loss", name="loss", data=str(path))
    assert result["errors"] == {}
    [profile] = [json.loads(artifact["content"]) for artifact in result["artifacts"]["loss"]]
    assert profile["grid"] == [rows, columns]
    texts = [f"~{caption}: {rows}*{columns}" for caption in CAPTIONS] + [f"~ {rows}", "a dog"]
    model, image = load_model(pretrained(5).path), list[int]()
    for start in range(512, 528, columns):
        image += [*range(start, start + columns), 577]
    for item, text in zip(result["items"]["loss"], texts, strict=True):
        ids = [5, *tokenizer.encode(text).ids, *([] if text == "a dog" else [*image, 578])]
        nll = -model(torch.tensor([ids]))[0, :-1].double().log_softmax(1)[range(len(ids) - 1), ids[1:]]
        assert item["nll_total"] == pytest.approx(float(nll.sum()), rel=1e-4)
        kinds = {"text": 0, "image": 0, "special": 0}
        for row in ids[1:]:
            kinds["text" if row < 512 else "image" if row < 576 else "special"] += 1
        assert {kind: item.get(f"n_{kind}", 0) for kind in kinds} == kinds
    [warning] = [warning for warning in result["warnings"]["loss"] if warning["code"] == "special_names"]
    assert warning["metric"] == "loss/total"
    metric = next(metric for metric in result["metrics"] if metric["name"] == "loss/image")
    assert metric["value"] == pytest.approx(value_of_items(metric, result["items"]["loss"]))


def test_losses_of_encoded_images_have_the_prompt_of_the_decoders_grid(tokenizer: Tokenizer, tmp_path: Path) -> None:
    captions = [{"text": text, "image": index} for index, text in enumerate(CAPTIONS)]
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(caption) + "\n" for caption in captions))
    task = {"data": str(path), "images": str(ROOT / "images.safetensors"), "decoder": DECODER}
    result = run_task(checkpoint(tmp_path, PROMPT), kind="loss", name="loss", **task)
    assert result["errors"] == {}
    for item, caption in zip(result["items"]["loss"], CAPTIONS, strict=True):
        assert item["n_text"] == len(tokenizer.encode(f"~{caption}: 8*8").ids)
        assert (item["n_image"], item["n_special"]) == (64, 8 + 1)
