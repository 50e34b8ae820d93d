"""Comparing every step from a checkpoint to a metric with golden values, which other programs computed.

`tests/golden/machine/make.py` wrote the folder. Nothing in the folder is executed: tensors are safetensors, numbers are
JSON, and the checkpoints that open_lm wrote are read like any other checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from evalsvc.assets import locate_asset
from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.data.captions import read_captions
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.decoders import load_decoder
from evalsvc.errors import AssetMissing, InternalError, MissingPackage
from evalsvc.features import load_extractor
from evalsvc.metrics.frechet import Moments
from evalsvc.metrics.image_metric import FeatureSets, ImageMetric
from evalsvc.metrics.intervals import Spread, confidence_interval, critical_value
from evalsvc.metrics.mmd import kid
from evalsvc.metrics.prdc import neighbourhoods
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.miniature import ROOT
from evalsvc.models import DecodePath, Transformer, load_model
from evalsvc.precision import full_precision, use_full_float32
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, generate
from evalsvc.sampling.noise import stream_keys, uniform
from evalsvc.spec import catalog
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.spec.suite import parse_suite
from evalsvc.verify.agreement import Agreement, installed
from evalsvc.worker.local import run_suite

GOLDEN = Path(__file__).parent / "golden"
LAYOUT_FILE = ROOT / "runs" / "layout.yaml"
CHECKPOINTS = ROOT / "runs" / "pretrained" / "checkpoints"
TRAINED = CHECKPOINTS / "epoch_5.pt"
"""Last checkpoint of the miniature's run, which draws digits."""
ENGLISH = CHECKPOINTS / "epoch_0.pt"
"""First checkpoint of the miniature's run, before it saw an image, which knows English."""
TOKENIZER = ROOT / "tokenizer.json"
DECODER = ROOT / "movqgan" / "movqgan_miniature.ckpt"
IMAGES = ROOT / "images.safetensors"


@dataclass(frozen=True)
class Golden:
    """Golden values, and the device to compare with them. Files are read on demand."""

    device: str
    folder: Path = GOLDEN
    settings: Settings = field(default_factory=Settings.load)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read a safetensors file, e.g. `sampling` or `open_lm/…/expected`."""
        return load_file(self.folder / f"{name}.safetensors")

    @cached_property
    def values(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "values.json").read_text())
        return content

    def program(self, name: str) -> str:
        """Return how a table names golden values of a program, e.g. `golden, open_lm 9bb92ef`."""
        return f"golden, {name} {self.values['programs'][name]}"

    @property
    def cases(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "open_lm").iterdir())

    @cached_property
    def trained(self) -> Transformer:
        return load_model(TRAINED, device=self.device)

    @cached_property
    def layout(self) -> VocabularyLayout:
        return parse_layout(str(LAYOUT_FILE)).resolve(self.trained.config.vocab_size)


def compare_arrays(
    quantity: str, program: str, ours: ArrayLike, theirs: ArrayLike, tolerance: float, note: str = ""
) -> Agreement:
    first, second = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if first.shape != second.shape:
        shapes = f"shapes {list(first.shape)} and {list(second.shape)}"
        return Agreement(quantity, program, math.inf, tolerance, note=f"{note}; {shapes}" if note else shapes)
    return Agreement(quantity, program, float(np.abs(first - second).max(initial=0.0)), tolerance, note=note)


INNER = 1024
"""Number of products in a sum; sums are about √INNER."""
FULL = 1e-3
"""Tolerance: sums of INNER products in float32 are off by about 1e-4, in TF32 by 1e-2, in bfloat16 by 1e-1."""


def verify_products(golden: Golden) -> Iterator[Agreement]:
    """Compare products in float32 with float64: cards and newer CPUs take fewer bits where a variable permits it."""
    random = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(256, INNER, generator=random) for _ in range(2))
    yield _product("float32 matrix product", golden, lambda first, second: first @ second.T, rows, columns)
    images = torch.randn(8, 64, 32, 32, generator=random)
    kernels = torch.randn(64, 64, 4, 4, generator=random)
    yield _product("float32 convolution", golden, functional.conv2d, images, kernels)


def _product(
    quantity: str, golden: Golden, compute: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor
) -> Agreement:
    device = torch.device(golden.device)
    with full_precision(device):
        product = compute(first.to(device), second.to(device)).double().cpu()
    expected = compute(first.double(), second.double())
    note = f"{INNER} products per sum; TF32 would differ by 1e-2"
    return compare_arrays(quantity, "float64 on the CPU", product, expected, FULL, note)


def verify_noise(golden: Golden) -> Iterator[Agreement]:
    """Compare uniform noise with a plain implementation in Python's integers: the bits are equal on every device."""
    keys = stream_keys(7, ["digit-10"], torch.device(golden.device))
    noise = torch.cat([uniform(keys, position, 64) for position in (0, 63)])
    expected = golden.tensors("sampling")["uniform"]
    program, note = "golden, SplitMix64 in Python", "integers: every bit is equal"
    yield compare_arrays("noise of 128 codes", program, noise.cpu(), expected, 0.0, note)


SMALL = 1e-5
"""Tolerance of logits of about 4, sums of hundreds of float32 products: measured to 3e-6; a wrong eps changes 3e-4."""
TRAINED_LOGITS = 1e-4
"""Tolerance of logits of up to 30, otherwise like SMALL."""
HALF = 0.5
"""Tolerance in bfloat16, which keeps 8 bits: a logit of 30 is rounded by 0.06, and three layers add up."""
PREFILL = 7
"""Number of ids that are read together before the cached steps."""


@torch.inference_mode()
def verify_case(golden: Golden, case: str) -> Iterator[Agreement]:
    """Compare the logits of a run that open_lm wrote, in one pass and step by step from the cache."""
    folder = f"open_lm/{case}"
    expected = golden.tensors(f"{folder}/expected")
    model = load_model(golden.folder / folder / "checkpoints" / "epoch_1.pt", device=golden.device)
    ids = expected["input_ids"].to(golden.device)
    with full_precision(torch.device(golden.device)):
        cache = model.new_cache(*ids.shape)
        parts = [ids[:, :PREFILL], *torch.split(ids[:, PREFILL:], 1, dim=1)]
        step_by_step = torch.cat([model(part, cache=cache) for part in parts], dim=1)
        logits_by_way = {"logits": model(ids), "cached steps": step_by_step}
    program = golden.program("open_lm")
    for way, name in (("logits", "logits_full"), ("cached steps", "logits_step")):
        quantity = f"{way}: {describe(model)}"
        yield compare_arrays(quantity, program, logits_by_way[way].cpu(), expected[name], SMALL)


def describe(model: Transformer) -> str:
    config = model.config
    flags = ("qk_norm", "post_embed_norm", "weight_tying")
    named = [config.positional_embedding_type, config.model_norm, config.ffn_type]
    return ", ".join([*named, *(flag for flag in flags if getattr(config, flag))])


@torch.inference_mode()
def verify_miniature(golden: Golden) -> Iterator[Agreement]:
    """Compare logits and losses of the miniature, and its logits in bfloat16 and in another batch."""
    expected, program = golden.tensors("language_model"), golden.program("open_lm")
    pairs = expected["ids"].long().to(golden.device)  # [8, T], -1 behind the end
    real = pairs[:, 1:] >= 0
    pairs = pairs.clamp(min=0)
    with full_precision(torch.device(golden.device)):
        logits = golden.trained(pairs[:, :-1])
        alone = torch.cat([golden.trained(row[None, :-1]) for row in pairs])
        half = load_model(TRAINED, dtype="bfloat16", device=golden.device)(pairs[:2, :80])
    losses = functional.cross_entropy(logits.double().transpose(1, 2), pairs[:, 1:], reduction="none") * real
    chosen = expected["logits"]  # [2, 5, rows], of every 16th place
    yield compare_arrays("miniature: logits", program, logits[:2, :80:16].cpu(), chosen, TRAINED_LOGITS)
    losses, known = losses.cpu(), expected["losses"]
    yield compare_arrays("miniature: loss of each token", program, losses, known, TRAINED_LOGITS, "nats")
    note = "bfloat16 against float32: 8 bits of about 30"
    yield compare_arrays("miniature: logits in bfloat16", program, half[:, ::16].float().cpu(), chosen, HALF, note)
    gap = ((logits - alone) * real[:, :, None]).cpu()
    note = "8 sequences together and each alone"
    yield compare_arrays("miniature: logits of a batch", "evalsvc", gap, torch.zeros_like(gap), TRAINED_LOGITS, note)


LENGTH = 64
LEAD = "no code leads by less than 2e-4"
"""Smallest change of log probability and noise together that would change a code."""


def verify_codes(golden: Golden) -> Iterator[Agreement]:
    """Compare codes of 8 prompts on every decode path of this device, and in batches of 1 and 8."""
    use_full_float32()
    expected, values = golden.tensors("sampling"), golden.values["sampling"]
    warped = SamplingParams(**values["params"])
    greedy = "greedy codes", "greedy", SamplingParams(temperature=0)
    for quantity, name, params in (greedy, ("drawn codes, guided, top-k, top-p", "warped", warped)):
        for path in paths(golden.device):
            codes = draw_codes(golden, values[name], params, batch=8, path=path)
            yield _equal_codes(f"{quantity}, {path} steps", golden, codes, expected[name])
    alone = draw_codes(golden, values["warped"], warped, batch=1, path="plain")
    yield _equal_codes("drawn codes, one at a time", golden, alone, expected["warped"])


def paths(device: str) -> tuple[DecodePath, ...]:
    return ("plain", "graph") if torch.device(device).type == "cuda" else ("plain", "packed")


def draw_codes(
    golden: Golden, names: Sequence[str], params: SamplingParams, batch: int, path: DecodePath
) -> Tensor:  # [n, LENGTH] int64
    layout = golden.layout
    unconditional = tuple(layout.prompt(None, LENGTH).ids)
    assert layout.image_ids is not None, "the miniature has image rows"
    spec = SamplerSpec(layout.image_ids, LENGTH, params, batch, unconditional, path=path)
    encode = read_tokenizer(TOKENIZER).encode
    texts = {caption.id: encode(caption.text) for caption in read_captions(ROOT / "captions.jsonl").captions}
    prompts = [Prompt(name, tuple(layout.prompt(texts[name], LENGTH).ids)) for name in names]
    codes = torch.zeros(len(names), LENGTH, dtype=torch.int64)
    for samples in generate(golden.trained, prompts, spec):
        codes[list(samples.indices)] = samples.codes.cpu()
    return codes


def _equal_codes(quantity: str, golden: Golden, codes: Tensor, expected: Tensor) -> Agreement:
    differing = float((codes != expected.long()).sum())
    program = f"{golden.program('open_lm')}, plain loop"
    return Agreement(quantity, program, differing, 0.0, note=f"codes of {codes.numel()} that differ; {LEAD}")


PIXELS = 5e-5
"""Tolerance of images in [-1, 1]: the authors' program in float32 differs by 7e-6 from itself in float64."""
FEATURES = {64: 2e-5, 2048: 1e-4}
"""Tolerances of features up to 3: batch norms folded into the convolutions change features by 2e-6 of their size."""


def drawn_image(height: int, width: int) -> Tensor:  # [3, height, width] uint8
    """Draw an image with edges, gradients and fine stripes in integer arithmetic, identical everywhere."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    red = (rows * 7 + columns * 3) % 256
    green = (rows * columns // 16 + columns) % 256
    blue = ((rows // 24 + columns // 16) % 2) * 180 + (rows * rows + columns * 5) % 61
    return torch.stack((red, green, blue)).to(torch.uint8)


def verify_decoder(golden: Golden) -> Iterator[Agreement]:
    """Compare decoded pixels, codes, and an image alone with the same image in a batch."""
    expected, program = golden.tensors("decoding"), golden.program("MoVQGAN")
    decoder = load_decoder(DECODER, device=golden.device)
    pixels = decoder.decode(expected["codes"].long())
    yield compare_arrays("decoded pixels", program, pixels.cpu(), expected["decoded"], PIXELS, "of [-1, 1]")
    images = load_file(IMAGES)["images"][expected["places"]].float() / 127.5 - 1
    differing = float((decoder.encode(images).cpu() != expected["encoded"]).sum())
    note = "codes that differ, of 256; each is nearest by 1e-3"
    yield Agreement("codes of images", program, differing, 0.0, note=note)
    alone = torch.cat([decoder.decode(row[None].long()) for row in expected["codes"]])
    yield compare_arrays("decoded pixels of a batch", "evalsvc", pixels.cpu(), alone.cpu(), PIXELS, "4 and 1")


def verify_inception(golden: Golden) -> Iterator[Agreement]:
    """Compare features of two digits and a drawn image, resized by both methods."""
    path = locate_asset("inception", golden.settings.assets_path)
    network = load_extractor("inception", path, device=golden.device)
    images: tuple[Tensor, ...] = (load_file(Path(IMAGES))["images"][:2], drawn_image(340, 420)[None])
    expected = golden.tensors("inception")
    for resize, name in (("tf1-bilinear", "torch-fidelity"), ("pil-bicubic", "clean-fid")):
        parts = [network.features(batch, resize, FEATURES) for batch in images]
        for tap, tolerance in FEATURES.items():
            features, program = torch.cat([part[tap].cpu() for part in parts]), golden.program(name)
            quantity = f"{tap:,} features, {resize}"
            yield compare_arrays(quantity, program, features, expected[f"{resize}/{tap}"], tolerance)


LIVE = ("torch-fidelity", "clean-fid")
"""Programs that compute metrics live if they are installed. prdc prints to stdout, so its golden values are used."""

NAMES = {"fid": "fid64"}

EXACT = 1e-9
"""Relative tolerance between two sums in float64."""


def verify_metrics(golden: Golden) -> Iterator[Agreement]:
    """Compare image metrics of 256 sampled and 256 real images by their first 64 features."""
    tensors = golden.tensors("features")
    samples, real = (tensors[name].double().numpy() for name in ("samples", "real"))
    # In float64, whose precision the programs keep, as in the golden values.
    sets = FeatureSets(samples, Moments.of(real), real)
    for quantity, value in own_metrics(sets).items():
        program, name = quantity.split("/")
        yield _compared(golden, name, program, value, sets)


def own_metrics(sets: FeatureSets) -> dict[str, float]:
    """Compute each metric by evalsvc, by the name of its golden value: `torch-fidelity/fid`, `prdc/density`, …"""
    nearest = neighbourhoods(sets, neighbours=3)
    distance = catalog.load("metrics", "fid64").estimate(sets).value
    return {
        "torch-fidelity/fid": distance,
        "clean-fid/fid": distance,
        "torch-fidelity/kid": kid(sets).value,
        "torch-fidelity/precision": float((nearest.held > 0).mean()),
        "torch-fidelity/recall": float(nearest.recalled.mean()),
        **{
            f"prdc/{name}": catalog.load("metrics", name).estimate(sets).value
            for name in ("precision", "recall", "density", "coverage")
        },
    }


def _compared(golden: Golden, name: str, program: str, value: float, sets: FeatureSets) -> Agreement:
    expected, whose, note = golden.values["features"][f"{program}/{name}"], golden.program(program), "golden value"
    if program in LIVE and (version := installed(program)):
        try:
            metrics: Mapping[str, ImageMetric] = catalog.load("programs", program).metrics
            expected = metrics[NAMES.get(name, name)].estimate(sets).value
            whose, note = f"{program} {version}", "computed now"
        except (ImportError, MissingPackage) as error:
            note = f"golden value; {program} cannot be imported: {error}"
    tolerance = max(EXACT, EXACT * abs(expected)) if name in ("fid", "kid") else 1e-6
    return Agreement.of_numbers(f"{name} of 64 features, {program}", whose, value, expected, tolerance, note)


def verify_statistics(golden: Golden) -> Iterator[Agreement]:
    """Compare critical values of Student's t, and the interval of a mean of 12 numbers."""
    values = golden.values["student"]
    levels, degrees, expected = zip(*values["critical"], strict=True)
    values_found = [critical_value(level, dof) for level, dof in zip(levels, degrees, strict=True)]
    relative = [value / golden_value for value, golden_value in zip(values_found, expected, strict=True)]
    program = golden.program("scipy")
    yield compare_arrays("Student's t, 20 values", program, relative, np.ones(len(relative)), 1e-7, "relative")
    sample = values["sample"]
    ratio = ratio_of_sums(sample, [1.0] * len(sample))
    assert ratio is not None, "12 items have a mean"
    assert ratio.stderr is not None, "and an error"
    interval = confidence_interval(ratio.value, Spread(ratio.stderr, len(sample) - 1))
    yield compare_arrays("interval of a mean of 12", program, [interval.low, interval.high], values["interval"], 1e-7)


LOSS = 1e-5
"""Tolerance in nats: means over hundreds of tokens in float32."""
DISTANCE = 2e-5
"""Tolerance of a fid64 of 0.04: one pixel in thousands is halfway between two levels and may be rounded either way."""
LOGPROB = 5e-4
"""Tolerance in nats: sums of some ten log probabilities, each of logits of about 30 in float32."""


def verify_losses(golden: Golden) -> Iterator[Agreement]:
    """Compare mean losses of captions, codes and English, as the task `loss` measures them."""
    program = golden.program("open_lm")
    for name, file, checkpoint in (("pairs", "heldout_pairs", TRAINED), ("text", "heldout_text", ENGLISH)):
        expected = golden.values["losses"][name]
        task = {"kind": "loss", "name": name, "data": str(ROOT / f"{file}.jsonl"), "profile": False}
        task |= {"text_prefix": "layout"}  # as the golden values were computed
        values, _ = _measure(golden, task | {"limit": expected["sequences"]}, checkpoint)
        for kind in (kind for kind in expected if kind != "sequences"):
            quantity = f"task loss: {name}/{kind}"
            yield Agreement.of_numbers(quantity, program, values[f"{name}/{kind}"], expected[kind], LOSS, "nats")


def verify_digits(golden: Golden) -> Iterator[Agreement]:
    """Compare fid64 of sampled digits: captions, codes, pixels, features, distance."""
    expected = golden.values["digits"]
    task = {
        "kind": "text_to_image",
        "name": "digits",
        "captions": str(ROOT / "captions.jsonl"),
        "samples": expected["images"],
        "seed": golden.values["sampling"]["digits_seed"],
        "decoder": str(DECODER),
        "reference": str(IMAGES),
        "reference_of": "captions",
        "metrics": ["fid64"],
        "batch": 32,
        "keep": 0,
    }
    values, _ = _measure(golden, task, TRAINED)
    program = "golden, open_lm, MoVQGAN, clean-fid and torch-fidelity"
    note = f"{expected['images']} images, from weights to distance"
    fid = values["digits/fid64"], expected["fid64"]
    yield Agreement.of_numbers("task text_to_image: fid64", program, *fid, DISTANCE, note)


def verify_benchmark(golden: Golden) -> Iterator[Agreement]:
    """Compare token ids of texts, and accuracy and log-likelihoods of a benchmark's questions under lm-eval."""
    expected = golden.values["cloze"]
    encode = read_tokenizer(TOKENIZER).encode
    differing = sum(encode(text) != ids for text, ids in zip(expected["texts"], expected["ids"], strict=True))
    note = f"texts of {len(expected['ids'])} whose ids differ"
    yield Agreement("token ids", golden.program("tokenizers"), float(differing), 0.0, note=note)
    task = {"kind": "language", "benchmarks": ["cloze"], "include_path": [str(ROOT)], "limit": expected["questions"]}
    values, items = _measure(golden, task, ENGLISH)
    program = f"{golden.program('lm-eval')} over open_lm"
    yield Agreement.of_numbers("task language: cloze/acc", program, values["cloze/acc"], expected["accuracy"], 0.0)
    scores = [[score[0] for score in item["scores"]] for item in items]
    note = f"nats, {np.asarray(scores).size} options"
    yield compare_arrays("task language: log-likelihoods", program, scores, expected["scores"], LOGPROB, note)


def _measure(golden: Golden, task: dict[str, Any], checkpoint: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    suite = parse_suite({"tasks": [task]}, "machine")
    reference = CheckpointRef(str(checkpoint), layout=parse_layout(str(LAYOUT_FILE)).to_json())
    result = run_suite(suite, reference, lambda *_: None, settings=golden.settings)
    for error in result.errors.values():
        kind = AssetMissing if error.code == AssetMissing.code else InternalError
        raise kind(error.message)
    [items] = result.items.values()
    return {metric.name: float(metric.value) for metric in result.metrics}, items
