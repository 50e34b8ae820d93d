import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from loss_task import LAYOUT, RECORDS, context_of, evaluate, values, write
from miniature_run import DECODER, pretrained
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.errors import Cancelled, DataChanged, InvalidData, NonFinite
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.miniature import ROOT
from evalsvc.models.loading import load_model
from evalsvc.spec.layout import parse_layout
from evalsvc.tasks.image_codes import ImageCoder
from evalsvc.tasks.loss.spec import Loss
from evalsvc.tasks.loss.work import LossWork


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", RECORDS)


def slow_items(checkpoint: CheckpointRef, text_prefix: str) -> list[dict[str, float]]:
    """The definition: one sequence at a time, all logits, log_softmax in float64."""
    model = load_model(checkpoint.path)
    layout = parse_layout(LAYOUT).resolve(112)
    items = []
    for record in RECORDS:
        ids = layout.sequence(record.get("text_ids"), record.get("image_codes")).ids
        if text_prefix == "bos" and "image_codes" not in record:
            ids = record["text_ids"]
        logits = model(torch.tensor([ids]))[0].double()
        item: dict[str, float] = {}
        for position, target in list(enumerate(ids))[1:]:
            if target == 86:
                continue
            kind = "text" if target < 80 else "image" if target >= 96 else "special"
            log_p = logits[position - 1].log_softmax(0)
            item[f"n_{kind}"] = item.get(f"n_{kind}", 0) + 1
            item[f"nll_{kind}"] = item.get(f"nll_{kind}", 0) - float(log_p[target])
            if kind != "special":
                block = slice(0, 80) if kind == "text" else slice(96, 112)
                within = logits[position - 1, block].log_softmax(0)[target - block.start]
                item[f"within_{kind}"] = item.get(f"within_{kind}", 0) - float(within)
            if kind == "text":
                item["image_mass"] = item.get("image_mass", 0) + float(log_p[96:].exp().sum())
        for name in ("n", "nll") if item else ():
            item[f"{name}_total"] = sum(item.get(f"{name}_{kind}", 0) for kind in ("text", "image", "special"))
        items.append(item)
    return items


@pytest.mark.parametrize("text_prefix", ["bos", "layout"])
@pytest.mark.parametrize(("batch_tokens", "shards"), [(8192, None), (1, 1), (40, 2), (8192, 5), (70, 99)])
def test_equals_the_definition(
    checkpoint: CheckpointRef, data: Path, batch_tokens: int, shards: int | None, text_prefix: Any
) -> None:
    """Batches, their padding and shards move nothing, and every type is counted where it belongs. A text without an
    image stood behind the tokens of a caption, and no page said so."""
    loss = Loss(name="pairs", data=str(data), shards=shards, text_prefix=text_prefix)
    result = evaluate(loss, checkpoint, batch_tokens)
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
    unigrams = {"unigrams": result.notes["unigrams"]}  # which have tests of their own
    tokens = 27 + 14 + 21 - (4 if text_prefix == "bos" else 0)
    counts = {"sequences": 5, "sequences_cut": 0, "tokens": tokens}
    assert result.notes == {**counts, "image_grid": "images have 1 to 6 codes", **unigrams}


def test_metrics_have_units_directions_and_what_a_model_that_knows_nothing_gets(
    checkpoint: CheckpointRef, data: Path
) -> None:
    found = values(evaluate(Loss(name="pairs", data=str(data)), checkpoint))
    choices = {"text": 112, "image": 112, "special": 112, "total": 112, "text_within": 80, "image_within": 16}
    unigrams = {"text_unigram": 80, "image_unigram": 16, "image_unigram_by_place": 16}
    assert set(found) == {*choices, *(f"{name}_perplexity" for name in choices), "image_mass", *unigrams}
    for name, count in unigrams.items():
        entropy = found[name]
        assert (entropy.unit, entropy.direction, entropy.baseline) == ("nats/token", "none", math.log(count))
    for name, count in choices.items():
        loss, perplexity = found[name], found[f"{name}_perplexity"]
        assert (loss.unit, loss.direction, loss.baseline) == ("nats/token", "lower", math.log(count))
        assert (perplexity.unit, perplexity.direction, perplexity.baseline) == ("perplexity", "lower", count)
        assert perplexity.value == pytest.approx(math.exp(loss.value))
        assert perplexity.stderr == pytest.approx(loss.stderr * perplexity.value)
        assert perplexity.n == loss.n
    mass = found["image_mass"]
    assert (mass.unit, mass.direction, mass.baseline, mass.n) == ("probability", "none", 16 / 112, 4)


def test_a_type_without_tokens_gives_no_metric(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [{"text_ids": [1, 2, 3]}, {"text_ids": [4, 5]}])
    plain = CheckpointRef(checkpoint.path)
    found = values(evaluate(Loss(name="text", data=str(path)), plain))
    losses = {name + suffix for name in ("text", "text_within", "total") for suffix in ("", "_perplexity")}
    assert set(found) == {*losses, "text_unigram"}
    assert found["text"].value == found["text_within"].value == found["total"].value


def test_a_sequence_of_one_token_weighs_nothing(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    layout = {"text": {"size": 80}, "image": {"offset": 96, "size": 16}}
    plain = CheckpointRef(checkpoint.path, layout=layout)
    records = [{"text_ids": [3]}, {"text_ids": [4, 5], "image_codes": [1]}, {"image_codes": [2]}]
    result = evaluate(Loss(name="x", data=str(write(tmp_path / "data.jsonl", records))), plain)
    assert result.items[0] == {"index": 0}
    assert result.items[2] == {"index": 2}
    assert [result.items[1][key] for key in ("n_text", "n_image")] == [1, 1]
    assert values(result)["text"].n == 1
    assert values(result)["text"].stderr is None


def test_nothing_to_predict_is_an_error(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [{"text_ids": [3]}])
    with pytest.raises(InvalidData, match="no sequence has two tokens"):
        LossWork(Loss(name="x", data=str(path))).plan(context_of(CheckpointRef(checkpoint.path)))


def test_text_cut_to_the_layouts_length_is_counted(checkpoint: CheckpointRef, data: Path) -> None:
    short = CheckpointRef(checkpoint.path, layout={**LAYOUT, "length": 16})
    result = evaluate(Loss(name="pairs", data=str(data)), short)
    assert result.notes["sequences_cut"] == 1
    assert result.items[3]["n_text"] == 16 - 7 - 6


def test_ids_outside_the_layout_fail_the_plan(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [*RECORDS, {"text_ids": [80]}])
    with pytest.raises(InvalidData, match=rf"{path}, line 6 has the text id 80; the text block has 0…79"):
        LossWork(Loss(name="x", data=str(path))).plan(context_of(checkpoint))
    assert LossWork(Loss(name="x", data=str(path), limit=5)).plan(context_of(checkpoint)).total == 5


def test_shards_cover_the_data_in_order(checkpoint: CheckpointRef, data: Path) -> None:
    plan = LossWork(Loss(name="x", data=str(data), shards=3)).plan(context_of(checkpoint))
    shards = [(shard.start, shard.stop, shard.units) for shard in plan.shards]
    assert shards == [(0, 1, 1), (1, 3, 2), (3, 5, 2)]
    assert plan.unit == "sequences"


@pytest.mark.parametrize("shards", [1, 2, 3, 99])
def test_sequences_that_belong_together_are_one_in_every_error(
    checkpoint: CheckpointRef, tmp_path: Path, shards: int
) -> None:
    """Captions of one image and windows of one document are in one shard, wherever they are in the data, and no loss
    moves by that."""
    again = {"text_ids": [8], "image_codes": [0, 15, 3, 3]}
    windows = [{"text_ids": [4, 4], "document": "a"}, {"text_ids": [7, 7, 7], "document": "a"}]
    records = [*RECORDS, again, windows[0], RECORDS[1], windows[1], {"text_ids": [1, 2], "document": 3}]
    groups = [0, 1, 2, 3, 4, 0, 6, 1, 6, 9]
    general = [{"text_ids": [3, 4, 5]}, {"text_ids": [9, 9]}, {"text_ids": [3, 4, 5]}]
    data, text = (str(write(tmp_path / name, found)) for name, found in (("d.jsonl", records), ("t.jsonl", general)))
    loss = Loss(name="x", data=data, general_text=text, shards=shards)
    parts = [shard for shard in LossWork(loss).plan(context_of(checkpoint)).shards if shard.part == "data"]
    assert sorted(index for shard in parts for index in shard.order) == list(range(10))
    assert len({group for shard in parts for group in set(shard.groups)}) == 7
    assert sum(len(set(shard.groups)) for shard in parts) == 7, "no group is in two shards"
    assert sum(shard.units for shard in parts) == 10
    assert len(parts) == min(shards, 7)

    result = evaluate(loss, checkpoint)
    found = values(result)
    assert [item["group"] for item in result.items] == groups
    assert [item.get("group_general_text") for item in result.items][:4] == [0, 1, 0, None]
    for item, record in zip(result.items, records, strict=False):
        assert item.get("n_image", 0) == len(record.get("image_codes", []))
        unpredicted = 0 if "image_codes" in record else 1
        assert item.get("n_text", 0) == len(record.get("text_ids", [])) - unpredicted
    plain = evaluate(Loss(name="x", data=str(write(tmp_path / "plain.jsonl", RECORDS))), checkpoint)
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


def test_changed_data_are_noticed_by_the_shard(checkpoint: CheckpointRef, data: Path) -> None:
    work, context = LossWork(Loss(name="x", data=str(data))), context_of(checkpoint)
    plan = work.plan(context)
    write(data, RECORDS[::-1])
    with pytest.raises(DataChanged, match=r"data\.jsonl has changed since"):
        work.run(context, plan.shards[0])


def protocol(loss: Loss, checkpoint: CheckpointRef) -> Any:
    return LossWork(loss).plan(context_of(checkpoint)).shards[0].protocol


def test_the_protocol_says_what_stands_before_a_text(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    """Losses behind `<doc><text>` and without stood in one series. Pairs are always in the template."""
    pairs, texts = write(tmp_path / "pairs.jsonl", RECORDS[:1]), write(tmp_path / "texts.jsonl", RECORDS[1:2])
    plain, given = {}, {"text_prefix": "layout"}
    for name, path, parameters in (("a", pairs, {}), ("b", pairs, given), ("c", texts, {}), ("d", texts, given)):
        plain[name] = protocol(Loss(name="x", data=str(path), **parameters), checkpoint)
    assert plain["a"] == plain["b"]
    assert "text_prefix" not in plain["a"]
    assert [plain[name]["text_prefix"] for name in "cd"] == [None, "layout"]
    general = Loss(name="x", data=str(pairs), general_text=str(texts))
    assert LossWork(general).plan(context_of(checkpoint)).shards[1].protocol == plain["c"]


def test_the_protocol_has_what_moves_the_numbers_and_nothing_else(checkpoint: CheckpointRef, data: Path) -> None:
    path = str(data)
    plain = protocol(Loss(name="x", data=path), checkpoint)
    assert protocol(Loss(name="y", data=path, shards=2, bos=3, limit=5), checkpoint) == plain
    assert protocol(Loss(name="x", data=path, tokenizer="/none"), checkpoint) == plain, "ids need no tokenizer"
    others = [
        protocol(Loss(name="x", data=path, limit=4), checkpoint),
        protocol(Loss(name="x", data=path, dtype="bfloat16"), checkpoint),
        protocol(Loss(name="x", data=path, rotary_inv_freq_dtype="bfloat16"), checkpoint),
        protocol(Loss(name="x", data=path), CheckpointRef(checkpoint.path, layout={**LAYOUT, "length": 30})),
        protocol(Loss(name="x", data=str(write(data.with_name("other.jsonl"), RECORDS[:4]))), checkpoint),
    ]
    assert all(other != plain for other in others)


def test_the_protocol_of_text_has_tokenizer_and_bos(checkpoint: CheckpointRef, tmp_path: Path, shared: Path) -> None:
    tokenizer = str(shared / "golden" / "stories260k_openlm" / "tokenizer.json")
    path = str(write(tmp_path / "data.jsonl", [{"text": "Once upon"}]))
    config = shared / "golden" / "stories260k_openlm" / "forgetting" / "t2i_260k.json"
    weights = config.with_name("t2i_260k_step0.pt")
    layout = {"text": {"size": 512, "tokenizer": tokenizer}, "image": {"offset": 512, "size": 256}}
    pictures = CheckpointRef(str(weights), model=json.loads(config.read_text()), layout=layout)
    given = Loss(name="x", data=path, bos=1)
    result = evaluate(given, pictures)
    assert result.notes["tokens"] == len(Tokenizer.from_file(tokenizer).encode("Once upon").ids)
    content = protocol(given, pictures)
    assert content["bos"] == content["text_prefix"] == 1
    assert len(content["tokenizer"]) == 64
    assert protocol(Loss(name="x", data=path), pictures) != content
    bare = CheckpointRef(pictures.path, model=pictures.model, layout={**layout, "text": {"size": 512}})
    assert protocol(Loss(name="x", data=path, bos=1, tokenizer=tokenizer), bare) == content
    begun = CheckpointRef(pictures.path, model=pictures.model, layout={**layout, "text": {**layout["text"], "bos": 1}})
    assert protocol(Loss(name="x", data=path), begun) == content
    assert protocol(Loss(name="x", data=path, bos="none"), begun) == protocol(Loss(name="x", data=path), pictures)
    with pytest.raises(InvalidData, match="no tokenizer is given"):
        LossWork(given).plan(context_of(bare))


def test_progress_is_reported_between_batches(checkpoint: CheckpointRef, data: Path) -> None:
    done: list[int] = []
    work = LossWork(Loss(name="x", data=str(data)))
    context = context_of(checkpoint, 1, done.append)
    work.run(context, work.plan(context).shards[0])
    assert done == [0, 1, 2, 3, 4, 5]


def test_nan_names_the_checkpoint_the_record_and_the_layer(
    checkpoint: CheckpointRef, data: Path, tmp_path: Path
) -> None:
    """Finite weights whose products overflow: the loader cannot see it, and a NaN mean would say nothing."""
    content = torch.load(checkpoint.path, weights_only=True)
    content["state_dict"]["layers.1.feed_forward.w12.weight"].fill_(3e38)
    content["state_dict"]["layers.1.feed_forward.w3.weight"].fill_(3e38)
    torch.save(content, tmp_path / "broken.pt")
    shape = {"hidden_dim": 16, "n_layers": 2, "n_heads": 4, "seq_len": 64, "vocab_size": 112}
    model = {**shape, "post_embed_norm": False, "weight_tying": False}
    broken = CheckpointRef(str(tmp_path / "broken.pt"), model=model, layout=LAYOUT, label="run-a step 3")
    with pytest.raises(NonFinite) as caught:
        evaluate(Loss(name="x", data=str(data)), broken)
    for fragment in ("run-a step 3: ", str(data), "line 4", "layers.1.feed_forward", "the run has diverged"):
        assert fragment in caught.value.message


# text NLL over all ids, over text ids, image mass | pairs: text, image over all ids, over image ids, total
GOLDEN = {
    "t2i_260k_step0": (1.1693, 1.1693, 0.0000, 0.6857, 16.6982, 5.6136, 14.4929),
    "t2i_260k_imgonly_step25": (7.4993, 6.9397, 0.4257, 8.1885, 5.9509, 5.3241, 6.2591),
    "t2i_260k_imgonly_step400": (13.0095, 7.9932, 0.9911, 13.4962, 3.9804, 3.9781, 5.2910),
    "t2i_260k_replay_step25": (1.2512, 1.2512, 0.0000, 0.7539, 6.0582, 5.3225, 5.3277),
}
PAIRS = ("text", "image", "image_within", "total")


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(shared: Path, name: str) -> None:
    """Real trained weights, text lost step by step, against an independent computation."""
    folder = shared / "golden" / "stories260k_openlm" / "forgetting"
    model = json.loads((folder / "t2i_260k.json").read_text())
    layout = {"text": {"size": 512}, "image": {"offset": 512, "size": 256}}
    reference = CheckpointRef(str(folder / f"{name}.pt"), model=model, layout=layout)
    stories = values(evaluate(Loss(name="s", data=str(folder / "heldout_stories.jsonl")), reference))
    pairs = values(evaluate(Loss(name="p", data=str(folder / "heldout_pairs.jsonl")), reference))
    assert stories["text"].n == 24
    assert pairs["total"].n == 48
    found = [stories[metric].value for metric in ("text", "text_within", "image_mass")]
    assert [*found, *(pairs[metric].value for metric in PAIRS)] == pytest.approx(GOLDEN[name], rel=1e-3, abs=1e-4)


# image–caption pairs, on the run that comes with evalsvc


@pytest.fixture
def miniature() -> CheckpointRef:
    return pretrained(5)


def pairs(data: Path = ROOT / "captions.jsonl", **parameters: Any) -> Loss:
    images = str(parameters.pop("images", ROOT / "images.safetensors"))
    return Loss(**{"name": "pairs", "data": str(data), "images": images, "decoder": DECODER} | parameters)


@pytest.mark.parametrize(("batch_tokens", "shards"), [(8192, 1), (640, 3)])
def test_pairs_equal_the_same_pairs_as_ids(miniature: CheckpointRef, batch_tokens: int, shards: int) -> None:
    """The bundled pairs were tokenised and encoded by the training; from captions and pixels come the same numbers."""
    ready = evaluate(Loss(name="pairs", data=str(ROOT / "heldout_pairs.jsonl"), limit=40), miniature)
    made = evaluate(pairs(limit=40, shards=shards), miniature, batch_tokens)
    for one, other in zip(ready.items, made.items, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    assert made.notes == {**ready.notes, "captions_empty": 0}


def test_an_image_with_several_captions_is_encoded_once(
    miniature: CheckpointRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COCO's have five each, and encoding costs more than the language model. Each has its own codes, in any order."""
    order = [7, 0, 3, 7]
    path = write(tmp_path / "captions.jsonl", [{"text": "a digit", "image": image} for image in order])
    ready = [json.loads(line)["image_codes"] for line in (ROOT / "heldout_pairs.jsonl").read_text().splitlines()]
    same = [{"text": "a digit", "image_codes": ready[image]} for image in order]
    seen: list[int] = []
    batches = ImageCoder.batches

    def counted(self: ImageCoder, context: Any, source: Any, images: Sequence[int]) -> Any:
        seen.extend(images)
        return batches(self, context, source, images)

    monkeypatch.setattr(ImageCoder, "batches", counted)
    LossWork(pairs(path)).plan(context_of(miniature))
    assert seen == [], "planning encodes nothing"
    found = evaluate(pairs(path), miniature, batch_tokens=128)
    assert sorted(seen) == [0, 3, 7]
    expected = evaluate(Loss(name="x", data=str(write(tmp_path / "same.jsonl", same))), miniature)
    for one, other in zip(found.items, expected.items, strict=True):
        assert {key: one[key] for key in other} == pytest.approx(other, rel=1e-5, abs=1e-6)


def test_empty_and_overlong_captions_are_kept_and_counted(miniature: CheckpointRef, tmp_path: Path) -> None:
    records = [{"text": "", "image": 0}, {"text": "seven " * 100, "image": 1}, {"text": " \n", "image": 2}]
    result = evaluate(pairs(write(tmp_path / "captions.jsonl", records)), miniature)
    assert (result.notes["sequences"], result.notes["sequences_cut"], result.notes["captions_empty"]) == (3, 1, 2)
    assert [item.get("n_text", 0) for item in result.items] == [0, 132 - 64 - 6, 0]
    assert [item["n_image"] for item in result.items] == [64] * 3
    with_bos = evaluate(pairs(tmp_path / "captions.jsonl", bos=5), miniature)
    assert with_bos.notes["captions_empty"] == 2


def test_the_protocol_of_pairs_has_images_and_decoder(miniature: CheckpointRef, tmp_path: Path) -> None:
    plain = protocol(pairs(limit=8), miniature)
    assert len(plain["decoder"]) == len(plain["images"]) == 64
    assert plain["fit"] == {"size": 32, "crop": "center", "filter": "lanczos"}
    assert protocol(pairs(limit=8, name="y", shards=3, size=32), miniature) == plain
    texts = [json.loads(line) for line in (ROOT / "captions.jsonl").read_text().splitlines()]
    swapped = [{**item, "image": item["image"] ^ 1} for item in texts]
    others = [
        protocol(pairs(limit=8, size=16), miniature),
        protocol(pairs(limit=8, crop="none"), miniature),
        protocol(pairs(limit=8, filter="bicubic"), miniature),
        protocol(pairs(write(tmp_path / "swapped.jsonl", swapped), limit=8), miniature),
    ]
    assert all(other != plain for other in others)
    assert others[-1]["data"] == plain["data"], "the texts are the same, and the images say that it is another task"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    digits = load_file(ROOT / "images.safetensors")["images"]
    for index in range(3):
        Image.fromarray(digits[index].permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    content = {
        "images": [{"id": index, "file_name": f"{index}.png"} for index in range(3)],
        "annotations": [{"id": 10 - index, "image_id": index, "caption": "a digit\n"} for index in range(3)],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    return folder


def test_changed_images_are_noticed_by_the_shard(miniature: CheckpointRef, photographs: Path, tmp_path: Path) -> None:
    work, context = LossWork(pairs(tmp_path / "captions.json", images=photographs, shards=3)), context_of(miniature)
    plan = work.plan(context)
    (photographs / "2.png").write_bytes((photographs / "1.png").read_bytes())
    work.run(context, plan.shards[0])
    with pytest.raises(DataChanged, match=r"images of .* have changed since this evaluation was planned"):
        work.run(context, plan.shards[2])


def test_a_decoder_of_another_model_is_refused(miniature: CheckpointRef) -> None:
    """Its codes would pass for ids of the codebook that the run was trained with."""
    golden = Path(__file__).parents[2] / "golden" / "movqgan" / "tiny_67M_like"
    work = LossWork(pairs(decoder=str(next(golden.glob("*.ckpt")))))
    with pytest.raises(InvalidData) as caught:
        work.plan(context_of(miniature))
    assert "the checkpoint has 64 image ids from row 512 on, but the decoder " in caught.value.message
    assert "has 256; set `decoder` to the decoder that the run was trained with" in caught.value.message
    plain = CheckpointRef(miniature.path)
    with pytest.raises(InvalidData, match="the checkpoint has 0 image ids, but the decoder"):
        LossWork(pairs(tokenizer=str(ROOT / "tokenizer.json"))).plan(context_of(plain))


def test_a_size_of_more_codes_than_a_sequence_holds_is_refused(miniature: CheckpointRef) -> None:
    with pytest.raises(InvalidData, match="line 1 has 256 image codes, "):
        LossWork(pairs(size=64)).plan(context_of(miniature))


def test_cancelling_stops_the_encoding(miniature: CheckpointRef) -> None:
    reports: list[int] = []

    def stop(units: int) -> None:
        reports.append(units)
        if len(reports) == 2:
            raise Cancelled("cancelled")

    work = LossWork(pairs(limit=20))
    shard = work.plan(context_of(miniature)).shards[0]
    with pytest.raises(Cancelled):
        work.run(context_of(miniature, 64, stop), shard)
    assert reports == [0, 0], "after the first image"
