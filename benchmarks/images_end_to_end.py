"""From prompts to FID's features, against the script that a user would assemble today.

That script is Hugging Face's `generate` with its static cache on a Llama of the same weights, diffusers' `VQModel` with
the decoder's weights, PNG files, and clean-fid's features of their folder, with clean-fid's own loader, resize and
normalisation around FID's network. Ours is what the task `text_to_image` does: `generate`, `decode`, `features`.
All in float32, 16 prompts in one batch. Before anything is timed, features of the same codes are compared.

    python benchmarks/images_end_to_end.py [--quick] [--codes 64] [--repetitions 3]

`--codes` draws smaller images, of so many codes. A whole turn takes minutes: each stage prints its time as it ends.
Prints a card, a table with the share of each stage, and as last line one JSON document; `ratios` has the script's time
over ours, above 1 when ours is faster.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from cleanfid.fid import get_folder_features
from decoding import FULL as DECODERS
from decoding import QUICK as SMALL_DECODERS
from decoding import Case as Decoding
from decoding import build_ours as build_decoder
from decoding import their_decode
from diffusers import VQModel
from features import read_weights, torch_fidelitys
from loss import Case as Shape
from loss import build_ours, build_theirs
from PIL import Image
from sampling_cases import Case as Sampling
from sampling_sides import Steps, hugging_face
from side_by_side import interleaved, machine, medians, print_last_line, ratios, seconds
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from vq_model import build_vq_model

from evalsvc.decoders import ImageDecoder, to_uint8
from evalsvc.features.inception import Inception
from evalsvc.models import DecodePath, Transformer
from evalsvc.sampling import Prompt
from evalsvc.sampling.fitting import generate_fitting
from evalsvc.spec.layout import parse_layout

OURS, THEIRS = "evalsvc", "assembled script"
TAP = 2_048
TOLERANCE = 1e-3
"""Of the relative L2 error between features of the same codes: a pixel may round to the next level on one side."""
WARM_UP_CODES = 16


@dataclass(frozen=True)
class Case:
    shape: Shape
    sampling: Sampling
    decoding: Decoding

    @property
    def grid(self) -> tuple[int, int]:
        side = math.isqrt(self.sampling.length)
        return side, side


def make_case(quick: bool, codes: int | None, repetitions: int) -> Case:
    if quick:
        layout = parse_layout({"preset": "image-then-special", "text_size": 511, "codebook_size": 256}).resolve(774)
        shape = Shape(64, 2, 2, layout, 8, 3)
        return Case(shape, Sampling("small", torch.float32, 2, codes or 16, 1, shape.layout), SMALL_DECODERS[0])
    shape = Shape(768, 12, 12, parse_layout("image-then-special").resolve(66_823), 8, 3)
    sampling = Sampling("160m", torch.float32, 16, codes or 1_024, repetitions, shape.layout)
    return Case(shape, sampling, DECODERS[0])


@dataclass
class Clock:
    """Seconds of each stage of one side, turn by turn."""

    side: str
    times: dict[str, list[float]] = field(default_factory=dict)

    def timed(self, stage: str, work: Callable[[], Tensor]) -> Tensor:
        found: list[Tensor] = []
        self.times.setdefault(stage, []).append(seconds(lambda: found.append(work())))
        print(f"  {self.side:18}{stage:10}{self.times[stage][-1]:9.2f} s", flush=True)
        return found[0]


@dataclass(frozen=True)
class Ours:
    model: Transformer
    decoder: ImageDecoder
    extractor: Inception
    path: DecodePath | None
    """Of the steps for whole images; the warm-up would choose another for its few codes, and compile nothing."""

    def run(self, case: Case, prompts: Sequence[Prompt], clock: Clock) -> Tensor:  # [B, 2048]
        codes = clock.timed("sampling", lambda: self.codes(case.sampling, prompts))
        images = clock.timed("decoding", lambda: to_uint8(self.decoder.decode(codes, case.grid)))
        return clock.timed("features", lambda: self.features(images))

    def codes(self, case: Sampling, prompts: Sequence[Prompt]) -> Tensor:  # [B, N]
        spec = replace(case.spec(self.model), path=self.path)
        batches = list(generate_fitting(self.model, prompts, spec))
        return torch.cat([samples.codes for samples in batches])

    def features(self, images: Tensor) -> Tensor:
        return self.extractor.features(images, "pil-bicubic", (TAP,))[TAP]


@dataclass(frozen=True)
class Theirs:
    model: LlamaForCausalLM
    decoder: VQModel
    network: Callable[[Tensor], Tensor]
    """FID's, as clean-fid calls it."""

    def run(self, case: Case, prompts: Sequence[Prompt], clock: Clock) -> Tensor:
        codes = clock.timed("sampling", lambda: self.codes(case.sampling, prompts))
        images = clock.timed("decoding", lambda: self.images(codes))
        return self.measure(images, clock)

    def codes(self, case: Sampling, prompts: Sequence[Prompt]) -> Tensor:  # [B, N]
        return hugging_face(self.model, prompts, case.image_ids)(case.length, 1.0, Steps())

    def images(self, codes: Tensor) -> Tensor:  # [B, 3, H, W] uint8
        """A few at once: all of them would be no faster, and not fit into a small machine."""
        return to_uint8(torch.cat([their_decode(self.decoder, some) for some in codes.split(4)]))

    def measure(self, images: Tensor, clock: Clock) -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            clock.timed("PNG files", lambda: write_files(images, Path(folder)))
            return clock.timed("features", lambda: self.features(folder))

    def features(self, folder: str) -> Tensor:
        """clean-fid's own loop; its twelve loader processes would only fight for two cores."""
        found = get_folder_features(
            folder, self.network, num_workers=0, batch_size=32, device=torch.device("cpu"), mode="clean", verbose=False
        )
        return torch.from_numpy(found)


def write_files(images: Tensor, folder: Path) -> Tensor:
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:05d}.png")
    return images


def build(case: Case, quick: bool) -> tuple[Ours, Theirs]:
    tensors, origin = read_weights(quick)
    print(f"features  FID's network, {origin}\n", flush=True)
    model = build_ours(case.shape)
    decoder = build_decoder(case.decoding)
    their_decoder = build_vq_model(case.decoding.config, decoder.state_dict())
    network = clean_fid_network(torch_fidelitys(tensors))
    theirs = Theirs(build_theirs(case.shape, model), their_decoder, network)
    return Ours(model, decoder, Inception(tensors), case.sampling.spec(model).path), theirs


def clean_fid_network(trunk: nn.Module) -> Callable[[Tensor], Tensor]:
    """clean-fid's call of FID's network, which is torch-fidelity's without its resize."""

    def network(images: Tensor) -> Tensor:  # [B, 3, 299, 299] float32, 0 … 255
        x = (images - 128) / 128
        for name, layer in trunk.named_children():
            x = x if name == "fc" else layer(x)
        return x.flatten(1)

    return network


def compare(case: Case, ours: Ours, theirs: Theirs, prompts: list[Prompt]) -> float:
    """Warms both sides up on small images, and gives the error of our features of the codes that they drew."""
    short = replace(case, sampling=replace(case.sampling, length=WARM_UP_CODES))
    print("warm-up, on images of 4 x 4 codes")
    ours.run(short, prompts, Clock(OURS))
    codes = theirs.codes(short.sampling, prompts)
    wanted = theirs.measure(theirs.images(codes), Clock(THEIRS))
    found = ours.features(to_uint8(ours.decoder.decode(codes, short.grid)))
    error = float((found - wanted).norm() / wanted.norm())
    if error > TOLERANCE:
        raise SystemExit(f"features of the same codes differ: relative error {error:.1e}")
    return error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a small model and two small images: shows that it works")
    parser.add_argument("--codes", type=int, help="codes of an image, a square number [1,024]")
    parser.add_argument("--repetitions", type=int, default=1, help="turns of each side; one takes minutes [1]")
    arguments = parser.parse_args()
    case = make_case(arguments.quick, arguments.codes, arguments.repetitions)
    print_card(case)
    ours, theirs = build(case, arguments.quick)
    prompts = case.sampling.prompts()
    error = compare(case, ours, theirs, prompts)
    clocks = {OURS: Clock(OURS), THEIRS: Clock(THEIRS)}
    print("\nturns")
    times = interleaved(
        {
            OURS: lambda: ours.run(case, prompts, clocks[OURS]),
            THEIRS: lambda: theirs.run(case, prompts, clocks[THEIRS]),
        },
        case.sampling.repetitions,
    )
    print_results(case, times, clocks, error)


def print_card(case: Case) -> None:
    sampling, shape = case.sampling, case.shape
    print(f"model     {shape.hidden_dim} wide, {shape.n_layers} layers, {shape.n_heads} heads, {shape.rows:,} rows")
    print(f"decoder   MoVQGAN {case.decoding.name}; both with random weights, float32")
    print(f"draws     {sampling.batch} images of {sampling.length:,} codes")
    print(f"machine   {machine()}")


def print_results(case: Case, times: dict[str, list[float]], clocks: dict[str, Clock], error: float) -> None:
    stages = {
        side: {stage: statistics.median(column) for stage, column in clock.times.items()}
        for side, clock in clocks.items()
    }
    print()
    for side, took in medians(times).items():
        parts = ", ".join(f"{stage} {part:.1f} s ({part / took:.0%})" for stage, part in stages[side].items())
        print(f"{side:18}{took:9.2f} s, {case.sampling.batch / took:.3f} images/s: {parts}")
    found = ratios(times, OURS)
    print(f"\nratio     {found[THEIRS]:.2f}; features of the same codes differ by {error:.1e} (relative L2)\n")
    print_last_line(
        "images_end_to_end",
        found,
        codes=case.sampling.length,
        images_per_second={side: case.sampling.batch / took for side, took in medians(times).items()},
        stage_seconds=stages,
        feature_error=error,
    )


if __name__ == "__main__":
    main()
