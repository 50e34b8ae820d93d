"""Shards as open_lm reads them: by webdataset with open_lm's own steps written down, and by open_lm itself."""

import json
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from training_pairs import LAYOUT, prepared, read_lines, read_shards, write_folder

from evalsvc.data.captions import read_captions
from evalsvc.data.images import read_images
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.decoders import load_decoder
from evalsvc.decoders.config import REGISTERED
from evalsvc.decoders.movqgan import MoVQGAN
from evalsvc.spec.images import Fit
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.tasks.image_codes import to_signed

# webdataset leaves the shards open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

IGNORED = -100
PAD, IMAGE = LAYOUT.special["pad"], LAYOUT.special["image"]


def batches(output: Path, seq_len: int, vocab_size: int, size: int) -> Iterator[Tensor]:
    """Yield ids [B, T] as `open_lm.data.get_wds_dataset` does with `--data-key json.gz` and `--val-data`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset as wds

    pipeline = wds.DataPipeline(
        wds.SimpleShardList([str(path) for path in sorted(output.glob("*.tar"))]),
        wds.tarfile_to_samples(handler=wds.reraise_exception),
        wds.decode(),
        wds.rename(json="json.gz"),
        wds.map_dict(json=lambda ids: [token % vocab_size if token < 0 else token for token in ids]),
        wds.to_tuple("json"),
        wds.select(lambda one: len(one[0]) > seq_len),  # open_lm's filter_lt_seqlen
        wds.batched(size, partial=True),
    )
    for (rows,) in pipeline:
        yield torch.LongTensor(rows)


def targets(chunk: Tensor, seq_len: int, mask_left: int | None = None) -> Tensor:
    """Return the targets of `open_lm.data.sample_chunk` with `--target-mask-individual` and `--target-mask-left`."""
    assert chunk.shape[1] == seq_len + 1, "a longer record would be cropped at random"
    result = chunk[:, 1:].clone()
    if mask_left is not None:
        left = (result == mask_left).flip(-1).cumsum(-1).flip(-1) > 0
        result[left] = IGNORED
    result[result == PAD] = IGNORED
    return result


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loader")
    prepared(write_folder(folder / "images", 12), folder / "out", shard_size=4, records=133)
    return folder / "out"


@pytest.mark.parametrize(("seq_len", "rows"), [(132, 12), (133, 0)])
def test_webdataset_gives_every_record_once(output: Path, seq_len: int, rows: int) -> None:
    """A record of 133 ids is dropped by a model of 133 positions: the last id is a target only."""
    ids = [row for batch in batches(output, seq_len, 583, 4) for row in batch.tolist()]
    assert ids == list(read_shards(output).values())[:rows]


def test_masks_leave_what_is_learned(output: Path) -> None:
    [chunk] = batches(output, 132, 583, 12)
    everything = targets(chunk, 132)
    assert torch.equal((everything == IGNORED).sum(1), (chunk == PAD).sum(1))
    images = targets(chunk, 132, IMAGE)
    assert (images != IGNORED).sum(1).tolist() == [64 + 2] * 12
    assert set(images[images != IGNORED].tolist()) <= {*range(512, 576), 577, 581}


@pytest.mark.usefixtures("real_open_lm")
@pytest.mark.filterwarnings("ignore")
def test_open_lm_itself_reads_the_manifest_and_the_shards(output: Path) -> None:
    from open_lm.data import get_wds_dataset, sample_chunk
    from open_lm.file_utils import count_small_shards, get_string_for_epoch

    manifest = str(output / "manifest.jsonl")
    assert count_small_shards(manifest) == 0
    shards, counts, following = get_string_for_epoch(12, [0], [manifest], None, 1, 1)
    assert (counts, following) == ([12], [3])
    args = SimpleNamespace(
        train_data=shards,
        val_data=None,
        train_num_samples=12,
        train_data_mix_weights=None,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        disable_buffer=False,
        ignore_parse_errors=False,
        seed=0,
        rank=0,
        workers=0,
        world_size=1,
        per_gpu_batch_size=12,
        vocab_size=583,
        seq_len=132,
        target_mask_left=IMAGE,
        target_mask_individual=PAD,
        squash_mask_left=False,
    )
    data = get_wds_dataset(args, is_train=True, data_key="json.gz", force_num_samples=counts)
    [(rows,)] = list(data.dataloader)
    chunk = torch.LongTensor(rows)
    assert chunk.tolist() == list(read_shards(output).values())
    inputs, masked = sample_chunk(chunk, args)
    assert torch.equal(inputs, chunk[:, :-1])
    assert torch.equal(masked, targets(chunk, 132, IMAGE))


def write_random_67m(folder: Path) -> Path:
    """Write a MoVQGAN of the published size, whose random codebook is about as wide as its latents."""
    torch.manual_seed(0)
    decoder = MoVQGAN.from_config(REGISTERED["movqgan-67M"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "quantize.embedding.weight":
                parameter.copy_(noise)
            elif parameter.dim() == 4:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    path = folder / "movqgan_67M.ckpt"
    torch.save(decoder.state_dict(), path)
    return path


def write_captions(coco: Path, path: Path, images: int) -> Path:
    """Write the captions of every n-th image of the COCO smoke set, so that there are `images` images."""
    names = sorted(image.name for image in (coco / "images").iterdir())
    chosen = names[:: len(names) // images][:images]
    captions = read_captions(coco / "captions_val2017_smoke.json").captions
    lines = [{"id": item.id, "text": item.text, "image": item.image} for item in captions if item.image in chosen]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def check_paper_sequences(shared: Path, folder: Path, images: int) -> None:
    """Prepare COCO smoke images in the paper's form, and decode every record back to its codes and its caption."""
    coco, tokenizer_path = shared / "golden" / "coco_smoke", shared / "golden" / "tokenizer" / "20B_tokenizer.json"
    source, decoder_path = write_captions(coco, folder / "captions.jsonl", images), write_random_67m(folder)
    layout = parse_layout("image-then-special").resolve(66_823)
    given: dict[str, Any] = {
        "images": coco / "images",
        "layout": layout,
        "decoder": str(decoder_path),
        "decoder_config": "movqgan-67M",
        "tokenizer": tokenizer_path,
        "codes": folder / "codes",
    }
    for records in (1152, 1153):
        result = prepared(source, folder / str(records), records=records, **given)
        assert read_lines(folder / str(records) / "refused.jsonl") == []
        print(f"{result.encoded.encoded} images, {result.encoded.rate:.3f} a second")
    captions, decoder = read_captions(source).captions, load_decoder(decoder_path, "movqgan-67M")
    tokenizer, pictures = read_tokenizer(tokenizer_path), read_images(coco / "images")
    codes: dict[object, list[int]] = {}
    for image in {caption.image for caption in captions}:
        pixels = torch.from_numpy(pictures.load(pictures.index(str(image)), Fit(256)))[None]
        [codes[image]] = decoder.encode(to_signed(pixels)).tolist()
    assert len({tuple(row) for row in codes.values()}) == len(codes) == images, "the codes tell images apart"
    expected = sorted((unicodedata.normalize("NFC", item.text), codes[item.image]) for item in captions)
    for records in (1152, 1153):
        rows = [row for batch in batches(folder / str(records), records - 1, 66_823, 8) for row in batch.tolist()]
        decoded = [decode_paper_sequence(ids, layout, records) for ids in rows]
        assert sorted((tokenizer.decode(text), image) for text, image in decoded) == expected


def decode_paper_sequence(ids: list[int], layout: VocabularyLayout, records: int) -> tuple[list[int], list[int]]:
    """Return the text ids and the codes of a sequence, whose other ids must be those of the paper's template."""
    rows = layout.special
    end = ids.index(rows["/text"])
    before, between, after = ids[:2], ids[end : end + 2], ids[end + 2 + 1024 : end + 4 + 1024]
    assert before == [rows["doc"], rows["text"]]
    assert between == [rows["/text"], rows["image"]]
    assert after == [rows["/image"], rows["/doc"]]
    assert ids[end + 4 + 1024 :] == [rows["pad"]] * (records - end - 4 - 1024)
    return ids[2:end], [row - 50_432 for row in ids[end + 2 : end + 2 + 1024]]


def test_sequences_of_the_paper(shared: Path, tmp_path: Path) -> None:
    """Two of the COCO smoke images with a full-size decoder of random weights."""
    check_paper_sequences(shared, tmp_path, 2)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_sequences_of_the_paper_of_all_smoke_images(shared: Path, tmp_path: Path) -> None:
    check_paper_sequences(shared, tmp_path, 85)


def test_names_of_shards_can_stand_in_braces(output: Path) -> None:
    """open_lm puts them into `{00000001,00000002}.tar`."""
    assert [line["shard"] for line in read_lines(output / "manifest.jsonl")] == ["00000001", "00000002", "00000003"]
