"""Does an evaluation survive that memory runs out, in sampling, in decoding and inside of a library, with equal codes?

On a card the allocator refuses for real: what this process may take is lowered while the work runs. On a CPU, where
memory that other sections have freed may serve in the place of what is refused, the error is raised by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from evalsvc.decoders.movqgan import MoVQGAN
from evalsvc.errors import EvalsvcError
from evalsvc.models import Transformer
from evalsvc.sampling import cache_bytes
from evalsvc.sampling.fitting import BatchShape, KeptSampler, generate_fitting
from evalsvc.sampling.memory import is_out_of_memory
from evalsvc.spec.layout import VocabularyLayout, parse_layout
from evalsvc.spec.model_config import ModelConfig
from evalsvc.tasks.image_features import FeaturePass
from evalsvc.tasks.image_work import SampleOutput
from evalsvc.tasks.task import Context
from evalsvc.tasks.text_to_image.pipeline import sample_images
from evalsvc.tasks.text_to_image.prompts import PromptRecord
from evalsvc.tasks.text_to_image.spec import TextToImage
from on_card.kit import Kit, Row, figure, holds, left_out
from on_card.shapes import Subject, codes_of

MIB = 1 << 20
BATCH = 384
"""Half of it must fit and the whole must not: its keys are larger than what libraries take on the side."""
COMPARED, COMPARED_CODES = 256, 8
"""Prompts and codes of each that are compared: with another batch, sums may round otherwise, and in many codes one
turns."""
LEFT = 0.9
"""Of the keys and values of a batch, that is left for it."""
PRODUCT_LEFT = 4 * MIB
"""Left for a product: enough for its result, too little for a workspace of cuBLAS."""
BALLAST = 256 * MIB
IMAGES = 8
DECODER = {
    "embed_dim": 4,
    "n_embed": 16,
    "ddconfig": {
        "double_z": False,
        "z_channels": 4,
        "resolution": 32,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [16],
        "dropout": 0.0,
    },
}


def run(kit: Kit) -> Iterator[Row]:
    """Let memory run out in three places."""
    yield from _sampling(kit)
    kit.release()
    yield from _decoding(kit)
    kit.release()
    yield from _libraries(kit)


BY_HAND = "raised by hand: there is no allocator to refuse"


@contextmanager
def little_left(device: torch.device) -> Iterator[Callable[[int], None]]:
    """Yield a function after whose call this process may take so many bytes more of a card; all again at the end."""
    total = torch.cuda.get_device_properties(device).total_memory
    before = torch.cuda.get_per_process_memory_fraction(device)

    def leave(count: int) -> None:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        most = (torch.cuda.memory_reserved(device) + count) / total
        torch.cuda.set_per_process_memory_fraction(min(before, most), device)

    try:
        yield leave
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


def _how(kit: Kit) -> str:
    return "allocator" if kit.on_card else "error by hand"


# in sampling


def _subject(kit: Kit) -> Subject:
    width, layers, length = (256, 32, 49) if kit.on_card else (80, 8, 33)  # graphs take whole spans of 64 slots
    fields = {"hidden_dim": width, "n_layers": layers, "n_heads": 2, "seq_len": 256, "vocab_size": 400}
    config = ModelConfig.model_validate({**fields, "post_embed_norm": False, "weight_tying": False})
    return Subject("float32", config, codebook=80, dtype=torch.float32, prompt=12, length=length)


def _sampling(kit: Kit) -> Iterator[Row]:
    """Take away a part of the memory after the batch was chosen."""
    subject = _subject(kit)
    model, spec, prompts = subject.build(kit.device), subject.spec(BATCH), subject.prompts(BATCH)
    undisturbed = codes_of(model, prompts, spec)
    kit.release()
    cache = cache_bytes(subject.config, BATCH, subject.padded + subject.length - 1, subject.dtype)
    shapes: list[BatchShape] = []
    drawn = torch.full_like(undisturbed, -1)
    with ExitStack() as stack:
        leave = stack.enter_context(little_left(kit.device)) if kit.on_card else None

        def on_shape(shape: BatchShape) -> None:
            shapes.append(shape)
            if len(shapes) == 1 and leave is not None:
                leave(int(LEFT * cache))

        def on_step(codes: int) -> None:
            if leave is None and len(shapes) == 1 and codes > BATCH * subject.length // 2:
                raise MemoryError(BY_HAND)

        for samples in generate_fitting(model, prompts, spec, on_step, on_shape=on_shape):
            drawn[list(samples.indices)] = samples.codes.cpu()
            del samples
    found = ", ".join(f"{shape.batch} {shape.reason}" for shape in shapes)
    halved = [shape.reason for shape in shapes[:2]] == ["declared", "out of memory"]
    yield holds(f"sampling halves ({_how(kit)})", halved, found, cache_mib=cache / MIB)
    expected, found_codes = undisturbed[:COMPARED, :COMPARED_CODES], drawn[:COMPARED, :COMPARED_CODES]
    equal = float((kit.touched(expected.contiguous()) == found_codes).double().mean())
    yield holds("its codes are those of an undisturbed run", equal == 1, f"{equal:.4%}")


# in decoding


class ShortOfMemory(MoVQGAN):
    """A decoder for which memory runs out when it is given more than `most` images."""

    most: int | None = None
    refused: int = 0
    """How often it did."""

    def decode(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        if self.most is None or len(codes) <= self.most:
            return super().decode(codes, grid)
        self.refused += 1
        if codes.device.type != "cuda":
            raise MemoryError(BY_HAND)
        with little_left(codes.device) as leave:
            leave(0)
            torch.empty(BALLAST, dtype=torch.uint8, device=codes.device)  # refused, however little the images take
            return super().decode(codes, grid)


@dataclass
class Work:
    """What the pipeline asks for, of a model that is in no checkpoint."""

    transformer: Transformer
    provenance: dict[str, Any] = field(default_factory=dict)
    checkpoint: Any = field(default_factory=lambda: SimpleNamespace(label="random weights"))
    sampler: KeptSampler = field(default_factory=KeptSampler)

    @property
    def device(self) -> str:
        return str(self.transformer.device)

    def model(self, *, dtype: str, rotary_inv_freq_dtype: str) -> Transformer:
        return self.transformer

    def rotary(self) -> Mapping[str, str]:
        return {}

    def report(self, done: int) -> None:
        pass


def _decoding(kit: Kit) -> Iterator[Row]:
    """Sample images undisturbed, then with a decoder that gets memory for half a batch at a time."""
    layout = parse_layout({"preset": "image-then-special", "text_size": 300, "codebook_size": 16}).resolve(400)
    subject = Subject("float32", _subject(kit).config, codebook=16, dtype=torch.float32, prompt=12, length=16)
    model, decoder = subject.build(kit.device), _decoder(kit.device)
    undisturbed, _ = _images(kit, model, layout, decoder)
    decoder.most = IMAGES // 2
    try:
        images, provenance = _images(kit, model, layout, decoder)
    except Exception as error:
        if not (is_out_of_memory(error) or isinstance(error, EvalsvcError)):
            raise
        yield holds("decoding goes on with fewer images", False, f"{type(error).__name__}: {error}"[:200])
        return
    refused = f"refused {decoder.refused} times"
    yield holds(f"decoding goes on with fewer images ({_how(kit)})", decoder.refused > 0, refused, **provenance)
    equal = undisturbed.images == images.images
    some = [asdict(image) for image in images.images[:2]]
    yield holds("its codes are those of an undisturbed run, too", equal, items=some)
    pictures = [one.png for one in undisturbed.kept] == [one.png for one in images.kept]
    yield figure("its pictures are equal", "yes" if pictures else "no")


def _decoder(device: torch.device) -> ShortOfMemory:
    decoder = ShortOfMemory.from_config(copy.deepcopy(DECODER))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.dim() == 4 else 0.6 * noise)
    return decoder.to(device).requires_grad_(False).eval()


def _images(
    kit: Kit, model: Transformer, layout: VocabularyLayout, decoder: ShortOfMemory
) -> tuple[SampleOutput, dict[str, Any]]:
    """Return a shard of one batch, and what its provenance says of sampling."""
    task = TextToImage(name="images", decoder="random", samples=IMAGES, batch=IMAGES, size=8, keep=IMAGES)
    work = Work(model)
    context = cast(Context, work)
    records = _records(layout)
    output = sample_images(context, task, layout, decoder, FeaturePass(context, (), ()), records, scale=1.0)
    kit.release()
    return output, work.provenance


def _records(layout: VocabularyLayout) -> Sequence[PromptRecord]:
    prompts = [layout.prompt([1 + index, 2, 3], 16) for index in range(IMAGES)]
    return [PromptRecord(str(index), "", tuple(prompt.ids), 0, None, None) for index, prompt in enumerate(prompts)]


# in libraries


def _libraries(kit: Kit) -> Iterator[Row]:
    """Multiply on a new stream with no memory left for the workspace that cuBLAS takes there."""
    what = "a workspace that cuBLAS lacks is out of memory"
    if not kit.on_card:
        yield left_out(what, "no card, no cuBLAS")
        return
    left = torch.randn(512, 512, device=kit.device, dtype=torch.bfloat16)
    said: Exception | None = None
    stream = torch.cuda.Stream(kit.device)
    with little_left(kit.device) as leave:
        torch._C._cuda_clearCublasWorkspaces()
        leave(PRODUCT_LEFT)
        try:
            with torch.cuda.stream(stream):
                left @ left
            torch.cuda.synchronize(kit.device)
        except Exception as error:
            said = error.with_traceback(None)
    if said is None:
        yield left_out(what, "the product found memory enough")
    else:
        yield holds(what, is_out_of_memory(said), f"{type(said).__name__}: {said}".splitlines()[0][:120])
    again = left @ left
    yield holds("products work again afterwards", bool(torch.isfinite(again).all()))
