"""10,000 images in the forms that `evalsvc score` reads, scored next to torch-fidelity: images per second, and memory.

The same pictures lie in a folder of PNG files, a tar, an npz and a Parquet file. Each side runs in a process of its own
and computes the FID of the first 64 features with torch-fidelity's resizing, so that reading and decoding are most of
the work; `--features 2048` measures the FID that papers report, of which the network is most of the work. Every form
runs a second time with a tenth of the images, which shows how much of the memory depends on their number. All values
are compared before a time is printed.

    python benchmarks/score_images.py [--quick] [--images 10000] [--features 64]

The pictures are crops of those in ../shared/golden/coco_smoke; without them, and with --quick, noise. The weights come
from `evalsvc assets pull inception`; without them, --quick draws weights of the right shapes. Prints a card,
a table, and as last line one JSON document; `ratios` has torch-fidelity's time over ours.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from on_card.twins import draw_inception
from PIL import Image
from safetensors.torch import save_file
from side_by_side import machine, print_last_line
from torch_fidelity import calculate_metrics

from evalsvc.assets import locate_asset
from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.errors import AssetMissing
from evalsvc.features.inception_weights import read_inception
from evalsvc.spec.suite import parse_suite
from evalsvc.worker.local import run_suite

ROOT = Path(__file__).parents[1]
SMOKE_IMAGES = ROOT.parent / "shared" / "golden" / "coco_smoke" / "images"
SIDE = 256
REFERENCE = 512
"""Number of real images, whose features both sides compute too."""
FORMS = ("folder", "tar", "npz", "parquet")
PEER = "torch-fidelity"
ROW_GROUP = 500
SAMPLED_EVERY = 0.02
"""Seconds between two readings of the memory that a process has for itself."""


@dataclass(frozen=True)
class Outcome:
    value: float
    seconds: float
    peak: int
    """Largest number of bytes without the pages of files, above those before the first image."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="100 images of noise: shows that the benchmark runs")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--features", type=int, choices=(64, 2048), default=64)
    parser.add_argument("--side", nargs=4, metavar=("NAME", "IMAGES", "REFERENCE", "WEIGHTS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side is not None:
        print(json.dumps(asdict(measure(*given.side, given.features))))
        return
    count = 100 if given.quick else given.images
    with tempfile.TemporaryDirectory() as work:
        compare(Path(work), count, given.features, given.quick)


def compare(work: Path, count: int, features: int, quick: bool) -> None:
    photographs = [] if quick else sorted(SMOKE_IMAGES.glob("*.jpg"))
    origin = "COCO photographs" if photographs else "noise"
    print(f"{count:,} images of {SIDE}x{SIDE} ({origin}), {features} features; {machine()}")
    reference, weights = work / "reference", find_weights(work, quick)
    write_folder(reference, pictures(photographs, 80 if quick else REFERENCE, seed=1))
    sizes = (count,) if quick else (count // 10, count)
    outcomes: dict[tuple[str, int], Outcome] = {}
    for size in sizes:
        places = {form: work / f"{size}" / f"images.{form}" for form in FORMS}
        places["folder"].parent.mkdir()
        for form, write in WRITERS.items():
            write(places[form], pictures(photographs, size, seed=0))
        for name in (PEER, *FORMS):
            place = places["folder" if name == PEER else name]
            outcomes[name, size] = run_side(name, place, reference, weights, features)
    report(outcomes, sizes)
    times = {name: outcomes[name, count].seconds for name in (PEER, *FORMS)}
    print_last_line(
        "score_images",
        {f"{PEER} over {form}": times[PEER] / times[form] for form in FORMS},
        images_per_second={name: count / time for name, time in times.items()},
        peaks={f"{name}, {size}": outcome.peak for (name, size), outcome in outcomes.items()},
        values={name: outcomes[name, count].value for name in times},
    )


def pictures(photographs: list[Path], count: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Yield images [256, 256, 3]: random crops of photographs, or noise."""
    random = np.random.default_rng(seed)
    arrays = []
    for path in photographs:
        with Image.open(path) as image:
            arrays.append(np.asarray(image.convert("RGB")))
    arrays = [array for array in arrays if min(array.shape[:2]) >= SIDE]
    for index in range(count):
        if not arrays:
            yield random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            continue
        array = arrays[index % len(arrays)]
        top, left = (random.integers(0, length - SIDE + 1) for length in array.shape[:2])
        yield np.ascontiguousarray(array[top : top + SIDE, left : left + SIDE])


def as_png(picture: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def write_folder(place: Path, images: Iterator[NDArray[np.uint8]]) -> None:
    place.mkdir()
    for index, picture in enumerate(images):
        (place / f"{index:05d}.png").write_bytes(as_png(picture))


def write_tar(place: Path, images: Iterator[NDArray[np.uint8]]) -> None:
    with tarfile.open(place, "w") as archive:
        for index, picture in enumerate(images):
            member = tarfile.TarInfo(f"{index:05d}.png")
            content = as_png(picture)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_npz(place: Path, images: Iterator[NDArray[np.uint8]]) -> None:
    np.savez(place, np.stack(list(images)))


def write_parquet(place: Path, images: Iterator[NDArray[np.uint8]]) -> None:
    with pyarrow.parquet.ParquetWriter(place, pyarrow.schema({"image": pyarrow.binary()})) as writer:
        rows: list[bytes] = []
        for picture in images:
            rows.append(as_png(picture))
            if len(rows) == ROW_GROUP:
                writer.write_table(pyarrow.table({"image": rows}))
                rows = []
        if rows:
            writer.write_table(pyarrow.table({"image": rows}))


WRITERS: dict[str, Callable[[Path, Iterator[NDArray[np.uint8]]], None]] = {
    "folder": write_folder,
    "tar": write_tar,
    "npz": write_npz,
    "parquet": write_parquet,
}


def find_weights(work: Path, quick: bool) -> Path:
    try:
        return locate_asset("inception", Settings.load().assets_path)
    except AssetMissing as error:
        if not quick:
            raise SystemExit(error.message) from None
        save_file(draw_inception(), work / "inception.safetensors")
        return work / "inception.safetensors"


def run_side(name: str, place: Path, reference: Path, weights: Path, features: int) -> Outcome:
    command = [sys.executable, __file__, "--features", str(features), "--side", name]
    command += map(str, (place, reference, weights))
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def measure(name: str, images: str, reference: str, weights: str, features: int) -> Outcome:
    """Score the images in this process, by the side called `name`."""
    score = by_torch_fidelity if name == PEER else by_evalsvc
    started = time.perf_counter()
    with watched_memory() as peaks:
        value = score(images, reference, features, weights)
    return Outcome(value, time.perf_counter() - started, max(peaks) - peaks[0])


def by_torch_fidelity(images: str, reference: str, features: int, weights: str) -> float:
    # torch-fidelity wants the classifier too, on which no feature depends.
    file, classifier = io.BytesIO(), {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(read_inception(Path(weights)) | classifier, file)
    file.seek(0)
    metrics = calculate_metrics(
        input1=images,
        input2=reference,
        cuda=False,
        fid=True,
        feature_layer_fid=str(features),
        feature_extractor_weights_path=file,
        cache=False,
        verbose=False,
    )
    return float(metrics["frechet_inception_distance"])


def by_evalsvc(images: str, reference: str, features: int, weights: str) -> float:
    metric = "fid" if features == 2048 else f"fid{features}"
    task = {
        "kind": "images",
        "name": "images",
        "reference": reference,
        "metrics": [metric],
        "extractor": weights,
        "resize": "tf1-bilinear",
        "keep": 0,
    }
    suite = parse_suite({"name": "score", "tasks": [task]}, "score")
    with tempfile.TemporaryDirectory() as home:
        settings = Settings.load({"EVALSVC_HOME": home})
        result = run_suite(suite, CheckpointRef(images), lambda *_: None, settings=settings)
    if result.errors:
        raise SystemExit(str(result.errors))
    return result.metrics[0].value


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """Yield a list that gets the anonymous bytes of this process, again and again."""
    found, ended = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLED_EVERY):
            found.append(anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def report(outcomes: dict[tuple[str, int], Outcome], sizes: tuple[int, ...]) -> None:
    print(f"{'':16} {'images':>7} {'value':>12} {'images/s':>9} {'MB above start':>15}")
    for (name, size), outcome in outcomes.items():
        rate = size / outcome.seconds
        print(f"{name:16} {size:7,} {outcome.value:12.7f} {rate:9.1f} {outcome.peak / 1e6:15.0f}")
    for size in sizes:
        values = [outcomes[form, size].value for form in FORMS]
        if len(set(values)) > 1:
            raise SystemExit(f"the forms of {size:,} images differ: {values}")
        theirs = outcomes[PEER, size].value
        if abs(values[0] - theirs) > 1e-4 * abs(theirs):
            raise SystemExit(f"{size:,} images: ours is {values[0]}, torch-fidelity's {theirs}")


if __name__ == "__main__":
    main()
