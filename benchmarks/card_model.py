"""What a step of sampling and the stages around it should take on a card, predicted without one.

The real path of a GPU runs on torch's `meta` device: its kernels are counted, and the bytes and operations of each come
from the shapes of its tensors. A card's data sheet and the assumptions below turn them into time. Nothing is measured:
`gpu.py` holds the prediction against a card.

    python benchmarks/card_model.py [--card h100|a100] [--prompt 36] [--unconditional TOKENS] [--output FILE] [--quick]

`before` is torch's operators, with attention over spans with a bias; `after` the kernels that attend to the live slots
alone and rotate, norm, gate and draw; then these with keys and values in float8. The goals come from the same assumed
rates: that a prediction agrees with them shows nothing. Prints a table, and as last line one JSON document.
`--quick` takes two layers.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from roofline import CARDS, Card, Work, widened
from side_by_side import print_last_line
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from evalsvc.decoders.config import REGISTERED
from evalsvc.decoders.movqgan import MoVQGAN
from evalsvc.features.inception import _Network
from evalsvc.models import Transformer, decoding
from evalsvc.models.attention import attention_dtype
from evalsvc.models.decoding import LIVE, PATHS, TORCH
from evalsvc.models.layer import Kernels, LayerNorm, RMSNorm, add_norm
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, generate, logits, sampler
from evalsvc.sampling.fitting import HEADROOM
from evalsvc.sampling.memory import footprint
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.model_config import ModelConfig
from evalsvc.spec.suite import SHIPPED_SUITES, parse_suite
from evalsvc.spec.yaml_text import read_yaml

HERE = {"h100": CARDS["H100 SXM"], "a100": CARDS["A100 SXM"]}
BUCKETS = {"before": 16, "after": 64}
"""Multiple of tokens to which prompts are padded."""
COUNTED = 3
"""Position of the step that is counted: the first ones differ by what is made once."""
LAYOUT = parse_layout("image-then-special").resolve(66_823)
IMAGES = 30_000
CAPTIONS = 4_096
"""Prompts whose lengths are drawn, for the batches of a shard."""
GOALS = {256: 9.7, 1_024: 12.7}
"""Milliseconds of a step on an H100, by the codes of an image: 58 and 71 % of the roofline."""


@dataclass(frozen=True)
class Assumption:
    """What is not counted."""

    value: float
    unit: str
    source: str


ASSUMPTIONS: dict[str, Assumption] = {
    "reads": Assumption(0.80, "of bandwidth", "small kernels; a copy reaches 0.8 to 0.9 of a data sheet's bandwidth"),
    "attention_torch": Assumption(
        0.55, "of bandwidth", "assumed: the memory-efficient kernel computes 64 rows of queries for one, 0.45 to 0.65"
    ),
    "attention_live": Assumption(
        0.80, "of bandwidth", "assumed: long contiguous reads, four programs a multiprocessor"
    ),
    "products": Assumption(0.48, "of peak", "assumed: 450 to 500 TFLOP/s of an H100 with 256 to 512 rows"),
    "prefill": Assumption(0.60, "of peak", "assumed: products with thousands of rows"),
    "convolutions": Assumption(0.72, "of float32's peak", "assumed: cuDNN without TF32, of the network as written"),
    "launch": Assumption(1.8e-6, "s a kernel", "assumed: a kernel of a graph fills and drains the card"),
    "select": Assumption(1.7e10, "values/s", "assumed: topk of 256 × 16,384 in 0.25 ms"),
    "sort": Assumption(3.2e9, "values/s", "assumed: sort and cumulative sum of 256 × 16,384 in 1.3 ms"),
    "capture": Assumption(0.05, "s a graph", "assumed: a warm step, and a pass of the allocator over its memory"),
    "digest": Assumption(5e8, "bytes/s", "assumed: pageable copies to the host and SHA-256, once a shard before"),
    "context": Assumption(1.5e9, "bytes", "assumed: the driver's context, and what fragments"),
    "prompt_spread": Assumption(2.8, "tokens", "standard deviation of COCO's captions in tokens"),
}
"""By name; a rate is the share of the card's own."""


def rate(name: str) -> float:
    return ASSUMPTIONS[name].value


Kind = Literal["product", "attention", "select", "sort", "small"]


@dataclass(frozen=True)
class Launch:
    """A kernel, or what one operator starts."""

    name: str
    kind: Kind
    reads: Mapping[int, int]
    """Bytes by storage."""
    writes: Mapping[int, int]
    values: int = 0
    """Operations of a product, values of a selection."""
    slot_bytes: int = 0
    """Of attention: bytes of keys and values for a slot of all rows."""
    wide: bool = False
    """Whether a product is in float32."""

    @property
    def bytes(self) -> int:
        return sum(self.reads.values()) + sum(self.writes.values())


def bytes_of(tensor: Tensor) -> int:
    """Bytes of the numbers that a tensor has in memory: an expanded dimension is read once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


INDEXED = ("index_copy_", "index_fill_", "embedding", "index", "index_select", "gather")
"""Operators that touch only a part of one of their tensors."""
ATTENTION = "scaled_dot_product_attention"


class Recorder(TorchDispatchMode):
    """Records what starts a kernel, while `recording`."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.recording = False
        self._kept: list[Tensor] = []  # a storage's number is another's after it is freed

    def add(self, name: str, kind: Kind, inputs: Sequence[Tensor], outputs: Sequence[Tensor], **more: Any) -> None:
        self._kept += [*inputs, *outputs]
        reads = {_storage(tensor): bytes_of(tensor) for tensor in inputs}
        writes = {_storage(tensor): bytes_of(tensor) for tensor in outputs}
        self.launches.append(Launch(name, kind, reads, writes, **more))

    def as_one(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts as one kernel."""

        def call(*arguments: Any) -> Any:
            before, self.recording = self.recording, False
            found = function(*arguments)
            self.recording = before
            if before:
                self.add(function.__name__, "small", list(_tensors(arguments)), list(_tensors(found)))
            return found

        return call

    def attend_one(self, queries: Tensor, new_keys: Tensor, new_values: Tensor, keys: Tensor, *rest: Any) -> Tensor:
        """Stand in for the kernel that reads the live slots."""
        before, self.recording = self.recording, False
        found = torch.empty(queries.shape, dtype=attention_dtype(keys.dtype, queries.dtype), device=queries.device)
        self.recording = before
        if before:
            *_, rotation, _ = rest
            inputs = [queries, new_keys, new_values, *(rotation or ())]
            self.add("attend_one", "attention", inputs, [found, new_keys], slot_bytes=_slot_bytes(keys))
        return found

    def add_norm(self, x: Tensor, delta: Tensor | None, norm: nn.Module) -> Any:
        """Stand in for the kernel of norms."""
        return (self.as_one(add_norm) if isinstance(norm, LayerNorm | RMSNorm) else add_norm)(x, delta, norm)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if self.recording:
            self._record(func, [*args, *(kwargs or {}).values()], found)
        return found

    def _record(self, func: Any, arguments: Sequence[Any], found: Any) -> None:
        name, inputs, outputs = func.overloadpacket.__name__, list(_tensors(arguments)), list(_tensors(found))
        changes = func._schema.is_mutable
        storages = {_storage(tensor) for tensor in inputs}
        views = all(_storage(tensor) in storages for tensor in outputs)
        if not outputs or "empty" in name or (views and not changes):
            return
        if name == ATTENTION and inputs[0].shape[-2] == 1:
            queries, keys, _, *bias = inputs
            self.add(name, "attention", [queries, *bias], outputs, slot_bytes=_slot_bytes(keys))
        elif name == ATTENTION:  # of a prompt: scores and their mix
            operations = 4 * inputs[0].numel() * inputs[1].shape[-2]
            self.add(name, "product", inputs, outputs, values=operations, wide=inputs[0].dtype == torch.float32)
        elif name in ("linear", "mm", "addmm"):
            operations = 2 * outputs[0].numel() * inputs[0].shape[-1]
            self.add(name, "product", inputs, outputs, values=operations, wide=inputs[0].dtype == torch.float32)
        elif name in INDEXED:
            rest = inputs[1:]
            part = rest[-1:] if name == "index_copy_" else rest if changes else outputs
            self.add(name, "small", [*rest, *part], part)
        elif name in ("topk", "sort"):
            self.add(name, "select" if name == "topk" else "sort", inputs, outputs, values=inputs[0].numel())
        else:
            self.add(name, "small", inputs if name != "copy_" else inputs[1:], outputs)


def _slot_bytes(keys: Tensor) -> int:  # [R, KV, S, head_dim]
    return 2 * keys.shape[0] * keys.shape[1] * keys.shape[3] * keys.element_size()


class _Enough(Exception):
    """Ends the drawing: the step has been counted."""


def record(
    config: ModelConfig, spec: SamplerSpec, prompt: int, attention: str, dtype: torch.dtype = torch.bfloat16
) -> tuple[list[Launch], list[Launch]]:
    """Return the launches of the prompts' pass and of one step with its draw, attention being TORCH or LIVE, with which
    the other kernels run."""
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model = model.to("meta").requires_grad_(False).eval()  # with the frequencies, which are made on the CPU
    prompts = [Prompt(str(index), tuple(range(1, prompt + 1))) for index in range(spec.batch)]
    recorder, passes = Recorder(), [[], []]

    def on_step(_: int) -> None:
        nonlocal drawn
        if drawn in (0, COUNTED):
            passes[drawn > 0] = recorder.launches
        if drawn == COUNTED:
            raise _Enough
        drawn, recorder.launches = drawn + 1, []
        recorder.recording = drawn == COUNTED

    drawn, recorder.recording = 0, True
    with ExitStack() as stack:
        replaced: dict[tuple[object, str], object] = {
            (decoding, "attention_kind"): lambda model, shape: attention,
            (decoding, "attention_kernel"): lambda: recorder.attend_one,
            (decoding, "step_kernels"): lambda: Kernels(recorder.add_norm, None, recorder.as_one),
            (sampler, "noise_kind"): lambda *_: sampler.KERNEL if attention == LIVE else sampler.COMPILED,
            (sampler, "drawing_kernel"): lambda: recorder.as_one(logits.draw),
            (logits, "compiled"): recorder.as_one,
        }
        for (owner, name), stand_in in replaced.items():
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        stack.enter_context(recorder)
        try:
            for _ in generate(model, prompts, replace(spec, path="graph"), on_step):
                pass
        except _Enough:
            pass
    return passes[0], passes[1]


@dataclass(frozen=True)
class Rates:
    """What a card manages: its own, times the assumptions."""

    card: Card
    attention: str = TORCH

    def seconds(self, launch: Launch, slots: float, *, prefill: bool = False) -> float:
        bandwidth = self.card.bandwidth * rate("reads")
        moved = launch.bytes / bandwidth
        if launch.kind == "product":
            peak = self.card.single if launch.wide else self.card.half
            moved = max(moved, launch.values / (peak * rate("prefill" if prefill else "products")))
        elif launch.kind == "attention":
            share = rate("attention_live" if self.attention == LIVE else "attention_torch")
            moved += launch.slot_bytes * slots / (self.card.bandwidth * share)
        elif launch.kind in ("select", "sort"):
            moved = launch.values / rate(launch.kind)
        return rate("launch") + moved


@dataclass(frozen=True)
class StepCost:
    """A step, on average over an image or at one place."""

    launches: int
    bytes: float
    milliseconds: float
    slots: float
    """That attention reads of a row."""
    parts: dict[str, float] = field(default_factory=dict)
    """Milliseconds by kind."""


def step_cost(launches: Sequence[Launch], rates: Rates, slots: float) -> StepCost:
    parts: Counter[str] = Counter()
    for launch in launches:
        parts[launch.kind] += 1e3 * rates.seconds(launch, slots)
    moved = sum(launch.bytes + launch.slot_bytes * slots for launch in launches)
    return StepCost(len(launches), moved, sum(parts.values()), slots, dict(parts))


def slots_read(attention: str, positions: Sequence[int], padded: int, counts: Sequence[int]) -> float:
    """Return the mean slots that a row reads in the steps before the codes at `positions`; `counts` are the tokens of
    the rows' prompts. Torch's attention reads whole spans from the first slot on, padding included."""
    if attention == LIVE:
        return sum(counts) / len(counts) + sum(positions) / len(positions)
    span = PATHS["graph"].slots
    return sum(-(-(padded + position) // span) * span for position in positions) / len(positions)


# the cases


@dataclass(frozen=True)
class Case:
    """What is drawn, by a model of one shape."""

    name: str
    config: ModelConfig
    codes: int
    batch: int
    params: SamplingParams
    decoder: str
    decoder_dtype: str
    shard: int
    """Images of a shard as declared."""
    prompt: int
    unconditional: int
    """Tokens of the prompt without text."""

    def spec(self, bucket: int, cache_dtype: str | None = None) -> SamplerSpec:
        without = tuple(range(1, self.unconditional + 1)) if self.params.guided else None
        assert LAYOUT.image_ids is not None
        ids, batch = LAYOUT.image_ids, self.batch
        return SamplerSpec(ids, self.codes, self.params, batch, without, bucket, cache_dtype=cache_dtype)

    def padded(self, bucket: int) -> int:
        return -(-max(self.prompt, self.unconditional) // bucket) * bucket

    @property
    def counts(self) -> list[int]:
        return [self.prompt, self.unconditional] if self.params.guided else [self.prompt]

    def fitting(self, card: Card, spec: SamplerSpec, reserved: int) -> SamplerSpec:
        """Return `spec` with its own batch, its half, …: the largest that fits, with `reserved` bytes for decoding."""
        while spec.batch > 1:
            padded = self.padded(spec.bucket)
            use = footprint(self.config, spec, padded, torch.bfloat16, device="cuda", reserved=reserved)
            if HEADROOM * use.added <= card.memory - rate("context") - use.weights:
                break
            spec = replace(spec, batch=spec.batch // 2)
        return spec


def cases(prompt: int, unconditional: int, *, layers: int | None = None) -> list[Case]:
    """Return what the shipped suite draws with the 1B model, in 1,024 codes and at half the side in 256."""
    path = SHIPPED_SUITES / "coco-fid-30k.yaml"
    [task] = parse_suite(read_yaml(path.read_bytes(), 10_000), path.stem, path.parent).tasks
    asked = task.parameters
    names = ("temperature", "top_k", "top_p", "guidance_scale", "seed")
    params = SamplingParams(**{name: asked[name] for name in names})
    config = widened("open_lm_1b", LAYOUT.rows or 0)
    if layers is not None:
        config = config.model_copy(update={"n_layers": layers})
    found = []
    for codes in (256, 1_024):
        for norm, title in ((config.model_norm, "layer norm"), ("rms_norm", "RMS norm")):
            model = config.model_copy(update={"model_norm": norm})
            name = f"{codes:,} codes, {title}"
            options = (codes, asked["batch"], params, asked["decoder"], asked["decoder_dtype"], asked["shard_size"])
            found.append(Case(name, model, *options, prompt, unconditional))
    return found


# the stages


@dataclass(frozen=True)
class Stages:
    """Seconds of a batch, and what follows for a shard."""

    batch: int
    """That fits."""
    prefill: float
    sampling: float
    """All steps."""
    decoding: float
    features: float
    captures: float
    """A shard's."""
    digest: float
    """A shard's."""
    batches: float
    """Of a shard; with dummies more than its images need."""
    images: int
    """Of a shard."""

    @property
    def images_per_second(self) -> float:
        """Sampling and what follows overlap but in the last batch."""
        drawn, shown = self.prefill + self.sampling, self.decoding + self.features
        whole = drawn + (self.batches - 1) * max(drawn, shown) + shown
        return self.images / (whole + self.captures + self.digest)


def operations(network: Callable[[], object]) -> int:
    """Count those of a network on `meta`, as it is written."""
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        network()
    return int(counter.get_total_flops())


@functools.cache
def decoder_of(name: str) -> MoVQGAN:
    with torch.device("meta"):
        return MoVQGAN.from_config(REGISTERED[name])


@functools.cache
def decoder_operations(name: str, codes: int) -> int:
    decoder, side = decoder_of(name), int(codes**0.5)
    ids = torch.empty(1, codes, dtype=torch.int64, device="meta")
    return operations(lambda: decoder.render(decoder.lookup(ids, (side, side))))


@functools.cache
def inception_operations() -> int:
    with torch.device("meta"):
        network: nn.Module = _Network()
        image = torch.empty(1, 3, 299, 299)
    return operations(lambda: network(image, True, False))


def batches_of(lengths: Sequence[int], bucket: int, shard: int, batch: int) -> float:
    """Return the batches of a shard on average: prompts of each padded length are batches of their own."""
    whole = [lengths[start : start + shard] for start in range(0, len(lengths) - shard + 1, shard)]
    counts = [Counter(-(-length // bucket) for length in part).values() for part in whole]
    return sum(-(-count // batch) for part in counts for count in part) / len(whole)


def prompt_lengths(mean: int) -> list[int]:
    draw = random.Random(0)
    return [max(1, round(draw.gauss(mean, rate("prompt_spread")))) for _ in range(CAPTIONS)]


# the predictions


@dataclass(frozen=True)
class Prediction:
    case: str
    way: str
    step: StepCost
    batch: int
    floor_ms: float
    """By bandwidth and least bytes alone: weights once, and the live keys and values of all rows."""
    stages: Stages

    @property
    def share(self) -> float:
        """Of the roofline."""
        return self.floor_ms / self.step.milliseconds

    def to_json(self) -> dict[str, object]:
        rates = {"share_of_roofline": self.share, "images_per_second": self.stages.images_per_second}
        return {**asdict(self), **rates}


@dataclass(frozen=True)
class Way:
    """A state of the path."""

    name: str
    attention: str
    cache_dtype: str | None = None


WAYS = (Way("before", TORCH), Way("after", LIVE), Way("after, float8 keys", LIVE, "float8"))


def predict(case: Case, way: Way, card: Card) -> Prediction:
    bucket = BUCKETS["before" if way.attention == TORCH else "after"]
    side = int(case.codes**0.5)
    with torch.device("meta"):
        reserved = decoder_of(case.decoder).decode_bytes((side, side)) + 6 * 64 * case.codes * 3 * case.batch
    spec, padded = case.fitting(card, case.spec(bucket, way.cache_dtype), reserved), case.padded(bucket)
    batch = spec.batch
    prompts, launches = record(case.config, spec, case.prompt, way.attention)
    rates, positions = Rates(card, way.attention), range(1, case.codes)
    step = step_cost(launches, rates, slots_read(way.attention, positions, padded, case.counts))
    work = Work(case.config, batch, prompt=case.prompt, length=case.codes, codebook=len(spec.image_ids))
    live = slots_read(LIVE, positions, padded, case.counts)
    per_slot = sum(launch.slot_bytes for launch in launches)
    least = work.bytes_read(0) + per_slot * live
    floor = max(least / card.bandwidth, spec.rows * 2 * work.weights / card.half)
    return Prediction(case.name, way.name, step, batch, 1e3 * floor, _stages(case, way, card, prompts, step, batch))


def _stages(case: Case, way: Way, card: Card, prompts: Sequence[Launch], step: StepCost, batch: int) -> Stages:
    before, rates = way.attention == TORCH, Rates(card, way.attention)
    bucket = BUCKETS["before" if before else "after"]
    spans = (case.padded(bucket) + case.codes) // PATHS["graph"].slots + 1
    weights = sum(parameter.nbytes for parameter in decoder_of(case.decoder).parameters())
    single = card.single if case.decoder_dtype == "float32" else card.half
    shown = decoder_operations(case.decoder, case.codes) / (single * rate("convolutions"))
    return Stages(
        batch,
        prefill=sum(rates.seconds(launch, 0, prefill=True) for launch in prompts),
        sampling=step.milliseconds * 1e-3 * (case.codes - 1),
        decoding=batch * shown,
        features=batch * inception_operations() / (card.single * rate("convolutions")),
        captures=rate("capture") * (spans if before else 1),
        digest=weights / rate("digest") if before else 0.0,
        batches=batches_of(prompt_lengths(case.prompt), bucket, case.shard, batch),
        images=case.shard,
    )


def print_prediction(found: Prediction) -> None:
    step, stages = found.step, found.stages
    print(
        f"{found.case:24} {found.way:26} {found.batch:5} {step.launches:8} {step.slots:7.0f} {step.bytes / 1e9:7.2f} "
        f"{step.milliseconds:7.2f} {found.share:6.0%} {1e3 * stages.prefill:8.0f} {stages.sampling:8.2f} "
        f"{stages.decoding + stages.features:8.2f} {stages.batches:8.2f} {stages.images_per_second:8.1f} "
        f"{IMAGES / stages.images_per_second / 3600:6.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--card", default="h100", choices=sorted(HERE))
    parser.add_argument("--prompt", type=int, default=36, help="tokens before the first code")
    parser.add_argument("--unconditional", type=int, help="tokens of the prompt without text [the layout's]")
    parser.add_argument("--output", type=Path, help="a file for the JSON document")
    parser.add_argument("--quick", action="store_true", help="two layers: shows that it works")
    arguments = parser.parse_args()
    unconditional = arguments.unconditional or len(LAYOUT.prompt(None, GRID_CODES).ids)
    card = HERE[arguments.card]
    print(f"card      {arguments.card}: {card.bandwidth / 1e12:.2f} TB/s, {card.half / 1e12:.0f} TFLOP/s, predicted")
    print(f"prompts   {arguments.prompt} tokens, {unconditional} without text")
    for name, assumption in ASSUMPTIONS.items():
        print(f"{name:16}{assumption.value:<8g} {assumption.unit:20} {assumption.source}")
    print(
        f"\n{'':24} {'':26} {'batch':>5} {'launches':>8} {'slots':>7} {'GB':>7} {'ms':>7} {'of it':>6} {'prompts':>8} "
        f"{'sampling':>8} {'decoding':>8} {'batches':>8} {'images/s':>8} {'hours':>6}"
    )
    found = []
    for case in cases(arguments.prompt, unconditional, layers=2 if arguments.quick else None):
        for way in WAYS:
            found.append(predict(case, way, card))
            print_prediction(found[-1])
        print(f"{case.name:24} {'goal, H100':26} {'':29} {GOALS[case.codes]:7.1f}\n")
    print(
        "ms of a step, on average over an image; `of it`: the roofline's share; seconds of a batch; a shard's batches"
    )
    document: dict[str, Any] = {
        "card": arguments.card,
        "assumptions": {name: asdict(assumption) for name, assumption in ASSUMPTIONS.items()},
        "goals_ms": GOALS,
        "predictions": [prediction.to_json() for prediction in found],
    }
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"benchmark": "card_model", "ratios": {}, **document}, indent=1))
    print_last_line("card_model", {}, **document)


GRID_CODES = 1_024
"""Codes of an image for which the prompt without text is asked."""

if __name__ == "__main__":
    main()
