import json
import math
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest
import torch
from loss_task import LAYOUT, RECORDS, context_of, evaluate, loss_of, loss_profile, plan, slow_targets, values, write
from miniature_run import DECODER, pretrained, stories
from mixed_layouts import IMAGE_TABLES, mixed_layout, plain_loss, with_heads_apart
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from worker_stages import MODEL

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.errors import Cancelled, DataChanged, InvalidData, NonFinite
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.miniature import ROOT
from evalsvc.models.loading import load_model
from evalsvc.tasks.image_codes import ImageCoder
from evalsvc.tasks.loss.spec import Loss
from evalsvc.tasks.loss.work import LossWork
from evalsvc.worker.context import ShardContext


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", RECORDS)


def slow_items(checkpoint: CheckpointRef, text_prefix: str) -> list[dict[str, float]]:
    """The sums over the targets of each sequence, one at a time."""
    model, items = load_model(checkpoint.path), []
    for record in RECORDS:
        item = Counter[str]()
        for kind, _, nll, within, mass in slow_targets(model, record, text_prefix == "layout"):
            numbers = {f"{name}_{of}": value for name, value in (("n", 1), ("nll", nll)) for of in (kind, "total")}
            numbers |= {} if kind == "special" else {f"within_{kind}": within}
            numbers |= {"image_mass": mass} if kind == "text" else {}
            for name, number in numbers.items():
                item[name] += number  # type: ignore[assignment]
        items.append(dict(item))
    return items


@pytest.mark.parametrize("text_prefix", ["bos", "layout"])
@pytest.mark.parametrize(("batch_tokens", "shards"), [(8192, None), (1, 1), (40, 2), (8192, 5), (70, 99)])
def test_equals_the_definition(
    checkpoint: CheckpointRef, data: Path, batch_tokens: int, shards: int | None, text_prefix: Any
) -> None:
    """Batches, their padding and shards move nothing, and every type is counted where it belongs. A text without an
    image stood behind the tokens of a caption, and no page said so."""
    result = evaluate(loss_of(data, shards=shards, text_prefix=text_prefix), checkpoint, batch_tokens)
    expected = slow_items(checkpoint, text_prefix)
    assert len(result.items) == len(expected)
    for index, (item, right) in enumerate(zip(result.items, expected, strict=True)):
        assert item == pytest.approx({"index": index, **right}, rel=1e-5)
    found = values(result)
    for kind in ("text", "image", "special"):
        count = sum(item.get(f"n_{kind}", 0) for item in expected)
        total = sum(item.get(f"nll_{kind}", 0) for item in expected)
        assert found[kind].value == pytest.approx(total / count, rel=1e-5)
        assert found[kind].n == sum(f"n_{kind}" in item for item in expected)
    counts = {"sequences": 5, "sequences_cut": 0, "tokens": 27 + 14 + 21 - (4 if text_prefix == "bos" else 0)}
    assert result.notes == {**result.notes, **counts, "image_grid": "images have 1 to 6 codes"}


MIXED = mixed_layout(112, range(4, 90), range(20, 36), doc=7, pad=36)
"""Text in four ranges. The tokenizer's id 3 is `doc`, and `pad` is never a target."""


@pytest.mark.parametrize("heads_apart", [False, True])
@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_image_and_special_rows_inside_the_text(
    checkpoint: CheckpointRef,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    heads_apart: bool,
    batch_tokens: int,
) -> None:
    """Every softmax by its definition: over all ids or those of one head, and within the ids of a type."""
    records: list[dict[str, Any]] = [
        {"text_ids": [0, 1, 32, 33, 85, 3, 5], "image_codes": [0, 15, 3, 3]},
        {"text_ids": [40, 41, 32]},
        {"image_codes": [4, 5, 6]},
    ]
    own, of_config = load_model(checkpoint.path), ShardContext.model_config
    model = with_heads_apart(own) if heads_apart else own
    monkeypatch.setattr(ShardContext, "layout", lambda context: MIXED)
    monkeypatch.setattr(ShardContext, "model", lambda context, **form: model)
    changes = {"image_tables": IMAGE_TABLES if heads_apart else None}
    monkeypatch.setattr(ShardContext, "model_config", lambda context: of_config(context).model_copy(update=changes))
    text, image = [*chain(*MIXED.text_ranges)], list(range(20, 36))
    sums = {key: [0.0] * 3 for key in ("text", "image", "special")}
    masses = []
    for record in records:
        ids = MIXED.sequence(record.get("text_ids"), record.get("image_codes"), False).ids
        for logits, target in zip(own(torch.tensor([ids]))[0], ids[1:], strict=False):
            if target == 36:
                continue
            loss = plain_loss(logits, target, text, image, heads_apart)
            kind = "text" if target in text else "image" if target in image else "special"
            sums[kind] = [total + part for total, part in zip(sums[kind], (1, *loss[:2]), strict=True)]
            masses += [loss.image_mass] if kind == "text" else []
    result = evaluate(loss_of(write(tmp_path / "data.jsonl", records)), checkpoint, batch_tokens)
    found = values(result)
    assert [count for count, _, _ in sums.values()] == [6, 7, 1]
    for kind, (count, nll, within) in sums.items():
        assert found[kind].value == pytest.approx(nll / count, rel=1e-5)
        assert kind == "special" or found[f"{kind}_within"].value == pytest.approx(within / count, rel=1e-5)
    assert ("image_mass" in found, "image_mass" in result.items[0]) == (not heads_apart, not heads_apart)
    assert heads_apart or found["image_mass"].value == pytest.approx(sum(masses) / 6, rel=1e-5)
    of_head = [96, 16, 96] if heads_apart else [112] * 3
    assert [found[kind].baseline for kind in sums] == pytest.approx([math.log(count) for count in of_head])
    total = sum(count * math.log(choices) for (count, *_), choices in zip(sums.values(), of_head, strict=True)) / 14
    assert found["total"].baseline == pytest.approx(total)
    assert found["text_within"].baseline == pytest.approx(math.log(86 - 16 - 2)) == math.log(len(text))
    profile = loss_profile(result)
    assert sum(profile["text_position"]["tokens"]) == 6
    assert profile["choices"]["text"] == 68
    unigram = profile["unigrams"]["text"]["unigram"]
    assert (unigram["ids"], unigram["distinct"]) == (6, 6)


def test_a_type_without_tokens_gives_no_metric_and_one_token_weighs_nothing(
    checkpoint: CheckpointRef, tmp_path: Path
) -> None:
    path = write(tmp_path / "data.jsonl", [{"text_ids": [1, 2, 3]}, {"text_ids": [4, 5]}])
    found = values(evaluate(loss_of(path), CheckpointRef(checkpoint.path)))
    losses = {name + suffix for name in ("text", "text_within", "total") for suffix in ("", "_perplexity")}
    assert set(found) == {*losses, "text_unigram"}
    assert found["text"].value == found["text_within"].value == found["total"].value
    plain = CheckpointRef(checkpoint.path, layout={"text": {"size": 80}, "image": {"offset": 96, "size": 16}})
    records = [{"text_ids": [3]}, {"text_ids": [4, 5], "image_codes": [1]}, {"image_codes": [2]}]
    result = evaluate(loss_of(write(tmp_path / "data.jsonl", records)), plain)
    assert [result.items[0], result.items[2]] == [{"index": 0}, {"index": 2}]
    assert [result.items[1][key] for key in ("n_text", "n_image")] == [1, 1]
    assert (values(result)["text"].n, values(result)["text"].stderr) == (1, None)


def test_what_does_not_fit_the_layout(checkpoint: CheckpointRef, data: Path) -> None:
    result = evaluate(loss_of(data), CheckpointRef(checkpoint.path, layout={**LAYOUT, "length": 16}))
    assert (result.notes["sequences_cut"], result.items[3]["n_text"]) == (1, 16 - 7 - 6)
    write(data, [*RECORDS, {"text_ids": [80]}])
    with pytest.raises(InvalidData, match=rf"{data}, line 6 has the text id 80; the text block has 0…79"):
        plan(loss_of(data), checkpoint)
    assert plan(loss_of(data, limit=5), checkpoint).total == 5
    write(data, [{"text_ids": [3]}])
    with pytest.raises(InvalidData, match="no sequence has two tokens"):
        plan(loss_of(data), CheckpointRef(checkpoint.path))


def test_shards_cover_the_data_in_order_and_report_between_batches(checkpoint: CheckpointRef, data: Path) -> None:
    planned, done = plan(loss_of(data, shards=3), checkpoint), []
    assert [(shard.start, shard.stop, shard.units) for shard in planned.shards] == [(0, 1, 1), (1, 3, 2), (3, 5, 2)]
    LossWork(loss_of(data)).run(context_of(checkpoint, 1, done.append), planned.shards[1])
    assert (planned.unit, done) == ("sequences", [0, 1, 2])


@pytest.mark.parametrize("shards", [1, 2, 3, 99])
def test_dependent_sequences_are_one(checkpoint: CheckpointRef, tmp_path: Path, shards: int) -> None:
    """Captions of one image and windows of one document are in one shard, wherever they are in the data, and no loss
    moves by that."""
    again = {"text_ids": [8], "image_codes": [0, 15, 3, 3]}
    windows = [{"text_ids": [4, 4], "document": "a"}, {"text_ids": [7, 7, 7], "document": "a"}]
    records = [*RECORDS, again, windows[0], RECORDS[1], windows[1], {"text_ids": [1, 2], "document": 3}]
    groups = [0, 1, 2, 3, 4, 0, 6, 1, 6, 9]
    general = [{"text_ids": [3, 4, 5]}, {"text_ids": [9, 9]}, {"text_ids": [3, 4, 5]}]
    data, text = (str(write(tmp_path / name, found)) for name, found in (("d.jsonl", records), ("t.jsonl", general)))
    loss = loss_of(data, general_text=text, shards=shards)
    parts = [shard for shard in plan(loss, checkpoint).shards if shard.part == "data"]
    assert sorted(index for shard in parts for index in shard.order) == list(range(10))
    assert sum(len(set(shard.groups)) for shard in parts) == 7, "no group is in two shards"
    assert (sum(shard.units for shard in parts), len(parts)) == (10, min(shards, 7))
    result = evaluate(loss, checkpoint)
    found = values(result)
    assert [item["group"] for item in result.items] == groups
    assert [item.get("group_general_text") for item in result.items][:4] == [0, 1, 0, None]
    for item, record in zip(result.items, records, strict=False):
        targets = len(record.get("image_codes", [])), len(record.get("text_ids", [])) - ("image_codes" not in record)
        assert (item.get("n_image", 0), item.get("n_text", 0)) == targets
    plain = evaluate(loss_of(write(tmp_path / "plain.jsonl", RECORDS)), checkpoint)
    for item, expected in zip(result.items, plain.items, strict=False):
        assert {key: item[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    some = [item for item in result.items if "n_text" in item]
    ratio = ratio_of_sums(*([item[key] for item in some] for key in ("nll_text", "n_text", "group")))
    text = found["text"]
    assert (text.value, text.stderr) == pytest.approx((ratio.value, ratio.stderr), rel=1e-9)
    assert (text.n, text.groups, text.grouped_by) == (9, 6, "group")
    assert (found["general_text"].groups, found["general_text"].grouped_by) == (2, "group_general_text")
    assert (result.notes["sequences"], result.notes["sequence_groups"]) == (10, 7)
    assert (result.notes["general_texts"], result.notes["general_text_groups"]) == (3, 2)


def protocol(loss: Loss, checkpoint: CheckpointRef) -> Any:
    return plan(loss, checkpoint).shards[0].protocol


def test_the_protocol_says_what_stands_before_a_text(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    """Losses behind `<doc><text>` and without stood in one series. Pairs are always in the template."""
    pairs, texts = write(tmp_path / "pairs.jsonl", RECORDS[:1]), write(tmp_path / "texts.jsonl", RECORDS[1:2])
    plain, within = (protocol(loss_of(pairs, text_prefix=prefix), checkpoint) for prefix in ("bos", "layout"))
    assert plain == within
    assert "text_prefix" not in plain
    alone, within = (protocol(loss_of(texts, text_prefix=prefix), checkpoint) for prefix in ("bos", "layout"))
    assert (alone["text_prefix"], within["text_prefix"]) == (None, "layout")
    assert plan(loss_of(pairs, general_text=str(texts)), checkpoint).shards[1].protocol == alone


def test_the_protocol_has_what_moves_the_numbers_and_nothing_else(checkpoint: CheckpointRef, data: Path) -> None:
    plain = protocol(loss_of(data), checkpoint)
    assert protocol(loss_of(data, name="y", shards=2, bos=3, limit=5), checkpoint) == plain
    assert protocol(loss_of(data, tokenizer="/none"), checkpoint) == plain, "ids need no tokenizer"
    other = str(write(data.with_name("other.jsonl"), RECORDS[:4]))
    for change in ({"limit": 4}, {"dtype": "bfloat16"}, {"rotary_inv_freq_dtype": "bfloat16"}, {"data": other}):
        assert protocol(loss_of(**{"data": data, **change}), checkpoint) != plain, change
    assert protocol(loss_of(data), CheckpointRef(checkpoint.path, layout={**LAYOUT, "length": 30})) != plain


def test_the_protocol_of_text_has_tokenizer_and_bos(tmp_path: Path, shared: Path) -> None:
    path, own = write(tmp_path / "data.jsonl", [{"text": "Once upon"}]), stories(shared, "t2i_260k_step0")
    tokenizer = own.layout["text"]["tokenizer"]
    plain, content = protocol(loss_of(path), own), protocol(loss_of(path, bos=1), own)
    ids = Tokenizer.from_file(tokenizer).encode("Once upon").ids
    assert evaluate(loss_of(path, bos=1), own).notes["tokens"] == len(ids)
    assert content["bos"] == content["text_prefix"] == 1
    assert len(content["tokenizer"]) == 64
    assert plain != content
    begun, bare = stories(shared, own.label, bos=1), stories(shared, own.label, tokenizer=None)
    assert protocol(loss_of(path, bos=1, tokenizer=tokenizer), bare) == protocol(loss_of(path), begun) == content
    assert protocol(loss_of(path, bos="none"), begun) == plain
    with pytest.raises(InvalidData, match="no tokenizer is given"):
        plan(loss_of(path, bos=1), bare)


def test_nan_names_the_checkpoint_the_record_and_the_layer(checkpoint: CheckpointRef, data: Path) -> None:
    """Finite weights whose products overflow: the loader cannot see it, and a NaN mean would say nothing."""
    content = torch.load(checkpoint.path, weights_only=True)
    for name in ("w12", "w3"):
        content["state_dict"][f"layers.1.feed_forward.{name}.weight"].fill_(3e38)
    torch.save(content, data.with_name("broken.pt"))
    broken = CheckpointRef(str(data.with_name("broken.pt")), model=MODEL, layout=LAYOUT, label="run-a step 3")
    words = rf"run-a step 3: .*{data}, line 4 .*layers\.1\.feed_forward.*the run has diverged"
    with pytest.raises(NonFinite, match=words):
        evaluate(loss_of(data), broken)


# text NLL over all ids, over text ids, image mass | pairs: text, image over all ids, over image ids, total
GOLDEN = {
    "t2i_260k_step0": (1.1693, 1.1693, 0.0000, 0.6857, 16.6982, 5.6136, 14.4929),
    "t2i_260k_imgonly_step25": (7.4993, 6.9397, 0.4257, 8.1885, 5.9509, 5.3241, 6.2591),
    "t2i_260k_imgonly_step400": (13.0095, 7.9932, 0.9911, 13.4962, 3.9804, 3.9781, 5.2910),
    "t2i_260k_replay_step25": (1.2512, 1.2512, 0.0000, 0.7539, 6.0582, 5.3225, 5.3277),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(shared: Path, name: str) -> None:
    """Real trained weights, text lost step by step, against an independent computation."""
    folder, reference = shared / "golden" / "stories260k_openlm" / "forgetting", stories(shared, name)
    of_stories, of_pairs = (
        values(evaluate(loss_of(folder / f"heldout_{data}.jsonl"), reference)) for data in ("stories", "pairs")
    )
    assert (of_stories["text"].n, of_pairs["total"].n) == (24, 48)
    found = [of_stories[metric].value for metric in ("text", "text_within", "image_mass")]
    found += [of_pairs[metric].value for metric in ("text", "image", "image_within", "total")]
    assert found == pytest.approx(GOLDEN[name], rel=1e-3, abs=1e-4)


# image–caption pairs, on the run that comes with evalsvc

MINIATURE = pretrained(5)


def pairs(data: Path = ROOT / "captions.jsonl", **parameters: Any) -> Loss:
    images = str(parameters.pop("images", ROOT / "images.safetensors"))
    return loss_of(**{"data": data, "images": images, "decoder": DECODER, **parameters})


@pytest.mark.parametrize(("batch_tokens", "shards"), [(8192, 1), (640, 3)])
def test_pairs_equal_the_same_pairs_as_ids(batch_tokens: int, shards: int) -> None:
    """The bundled pairs were tokenised and encoded by the training; from captions and pixels come the same numbers."""
    ready = evaluate(loss_of(ROOT / "heldout_pairs.jsonl", limit=40), MINIATURE)
    made = evaluate(pairs(limit=40, shards=shards), MINIATURE, batch_tokens)
    for one, other in zip(ready.items, made.items, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    expected, found = ({name: each.value for name, each in values(result).items()} for result in (ready, made))
    assert found == pytest.approx(expected, rel=1e-5)
    assert made.notes == {**ready.notes, "captions_empty": 0}


def test_an_image_with_several_captions_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """COCO's have five each, and encoding costs more than the language model. Each has its own codes, in any order."""
    order = [7, 0, 3, 7]
    path = write(tmp_path / "captions.jsonl", [{"text": "a digit", "image": image} for image in order])
    ready = [json.loads(line)["image_codes"] for line in (ROOT / "heldout_pairs.jsonl").read_text().splitlines()]
    same = write(tmp_path / "same.jsonl", [{"text": "a digit", "image_codes": ready[image]} for image in order])
    batches = Mock(side_effect=ImageCoder.batches)
    monkeypatch.setattr(ImageCoder, "batches", lambda *arguments: batches(*arguments))
    plan(pairs(path), MINIATURE)
    assert not batches.called, "planning encodes nothing"
    found = evaluate(pairs(path), MINIATURE, batch_tokens=128)
    assert [sorted(each.args[3]) for each in batches.mock_calls] == [[0, 3, 7]]
    for one, other in zip(found.items, evaluate(loss_of(same), MINIATURE).items, strict=True):
        assert {key: one[key] for key in other} == pytest.approx(other, rel=1e-5, abs=1e-6)


def test_empty_and_overlong_captions_are_kept_and_counted(tmp_path: Path) -> None:
    records = [{"text": "", "image": 0}, {"text": "seven " * 100, "image": 1}, {"text": " \n", "image": 2}]
    path = write(tmp_path / "captions.jsonl", records)
    result = evaluate(pairs(path), MINIATURE)
    assert [result.notes[name] for name in ("sequences", "sequences_cut", "captions_empty")] == [3, 1, 2]
    assert [item.get("n_text", 0) for item in result.items] == [0, 132 - 64 - 6, 0]
    assert [item["n_image"] for item in result.items] == [64] * 3
    assert evaluate(pairs(path, bos=5), MINIATURE).notes["captions_empty"] == 2


def test_the_protocol_of_pairs_has_images_and_decoder(tmp_path: Path) -> None:
    plain = protocol(pairs(limit=8), MINIATURE)
    assert len(plain["decoder"]) == len(plain["images"]) == 64
    assert plain["fit"] == {"size": 32, "crop": "center", "filter": "lanczos"}
    assert protocol(pairs(limit=8, name="y", shards=3, size=32), MINIATURE) == plain
    texts = [json.loads(line) for line in (ROOT / "captions.jsonl").read_text().splitlines()]
    swapped = write(tmp_path / "swapped.jsonl", [{**item, "image": item["image"] ^ 1} for item in texts])
    for change in ({"size": 16}, {"crop": "none"}, {"filter": "bicubic"}, {"data": swapped}):
        assert protocol(pairs(limit=8, **change), MINIATURE) != plain, change
    assert protocol(pairs(swapped, limit=8), MINIATURE)["data"] == plain["data"], "the images say that it is another"


def test_changed_images_are_noticed_by_the_shard(tmp_path: Path) -> None:
    images, path = load_file(ROOT / "images.safetensors")["images"], tmp_path / "images.safetensors"
    save_file({"images": images}, path)
    task = pairs(images=path, limit=3, shards=3)
    work, context, shards = LossWork(task), context_of(MINIATURE), plan(task, MINIATURE).shards
    images[2] = images[1]
    save_file({"images": images}, path)
    work.run(context, shards[0])
    with pytest.raises(DataChanged, match=r"images of .* have changed since this evaluation was planned"):
        work.run(context, shards[2])


def test_a_decoder_of_another_model_is_refused() -> None:
    """Its codes would pass for ids of the codebook that the run was trained with."""
    [decoder] = (Path(__file__).parents[2] / "golden" / "movqgan" / "tiny_67M_like").glob("*.ckpt")
    words = "the checkpoint has 64 image ids from row 512 on, but the decoder .* has 256; set `decoder` to the decoder"
    with pytest.raises(InvalidData, match=words):
        plan(pairs(decoder=str(decoder)), MINIATURE)
    with pytest.raises(InvalidData, match="the checkpoint has 0 image ids, but the decoder"):
        plan(pairs(tokenizer=str(ROOT / "tokenizer.json")), CheckpointRef(MINIATURE.path))
    with pytest.raises(InvalidData, match="line 1 has 256 image codes, "):
        plan(pairs(size=64), MINIATURE)


def test_cancelling_stops_the_encoding() -> None:
    report = Mock(side_effect=[None, Cancelled("cancelled")])
    [shard] = plan(pairs(limit=20), MINIATURE).shards
    with pytest.raises(Cancelled):
        LossWork(pairs(limit=20)).run(context_of(MINIATURE, 64, report), shard)
    assert report.mock_calls == [call(0), call(0)], "after the first image"
