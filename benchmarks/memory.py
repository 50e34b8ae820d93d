"""Does a large model take the memory that was predicted? Makes an open_lm_1b with 66,823 rows and a 270M decoder.

Both are written with random weights as a training run and MoVQGAN's authors write them, then a process of its own
loads them as an evaluation does, samples a few codes, and decodes whole images. Fewer codes than an image has are drawn
(`--codes`), with keys and values for as many; what is decoded are those codes over and over.

    python benchmarks/memory.py [--quick] [--codes 64] [--batch 8] [--scratch FOLDER]

Prints a card, a table, and as last line one JSON document; `ratios` is empty, since there is no peer. Fails where the
peak is not within a tenth of what was predicted, or above 8 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from side_by_side import machine, peak_bytes, print_last_line
from torch import nn

from evalsvc.decoders import load_decoder, to_uint8
from evalsvc.decoders.config import REGISTERED
from evalsvc.decoders.movqgan import MoVQGAN
from evalsvc.families.open_lm import registered_models
from evalsvc.models import Transformer, load_model
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams
from evalsvc.sampling.fitting import BatchShape, generate_fitting
from evalsvc.sampling.memory import footprint
from evalsvc.spec.model_config import ModelConfig

LIMIT = 8_000_000_000
TOLERANCE = 0.1
PROMPT_LENGTH = 32
CHECKPOINT, DECODER = "epoch_1.pt", "decoder.ckpt"


@dataclass(frozen=True)
class Case:
    model: str
    """A registered open_lm shape."""
    rows: int
    """Of its table, the last `codebook` of them image tokens."""
    decoder: str
    """A registered shape."""
    codebook: int
    codes: int
    """That are drawn for each image."""
    batch: int

    @property
    def config(self) -> ModelConfig:
        return ModelConfig.model_validate(registered_models()[self.model] | {"vocab_size": self.rows})

    @property
    def spec(self) -> SamplerSpec:
        image_ids = range(self.rows - self.codebook, self.rows)
        return SamplerSpec(image_ids, self.codes, SamplingParams(), self.batch, bucket=PROMPT_LENGTH)


FULL = Case("open_lm_1b", 66_823, "movqgan-270M", 16_384, codes=64, batch=8)
QUICK = Case("open_lm_79m_v2", 20_000, "movqgan-67M", 16_384, codes=16, batch=2)


def write_files(case: Case, folder: Path) -> None:
    """A checkpoint as open_lm writes it, in bfloat16, and a decoder as its authors do, in float32."""
    with torch.device("meta"):
        model, decoder = Transformer(case.config), MoVQGAN.from_config(REGISTERED[case.decoder])
    state = {f"module.{name}": tensor for name, tensor in _random_state(model, torch.bfloat16).items()}
    torch.save({"epoch": 1, "name": "memory", "state_dict": state}, folder / CHECKPOINT)
    torch.save(_random_state(decoder, torch.float32), folder / DECODER)


def _random_state(module: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Matrices that keep the variance of what they multiply; vectors of ones."""
    state = {}
    for name, like in module.state_dict().items():
        if like.dim() == 1:
            state[name] = torch.ones(like.shape, dtype=dtype)
        else:
            state[name] = torch.randn(like.shape, dtype=dtype).mul_(like[0].numel() ** -0.5)
    return state


class Watch:
    """The most anonymous memory of this process: unlike its peak, without the pages of mapped files."""

    def __init__(self) -> None:
        self.most = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        stopped = threading.Event()

        def look() -> None:
            while not stopped.wait(0.02):
                self.most = max(self.most, memory("RssAnon"))

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()


def memory(field: str) -> int:
    """Bytes of this process: VmRSS, or RssAnon."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


@dataclass(frozen=True)
class Measured:
    """Bytes, by when they were looked at."""

    runtime: int
    """Python, torch and evalsvc with what they load when they are first used, before a checkpoint was opened."""
    loaded: int
    """With both models."""
    loading_anonymous: int
    """The most while they were loaded, without pages of the files."""
    loading: int
    """The most while they were loaded."""
    peak: int
    """The most of all."""
    predicted: int
    parts: dict[str, int]
    """What `predicted` is made of."""
    batch: int
    seconds: float


def use_libraries() -> None:
    """Draw two codes with next to no weights: a hundred megabytes of libraries are loaded at the first use only."""
    config = ModelConfig.model_validate(registered_models()["open_lm_test_tiny"])
    model = Transformer(config).to(torch.bfloat16).requires_grad_(False).eval()
    list(generate_fitting(model, [Prompt("", (0,))], SamplerSpec(range(8, 16), 2, SamplingParams(), 1, path="packed")))


def measure(case: Case, folder: Path) -> Measured:
    started = time.perf_counter()
    use_libraries()
    runtime, watch = memory("VmRSS"), Watch()
    with watch.running():
        model = load_model(folder / CHECKPOINT, case.config, dtype="bfloat16")
        decoder = load_decoder(folder / DECODER, case.decoder)
    loaded, loading = memory("VmRSS"), peak_bytes()
    side = decoder.resolution // decoder.downsampling
    pixels = 3 * decoder.resolution**2 * case.batch
    beside = decoder.decode_bytes((side, side)) + 3 * 4 * pixels  # three float32 versions on the way to uint8
    parts = footprint(case.config, case.spec, PROMPT_LENGTH, torch.bfloat16, reserved=beside)
    weights = sum(tensor.nbytes for tensor in decoder.state_dict().values())
    shapes: list[BatchShape] = []
    prompts = [Prompt(str(index), tuple(range(1, PROMPT_LENGTH + 1))) for index in range(case.batch)]
    for samples in generate_fitting(model, prompts, case.spec, reserved=beside, on_shape=shapes.append):
        codes = samples.codes.repeat(1, side * side // case.codes)
        images = to_uint8(decoder.decode(codes, (side, side)))
        assert images.shape == (len(codes), 3, decoder.resolution, decoder.resolution)
    return Measured(
        runtime=runtime,
        loaded=loaded,
        loading_anonymous=watch.most,
        loading=loading,
        peak=peak_bytes(),
        predicted=runtime + parts.total + weights,
        parts={"runtime": runtime, "decoder": weights}
        | {name: getattr(parts, name) for name in ("weights", "packed", "cache", "transient")},
        batch=shapes[-1].batch,
        seconds=time.perf_counter() - started,
    )


def run_apart(case: Case, folder: Path, stage: str) -> str:
    """A stage in a process of its own, so that nothing of the others is in its memory."""
    command = [sys.executable, __file__, "--stage", stage, "--scratch", str(folder), "--case", json.dumps(asdict(case))]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small models: shows that the benchmark works")
    parser.add_argument("--codes", type=int, help="codes that are drawn for each image")
    parser.add_argument("--batch", type=int, help="images at once")
    parser.add_argument("--scratch", type=Path, help="where the files of 4 GB are made [a temporary folder]")
    parser.add_argument("--stage", choices=("write", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        case = Case(**json.loads(arguments.case))
        if arguments.stage == "write":
            write_files(case, arguments.scratch)
        else:
            print(json.dumps(asdict(measure(case, arguments.scratch))))
        return
    changes = {name: value for name in ("codes", "batch") if (value := getattr(arguments, name)) is not None}
    case = Case(**asdict(QUICK if arguments.quick else FULL) | changes)
    print_card(case)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        run_apart(case, Path(name), "write")
        found = Measured(**json.loads(run_apart(case, Path(name), "measure").splitlines()[-1]))
    print_results(found)
    wrong = abs(found.peak / found.predicted - 1) > TOLERANCE or found.peak > LIMIT
    if wrong and not arguments.quick:  # in small, libraries are most of it
        raise SystemExit(f"the peak of {found.peak / 1e9:.2f} GB is not what was predicted, or above {LIMIT / 1e9:.0f}")


def print_card(case: Case) -> None:
    print(f"model     {case.model} with {case.rows:,} rows, bfloat16, random weights")
    print(f"decoder   {case.decoder}, float32, random weights")
    print(f"draws     {case.batch} images of {case.codes} codes, fewer than an image has; decodes whole images")
    print(f"machine   {machine()}\n", flush=True)


def print_results(found: Measured) -> None:
    print(f"{'':34}{'GB':>8}")
    for name, count in found.parts.items():
        print(f"predicted {name:24}{count / 1e9:8.3f}")
    print(f"{'predicted in all':34}{found.predicted / 1e9:8.3f}")
    print(f"{'peak':34}{found.peak / 1e9:8.3f}{found.peak / found.predicted:8.1%} of what was predicted")
    print(f"{'both models loaded':34}{found.loaded / 1e9:8.3f}")
    print(f"{'peak while loading':34}{found.loading / 1e9:8.3f}, pages of the mapped files included")
    print(f"{'the same without those pages':34}{found.loading_anonymous / 1e9:8.3f}")
    print(f"\nbatch     {found.batch}; {found.seconds:.0f} s in all\n")
    print_last_line("memory", {}, of_predicted=found.peak / found.predicted, **asdict(found))


if __name__ == "__main__":
    main()
