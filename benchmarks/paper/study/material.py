"""The data of the findings: what trainings begin with and learn from, and what checkpoints are measured on.

The miniature's material comes from what evalsvc ships: the text model, the tokenizer, the image decoder and the
held-out data; the training images are those of scikit-learn. The real material is a Hugging Face folder with the same
images, whose captions are tokenised anew.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from trainer import sequences

from evalsvc.decoders import load_decoder, to_uint8
from evalsvc.files.atomic import write_whole
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import parse_layout

if TYPE_CHECKING:
    from digits import Digits

BENCHMARKS = Path(__file__).parents[2]
sys.path += [str(BENCHMARKS / "miniature"), str(BENCHMARKS)]

RUN = ROOT / "runs" / "pretrained"
MODEL_FILE = "open_lm_miniature.json"
VARIANTS = 12
"""Grids of codes of each training image: the plain one, and warped ones."""
REFERENCES = 2
"""Copies of each scan among the real images of the FID: the plain one, and a warped one."""
BATCH = 128
CODES = 64
"""Codes of the miniature's image tokenizer."""
SHOWN = 10
"""Number of scans that a picture shows with their reconstructions."""
OPENINGS, OPENING_WORDS = 30, 12
"""Number of held-out texts whose first words are continued, and of these words."""


@dataclass(frozen=True)
class ImageMaterial:
    """What sampled images need."""

    captions: Path
    decoder: Path
    reference: Path
    classifier: Path


@dataclass(frozen=True)
class Material:
    """Paths of all data, and the settings of recipes that depend on the model."""

    folder: Path
    start: Path
    """Weights of the pre-trained start."""
    model: Path
    """Configuration of the random start: the shape of `start`."""
    layout: Path
    pool: Path
    """Captioned images to train on."""
    training_pairs: Path
    """Captioned images to align image tokens with text on, one caption each."""
    replay_text: Path
    """Plain text of the kind that the language model was trained on."""
    pairs: Path
    """Held-out captioned images."""
    text: Path
    """Held-out text."""
    openings: tuple[str, ...]
    """First words of held-out texts, to be continued."""
    image_only: Path
    """The held-out images without captions."""
    benchmarks: tuple[Mapping[str, str], ...]
    include_path: tuple[Path, ...]
    images: ImageMaterial | None
    """What sampled images need; None where no images are sampled."""
    image_rows: str = "random"
    floor: float = 0.03
    caption_drop: float = 0.1
    autocast: bool = False

    def aligned_rows(self, seed: int) -> Path:
        """Return the path of the image rows that the alignment of a seed writes."""
        return self.folder / f"aligned_rows-{seed}.safetensors"

    def alignment_record(self, seed: int) -> Path:
        """Return the path of the losses and temperatures of the alignment of a seed."""
        return self.folder / f"alignment-{seed}.json"


def miniature_material(folder: Path, *, whole: bool) -> Material:
    """Write the material of the miniature into a folder, unless it is there already.

    With `whole`, training images are encoded in several variants, and the real images of the FID are all scans;
    without, the shipped pairs and images are used as they are.
    """
    write_text_base(folder / "text-base")
    layout = ROOT / "runs" / "layout.yaml"
    pool, captions, reference = ROOT / "training_pairs.jsonl", ROOT / "captions.jsonl", ROOT / "images.safetensors"
    if whole:
        pool, captions, reference = (
            folder / name for name in ("pool.safetensors", "captions.jsonl", "real.safetensors")
        )
        _write_once(pool, write_pool)
        _write_once(captions, write_captions)
        _write_once(reference, write_reference)
    _write_once(folder / "replay.jsonl", write_topics)
    _write_once(folder / "image_only.jsonl", write_image_only)
    decoder = ROOT / "movqgan" / "movqgan_miniature.ckpt"
    return Material(
        folder=folder,
        start=folder / "text-base" / "checkpoints" / "epoch_0.pt",
        model=RUN / MODEL_FILE,
        layout=layout,
        pool=pool,
        training_pairs=ROOT / "training_pairs.jsonl",
        replay_text=folder / "replay.jsonl",
        pairs=ROOT / "heldout_pairs.jsonl",
        text=ROOT / "heldout_text.jsonl",
        openings=_openings(row["text"] for row in _decoded("heldout_text.jsonl")),
        image_only=folder / "image_only.jsonl",
        benchmarks=({"name": "cloze"},),
        include_path=(ROOT,),
        images=ImageMaterial(captions, decoder, reference, ROOT / "classifier.safetensors"),
    )


def real_material(folder: Path, model: Path, items: Path, benchmarks: Iterable[str]) -> Material:
    """Write the material of a real language model: a Hugging Face folder with `tokenizer.json`.

    `items` has the benchmarks' rows as JSONL files of their names.
    """
    from widened_llama import TOKENIZER, widened_layout, write_layout  # imports transformers, which takes seconds

    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    names = ("layout.yaml", "training_pairs.jsonl", "heldout_pairs.jsonl", "text.jsonl")
    layout, pool, pairs, text = (folder / name for name in names)
    _write_once(layout, lambda path: write_layout(widened_layout(rows, CODES), model / TOKENIZER, path))
    for path in (pool, pairs):
        _write_once(path, lambda part, name=path.name: _write_lines(part, _decoded(name)))
    _write_once(text, lambda path: _write_lines(path, _decoded("heldout_text.jsonl")))
    _write_once(folder / "replay.jsonl", write_topics)
    _write_once(folder / "image_only.jsonl", write_image_only)
    return Material(
        folder=folder,
        start=model,
        model=model,
        layout=layout,
        pool=pool,
        training_pairs=pool,
        replay_text=folder / "replay.jsonl",
        pairs=pairs,
        text=text,
        openings=_openings(row["text"] for row in _decoded("heldout_text.jsonl")),
        image_only=folder / "image_only.jsonl",
        benchmarks=tuple({"name": name, "data": str(items.resolve() / f"{name}.jsonl")} for name in benchmarks),
        include_path=(),
        images=None,
        image_rows="like-text",
        floor=1.0,
        caption_drop=0.0,
        autocast=True,
    )


def _decoded(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of one of the miniature's files, with text instead of ids."""
    tokenizer = Tokenizer.from_file(str(ROOT / "tokenizer.json"))
    for row in map(json.loads, (ROOT / name).read_text().splitlines()):
        codes = {"image_codes": row["image_codes"]} if "image_codes" in row else {}
        yield {"text": tokenizer.decode(row["text_ids"]), **codes}


def _openings(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(" ".join(text.split()[:OPENING_WORDS]) for text in islice(texts, OPENINGS)))


def _write_once(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file unless it exists. An interrupted write leaves no file under the path."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part-{path.name}")
    write(part)
    part.replace(path)


# the text model


def write_text_base(folder: Path) -> None:
    """Write the shipped text model without the rows of images and special tokens, as a run of open_lm.

    The shipped step 0 is widened already, by the rows of one seed. Without them each seed draws rows of its own.
    """
    if (folder / "checkpoints" / "epoch_0.pt").exists():
        return
    text = parse_layout(str(ROOT / "runs" / "layout.yaml")).text
    content = torch.load(RUN / "checkpoints" / "epoch_0.pt", weights_only=True)
    tables = ("tok_embeddings.weight", "output.weight")
    state = content["state_dict"]
    narrow = {name: tensor[text.offset :][: text.size].clone() for name, tensor in state.items() if name in tables}
    config = json.loads((RUN / MODEL_FILE).read_text()) | {"vocab_size": text.size}
    write_whole(folder / MODEL_FILE, json.dumps(config, indent=4).encode())
    write_whole(folder / "params.txt", (RUN / "params.txt").read_bytes())
    (folder / "checkpoints").mkdir(exist_ok=True)
    part = folder / "checkpoints" / "part"
    torch.save(content | {"name": "text-base", "state_dict": state | narrow}, part)
    part.replace(folder / "checkpoints" / "epoch_0.pt")


def write_topics(path: Path) -> None:
    """Write the topics that the text model was trained on."""
    _write_lines(path, ({"text": text} for text in json.loads((ROOT / "topics.json").read_text())["train"].values()))


# captioned images


def write_pool(path: Path) -> None:
    """Write the training images' codes in all variants, and all captions of each image."""
    import digits

    data, encode = digits.load(0), load_decoder(ROOT / "movqgan" / "movqgan_miniature.ckpt").encode
    _require_shipped_split(data)
    plain = digits.to_input(data.images[data.train])
    variants = [plain, *_warped(plain, VARIANTS - 1)]
    codes = torch.stack([torch.cat([encode(part) for part in images.split(BATCH)]) for images in variants])
    tokenizer = Tokenizer.from_file(str(ROOT / "tokenizer.json"))
    texts = [digits.captions(int(data.labels[image])) for image in data.train]
    ids = [[encoding.ids for encoding in tokenizer.encode_batch(captions)] for captions in texts]
    sequences.write_pool(path, codes.to(torch.int32), ids)


def write_captions(path: Path) -> None:
    """Write a caption for each scan and template, in a random order."""
    import digits

    data = digits.load(0)
    rows = [
        {"id": f"digit-{image}-{template}", "text": text, "label": int(data.labels[image])}
        for image in range(len(data.scans))
        for template, text in enumerate(digits.captions(int(data.labels[image])))
    ]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    _write_lines(path, (rows[place] for place in order))


def write_reference(path: Path) -> None:
    """Write the real images of the FID: every scan, plain and warped as in training."""
    import digits

    images = digits.load(0).images
    warped = _warped(digits.to_input(images), REFERENCES - 1)
    save_file({"images": torch.cat([images, *map(to_uint8, warped)])}, path)


def write_image_only(path: Path) -> None:
    """Write the held-out images without captions."""
    lines = (json.loads(line) for line in (ROOT / "heldout_pairs.jsonl").read_text().splitlines())
    _write_lines(path, ({"image_codes": line["image_codes"]} for line in lines))


def reconstructed(material: Material) -> bytes:
    """Return a PNG file with scans in a row, and below them their reconstructions from tokens."""
    assert material.images is not None, "the finding is of scales with images"
    decoder = load_decoder(material.images.decoder)
    plain = load_file(ROOT / "images.safetensors")["images"][:SHOWN]  # [B, 3, H, W] uint8
    again = to_uint8(decoder.decode(decoder.encode(plain.float() / 127.5 - 1)))
    rows = [torch.cat(list(images), dim=2) for images in (plain, again.cpu())]
    picture, stream = Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()), io.BytesIO()
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()


def _warped(plain: Tensor, count: int) -> list[Tensor]:
    import digits

    warp, generator = digits.Warp(shift=1.0, rotation=6, scale=0.06), torch.Generator().manual_seed(0)
    return [warp.apply(plain, generator) for _ in range(count)]


def _require_shipped_split(data: Digits) -> None:
    """Refuse another split than that of the shipped held-out images, which would be trained on."""
    shipped = json.loads((ROOT / "splits.json").read_text())
    if data.train != shipped["train"] or data.test != shipped["test"]:
        raise SystemExit("scikit-learn's digits are not those of the shipped split; install the extra `miniature`")


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
