"""`prepare_data.py` against its own image tokenizer: how much of the encoder's speed is left when files become codes.

One side encodes pixels that lie in memory, in the encoder's own batches. The other runs the first stage on image files:
reading, hashing, decoding, cropping, encoding, and writing codes to an empty store. Sides take turns in one process.
The second stage, which writes the shards, is timed alone.

    python benchmarks/preparing.py [--quick] [--images FOLDER] [--device cuda]

Without `--images`, photographs are drawn: noise of 640 x 480 pixels as JPEG, which takes longer to read than COCO's.
`--count` is the number of images.
Prints a card, a table, and as last line one JSON document; the ratio is the encoder's time over that of the stage: 1
when reading files costs nothing.
"""

from __future__ import annotations

import argparse
import time
from array import array
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch
from on_card.twins import build_movqgan
from PIL import Image
from prepare.code_store import CodeStore
from prepare.encoding import encode_images
from prepare.records import PairRecord
from prepare.sequence_form import sequence_form
from prepare.shards import ShardWriter
from side_by_side import interleaved, machine, medians, print_last_line, ratios, seconds

from evalsvc.data.images import ImageSource, read_images
from evalsvc.decoders.config import REGISTERED
from evalsvc.decoders.movqgan import MoVQGAN
from evalsvc.spec.layout import parse_layout
from evalsvc.tasks.image_codes import ImageCoder, to_signed

ENCODER, STAGE = "encoder alone", "first stage of prepare"
SEQUENCES = 2_000
"""Sequences of the second stage."""


def small() -> dict[str, Any]:
    config = REGISTERED["movqgan-67M"]
    return {**config, "n_embed": 256, "ddconfig": {**config["ddconfig"], "ch": 32, "num_res_blocks": 1}}


def draw_photographs(folder: Path, count: int) -> None:
    generator = numpy.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(0, 256, (480, 640, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=90)


class Sides:
    """The two sides over the same images."""

    def __init__(self, decoder: MoVQGAN, images: ImageSource, count: int, folder: Path) -> None:
        self.coder = ImageCoder(decoder, None, "center", "lanczos")
        self.images = images
        self.indices = range(count)
        self.folder = folder
        self.store = CodeStore(folder, self.coder.codes, decoder.codebook_size)
        self._turn = 0
        [self._pixels] = images.batches(self.indices, self.coder.fit, count)

    def encoder(self) -> torch.Tensor:
        return self.coder.decoder.encode(to_signed(self._pixels))

    def stage(self) -> None:
        self._turn += 1
        self.store = CodeStore(self.folder / str(self._turn), self.coder.codes, self.coder.decoder.codebook_size)
        done = encode_images(self.images, self.indices, self.coder, self.store, lambda *_: None)
        assert done.encoded == len(self.indices), "an image was refused, or is there twice"

    def check_equal(self) -> None:
        """Exit unless both sides give the same codes."""
        codes = self.encoder().tolist()
        self.stage()
        stored = [self.store.codes(self.images.stored(index).digest) for index in self.indices]
        if stored != codes:
            raise SystemExit("the sides give different codes")


def sequences_per_second(store: CodeStore, codes: int, codebook_size: int, folder: Path) -> float:
    """Return how many sequences of the paper's layout the second stage writes a second."""
    layout = parse_layout({"preset": "image-then-special", "codebook_size": codebook_size})
    form = sequence_form(layout, codes, codebook_size, None)
    [file, *_] = [place.hex() for place in store._places]
    caption = array("i", range(100, 130))
    records = [PairRecord(f"{number:032x}", "", caption, "", file, "", 0) for number in range(SEQUENCES)]
    return SEQUENCES / seconds(lambda: ShardWriter(form, store).write(folder, "00000001", records))


def print_rows(times: Mapping[str, list[float]], images: int) -> None:
    print(f"{'':28}{'seconds':>10}{'images/s':>10}{'share':>8}")
    middle = medians(times)
    for name, value in middle.items():
        share = 1.0 if name == ENCODER else ratios(times, STAGE)[ENCODER]
        print(f"  {name:26}{value:10.2f}{images / value:10.2f}{share:8.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a small decoder: shows that the benchmark works")
    parser.add_argument("--images", type=Path, help="folder of images; default: drawn ones")
    parser.add_argument("--count", type=int, help="number of images; default: all, or 8 drawn ones")
    parser.add_argument("--turns", type=int, help="default: 3, or 1 with --quick")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        if options.images is None:
            draw_photographs(folder / "images", options.count or (4 if options.quick else 8))
        images = read_images(options.images or folder / "images")
        count = min(options.count or len(images), len(images))
        decoder = build_movqgan(small() if options.quick else REGISTERED["movqgan-67M"])
        decoder = decoder.to(options.device).to(memory_format=torch.channels_last)
        print(f"machine   {machine()}")
        print(f"images    {count} files, {options.images or 'drawn'}")
        sides = Sides(decoder, images, count, folder / "codes")
        began = time.perf_counter()
        sides.check_equal()  # and warm up
        print(f"warm-up   {time.perf_counter() - began:.1f} s; codes of both sides are equal\n", flush=True)
        times = interleaved({ENCODER: sides.encoder, STAGE: sides.stage}, options.turns or (1 if options.quick else 3))
        print_rows(times, count)
        rate = sequences_per_second(sides.store, sides.coder.codes, decoder.codebook_size, folder)
        print(f"  second stage: {rate:,.0f} sequences a second, one process")
        share = ratios(times, STAGE)[ENCODER]
        each = {side: count / value for side, value in medians(times).items()}
        print_last_line("preparing", {STAGE: share}, images_per_second=each, sequences_per_second=rate)


if __name__ == "__main__":
    main()
